"""Graphs whose tiles have a shape of their own: against transformers, libmtmd and numpy.

libmtmd computes these towers as their authors do, but it pads a picture where they stretch it. So
the two engines agree on pictures whose edges are whole visual tokens, and transformers decides the
rest.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import (
    Qwen2VLImageProcessor,
    smart_resize,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from edgeprism.bundle.manifest import FreeShape
from edgeprism.bundle.open import open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.mmproj import peer
from edgeprism.errors import ModelError
from edgeprism.language.model import LanguageModel
from edgeprism.memory.language import LanguageUse
from edgeprism.perceive.footprint import CaptionerFootprint
from edgeprism.picture.free_size import free_size
from edgeprism.segments import ImageRows, Text
from edgeprism.vision import trial
from edgeprism.vision.mtmd import MtmdEncoder
from edgeprism.vision.onnx import VisionEncoder
from tests.helpers import bundles, mmprojs
from tests.helpers.mmproj_graphs import (
    PairCase,
    apart,
    build_case,
    float64_text,
    greedy_texts,
    noise,
    tiny_lm,
    tiny_multi_axis_lm,
)

KINDS = {"qwen2-vl": mmprojs.QWEN, "qwen2.5-vl": mmprojs.QWEN25}
UNIT = 2 * mmprojs.PATCH  # pixels along an edge of a visual token
LEAST, MOST = 8, 4096  # visual tokens of a picture
RIGHT = 1e-5  # of the largest value: the same sums in another order
AS_MTMD = 2e-3  # libmtmd takes GELU and SiLU from a table in half precision
# (width, height): enlarged, several windows, thin both ways, whole visual tokens, reduced to fit
SHAPES = [(30, 20), (200, 150), (1405, 35), (17, 600), (280, 126), (131, 262)]
# edges of whole visual tokens, at least 8 of them; windows have 8 × 8
WHOLE = [(70, 56), (238, 182), (1400, 14), (28, 560), (112, 112), (126, 126)]
N_TOKENS = 32


def reference(case: PairCase, pixels: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return transformers' rows [n, n_embd] of a picture, and its patches [time, down, across].

    transformers also resizes the picture and cuts it into patches.
    """
    processor = Qwen2VLImageProcessor(
        patch_size=mmprojs.PATCH, image_mean=list(mmprojs.MEAN), image_std=list(mmprojs.STD),
        min_pixels=LEAST * UNIT**2, max_pixels=MOST * UNIT**2,
    )  # fmt: skip
    made = processor(images=[Image.fromarray(pixels)], return_tensors="pt")
    with torch.no_grad():
        rows = tower(case.kind, case.parts)(
            made["pixel_values"].double(), grid_thw=made["image_grid_thw"]
        )
    return rows.numpy(), made["image_grid_thw"][0].tolist()


def tower(kind: mmprojs.Kind, parts: bundles.GgufParts) -> Any:
    """Return transformers' tower in float64 with the tensors of an mmproj file."""
    sizes = {"depth": mmprojs.LAYERS, "num_heads": mmprojs.HEADS, "patch_size": mmprojs.PATCH}
    if kind is mmprojs.QWEN:
        config = Qwen2VLConfig(vision_config={
            **sizes, "embed_dim": mmprojs.WIDTH, "mlp_ratio": mmprojs.FF / mmprojs.WIDTH,
            "hidden_size": bundles.N_EMBD,
        }).vision_config  # fmt: skip
        config._attn_implementation = "eager"
        model: Any = Qwen2VisionTransformerPretrainedModel(config)
    else:
        config = Qwen2_5_VLConfig(vision_config={
            **sizes, "hidden_size": mmprojs.WIDTH, "intermediate_size": mmprojs.FF,
            "out_hidden_size": bundles.N_EMBD, "window_size": 112, "fullatt_block_indexes": [1],
        }).vision_config  # fmt: skip
        config._attn_implementation = "eager"
        model = Qwen2_5_VisionTransformerPretrainedModel(config)
    model = model.double().eval()
    model.load_state_dict(dict(published_names(parts.tensors)))
    return model


