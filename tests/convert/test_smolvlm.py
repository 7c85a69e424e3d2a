"""SmolVLM and Idefics3 as published, against transformers' class, processor and tokenizer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.idefics3 import modeling_idefics3

from edgeprism.convert.families import smolvlm
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import graph
from edgeprism.errors import CheckpointError
from tests.helpers import tiled
from tests.helpers.converting import convert_family
from tests.helpers.tiny_smolvlm import FAKE, SPECS, Spec, TinyCheckpoint, write


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], TinyCheckpoint]:
    return tiled.once_per_spec(write, tmp_path_factory, "smolvlm")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_and_text_are_transformers(
    spec: Spec, made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    tiny = made_of(spec)
    bundle = tiled.converted(smolvlm.FAMILY, tiny.folder, tmp_path / "b")
    tiled.same_as_reference(tiny, bundle)
    tiled.several_as_reference(tiny.output, bundle)


def test_positions_are_plain_in_the_published_precision() -> None:
    """float32 alone gives patches the position before, so the reference counts positions itself."""
    for n in (26, 32):  # of Idefics3 and SmolVLM
        boundaries = torch.arange(1 / n, 1.0, 1 / n)
        fractions = torch.arange(n, dtype=torch.bfloat16) / n * (1 - 1e-6)
        buckets = torch.bucketize(fractions, boundaries, right=True)
        if n == 32:
            assert buckets.tolist() == list(range(n))
        released = torch.arange(0, 1 - 1e-6, 1 / n)  # as the models' first release has it
        assert torch.bucketize(released, boundaries, right=True).tolist() == list(range(n))
    assert hasattr(modeling_idefics3, "Idefics3VisionEmbeddings")


# ---- mistakes that the comparison must notice


def _cells_turned(patch: pytest.MonkeyPatch) -> None:
    right = graph.join_cells

    def wrong(x: torch.Tensor, s: int) -> torch.Tensor:
        result = right(x, s)
        turned: torch.Tensor = result.unflatten(-1, (s, s, -1)).transpose(2, 3).flatten(2)
        return turned

    patch.setattr(graph, "join_cells", wrong)


def _cells_down_first(patch: pytest.MonkeyPatch) -> None:
    right = graph.join_cells

    def wrong(x: torch.Tensor, s: int) -> torch.Tensor:
        result = right(x, s)
        side = int(result.shape[1] ** 0.5)
        turned: torch.Tensor = result.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)
        return turned

    patch.setattr(graph, "join_cells", wrong)


def _other_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _: right(x, "gelu"))


def _last_norm_twice(patch: pytest.MonkeyPatch) -> None:
    right = graph.Tower.forward
    patch.setattr(graph.Tower, "forward", lambda s, x: s.norm_last(right(s, x)))


def _places_turned(patch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(smolvlm.MARKERS, before_tile=f"{FAKE}<row_{{column}}_col_{{row}}>")
    patch.setattr(smolvlm, "MARKERS", wrong)


def _one_line_feed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(smolvlm, "MARKERS", dataclasses.replace(smolvlm.MARKERS, between=""))


MISTAKES = [_cells_turned, _cells_down_first, _other_gelu, _last_norm_twice, tiled.tiles_down_first,
            tiled.overview_first, _places_turned, _one_line_feed]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__.strip("_"))
def test_mistakes_are_seen(
    mistake: tiled.Mistake,
    made_of: Callable[[Spec], TinyCheckpoint],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result, picture = made_of(SPECS[0]), tiled.pictures()[1]
    expected = result.output(picture)
    mistake(monkeypatch)
    bundle = tiled.converted(smolvlm.FAMILY, result.folder, tmp_path / "b")
    assert not tiled.equal(tiled.bundle_output(bundle, picture), expected)


# ---- refusals


def refused(folder: Path, out: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert_family("smolvlm", out, ConvertOptions(("fp32",), "F32"), {"captioner": folder})
    assert not out.exists()
    assert list(out.parent.glob(f".{out.name}*")) == []
    return caught.value.message


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("config.json", {"model_type": "llava"}, "expected: model_type idefics3 or smolvlm"),
        ("config.json", {"scale_factor": 3}, "does not divide 8 patches"),
        ("preprocessor_config.json", {"do_image_splitting": False}, "do_image_splitting"),
        ("preprocessor_config.json", {"max_image_size": {"longest_edge": 40}}, "takes 32"),
        ("preprocessor_config.json", {"size": {"longest_edge": 32}}, "size"),
        ("preprocessor_config.json", {"size": {"height": 9, "width": 9}}, "size"),
        ("preprocessor_config.json", {"resample": 9}, "resample 9"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    made_of: Callable[[Spec], TinyCheckpoint],
    tmp_path: Path,
    file: str,
    change: dict[str, Any],
    expected: str,
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in made_of(SPECS[0]).folder.iterdir():
        (folder / path.name).symlink_to(path)
    data = json.loads((folder / file).read_text())
    (folder / file).unlink()
    (folder / file).write_text(json.dumps({**data, **change}))
    assert expected in refused(folder, tmp_path / "b")


def test_a_tokenizer_without_the_markers_is_refused(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in made_of(SPECS[0]).folder.iterdir():
        (folder / path.name).symlink_to(path)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").write_text(text.replace("<row_2_col_3>", "<row_2_col_x>"))
    assert "no token is named <row_2_col_3>" in refused(folder, tmp_path / "b")
