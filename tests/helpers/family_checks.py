"""What holds for every family: a tiny published checkpoint, converted, is what its reference is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import interleaved
from edgeprism.folder.events import Outcome
from edgeprism.folder.run import caption_folder
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.read import read_picture
from tests.helpers.captions import caption_ids
from tests.helpers.converting import convert_family, parts_of, tokens_by_torch
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import INSTRUCTION, Case, Reference, pictures

N_TOKENS = 32


def converted(case: Case, out: Path) -> Path:
    """Convert in float32 and return `out`."""
    convert_family(case.family, out, ConvertOptions(("fp32",), "F32"), case.settings)
    return out


def loaded(bundle: Path) -> Captioner:
    return Captioner.load(bundle, device="cpu", kv_type="f32", flash_attention=False)


def check_rows_and_texts(
    reference: Reference,
    bundle: Path,
    greedy: Callable[[Image.Image], list[int]] | None = None,
    shown: Sequence[Image.Image] = (),
) -> None:
    """Compare six pictures' visual tokens, to 1e-4 of the largest, and 32 tokens of greedy text.

    `greedy` gives the expected tokens, if they are not the reference's; `shown` are the pictures,
    if they are not the usual ones.
    """
    texts = []
    with loaded(bundle) as captioner:
        for picture in shown or pictures():
            rows = captioner.encode(picture).visual_tokens
            expected = reference.visual_tokens(picture).numpy()
            np.testing.assert_allclose(rows, expected, atol=1e-4 * float(np.abs(expected).max()))
            ids = caption_ids(
                captioner, picture, instruction=INSTRUCTION, caption_tokens=N_TOKENS,
                stop_at_end=False,
            )  # fmt: skip
            assert ids == (greedy(picture) if greedy else reference.greedy(picture, N_TOKENS))
            texts.append(tuple(ids))
    assert len(set(texts)) == len(texts)  # the pictures are told apart
    assert all(len(set(ids)) >= 8 for ids in texts)


def check_pixels(reference: Reference, bundle: Path) -> None:
    """Compare the pixels of six pictures to one grey level."""
    policy = manifest_from_bundle(bundle).image
    mean, std = (np.array(v, np.float32) for v in (reference.mean, reference.std))
    assert policy.mode == reference.mode
    for picture in pictures():
        (tile,) = picture_to_tiles(read_picture(picture), policy).astype(np.float32)
        expected = reference.pixels[0](picture)[0].permute(1, 2, 0).numpy()
        assert np.abs(tile - (expected * std + mean) * 255).max() <= 1.001


def error_of(case: Case) -> float:
    """Return the relative error of the graph, run in torch, over a wide picture and a tall one."""
    parts = parts_of(case)
    worst = 0.0
    for picture in pictures()[:2]:
        rows = tokens_by_torch(parts, picture)
        expected = case.reference.visual_tokens(picture).numpy()
        if rows.shape != expected.shape:
            return float("inf")
        difference = np.linalg.norm(rows - expected)
        worst = max(worst, float(difference / np.linalg.norm(expected)))
    return worst


def thirds_of_the_matrix(patch: pytest.MonkeyPatch) -> None:
    """Plant a mistake: queries, keys and values are cut apart as if each stood in one piece."""

    def planted(number: int, _n_heads: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def turn(packed: torch.Tensor) -> torch.Tensor:
            part = packed.chunk(3)[number]
            return part.t() if part.dim() == 2 else part

        return turn

    patch.setattr(interleaved, "_of_each_head", planted)


def check_folder(
    captioner: Captioner, bundle: Path, folder: Path, shown: list[Image.Image], n_tokens: int
) -> None:
    """Require that pictures which a folder captions together say what each says alone."""
    alone = {}
    for number, picture in enumerate(shown):
        path = folder / f"{number}.png"
        picture.save(path)
        alone[path.name] = captioner.caption(path, caption_tokens=n_tokens).text
    outcomes: list[Outcome] = []
    with loaded(bundle) as own:
        caption_folder(
            folder, own, plan=own.plan(caption_tokens=n_tokens), use_store=False, parallel=3,
            on_outcome=outcomes.append,
        )  # fmt: skip
    texts = {each.picture.path.name: each.record["caption"] for each in outcomes if each.record}
    assert texts == alone
    assert len(set(texts.values())) == len(texts)