def published_names(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    t = {name: torch.from_numpy(values).double() for name, values in tensors.items()}
    named = {
        "patch_embed.proj.weight": torch.stack(
            [t["v.patch_embd.weight"], t["v.patch_embd.weight.1"]], dim=2
        )
    }
    theirs = {"ln1": "norm1", "ln2": "norm2", "attn_out": "attn.proj"}
    gated = "v.blk.0.ffn_gate.weight" in t
    theirs |= (
        {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
        if gated
        else {"ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
    )
    for i in range(mmprojs.LAYERS):
        for end in ("weight", "bias"):
            named[f"blocks.{i}.attn.qkv.{end}"] = torch.cat(
                [t[f"v.blk.{i}.attn_{part}.{end}"] for part in "qkv"]
            )
            for ours, name in theirs.items():
                if f"v.blk.{i}.{ours}.{end}" in t:
                    named[f"blocks.{i}.{name}.{end}"] = t[f"v.blk.{i}.{ours}.{end}"]
    for ours, name in {"v.post_ln": "merger.ln_q", "mm.0": "merger.mlp.0",
                       "mm.2": "merger.mlp.2"}.items():  # fmt: skip
        for end in ("weight", "bias"):
            if f"{ours}.{end}" in t:
                named[f"{name}.{end}"] = t[f"{ours}.{end}"]
    return named


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], PairCase]:
    cases: dict[str, PairCase] = {}

    def case(name: str) -> PairCase:
        if name not in cases:
            folder, parts = tmp_path_factory.mktemp("pair"), mmprojs.mmproj_parts(KINDS[name], 3)
            # transformers has this number in its code
            parts.metadata["clip.vision.attention.layer_norm_epsilon"] = ("float32", 1e-6)
            cases[name] = build_case(folder, KINDS[name], parts, tiny_multi_axis_lm())
        return cases[name]

    return case


# ---- rows and layouts


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_transformers(name: str, case_of: Callable[[str], PairCase]) -> None:
    """The whole way, from the picture's pixels to its rows, and the places of the rows."""
    case = case_of(name)
    with case.captioner() as captioner:
        for size in SHAPES:
            encoded = captioner.encode(noise(*size))
            expected, (_, down, across) = reference(case, noise(*size))
            assert apart(encoded.visual_tokens, expected) < RIGHT, size
            begin, rows, end = encoded.layout
            assert (begin, end) == (Text("<|vision_start|>", True), Text("<|vision_end|>", True))
            assert isinstance(rows, ImageRows)
            assert (rows.start, rows.stop, rows.causal) == (0, len(expected), True)
            y, x = np.mgrid[: down // 2, : across // 2].reshape(2, -1)
            np.testing.assert_array_equal(rows.positions, [0 * y, y, x, 0 * y])


@pytest.mark.parametrize("name", KINDS)
def test_rows_and_layout_are_libmtmds(name: str, case_of: Callable[[str], PairCase]) -> None:
    case = case_of(name)
    lm = LanguageModel(case.lm)
    encoder = MtmdEncoder(case.mmproj, lm, flash_attention=False)
    with case.captioner() as captioner:
        for size in WHOLE:
            encoded = captioner.encode(noise(*size))
            rows, segments = encoder.encode_picture(noise(*size)[None])
            assert peer.is_same_layout(segments, encoded.layout, lm), size
            assert apart(encoded.visual_tokens, rows) < AS_MTMD, size
        # other pictures have as many rows, but libmtmd pads them
        padded, _ = encoder.encode_picture(noise(200, 150)[None])
        assert apart(captioner.encode(noise(200, 150)).visual_tokens, padded) > 20 * AS_MTMD
    encoder.close()
    lm.close()


def test_layouts_that_differ_are_told_apart() -> None:
    lm: Any = None  # no text is tokenised
    y, x = np.mgrid[:2, :3].reshape(2, -1).astype(np.int32)
    places = np.stack([0 * y, y, x, 0 * y])
    own = [ImageRows(0, 6, positions=places)]
    assert peer.is_same_layout(own, [ImageRows(0, 6, positions=places.copy())], lm)
    assert not peer.is_same_layout(own, [ImageRows(0, 6, positions=places[[0, 2, 1, 3]])], lm)
    assert not peer.is_same_layout(own, [ImageRows(0, 6)], lm)
    assert not peer.is_same_layout(own, [ImageRows(0, 4, positions=places[:, :4])], lm)


# ---- sizes of tiles


def test_sizes_are_upstreams() -> None:
    """The rule that Qwen2-VL's processor states: edges of whole units, pixels within two bounds."""
    rng = np.random.default_rng(0)
    for least, most in ((8, 4096), (4, 1280), (1, 20)):
        free = FreeShape("smart-resize", 28, least * 28**2, most * 28**2)
        for _ in range(200):
            width, height = (int(n) for n in np.exp(rng.uniform(np.log(15), np.log(9000), 2)))
            if max(width, height) <= 200 * min(width, height):
                theirs = smart_resize(height, width, 28, least * 28**2, most * 28**2)
                if theirs[0] * theirs[1] <= most * 28**2:  # theirs may have more for long pictures
                    assert free_size((width, height), free) == theirs[::-1]


def test_no_picture_has_more_pixels_than_the_largest_tile() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        unit = int(rng.integers(1, 60))
        least, most = sorted(int(n) for n in rng.integers(1, 300, 2))
        free = FreeShape("smart-resize", unit, least * unit**2, most * unit**2)
        size = tuple(int(n) for n in np.exp(rng.uniform(0, np.log(60_000), 2)))
        width, height = free_size((size[0], size[1]), free)
        assert min(width, height) >= unit
        assert width % unit == height % unit == 0
        assert width * height <= free.most_pixels


# ---- the bundle


@pytest.mark.parametrize("name", KINDS)
def test_the_gate_records_what_it_saw(name: str, case_of: Callable[[str], PairCase]) -> None:
    data = json.loads((case_of(name).bundle / "manifest.json").read_text())
    assert data["image"]["free"] == {"choose": "smart-resize", "unit": UNIT,
                                     "least_pixels": LEAST * UNIT**2,
                                     "most_pixels": MOST * UNIT**2}  # fmt: skip
    assert data["lm"]["image_positions"] == "down-across"
    assert data["vision"]["grid"] == [64, 64]
    assert data["parity"]["passed"]
    figures = data["parity"]["figures"]
    assert figures["vision fp32 against libmtmd"]["relative_error"] < AS_MTMD
    assert figures["vision fp32 against libmtmd"]["pictures"] == len(peer.SHAPES)
    assert figures["vision fp32"]["relative_error"] == 0
    assert 1e-3 < figures["vision int8"]["relative_error"] < 0.08
    assert figures["greedy text"]["same_from_the_start"] == N_TOKENS  # both are float32
    assert figures["speed on the converting machine"]["graph_seconds_per_tile"] > 0


@pytest.mark.parametrize("name", KINDS)
def test_greedy_text_in_float32(name: str, case_of: Callable[[str], PairCase]) -> None:
    """At each place the caption has the token that a language model in float64 finds likeliest.

    Its rows are transformers', with their places down and across.
    """
    case, pixels = case_of(name), noise(200, 90)
    expected, (_, down, across) = reference(case, pixels)
    y, x = np.mgrid[: down // 2, : across // 2].reshape(2, -1)
    places = np.stack([0 * y, y, x, 0 * y])
    lm = tiny_multi_axis_lm()
    actual, likeliest = float64_text(case, pixels, expected, lm, N_TOKENS, places)
    assert likeliest == actual


def test_the_pair_says_the_same(case_of: Callable[[str], PairCase]) -> None:
    """The same greedy text in libmtmd and as a float32 graph, on three pictures."""
    case = case_of("qwen2.5-vl")
    by_graph, by_mtmd = greedy_texts(case.captioner(), case.lm, case.mmproj, WHOLE[:3], N_TOKENS)
    assert by_graph == by_mtmd


def test_several_tiles_of_one_shape_at_once(case_of: Callable[[str], PairCase]) -> None:
    case = case_of("qwen2.5-vl")
    encoder = VisionEncoder(
        case.bundle / "vision.fp32.onnx", manifest_from_bundle(case.bundle), threads=1
    )
    tiles = np.stack([noise(154, 126), 255 - noise(154, 126)])
    encoder._session.tiles_at_once = 2
    together = encoder.encode(tiles)
    encoder._session.tiles_at_once = 1
    assert apart(together, encoder.encode(tiles)) < RIGHT


def test_a_trial_takes_tiles_of_several_shapes(case_of: Callable[[str], PairCase]) -> None:
    manifest = manifest_from_bundle(case_of("qwen2-vl").bundle)
    shapes = trial._tile_shapes(manifest, is_small=True, together=False)
    assert len(shapes) == 4
    assert max(height * width for _, height, width, _ in shapes) == MOST * UNIT**2


def test_the_plan_counts_the_largest_tile(case_of: Callable[[str], PairCase]) -> None:
    bundle = open_bundle(case_of("qwen2.5-vl").bundle)
    use = LanguageUse(cells=1)
    counted = CaptionerFootprint(bundle, bundle.manifest.vision.variants[0], use)
    (activations,) = [p for p in counted.parts().parts if p.what == "vision activations"]
    patches = 4 * MOST
    widest = patches * mmprojs.FF * 4
    assert 2 * widest < activations.size < 40 * widest
    assert activations.why == "the largest tile"


def test_a_language_model_without_such_positions_is_refused(
    case_of: Callable[[str], PairCase], tmp_path: Path
) -> None:
    manifest = manifest_from_bundle(case_of("qwen2-vl").bundle)
    parts = tiny_lm()
    expected = dataclasses.replace(manifest.lm, architecture=parts.architecture)
    with pytest.raises(ModelError, match="counts positions one by one"):
        LanguageModel(parts.write(tmp_path / "lm"), expected=expected)
