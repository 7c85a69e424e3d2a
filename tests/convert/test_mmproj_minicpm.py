"""Graphs of MiniCPM-V's encoder: against the authors' rules in torch, and against libmtmd.

libmtmd differs in what it makes of a picture: one that it does not cut becomes a square, slices are
padded, and neither a number nor a line feed stands beside the picture. The patches of MiniCPM-V 2.5
also get other positions.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.open import open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.mmproj import peer
from edgeprism.convert.mmproj.build import build_bundle
from edgeprism.convert.mmproj.layout import image_policy
from edgeprism.convert.mmproj.obstacles import why_no_graph
from edgeprism.convert.mmproj.resampler_tower import ResamplerTower
from edgeprism.convert.mmproj.shape import read_shape
from edgeprism.convert.mmproj.tensors import MmprojTensors
from edgeprism.convert.options import PairOptions
from edgeprism.errors import ModelError, NoGraphError, ParityError
from edgeprism.language.model import LanguageModel
from edgeprism.memory.language import LanguageUse
from edgeprism.perceive.footprint import CaptionerFootprint
from edgeprism.picture.layout import most_visual_tokens, picture_to_layout
from edgeprism.progress import Progress
from edgeprism.segments import ImageRows, Text
from edgeprism.vision.mmproj_checks import check_mmproj
from edgeprism.vision.mtmd import MtmdEncoder
from edgeprism.vision.pair import write_pair
from tests.helpers import minicpm, mmprojs
from tests.helpers.minicpm import EDGE, PATCH
from tests.helpers.mmproj_graphs import (
    PairCase,
    apart,
    build_case,
    float32_captioner,
    float64_text,
    graph_rows,
    greedy_texts,
    noise,
    tiny_lm,
)

VERSIONS = {"2.5": minicpm.V25, "2.6": minicpm.V26}
RIGHT = 1e-5  # of the largest value: the same sums in another order
AS_MTMD = 2e-3  # libmtmd takes GELU from a table in half precision
# (width, height): enlarged; uncut, and at its 25 patches across float32 misses places of the table;
# at 58 patches torch.arange misses others than one number after the other does; just cut; cut in a
# row, in a column, and in both directions
SHAPES = [(60, 40), (206, 20), (280, 20), (113, 112), (500, 60), (50, 560), (520, 400)]
N_TOKENS = 32


def reference(case: PairCase, pixels: np.ndarray) -> np.ndarray:
    """Return the authors' rows [n, n_embd] of a picture, in the prompt's order."""
    encoder = minicpm.Reference(case.parts, version_of(case))
    tiles = minicpm.published_tiles(Image.fromarray(pixels))
    return np.concatenate([encoder.rows(tile) for tile in tiles])


def version_of(case: PairCase) -> int:
    version: int = case.parts.metadata["clip.minicpmv_version"][1]
    return version


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PairCase]:
    made: dict[str, PairCase] = {}

    def case(name: str) -> PairCase:
        if name not in made:
            version = VERSIONS[name]
            parts = minicpm.minicpm_parts(version, seed=version)
            lm = tiny_lm(minicpm.MARKS, minicpm.LM)
            made[name] = build_case(tmp_path_factory.mktemp("pair"), minicpm.KIND, parts, lm)
        return made[name]

    return case


@pytest.mark.parametrize("name", VERSIONS)
def test_rows_and_text_are_the_authors(name: str, case_of: Callable[[str], PairCase]) -> None:
    """The whole way, from the picture's pixels to its rows, and the text between them."""
    case = case_of(name)
    queries = len(case.parts.tensors["resampler.query"])
    with case.captioner() as captioner:
        for size in SHAPES:
            encoded = captioner.encode(noise(*size))
            assert apart(encoded.visual_tokens, reference(case, noise(*size))) < RIGHT, size
            said = ""
            for segment in encoded.layout:
                if isinstance(segment, ImageRows):
                    assert segment.stop - segment.start == queries
                    said += "[rows]"
                else:
                    assert isinstance(segment, Text)
                    said += segment.text
            grid = minicpm.published_sizes(*size)[1]
            assert said == minicpm.published_text(version_of(case), grid, "[rows]")


