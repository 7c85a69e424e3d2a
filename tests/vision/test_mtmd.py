"""Visual tokens through libmtmd: compared tile by tile with numpy, and stopped between nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from edgeprism.errors import Interrupted
from edgeprism.language.model import LanguageModel
from edgeprism.perceive.captioner import Captioner
from edgeprism.segments import ImageRows, Segment, Tokens
from edgeprism.vision.mtmd import MtmdEncoder
from edgeprism.vision.pair import open_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.captions import caption_ids
from tests.helpers.children import in_child
from tests.helpers.llama_reference import LlamaReference, Visual
from tests.language.test_generator import multi_axis_lm

KINDS = {
    "mlp": mmprojs.SIGLIP_MLP,
    "mlp, class row": mmprojs.CLIP_MLP,
    "tiles and thumbnail": mmprojs.INTERN,
    "tiles in rows": mmprojs.IDEFICS,
    "own size, M-RoPE": mmprojs.QWEN,
    "pooled, both ways": mmprojs.GEMMA,
}
# ggml takes GELU from a table in half precision
TOLERANCE = 2e-3
TILE = mmprojs.INTERN.size


@dataclasses.dataclass
class Pair:
    kind: mmprojs.Kind
    lm_parts: bundles.GgufParts
    parts: bundles.GgufParts
    lm_path: Path
    path: Path
    lm: LanguageModel
    encoder: MtmdEncoder


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    folder = tmp_path_factory.mktemp("pairs")
    pairs: dict[str, Pair] = {}

    def pair(name: str) -> Pair:
        if name not in pairs:
            kind, parts = KINDS[name], mmprojs.mmproj_parts(KINDS[name], 3)
            multi_axis = kind is mmprojs.QWEN
            lm_parts = mmprojs.with_marks(multi_axis_lm(4) if multi_axis else bundles.lm_parts(4))
            lm_path = lm_parts.write(folder / f"{len(pairs)}.lm.gguf")
            path = parts.write(folder / f"{len(pairs)}.mmproj.gguf")
            lm = LanguageModel(lm_path)
            encoder = MtmdEncoder(path, lm, flash_attention=False)
            pairs[name] = Pair(kind, lm_parts, parts, lm_path, path, lm, encoder)
        return pairs[name]

    yield pair
    for it in pairs.values():
        it.encoder.close()
        it.lm.close()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def relative_error(rows: np.ndarray, expected: np.ndarray) -> float:
    assert rows.shape == expected.shape
    return float(np.abs(rows - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in KINDS if name != "tiles in rows"])
def test_visual_tokens(name: str, pair_of: Callable[[str], Pair]) -> None:
    it = pair_of(name)
    for seed in range(3):
        pixels = noise(it.kind.size, it.kind.size, seed)
        rows, _ = it.encoder.encode_picture(pixels[None])
        assert (
            relative_error(rows, mmprojs.encoded(it.parts, it.kind, pixels, as_mtmd=True))
            < TOLERANCE
        )


@pytest.mark.parametrize("name", ["mlp, class row", "tiles and thumbnail"])
def test_towers_with_a_class_row_are_read_differently(
    name: str, pair_of: Callable[[str], Pair]
) -> None:
    """libmtmd puts the class row after the patches instead of before them.

    So every patch gets its neighbour's position, and of an "mlp" tower it drops the first patch
    and keeps the class row.
    """
    it = pair_of(name)
    pixels = noise(it.kind.size, it.kind.size)
    rows, _ = it.encoder.encode_picture(pixels[None])
    assert relative_error(rows, mmprojs.encoded(it.parts, it.kind, pixels)) > 50 * TOLERANCE


def test_transformers_reads_the_class_row_as_we_do(pair_of: Callable[[str], Pair]) -> None:
    """Of the two readings transformers confirms the one that the vision graphs are made from."""
    it = pair_of("mlp, class row")
    config = CLIPVisionConfig(
        hidden_size=mmprojs.WIDTH, intermediate_size=mmprojs.FF, image_size=it.kind.size,
        patch_size=mmprojs.PATCH, num_hidden_layers=mmprojs.LAYERS, hidden_act="quick_gelu",
        num_attention_heads=mmprojs.HEADS, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = CLIPVisionModel(config).double().eval()
    state = {
        name: torch.from_numpy(it.parts.tensors[gguf_name]).double()
        for name, gguf_name in mmprojs.renamed(model.state_dict(), mmprojs.CLIP_NAMES)
    }
    missing = model.load_state_dict(state, strict=False)
    assert {key.split(".")[1] for key in missing.missing_keys} <= {"post_layernorm", "embeddings"}
    pixels = noise(it.kind.size, it.kind.size)
    x = (pixels / 255.0 - np.array(mmprojs.MEAN)) / np.array(mmprojs.STD)
    with torch.no_grad():
        states = model(
            torch.from_numpy(x.transpose(2, 0, 1))[None], output_hidden_states=True
        ).hidden_states
    t = {name: value.astype(np.float64) for name, value in it.parts.tensors.items()}
    expected = mmprojs._projected(states[-2][0, 1:].numpy(), t, it.kind, 4, 4)
    assert relative_error(mmprojs.encoded(it.parts, it.kind, pixels), expected) < 1e-6


# ---- tiles


def of_tile(it: Pair, pixels: np.ndarray) -> np.ndarray:
    return mmprojs.encoded(it.parts, it.kind, pixels, as_mtmd=True)


def test_tiles_and_their_thumbnail(pair_of: Callable[[str], Pair]) -> None:
    it = pair_of("tiles and thumbnail")
    pixels = noise(3 * TILE, 2 * TILE, 5)
    rows, segments = it.encoder.encode_picture(pixels[None])
    cut = pixels.reshape(2, TILE, 3, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    thumbnail = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.BICUBIC)
    expected = [of_tile(it, tile) for tile in (*cut, np.asarray(thumbnail))]
    for i, tile in enumerate(expected):
        assert relative_error(rows[4 * i : 4 * i + 4], tile) < TOLERANCE
    assert it.encoder.together((3 * TILE, 2 * TILE)) == 7
    begin, *runs, end = segments
    assert begin == Tokens(tuple(it.lm.vocabulary.tokenize("<img>", parse_special=True)))
    assert end == Tokens(tuple(it.lm.vocabulary.tokenize("</img>", parse_special=True)))
    assert runs == [ImageRows(4 * i, 4 * i + 4) for i in range(7)]


def test_tiles_in_rows_with_their_places_between(pair_of: Callable[[str], Pair]) -> None:
    it = pair_of("tiles in rows")
    pixels = noise(3 * TILE, 3 * TILE, 6)
    rows, segments = it.encoder.encode_picture(pixels[None])
    cut = pixels.reshape(3, TILE, 3, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    overview = Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.LANCZOS)
    for i, tile in enumerate((*cut, np.asarray(overview))):
        assert relative_error(rows[4 * i : 4 * i + 4], of_tile(it, tile)) < TOLERANCE
    expected: list[Segment] = []
    for i in range(9):
        text = f"<fake_token_around_image><row_{i // 3 + 1}_col_{i % 3 + 1}>"
        ids = it.lm.vocabulary.tokenize(text, parse_special=True)
        lead = [bundles.LINE_FEED] if i and i % 3 == 0 else []
        text_before = segments[2 * i]
        assert isinstance(text_before, Tokens)
        # a row ends with the vocabulary's line feed, whose id depends on the vocabulary
        assert list(text_before.ids[len(text_before.ids) - len(ids) :]) == ids
        assert len(text_before.ids) == len(lead) + len(ids)
        expected += [text_before, ImageRows(4 * i, 4 * i + 4)]
    assert list(segments[:18]) == expected
    assert segments[-2] == ImageRows(36, 40)


SHAPES = [(28, 28), (300, 100), (100, 300), (1, 4096), (4096, 1), (1, 1), (640, 37)]


@pytest.mark.parametrize("name", KINDS)
def test_pictures_of_any_shape_are_counted_before(
    name: str, pair_of: Callable[[str], Pair]
) -> None:
    it = pair_of(name)
    for width, height in SHAPES:

        def work(width: int = width, height: int = height) -> str:
            expected = it.encoder.layout((width, height))
            rows, segments = it.encoder.encode_picture(noise(width, height)[None])
            runs = [s for s in segments if isinstance(s, ImageRows)]
            assert [(r.start, r.stop, r.causal) for r in runs] == [
                (s.start, s.stop, s.causal) for s in expected if isinstance(s, ImageRows)
            ]
            assert runs[-1].stop == len(rows)
            return "done"

        # in a child process, because a native abort would end this one
        outcome = in_child(work)
        if name == "tiles in rows" and 4096 in (width, height):
            assert outcome.error == "ImageError"  # there would be too many tiles
            assert f"{width} × {height}" in outcome.text
            continue
        assert (outcome.text, outcome.returncode) == ("done", 0), (width, height, outcome)


# ---- captions


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("sizes", [[(30, 20)], [(90, 40)], [(90, 40), (30, 20)]])
def test_captions_equal_the_reference(
    name: str, sizes: list[tuple[int, int]], pair_of: Callable[[str], Pair]
) -> None:
    """The captions of one picture, and of two pictures in one prompt."""
    it = pair_of(name)
    before = it.lm.vocabulary.tokenize("<|im_start|>user\n", parse_special=True)
    after = it.lm.vocabulary.tokenize("what is it")
    after += it.lm.vocabulary.tokenize("<|im_end|>\n<|im_start|>assistant\n", parse_special=True)
    prompt: list[list[int] | Visual] = [[*it.lm.vocabulary.bos(), *before]]
    for size in sizes:
        rows, segments = it.encoder.encode_picture(noise(*size)[None])
        for segment in segments:
            if isinstance(segment, ImageRows):
                values = rows[segment.start : segment.stop]
                prompt.append(Visual(values, segment.causal, segment.positions))
            elif isinstance(segment, Tokens):
                prompt.append(list(segment.ids))
    expected = LlamaReference(it.lm_parts).greedy([*prompt, after], 32)
    bundle = open_pair(it.lm_path, it.path)
    with Captioner(bundle, kv_type="f32", flash_attention=False, threads=1) as captioner:
        pictures = [noise(*size) for size in sizes]
        encoded = captioner.encode(pictures[0])
        assert captioner.cost(sizes[0]).visual_tokens == len(encoded.visual_tokens)
        if len(pictures) > 1:
            encoded = captioner.encode_together(pictures)
        options: dict[str, Any] = {"instruction": "what is it", "caption_tokens": 32}
        for _ in range(2):  # the same encoded picture gives the same caption twice
            ids = caption_ids(captioner, encoded, stop_at_end=False, **options)
            assert ids == expected


# ---- stopping


def test_encoding_stops_between_two_nodes(
    pair_of: Callable[[str], Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = pair_of("tiles and thumbnail").encoder
    pixels = noise(3 * TILE, 2 * TILE, 5)[None]
    before, _ = encoder.encode_picture(pixels)
    calls = encoder._node_count

    class Late(type(encoder.cancel)):  # type: ignore[misc]
        """It is set while the graph runs."""

        def is_set(self) -> bool:
            return bool(encoder._node_count > calls + 40)

    monkeypatch.setattr(encoder, "cancel", Late())
    with pytest.raises(Interrupted):
        encoder.encode_picture(pixels)
    stopped_at = encoder._node_count - calls
    monkeypatch.undo()
    calls = encoder._node_count
    after, _ = encoder.encode_picture(pixels)
    assert 40 < stopped_at < (encoder._node_count - calls) / 2
    np.testing.assert_array_equal(before, after)
