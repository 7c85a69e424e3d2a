"""ONNX graphs from mmproj files: against numpy, against libmtmd, and what is refused.

libmtmd is right where a tower has no class row and all GELUs have the tanh form: Idefics3, and
Gemma 3 but for the text around a picture and its shape. For LLaVA and InternVL the numpy reference
is the models' own computation, which transformers confirms in `tests/vision/test_mtmd.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from PIL import Image

from edgeprism.convert.mmproj import peer
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Rows, segments_to_parts
from edgeprism.segments import ImageRows, Text
from edgeprism.vision.mtmd import MtmdEncoder
from tests.helpers import mmprojs
from tests.helpers.captions import caption_ids
from tests.helpers.llama_reference import LlamaReference, Visual
from tests.helpers.mmproj_graphs import (
    PairCase,
    apart,
    build_case,
    graph_rows,
    greedy_texts,
    noise,
    tiny_lm,
)

KINDS = {
    "idefics3": mmprojs.IDEFICS,
    "mlp": mmprojs.SIGLIP_MLP,
    "mlp, class row": mmprojs.CLIP_MLP,
    "internvl": mmprojs.INTERN,
    "gemma3": mmprojs.GEMMA,
}
RIGHT = 1e-5  # of the largest value: the same sums in another order
AS_MTMD = 2e-3  # libmtmd takes GELU from a table in half precision
# (width, height); of the last two the shorter edge is a fortieth of the longer
SHAPES = [(28, 28), (60, 40), (40, 60), (90, 30), (280, 7), (7, 280)]
N_TOKENS = 32


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PairCase]:
    cases: dict[str, PairCase] = {}

    def case(name: str) -> PairCase:
        if name not in cases:
            folder, kind = tmp_path_factory.mktemp("pair"), KINDS[name]
            cases[name] = build_case(folder, kind, mmprojs.mmproj_parts(kind, 3), tiny_lm())
        return cases[name]

    return case


def reference(case: PairCase, tiles: np.ndarray) -> np.ndarray:
    """Return the model's own rows [n, n_embd] of tiles [n, size, size, 3]."""
    rows = [mmprojs.encoded(case.parts, case.kind, tile, exact=True) for tile in tiles]
    return np.concatenate(rows)


# ---- the graph


