"""Stage two: the loss for captions, and greedy captions to check the progress."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgeprism.models.nano.recipe.learn.data import Batch, heldout_scenes, scenes_to_batch
from edgeprism.models.nano.recipe.learn.model import Cache, Decoder, Nano
from edgeprism.models.nano.recipe.learn.tokenizer import (
    DEFAULT_INSTRUCTION,
    FOCUS,
    IM_END,
    LONG_INSTRUCTIONS,
    SHORT_INSTRUCTIONS,
    VOCAB,
    WORDS,
    ids_to_text,
    prompt_to_ids,
    text_to_ids,
)
from edgeprism.models.nano.recipe.measure.scoring import score_captions
from edgeprism.models.nano.recipe.world.absent import (
    ABSENT_KINDS,
    SPOKEN_KINDS,
    ask_absent,
    ask_class,
    ask_spoken,
)
from edgeprism.models.nano.recipe.world.draw import Assets
from edgeprism.models.nano.recipe.world.grammar import (
    ASK,
    NUMBERS,
    WORDINGS,
    Query,
    ask_count,
    scene_to_list,
    scene_to_relation,
    scene_to_short,
)
from edgeprism.models.nano.recipe.world.labels import IDENTITIES, PATCH_LABELS
from edgeprism.models.nano.recipe.world.scene import CHARS, COLOURS, SHAPES, SIZES, Sampling, Scene
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural

IGNORE = -100
SWAP_SHARE = 0.03
ALIGNED = 0.3  # weight of `align_loss`
CAPTIONS = 4  # per training picture: a long one, the others short or with a focus
TAUGHT: dict[str, Callable[[Scene, random.Random], Query | None]] = {
    **ASK,
    "none": partial(ask_count, absent=1.0),
    **{f"absent {kind}": partial(ask_absent, kind) for kind in ABSENT_KINDS},
    **{f"spoken {kind}": partial(ask_spoken, kind) for kind in SPOKEN_KINDS},
    "class": ask_class,
}
# Kinds of focus, each as often as training samples it: the hardest kinds more often. To copy any
# word from a focus is learnt late, so what is absent is asked for twice as often as the rest.
FOCUS_KINDS = (
    *TAUGHT, *(f"absent {kind}" for kind in ABSENT_KINDS),
    "relation", "relation", "relation", "text", "count", "count", "count", "chart", "place",
)  # fmt: skip
# Words that only the picture decides weigh more than the words around them, which are learnt soon.
LETTER_WEIGHT, PLACE_WEIGHT = 3.0, 2.0
ENDING_WEIGHT = 3.0  # of the words after the list, which depend on the instruction
PLACE_WORDS = ("above", "below", "left", "right", "top", "bottom", "centre", *NUMBERS)


@cache
def _swaps() -> dict[int, list[int]]:
    """Return {token of a word that the picture decides: tokens of all others of its kind}."""
    swaps: dict[int, list[int]] = {}
    kinds = (tuple(COLOURS), SHAPES, tuple(SIZES), tuple(THINGS), tuple(map(to_plural, THINGS)))
    for kind in (*(tuple(" " + w for w in k) for k in kinds), tuple(CHARS)):
        pieces = [text_to_ids(word) for word in kind]
        ids = [p[0] for p in pieces if len(p) == 1]
        for token in ids:
            swaps[token] = [other for other in ids if other != token]
    return swaps


def instruct(query: Query, rng: random.Random) -> str:
    """Return an instruction with a focus in a wording of training (the last is for tests)."""
    number = rng.randrange(len(WORDINGS[query.kind]) - 1)
    focus = query.focuses[number]
    if rng.random() < 0.15:
        return focus[0].upper() + focus[1:]  # the focus itself is the instruction
    base = DEFAULT_INSTRUCTION if rng.random() < 0.7 else rng.choice(LONG_INSTRUCTIONS[:6])
    return base + FOCUS + focus


class Lesson(NamedTuple):
    """An instruction and its caption: a list of the items, and an ending."""

    instruction: str
    listed: str
    ending: str = ""

    @property
    def caption(self) -> str:
        """The list and the ending."""
        return f"{self.listed} {self.ending}".rstrip()


def scene_to_lessons(scene: Scene, rng: random.Random) -> list[Lesson]:
    """Return ``CAPTIONS`` lessons; the first is the long caption."""
    instruction = DEFAULT_INSTRUCTION if rng.random() < 0.6 else rng.choice(LONG_INSTRUCTIONS)
    if rng.random() < 0.25:  # an instruction without meaning must leave the caption unchanged
        made_up = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 8)))
        instruction = made_up.capitalize() if rng.random() < 0.4 else instruction + FOCUS + made_up
    listed = scene_to_list(scene)
    lessons = [Lesson(instruction, listed, scene_to_relation(scene))]
    for kind in rng.sample(FOCUS_KINDS, len(FOCUS_KINDS)):
        query = TAUGHT[kind](scene, rng) if len(lessons) < CAPTIONS - (rng.random() < 0.3) else None
        if query is not None:
            lessons.append(Lesson(instruct(query, rng), listed, query.sentence))
    while len(lessons) < CAPTIONS:
        lessons.append(Lesson(rng.choice(SHORT_INSTRUCTIONS), scene_to_short(scene)))
    return lessons


@cache
def _token_weights() -> Tensor:
    """Return each token's weight in the loss, [VOCAB]."""
    weights = torch.ones(VOCAB)
    for weight, words in ((LETTER_WEIGHT, CHARS), (PLACE_WEIGHT, PLACE_WORDS)):
        for word in words:
            for pieces in (text_to_ids(word), text_to_ids(" " + word)):
                if len(pieces) == 1:
                    weights[pieces[0]] = weight
    return weights