def test_sizes_are_the_authors(case_of: Callable[[str], PairCase]) -> None:
    manifest = manifest_from_bundle(case_of("2.6").bundle)
    rng, cut = np.random.default_rng(0), 0
    for _ in range(500):
        width, height = (int(n) for n in np.exp(rng.uniform(np.log(8), np.log(3000), 2)))
        overview, grid, tile = minicpm.published_sizes(width, height)
        if max(math.prod(overview), math.prod(tile)) > 96 * PATCH**2:
            continue  # so long that the authors' rule makes more than the most patches
        layout = picture_to_layout((width, height), manifest)
        tiles = [] if grid is None else [tile[::-1]] * (grid[0] * grid[1])
        assert layout.shapes == (overview[::-1], *tiles), (width, height)
        assert layout.grid == (None if grid is None else grid[::-1])
        assert len(layout.rows) <= most_visual_tokens(manifest) == 10 * 64
        cut += grid is not None
    assert 100 < cut < 400
    # the authors make a tile of any length; here it ends at one and a half times the usual patches
    assert minicpm.published_sizes(10_000, 1)[0] == (714 * PATCH, PATCH)
    (strip,) = picture_to_layout((10_000, 1), manifest).shapes
    assert strip == (PATCH, 96 * PATCH)


@pytest.mark.parametrize("name", VERSIONS)
def test_the_gate_records_what_it_saw(name: str, case_of: Callable[[str], PairCase]) -> None:
    data = json.loads((case_of(name).bundle / "manifest.json").read_text())
    queries = {"2.5": 96, "2.6": 64}[name]
    assert data["image"]["free"]["tokens"] == data["vision"]["tokens_per_tile"] == queries
    assert data["vision"]["grid"] == [1, queries]
    assert data["image"]["max_tiles"] == 10
    figures = data["parity"]["figures"]
    assert figures["vision fp32 against libmtmd"]["relative_error"] < AS_MTMD
    assert figures["vision fp32 against libmtmd"]["pictures"] == 6
    assert figures["vision fp32"]["relative_error"] == 0
    assert 1e-3 < figures["vision int8"]["relative_error"] < 0.08
    assert figures["greedy text"]["same_from_the_start"] > 0
    assert figures["speed on the converting machine"]["graph_seconds_per_tile"] > 0


@pytest.mark.parametrize("name", VERSIONS)
def test_pictures_of_published_sizes_are_laid_out_as_by_libmtmd(
    name: str, case_of: Callable[[str], PairCase], tmp_path: Path
) -> None:
    """Those that the gate compares, at the dimensions of published files, token for token."""
    case = case_of(name)
    mmproj = minicpm.minicpm_parts(version_of(case), edge=448).write(tmp_path / "mm")
    shape = read_shape(mmproj, read_gguf_header(mmproj))
    manifest = peer.as_mtmd(with_policy_of(case, mmproj), shape)
    lm = LanguageModel(case.lm)
    encoder = MtmdEncoder(mmproj, lm, flash_attention=False)
    for size in peer.picture_sizes(shape):
        layout = picture_to_layout(size, manifest)
        assert peer.is_same_layout(encoder.layout(size), layout.segments, lm), size
    encoder.close()
    lm.close()


def with_policy_of(case: PairCase, mmproj: Path) -> Manifest:
    """Return the case's manifest with the image policy of another mmproj file."""
    shape = read_shape(mmproj, read_gguf_header(mmproj))
    return dataclasses.replace(manifest_from_bundle(case.bundle), image=image_policy(shape))


