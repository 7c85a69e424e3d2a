"""LLaVA-NeXT-Video in both published layouts, against transformers' class."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.families import llava_next_video
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import frames as frames_of_graph
from edgeprism.convert.vision import graph, stock
from edgeprism.convert.vision.config import n_used_layers
from edgeprism.convert.vision.eager import with_weights
from edgeprism.errors import CheckpointError, UsageError
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.read import read_picture
from edgeprism.progress import Progress
from tests.helpers import tiled
from tests.helpers.captions import caption_ids
from tests.helpers.converting import convert_family, parts_of
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import Case
from tests.helpers.tiny_llava_next_video import SPECS, TILE, Spec, TinyCheckpoint, change, write
from tests.helpers.videos import decoded, moving_frames, write_video

N_FRAMES = 8


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Spec], TinyCheckpoint]:
    return tiled.once_per_spec(write, tmp_path_factory, "llava-next-video")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frames = moving_frames(24, (60, 44))
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mkv", frames)


def converted(tiny: TinyCheckpoint, out: Path, **more: Any) -> Path:
    rest = {name: value for name, value in tiny.settings.items() if name != "captioner"}
    return tiled.converted(llava_next_video.FAMILY, tiny.settings["captioner"], out, **rest, **more)


def video_output(bundle: Path, path: Path) -> tiled.ModelOutput:
    with Captioner.load(
        bundle, device="cpu", threads=1, kv_type="f32", flash_attention=False,
        isolate_decoding=False,
    ) as it:  # fmt: skip
        encoded = it.encode(path)
        ids = caption_ids(
            it, encoded, instruction=tiled.INSTRUCTION, caption_tokens=tiled.N_TOKENS,
            stop_at_end=False,
        )  # fmt: skip
    return tiled.ModelOutput(encoded.visual_tokens, ids)


def shown(path: Path, count: int = N_FRAMES) -> list[np.ndarray]:
    """Return the frames that the model is to see: by NumPy's linspace, as upstream's demo does."""
    frames = decoded(path)
    return [frames[i] for i in np.linspace(0, len(frames) - 1, count, dtype=int)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_and_text_of_a_video_are_transformers(
    spec: Spec, made_of: Callable[[Spec], TinyCheckpoint], video: Path, tmp_path: Path
) -> None:
    tiny = made_of(spec)
    bundle = converted(tiny, tmp_path / "b")
    manifest = manifest_from_bundle(bundle)
    assert manifest.parity.failures == []
    side = TILE // spec.patch // 2
    assert manifest.video is not None
    assert manifest.video.grid == [side, side]
    assert manifest.video.instruction.startswith("Please provide a detailed description of the vid")
    assert len(shown(video)) * side**2 == len(video_output(bundle, video).rows)
    texts = set()
    for path, seed, size in ((video, 0, None), (tmp_path / "tall.mkv", 1, (30, 90))):
        if size is not None:
            write_video(path, moving_frames(11, size, seed))
        expected, actual = tiny.video_output(shown(path)), video_output(bundle, path)
        largest = float(np.abs(expected.rows).max())
        np.testing.assert_allclose(actual.rows, expected.rows, atol=1e-4 * largest)
        assert actual.ids == expected.ids
        texts.add(tuple(actual.ids))
    assert len(texts) == 2
    if spec.name == "hf-vicuna":  # a picture is LLaVA-NeXT's, as before
        tiled.same_as_reference(tiny, bundle)


def test_an_int8_variant_has_frames(
    made_of: Callable[[Spec], TinyCheckpoint], video: Path, tmp_path: Path
) -> None:
    tiny = made_of(SPECS[0])
    options = ConvertOptions(("fp32", "int8"), "F32", force=True)
    convert_family("llava-next-video", tmp_path / "b", options, tiny.settings)
    expected = tiny.video_output(shown(video)).rows
    for quant, error in (("fp32", 1e-5), ("int8", 0.2)):
        with Captioner.load(tmp_path / "b", vision_quant=quant) as it:
            rows = it.encode(video).visual_tokens
        assert np.linalg.norm(rows - expected) < error * np.linalg.norm(expected)


def test_the_positions_of_a_long_video_are_those_of_the_config(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    """The context of the base model times the factor; an option in place of the config's own."""
    folders = [made_of(spec).settings["captioner"] for spec in SPECS[:2]]
    now, earlier = (llava_next_video.read_layout(f, None, "", Progress()) for f in folders)
    assert llava_next_video._long(now).text_config["max_position_embeddings"] == 2560
    assert llava_next_video._long(earlier).text_config["max_position_embeddings"] == 1024
    out = converted(made_of(SPECS[1]), tmp_path / "b", rope_factor="3")
    assert manifest_from_bundle(out).lm.context_length == 3072
    for factor in ("0", "many", "nan", "65"):
        with pytest.raises(UsageError, match="rope_factor"):
            converted(made_of(SPECS[1]), tmp_path / "c", rope_factor=factor)