def token_loss(logits: Tensor, targets: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the tokens' cross-entropies, and the sum of their weights.

    Logits [n, VOCAB]; targets [n]; `after` [n]: which targets come after the list.
    """
    weights = _token_weights().to(logits.device)[targets] * (1 + (ENDING_WEIGHT - 1) * after)
    losses = F.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * weights).sum(), weights.sum()


def lessons_to_ids(
    lessons: list[Lesson], rng: random.Random | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids after the picture, targets (captions only) and which come after the list.

    Each has the shape [n, longest]. ``rng`` swaps some of the caption's *input* words that the
    picture decides for others of their kind, while the targets stay true. So the decoder learns to
    take each word from the picture rather than from the words before it.
    """
    swaps = _swaps() if rng is not None else {}
    rows = [
        (prompt_to_ids(lesson.instruction)[1], text_to_ids(lesson.caption)) for lesson in lessons
    ]
    longest = max(len(before) + len(caption) for before, caption in rows)
    inputs = torch.full((len(rows), longest), IM_END)
    targets = torch.full((len(rows), longest), IGNORE)
    after = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, (before, caption) in enumerate(rows):
        start = len(before) - 1  # the row before a token predicts it
        targets[i, start : start + len(caption) + 1] = torch.tensor([*caption, IM_END])
        after[i, start + len(text_to_ids(lessons[i].listed)) : start + len(caption)] = True
        if rng is not None:
            caption = [
                rng.choice(swaps[t]) if t in swaps and rng.random() < SWAP_SHARE else t
                for t in caption
            ]
        inputs[i, : len(before) + len(caption)] = torch.tensor([*before, *caption])
    return inputs, targets, after


@cache
def _label_tokens() -> dict[int, list[int]]:
    """Return {column of the patch labels: token of each class's name, or -1 without one}."""

    def token(word: str) -> int:
        return text_to_ids(word)[0]

    names = [" " + n.rpartition(" of ")[2] for n in IDENTITIES]
    words = {
        "identity": [token(n) for n in names[: len(THINGS) + len(SHAPES)]] + [-1] * 3,
        "colour": [token(" " + c) for c in COLOURS],
        "size": [token(" " + s) for s in SIZES],
        "char": [token(c) for c in CHARS],
        "value": [token(str(v)[0]) for v in range(PATCH_LABELS["value"])],
        "count": [token(" " + n) for n in NUMBERS[1:]],
    }
    return {list(PATCH_LABELS).index(label): tokens for label, tokens in words.items()}


def align_loss(model: Nano, visual: Tensor, batch: Batch) -> Tensor:
    """Return a loss with which every projected token predicts the word for its content.

    The prediction uses the decoder's own output matrix. So the decoder only has to find the right
    visual token and pass it on; otherwise it would learn a separate path from picture to word for
    each word.
    """
    labels = torch.from_numpy(batch.patch_labels).to(visual.device).long().flatten(0, 1)
    rows = model.decoder.norm(visual.flatten(0, 1))
    total: Tensor = rows.new_zeros((), dtype=torch.float32)
    for column, listed in _label_tokens().items():
        tokens = torch.tensor(listed, device=visual.device)
        label = labels[:, column]
        labelled = (label >= 0) & (tokens[label.clamp(min=0)] >= 0)
        if not bool(labelled.any()):
            continue
        words, positions = tokens[tokens >= 0].unique(return_inverse=True)
        place = torch.full_like(tokens, -1)
        place[tokens >= 0] = positions
        logits = F.linear(rows[labelled], model.decoder.output.weight[words]).float()
        total = total + F.cross_entropy(logits, place[label[labelled]])
    return total


def decode(decoder: Decoder, rows: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
    """Run rows [b, n, width] through all layers; return rows (no logits) and longer cache."""
    start = 0 if cache is None else cache[0][0].shape[2]
    cos, sin = decoder.get_buffer("cos"), decoder.get_buffer("sin")
    cos, sin = cos[start : start + rows.shape[1]], sin[start : start + rows.shape[1]]
    grown: Cache = []
    for i, layer in enumerate(decoder.layers):
        rows, kv = layer(rows, cos, sin, None if cache is None else cache[i])
        grown.append(kv)
    return rows, grown


def prefill_picture(model: Nano, visual: Tensor) -> Cache:
    """Return the decoder's cache after the prompt's beginning and the picture's tokens."""
    before = torch.tensor(prompt_to_ids("")[0], device=visual.device)
    rows = model.embed(before).expand(len(visual), -1, -1)
    return decode(model.decoder, torch.cat((rows, visual.to(rows.dtype)), dim=1), None)[1]


def teach(scenes: tuple[Scene, ...], seed: int, number: int) -> tuple[NDArray[Any], ...]:
    """Return the lessons of training batch ``number`` in the form of ``lessons_to_ids``."""
    rng = random.Random(f"nano-wide/caption/{seed}/{number}")
    lessons = [lesson for scene in scenes for lesson in scene_to_lessons(scene, rng)]
    return tuple(t.numpy() for t in lessons_to_ids(lessons, rng))


def caption_loss(model: Nano, batch: Batch, device: torch.device) -> Tensor:
    """Return the cross-entropy of several true captions per picture, which is prefilled once.

    The tower stays unchanged; a step without its backward pass costs much less.
    """
    inputs, targets, after = (torch.from_numpy(a).to(device) for a in batch.lessons)
    with torch.no_grad():
        features = model.tower(torch.from_numpy(batch.pixels).to(device))
    visual = model.projector(features)
    cache = prefill_picture(model, visual)
    # In chunks of similar length: otherwise one long instruction would pad every row to its length.
    lengths = (targets != IGNORE).long().cumsum(1).argmax(1) + 1
    total: Tensor = features.new_zeros(())
    weight: Tensor = features.new_zeros(())
    for rows in lengths.argsort().chunk(2 * CAPTIONS):
        n = int(lengths[rows].max())
        expanded = [(k[rows // CAPTIONS], v[rows // CAPTIONS]) for k, v in cache]
        out, _ = decode(model.decoder, model.embed(inputs[rows, :n]), expanded)
        expected = targets[rows, :n]
        used = expected != IGNORE
        logits = model.decoder.output(model.decoder.norm(out[used]))
        loss, loss_weight = token_loss(logits, expected[used], after[rows, :n][used])
        total, weight = total + loss, weight + loss_weight
    return total / weight + ALIGNED * align_loss(model, visual, batch)


@torch.no_grad()
def write_captions(
    model: Nano, pixels: Tensor, instructions: list[str], limit: int = 80
) -> list[str]:
    """Caption uint8 pixels [b, side, side, 3] greedily, with one instruction per picture."""
    texts = []
    for i, instruction in enumerate(instructions):
        cache = prefill_picture(model, model.projector(model.tower(pixels[i : i + 1])))
        ids = torch.tensor([prompt_to_ids(instruction)[1]], device=pixels.device)
        written: list[int] = []
        while len(written) < limit:
            rows, cache = decode(model.decoder, model.embed(ids), cache)
            token = int(model.decoder.output(model.decoder.norm(rows[:, -1])).argmax(-1))
            if token == IM_END:
                break
            written.append(token)
            ids = torch.tensor([[token]], device=pixels.device)
        texts.append(ids_to_text(written))
    return texts


def caption_score(
    model: Nano, device: torch.device, scenes: int, assets: Assets
) -> dict[str, float]:
    """Return the table's rows on held-out scenes, with the generic instruction."""
    sampled = heldout_scenes(1, scenes, Sampling(unseen=True))
    pixels = torch.from_numpy(scenes_to_batch(sampled, assets).pixels).to(device)
    texts = write_captions(model, pixels, [DEFAULT_INSTRUCTION] * len(sampled))
    return score_captions(sampled, texts)