def test_libmtmd_squares_what_it_does_not_cut(case_of: Callable[[str], PairCase]) -> None:
    case = case_of("2.6")
    lm = LanguageModel(case.lm)
    encoder = MtmdEncoder(case.mmproj, lm, flash_attention=False)
    with case.captioner() as captioner:
        squared, _ = encoder.encode_picture(noise(100, 50)[None])
        assert apart(captioner.encode(noise(100, 50)).visual_tokens, squared) > 20 * AS_MTMD
        whole, _ = encoder.encode_picture(noise(EDGE, EDGE)[None])
        assert apart(captioner.encode(noise(EDGE, EDGE)).visual_tokens, whole) < AS_MTMD
    encoder.close()
    lm.close()


def test_pictures_of_one_prompt_are_numbered(case_of: Callable[[str], PairCase]) -> None:
    for name, start in (("2.6", "<image_id>{}</image_id><image>"), ("2.5", "<image>")):
        with case_of(name).captioner() as captioner:
            encoded = captioner.encode_together([noise(60, 40), noise(EDGE, EDGE), noise(300, 90)])
        said = "".join(segment.text for segment in encoded.layout if isinstance(segment, Text))
        assert said.count("<image_id>") == (3 if name == "2.6" else 0)
        lines = [start.format(place) for place in range(3)]
        assert said.startswith(f"{lines[0]}</image>\n{lines[1]}</image>\n{lines[2]}</image><slice>")


def test_greedy_text_in_float32(case_of: Callable[[str], PairCase]) -> None:
    """At each place the caption has the token that a language model in float64 finds likeliest."""
    case, pixels = case_of("2.6"), noise(300, 90)
    rows = reference(case, pixels)
    actual, expected = float64_text(
        case, pixels, rows, tiny_lm(minicpm.MARKS, minicpm.LM), N_TOKENS
    )
    assert expected == actual