def test_yi_gets_its_own_conversation(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path
) -> None:
    for index, rows in ((1, 64_064), (3, 64_000)):
        settings = made_of(SPECS[index]).settings
        folder = copied(settings["captioner"], tmp_path / str(index))
        data = json.loads((folder / "config.json").read_text())
        inner = data.get("text_config", data)
        inner["vocab_size"] = rows
        change(folder, **data)
        vision = settings.get("vision")
        layout = llava_next_video.read_layout(folder, vision, "", Progress())
        assert layout.conversation == "chatml"


def test_the_field_that_nothing_reads_is_told(
    made_of: Callable[[Spec], TinyCheckpoint],
) -> None:
    said: list[str] = []

    class Told(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    llava_next_video.read_layout(made_of(SPECS[1]).settings["captioner"], None, "", Told())
    assert any("factor 2.0 outside rope_scaling" in text for text in said)


# ---- mistakes that the comparison must notice


def _pooled_after(patch: pytest.MonkeyPatch) -> None:
    right = frames_of_graph.FramePooling
    patch.setattr(frames_of_graph, "FramePooling", lambda stride, after: right(stride, not after))


def _cells_by_columns(patch: pytest.MonkeyPatch) -> None:
    right = frames_of_graph.pool_cells

    def wrong(x: torch.Tensor, stride: int) -> torch.Tensor:
        side = int(x.shape[1] ** 0.5)
        return right(x.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2), stride)

    patch.setattr(graph, "pool_cells", wrong)


def _largest_instead_of_mean(patch: pytest.MonkeyPatch) -> None:
    def wrong(x: torch.Tensor, stride: int) -> torch.Tensor:
        side = int(x.shape[1] ** 0.5)
        square = x.transpose(1, 2).unflatten(2, (side, side))
        return torch.nn.functional.max_pool2d(square, stride).flatten(2).transpose(1, 2)

    patch.setattr(graph, "pool_cells", wrong)


def _last_layer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stock, "n_used_layers", lambda config, _, where: n_used_layers(config, -1, where))


def _frames_stretched(patch: pytest.MonkeyPatch) -> None:
    from edgeprism.convert.families import llava

    right = llava._video

    def wrong(*arguments: Any) -> Any:
        return dataclasses.replace(right(*arguments), mode="stretch")

    patch.setattr(llava, "_video", wrong)


MISTAKES = {
    "pooled_after": _pooled_after, "cells_by_columns": _cells_by_columns,
    "largest": _largest_instead_of_mean, "last_layer": _last_layer,
    "frames_stretched": _frames_stretched,
}  # fmt: skip


def error_of(tiny: TinyCheckpoint, video: Path) -> float:
    """Relative error of the rows of a video's frames, run in torch; infinite for other shapes."""
    parts = parts_of(Case("llava-next-video", tiny.settings, cast("Any", None)))
    manifest, frames = parts.manifest, shown(video)
    assert manifest.video is not None
    policy = manifest.video.frame_policy(manifest.image.size)
    tiles = [picture_to_tiles(read_picture(Image.fromarray(f)), policy) for f in frames]
    module = with_weights(parts.vision(torch.float32), parts.vision_weights)
    with torch.inference_mode():
        made = module(torch.from_numpy(np.concatenate(tiles)))[-1].flatten(0, 1).numpy()
    expected = tiny.video_output(frames).rows
    if made.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(made - expected) / np.linalg.norm(expected))


def test_without_a_mistake_the_error_is_small(
    made_of: Callable[[Spec], TinyCheckpoint], video: Path
) -> None:
    assert error_of(made_of(SPECS[0]), video) < 1e-5


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_seen(
    name: str, made_of: Callable[[Spec], TinyCheckpoint], video: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tiny = made_of(SPECS[0])
    MISTAKES[name](monkeypatch)
    assert error_of(tiny, video) > 1e-3


# ---- refusals


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        if path.name == "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
        else:
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    ("spec", "fields", "expected"),
    [
        (0, {"model_type": "llava"}, "families that come close"),
        (0, {"spatial_pool_mode": "max"}, "spatial_pool_mode is 'max'"),
        (0, {"spatial_pool_stride": 0}, "spatial_pool_stride is 0"),
        (0, {"spatial_pool_size": 3}, "spatial_pool_size = 3"),
        (3, {"mm_spatial_pool_mode": "bilinear"}, "mm_spatial_pool_mode 'bilinear'"),
        (3, {"mm_newline_position": "grid"}, "mm_newline_position 'grid'"),
        (3, {"mm_resampler_type": "qformer"}, "mm_resampler_type 'qformer'"),
        (3, {"image_aspect_ratio": "pad"}, "image_aspect_ratio 'pad'"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    made_of: Callable[[Spec], TinyCheckpoint], tmp_path: Path, spec: int, fields: dict[str, Any],
    expected: str,
) -> None:  # fmt: skip
    settings = made_of(SPECS[spec]).settings
    folder = copied(settings["captioner"], tmp_path / "c")
    change(folder, **fields)
    with pytest.raises(CheckpointError) as caught:
        convert_family(
            "llava-next-video", tmp_path / "b", ConvertOptions(("fp32",), "F32"),
            {**settings, "captioner": folder},
        )  # fmt: skip
    assert not (tmp_path / "b").exists()
    assert expected in caught.value.message