@pytest.mark.parametrize("as_mtmd", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_rows_of_both_readings(name: str, as_mtmd: bool, tmp_path: Path) -> None:
    kind = KINDS[name]
    parts = mmprojs.mmproj_parts(kind, 5)
    tiles = np.stack([noise(kind.size, kind.size), 255 - noise(kind.size, kind.size)])
    rows = graph_rows(parts.write(tmp_path / "mm"), tmp_path / "g.onnx", tiles, as_mtmd)
    expected = [
        mmprojs.encoded(parts, kind, tile, as_mtmd=as_mtmd, exact=not as_mtmd) for tile in tiles
    ]
    assert apart(rows, np.concatenate(expected)) < RIGHT


@pytest.mark.parametrize("quant", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_matrices_of_other_types(quant: str, tmp_path: Path) -> None:
    parts = mmprojs.mmproj_parts(mmprojs.IDEFICS)
    kind = gguf.GGMLQuantizationType[quant]
    packed = dataclasses.replace(parts, tensors={}, quants={})
    for name, values in parts.tensors.items():
        packed.tensors[name] = values
        if values.ndim == 2 and "position" not in name and values.shape[1] % 32 == 0:
            packed.tensors[name] = gguf.quants.quantize(values, kind)
            packed.quants[name] = kind
            parts.tensors[name] = gguf.quants.dequantize(packed.tensors[name], kind)
    assert packed.quants
    tile = noise(28, 28)
    rows = graph_rows(packed.write(tmp_path / "mm"), tmp_path / "g.onnx", tile[None])
    assert apart(rows, mmprojs.encoded(parts, mmprojs.IDEFICS, tile)) < RIGHT


def test_older_and_newer_names(tmp_path: Path) -> None:
    """Older files exchange the names of a layer's matrices; newer ones join its three queries."""
    tile, plain = noise(28, 28), mmprojs.mmproj_parts(mmprojs.IDEFICS)
    expected = graph_rows(plain.write(tmp_path / "plain"), tmp_path / "0.onnx", tile[None])
    older = dataclasses.replace(plain, tensors={
        name.replace("ffn_up", "x").replace("ffn_down", "ffn_up").replace("x", "ffn_down"): values
        for name, values in plain.tensors.items()
    })  # fmt: skip
    newer = dataclasses.replace(plain, tensors=dict(plain.tensors))
    for layer in range(mmprojs.LAYERS):
        for end in ("weight", "bias"):
            parts = [newer.tensors.pop(f"v.blk.{layer}.attn_{q}.{end}") for q in "qkv"]
            newer.tensors[f"v.blk.{layer}.attn_qkv.{end}"] = np.concatenate(parts)
    for name, parts_ in (("older", older), ("newer", newer)):
        rows = graph_rows(parts_.write(tmp_path / name), tmp_path / f"{name}.onnx", tile[None])
        np.testing.assert_array_equal(rows, expected)


# ---- the bundle


@pytest.mark.parametrize("name", KINDS)
def test_the_gate_records_what_it_saw(name: str, case_of: Callable[[str], PairCase]) -> None:
    case = case_of(name)
    files = {path.name for path in case.bundle.iterdir()}
    graphs = {"vision.fp32.onnx", "vision.int8.onnx"}
    weights = {f"{graph}.data" for graph in graphs}
    assert files == {"lm.gguf", "mmproj.gguf", "manifest.json", *graphs, *weights}
    assert (case.bundle / "lm.gguf").stat().st_ino == case.lm.stat().st_ino
    parity = json.loads((case.bundle / "manifest.json").read_text())["parity"]
    assert parity["passed"]
    assert parity["failures"] == []
    figures = parity["figures"]
    assert figures["vision fp32 against libmtmd"]["relative_error"] < AS_MTMD
    assert figures["vision fp32 against libmtmd"]["pictures"] == len(peer.SHAPES)
    assert figures["vision fp32"]["relative_error"] == 0
    assert 1e-3 < figures["vision int8"]["relative_error"] < 0.08
    assert figures["greedy text"]["tokens"] == N_TOKENS
    assert figures["greedy text"]["same_from_the_start"] == N_TOKENS  # both are float32
    assert figures["speed on the converting machine"]["graph_seconds_per_tile"] > 0


@pytest.mark.parametrize("size", SHAPES)
def test_idefics3_is_the_same_in_both(
    size: tuple[int, int], case_of: Callable[[str], PairCase]
) -> None:
    case, pixels = case_of("idefics3"), noise(*size)
    ours = case.encode(pixels)
    lm = LanguageModel(case.lm)
    encoder = MtmdEncoder(case.mmproj, lm, flash_attention=False)
    rows, segments = encoder.encode_picture(pixels[None])
    assert peer.segments_to_ids(segments, lm) == peer.segments_to_ids(ours.layout, lm)
    encoder.close()
    lm.close()
    if min(size) == 7 and size[1] == 280:
        # from Pillow 13 on, a tall picture is shrunk in another order of its edges
        assert rows.shape == ours.visual_tokens.shape
        return
    assert apart(ours.visual_tokens, rows) < AS_MTMD


@pytest.mark.parametrize("name", ["mlp", "mlp, class row", "gemma3", "internvl"])
@pytest.mark.parametrize("size", SHAPES)
def test_pictures_are_prepared_as_their_authors_do(
    name: str, size: tuple[int, int], case_of: Callable[[str], PairCase]
) -> None:
    case, pixels = case_of(name), noise(*size)
    edge = case.kind.size
    picture = Image.fromarray(pixels)
    if name == "gemma3":
        tiles = [picture.resize((edge, edge), Image.Resampling.BILINEAR)]
    elif name == "internvl":
        tiles = internvl_tiles(picture, edge)
    else:
        square = Image.new("RGB", (max(size),) * 2, tuple(int(m * 255) for m in mmprojs.MEAN))
        square.paste(picture, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
        tiles = [square.resize((edge, edge), Image.Resampling.BICUBIC)]
    expected = reference(case, np.stack([np.asarray(tile) for tile in tiles]))
    ours = case.encode(pixels)
    assert apart(ours.visual_tokens, expected) < RIGHT
    texts = {
        "gemma3": ["\n\n<start_of_image>", "<end_of_image>\n\n"], "internvl": ["<img>", "</img>"],
    }  # fmt: skip
    assert [s.text for s in ours.layout if isinstance(s, Text)] == texts.get(name, [])
    rows = [s for s in ours.layout if isinstance(s, ImageRows)]
    assert [(s.start, s.stop, s.causal) for s in rows] == [(0, len(expected), name != "gemma3")]


def internvl_tiles(picture: Image.Image, edge: int) -> list[Image.Image]:
    """Cut by the model card's `dynamic_preprocess`, with 1 to 12 tiles and a thumbnail."""
    ratio, area = picture.width / picture.height, picture.width * picture.height
    grids = sorted(
        {(i, j) for n in range(1, 13) for i in range(1, n + 1) for j in range(1, n + 1)
         if i * j <= 12},
        key=lambda grid: grid[0] * grid[1],
    )  # fmt: skip
    best, least = (1, 1), float("inf")
    for grid in grids:
        difference = abs(ratio - grid[0] / grid[1])
        if difference < least:
            best, least = grid, difference
        elif difference == least and area > 0.5 * edge * edge * grid[0] * grid[1]:
            best = grid
    resized = picture.resize((edge * best[0], edge * best[1]), Image.Resampling.BICUBIC)
    tiles = [
        resized.crop((x * edge, y * edge, (x + 1) * edge, (y + 1) * edge))
        for y in range(best[1])
        for x in range(best[0])
    ]
    thumbnail = picture.resize((edge, edge), Image.Resampling.BICUBIC)
    return [*tiles, thumbnail] if len(tiles) > 1 else tiles


@pytest.mark.parametrize("name", KINDS)
def test_greedy_text_in_float32(name: str, case_of: Callable[[str], PairCase]) -> None:
    """At each place the caption has the token that the language model in float64 finds likeliest.

    Its rows are the numpy reference's.
    """
    case, size = case_of(name), case_of(name).kind.size
    with case.captioner() as captioner:
        encoded = captioner.encode(noise(size, size))
        actual = caption_ids(
            captioner, encoded, stop_at_end=False, instruction="what is it", caption_tokens=N_TOKENS
        )
    rows = encoded.visual_tokens
    if name != "idefics3":  # a picture of one tile is not resized
        rows = reference(case, noise(size, size)[None]).astype(np.float32)
    lm = LanguageModel(case.lm)
    before, after = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    segments = [Text(before, True), *encoded.layout, Text("what is it"), Text(after, True)]
    prompt: list[list[int] | Visual] = [
        Visual(part.values, part.causal) if isinstance(part, Rows) else part
        for part in segments_to_parts(lm, segments, rows, add_bos=True)
    ]
    lm.close()
    logits = LlamaReference(tiny_lm()).logits([*prompt, actual])
    assert logits[-N_TOKENS - 1 : -1].argmax(axis=-1).tolist() == actual


def test_the_pair_says_the_same(case_of: Callable[[str], PairCase]) -> None:
    """Idefics3 in libmtmd and as a float32 graph: the same greedy text, on three pictures."""
    case = case_of("idefics3")
    by_graph, by_mtmd = greedy_texts(case.captioner(), case.lm, case.mmproj, SHAPES[:3], N_TOKENS)
    assert by_graph == by_mtmd