def test_the_pair_says_the_same(case_of: Callable[[str], PairCase], tmp_path: Path) -> None:
    """The same greedy text in libmtmd and as a float32 graph, once the text around it is libmtmd's.

    The pictures, a square and four of them, are prepared alike by both.
    """
    case, bundle = case_of("2.6"), tmp_path / "bundle"
    shutil.copytree(case.bundle, bundle)
    shape = read_shape(case.mmproj, read_gguf_header(case.mmproj))
    manifest = peer.as_mtmd(manifest_from_bundle(bundle), shape)
    (bundle / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    sizes = ((EDGE, EDGE), (2 * EDGE, 2 * EDGE))
    by_graph, by_mtmd = greedy_texts(
        float32_captioner(bundle), case.lm, case.mmproj, sizes, N_TOKENS
    )
    assert by_graph == by_mtmd


def rolled_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    change_tensor(monkeypatch, "resampler.query", lambda values: np.roll(values, 1, axis=0))


def turned_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def turned(values: np.ndarray) -> np.ndarray:
        table = values.reshape(minicpm.TABLE, minicpm.TABLE, -1)
        return table.swapaxes(0, 1).reshape(values.shape)

    change_tensor(monkeypatch, "v.position_embd.weight", turned)


def exchanged_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = ResamplerTower._waves

    def exchanged(self: ResamplerTower) -> str:
        self._down, self._across = self._across, self._down
        try:
            return waves(self)
        finally:
            self._down, self._across = self._across, self._down

    monkeypatch.setattr(ResamplerTower, "_waves", exchanged)


def change_tensor(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    read = MmprojTensors.read
    monkeypatch.setattr(
        MmprojTensors,
        "read",
        lambda self, asked: change(read(self, asked)) if asked == name else read(self, asked),
    )


@pytest.mark.parametrize("plant", [rolled_queries, turned_table, exchanged_axes])
def test_the_gate_finds_a_mistake(
    plant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = minicpm.minicpm_parts(queries=8)
    # attention that looks closely, as that of a trained resampler
    parts.tensors["resampler.attn.q.weight"] *= 4
    out = tmp_path / "b"
    lm = tiny_lm(minicpm.MARKS, minicpm.LM).write(tmp_path / "lm")
    write_pair(lm, parts.write(tmp_path / "mm"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    plant(monkeypatch)
    with pytest.raises(ParityError) as refused:
        build_bundle(out, out, PairOptions(always=True), Progress())
    assert "against libmtmd: relative error" in refused.value.message
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_the_plan_counts_the_largest_tile(
    case_of: Callable[[str], PairCase],
) -> None:
    bundle = open_bundle(case_of("2.6").bundle)
    use = LanguageUse(cells=1)
    counted = CaptionerFootprint(bundle, bundle.manifest.vision.variants[0], use)
    (activations,) = [p for p in counted.parts().parts if p.what == "vision activations"]
    keys = (EDGE // PATCH) ** 2 * 3 // 2 * minicpm.N_EMBD * 4  # of the resampler, the largest
    assert 2 * keys < activations.size < 10 * keys


REFUSED: dict[str, tuple[str, int]] = {
    "its version of MiniCPM-V is 1": ("clip.minicpmv_version", 1),
    "its version of MiniCPM-V is 7": ("clip.minicpmv_version", 7),
    "it makes 2000 visual tokens of each tile": ("clip.minicpmv_query_num", 2000),
    "pixels in patches of 13": ("clip.vision.patch_size", 13),
    "about 4480 × 4480 pixels": ("clip.vision.image_size", 4480),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_no_graph_and_why(reason: str, tmp_path: Path) -> None:
    parts = minicpm.minicpm_parts()
    key, value = REFUSED[reason]
    parts.metadata[key] = (parts.metadata[key][0], value)
    assert reason in why_no_graph(read_gguf_header(parts.write(tmp_path / "mm")))


@pytest.mark.parametrize("count", [1, 63, 65, 1024])
def test_another_number_of_queries_than_there_are(count: int, tmp_path: Path) -> None:
    parts = minicpm.minicpm_parts()
    parts.metadata["clip.minicpmv_query_num"] = ("uint32", count)
    with pytest.raises(ModelError, match=f"64 rows in resampler.query, {count} in the header"):
        check_mmproj(parts.write(tmp_path / "mm"), minicpm.N_EMBD)


def test_a_language_model_of_another_width(tmp_path: Path) -> None:
    """The header's width is 0, and the language model's is that of the tower."""
    mmproj = minicpm.minicpm_parts().write(tmp_path / "mm")
    assert check_mmproj(mmproj, minicpm.N_EMBD).metadata["clip.vision.projection_dim"] == 0
    for width in (128, mmprojs.WIDTH):
        words = f"visual tokens of width {minicpm.N_EMBD}, but the language model takes {width}"
        with pytest.raises(ModelError, match=words):
            check_mmproj(mmproj, width)


def test_tensors_that_the_graph_has_no_place_for(tmp_path: Path) -> None:
    tile = noise(PATCH, PATCH)[None]
    for name, shape, words in (
        ("resampler.ln_q.bias", None, r"no resampler\.ln_q\.bias"),
        ("resampler.query", (3, minicpm.N_EMBD), r"resampler\.query of shape \[3, 256\]"),
        ("resampler.pos_embed", (64, minicpm.N_EMBD), r"resampler\.pos_embed, which the graph"),
        ("v.position_embd.weight", (729, mmprojs.WIDTH), r"position_embd\.weight of shape \[729"),
    ):
        parts = minicpm.minicpm_parts()
        if shape is None:
            del parts.tensors[name]
        else:
            parts.tensors[name] = np.ones(shape, np.float32)
        mmproj = parts.write(tmp_path / name)
        with pytest.raises(NoGraphError, match=words):
            graph_rows(mmproj, tmp_path / "g.onnx", tile, n_embd=minicpm.N_EMBD)


def test_rows_that_heads_cannot_share(tmp_path: Path) -> None:
    parts = minicpm.minicpm_parts()
    parts.tensors["resampler.query"] = np.ones((64, 200), np.float32)
    why = why_no_graph(read_gguf_header(parts.write(tmp_path / "mm")))
    assert "of width 200 cannot be shared by heads of 128" in why
