"""Stage two: teaching captions, and writing them greedily to see what was learnt."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from .data import Batch, heldout_scenes, scenes_to_batch
from .grammar import CaptionScore, scene_to_caption, score_caption, scores_to_table
from .model import Nano
from .scene import COLOURS, SHAPES, SIZES, Scene
from .tokenizer import (
    DEFAULT_INSTRUCTION,
    IM_END,
    ids_to_text,
    prompt_to_ids,
    random_instruction,
    text_to_ids,
)

IGNORE = -100
SWAP_SHARE = 0.3


def _swaps() -> dict[int, list[int]]:
    """Token of a colour, shape or size → tokens of all others of its kind."""
    swaps: dict[int, list[int]] = {}
    for kind in (tuple(COLOURS), SHAPES, tuple(SIZES)):
        ids = [text_to_ids(" " + word)[-1] for word in kind]
        for token in ids:
            swaps[token] = [other for other in ids if other != token]
    return swaps


def captions_to_ids(
    scenes: tuple[Scene, ...], rng: random.Random | None = None
) -> tuple[Tensor, Tensor]:
    """Decoder input ids and targets, [b, longest] each.

    With ``rng`` some of the *input* words for colour, shape and size are swapped for another of
    their kind, while the targets stay true: the word before then says little about the next one,
    and the decoder has to look at the picture. That is meant for colour-shape pairs it never read.
    """
    swaps = _swaps()
    rows = [text_to_ids(scene_to_caption(s)) for s in scenes]
    longest = max(map(len, rows)) + 1
    inputs = torch.full((len(rows), longest), IM_END)
    targets = torch.full((len(rows), longest), IGNORE)
    for i, row in enumerate(rows):
        targets[i, : len(row) + 1] = torch.tensor([*row, IM_END])
        if rng is not None:
            row = [
                rng.choice(swaps[t]) if t in swaps and rng.random() < SWAP_SHARE else t for t in row
            ]
        inputs[i, : len(row)] = torch.tensor(row)
    return inputs, targets


def rows_of_prompt(model: Nano, visual: Tensor, instruction: str) -> Tensor:
    """Prompt rows [b, n, width] around the visual tokens [b, n_tokens, width]."""
    device = visual.device
    before, after = (
        model.embed(torch.tensor(ids, device=device)).expand(len(visual), -1, -1)
        for ids in prompt_to_ids(instruction)
    )
    return torch.cat((before, visual.to(before.dtype), after), dim=1)


def caption_loss(model: Nano, batch: Batch, seed: int, step: int, device: torch.device) -> Tensor:
    """Cross-entropy of the true captions.

    The tower stays as its own stage left it: it already tells apart all there is to tell, and
    without its backward pass a step takes a third fewer operations.
    """
    rng = random.Random(f"nano/caption/{seed}/{step}")
    inputs, targets = (t.to(device) for t in captions_to_ids(batch.scenes, rng))
    with torch.no_grad():
        features = model.tower(torch.from_numpy(batch.pixels).to(device))
    prompt = rows_of_prompt(model, model.projector(features), random_instruction(rng))
    # The row before a token predicts it: the prompt's last row predicts the first.
    rows = torch.cat((prompt, model.embed(inputs[:, :-1])), dim=1)
    logits, _ = model.decoder(rows, keep=targets.shape[1])
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE)


@torch.no_grad()
def write_captions(
    model: Nano, pixels: Tensor, instruction: str = DEFAULT_INSTRUCTION, limit: int = 64
) -> list[str]:
    """Greedy captions of uint8 pixels [b, side, side, 3]."""
    rows = rows_of_prompt(model, model.projector(model.tower(pixels)), instruction)
    cache, written = None, []
    done = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
    for _ in range(limit):
        logits, cache = model.decoder(rows, cache, keep=1)
        token = logits[:, -1].argmax(-1)
        written.append(token)
        done |= token == IM_END
        if bool(done.all()):
            break
        rows = model.embed(token)[:, None]
    texts = []
    for row in torch.stack(written, dim=1).tolist():
        texts.append(ids_to_text(row[: row.index(IM_END)] if IM_END in row else row))
    return texts


def score_model(
    model: Nano,
    scenes: list[Scene],
    device: torch.device,
    instruction: str = DEFAULT_INSTRUCTION,
) -> list[CaptionScore]:
    """Score the torch model's captions of these scenes."""
    scores: list[CaptionScore] = []
    for at in range(0, len(scenes), 64):
        part = scenes[at : at + 64]
        pixels = torch.from_numpy(scenes_to_batch(part).pixels).to(device)
        texts = write_captions(model, pixels, instruction)
        scores += [score_caption(s, t) for s, t in zip(part, texts, strict=True)]
    return scores


def heldout_captions(count: int) -> list[str]:
    """True captions of scenes that are neither trained on nor scored."""
    return [scene_to_caption(s) for s in heldout_scenes(2, count)]


def caption_score(model: Nano, device: torch.device, scenes: int = 128) -> dict[str, float]:
    """The table of ``scores_to_table`` on held-out scenes."""
    drawn = heldout_scenes(1, scenes)
    return scores_to_table(score_model(model, drawn, device), drawn)
