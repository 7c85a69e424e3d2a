"""Graphs of LFM2-VL's encoder: against transformers' tower, libmtmd and numpy.

transformers' own preprocessing needs torchvision, so its rule stands here once more, in words of
its description: a picture of more than twice 256 visual tokens is stretched to 2 to 10 tiles of 512
pixels, and its thumbnail comes last; any other is one tile of its own shape. libmtmd does the same,
but pads a picture that it cuts.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Lfm2VlConfig
from transformers.models.lfm2_vl.modeling_lfm2_vl import Lfm2VlMultiModalProjector
from transformers.models.siglip2.modeling_siglip2 import Siglip2VisionModel

from edgeprism.bundle.open import open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.mmproj import peer
from edgeprism.folder.events import Outcome
from edgeprism.folder.run import caption_folder
from edgeprism.language.model import LanguageModel
from edgeprism.machine.cancel import Cancel
from edgeprism.picture.layout import picture_to_layout
from edgeprism.segments import ImageRows, Text
from edgeprism.vision import trial
from edgeprism.vision.mtmd import MtmdEncoder
from tests.helpers import bundles, mmprojs
from tests.helpers.mmproj_graphs import (
    PairCase,
    apart,
    build_case,
    float64_text,
    greedy_texts,
    noise,
    tiny_lm,
)

KIND = mmprojs.LFM2
TILE, UNIT = 512, 32  # pixels along an edge of a tile and of a visual token
RIGHT = 1e-5  # of the largest value: the same sums in another order
AS_MTMD = 2e-3  # libmtmd takes GELU from a table in half precision
MARKS = ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>",
         *(f"<|img_row_{y}_col_{x}|>" for y in range(1, 11) for x in range(1, 11)))  # fmt: skip
# (width, height): enlarged, as it is, reduced, thin and cut, cut in two, thin and uncut
SHAPES = [(60, 40), (300, 280), (650, 600), (2400, 250), (700, 1100), (30, 1200)]
# edges of whole visual tokens, and one of a grid's ratio: libmtmd pads none of them
WHOLE = [(288, 288), (384, 288), (1152, 96), (96, 1152), (1280, 640), (512, 512)]
N_TOKENS = 32


def reference(case: PairCase, pixels: np.ndarray) -> np.ndarray:
    """Return transformers' rows [n, n_embd] of a picture, in the prompt's order."""
    tower, projector = models(case.parts)
    rows = []
    for tile in published_tiles(Image.fromarray(pixels)):
        down, across = tile.shape[0] // KIND.patch, tile.shape[1] // KIND.patch
        x = (tile / 255.0 - np.array(mmprojs.MEAN)) / np.array(mmprojs.STD)
        x = x.reshape(down, KIND.patch, across, KIND.patch, 3).swapaxes(1, 2)
        with torch.no_grad():
            features = tower(
                torch.from_numpy(x.reshape(1, down * across, -1)),
                torch.ones(1, down * across),
                torch.tensor([[down, across]]),
            ).last_hidden_state
            rows.append(projector(features.reshape(1, down, across, -1)).flatten(0, -2))
    return torch.cat(rows).numpy()


def models(parts: bundles.GgufParts) -> tuple[Any, Any]:
    """Return transformers' tower and projector in float64 with the tensors of an mmproj file."""
    config = Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model", "hidden_size": mmprojs.WIDTH,
            "intermediate_size": mmprojs.FF, "num_hidden_layers": mmprojs.LAYERS,
            "num_attention_heads": mmprojs.HEADS, "patch_size": KIND.patch,
            "num_patches": (KIND.size // KIND.patch) ** 2, "layer_norm_eps": 1e-5,
            "vision_use_head": False,
        },
        text_config={"model_type": "lfm2", "hidden_size": bundles.N_EMBD},
        projector_hidden_size=mmprojs.FF,
    )  # fmt: skip
    config.vision_config._attn_implementation = "eager"
    tower: Any = Siglip2VisionModel(config.vision_config).double().eval()
    projector = Lfm2VlMultiModalProjector(config).double().eval()
    t = {name: torch.from_numpy(values).double() for name, values in parts.tensors.items()}
    names = dict(mmprojs.renamed(tower.state_dict(), mmprojs.SIGLIP_NAMES))
    # `mmprojs.renamed` reads names of whole models
    if not names:
        whole = {f"vision_model.{name.removeprefix('vision_model.')}": name
                 for name in tower.state_dict()}  # fmt: skip
        names = {whole[ours]: theirs for ours, theirs
                 in mmprojs.renamed(whole, mmprojs.SIGLIP_NAMES)}  # fmt: skip
    state = {name: t[theirs] for name, theirs in names.items()}
    kernel = next(name for name in state if name.endswith("patch_embedding.weight"))
    state[kernel] = state[kernel].permute(0, 2, 3, 1).reshape(mmprojs.WIDTH, -1)
    tower.load_state_dict(state)
    ours = {"layer_norm": "mm.input_norm", "linear_1": "mm.1", "linear_2": "mm.2"}
    projector.load_state_dict(
        {f"{name}.{end}": t[f"{theirs}.{end}"] for name, theirs in ours.items()
         for end in ("weight", "bias")}
    )  # fmt: skip
    return tower, projector


# ---- the rule


def published_grid(width: int, height: int) -> tuple[int, int] | None:
    """Return the tiles (across, down) of a picture, or None if it is not cut."""
    rounded = [max(16, round(edge / UNIT) * UNIT) for edge in (width, height)]
    if rounded[0] * rounded[1] <= 2 * 256 * UNIT**2:
        return None
    grids = [(x, y) for x in range(1, 11) for y in range(1, 11) if 2 <= x * y <= 10]
    grids.sort(key=lambda g: (g[0] * g[1], g))
    difference = {g: abs(width / height - g[0] / g[1]) for g in grids}
    closest = [g for g in grids if difference[g] == min(difference.values())]
    best = closest[0]
    for grid in closest[1:]:
        if width * height > 0.5 * TILE**2 * grid[0] * grid[1]:
            best = grid
    return best


def published_shape(width: int, height: int) -> tuple[int, int]:
    """Return the size (width, height) of a picture that is not cut, or of its thumbnail."""
    units = [max(1, round(edge / UNIT)) for edge in (width, height)]
    if units[0] * units[1] > 256:
        shrunk = math.sqrt(width * height / (256 * UNIT**2))
        units = [max(1, int(edge / shrunk / UNIT)) for edge in (width, height)]
    elif units[0] * units[1] < 64:
        grown = math.sqrt(64 * UNIT**2 / (width * height))
        units = [math.ceil(edge * grown / UNIT) for edge in (width, height)]
    return units[0] * UNIT, units[1] * UNIT


def published_tiles(picture: Image.Image) -> list[np.ndarray]:
    grid = published_grid(*picture.size)
    whole = picture.resize(published_shape(*picture.size), Image.Resampling.BILINEAR)
    if grid is None:
        return [np.asarray(whole)]
    canvas = picture.resize((grid[0] * TILE, grid[1] * TILE), Image.Resampling.BILINEAR)
    tiles = [
        np.asarray(canvas.crop((x * TILE, y * TILE, (x + 1) * TILE, (y + 1) * TILE)))
        for y in range(grid[1])
        for x in range(grid[0])
    ]
    return [*tiles, np.asarray(whole)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PairCase:
    parts = mmprojs.mmproj_parts(KIND, 3)
    return build_case(tmp_path_factory.mktemp("pair"), KIND, parts, tiny_lm(MARKS))


def test_rows_are_transformers(case: PairCase) -> None:
    """The whole way, from the picture's pixels to its rows, and the text between them."""
    with case.captioner() as captioner:
        for size in SHAPES:
            encoded = captioner.encode(noise(*size))
            expected = reference(case, noise(*size))
            assert apart(encoded.visual_tokens, expected) < RIGHT, size
            grid, said, rows = published_grid(*size), "", 0
            for segment in encoded.layout:
                if isinstance(segment, ImageRows):
                    assert segment.start == rows
                    rows = segment.stop
                else:
                    assert isinstance(segment, Text)
                    said += segment.text
            cut = "" if grid is None else "<|img_thumbnail|>"
            if grid is not None:
                places = itertools.product(range(1, grid[1] + 1), range(1, grid[0] + 1))
                cut = "".join(f"<|img_row_{y}_col_{x}|>" for y, x in places) + cut
            assert said == f"<|image_start|>{cut}<|image_end|>"
            assert rows == len(expected)


def test_rows_and_layout_are_libmtmds(case: PairCase) -> None:
    lm = LanguageModel(case.lm)
    encoder = MtmdEncoder(case.mmproj, lm, flash_attention=False)
    with case.captioner() as captioner:
        for size in WHOLE:
            encoded = captioner.encode(noise(*size))
            rows, segments = encoder.encode_picture(noise(*size)[None])
            assert peer.is_same_layout(segments, encoded.layout, lm), size
            assert apart(encoded.visual_tokens, rows) < AS_MTMD, size
        # a cut picture of another ratio has as many rows, but libmtmd pads it
        padded, _ = encoder.encode_picture(noise(1200, 700)[None])
        assert apart(captioner.encode(noise(1200, 700)).visual_tokens, padded) > 20 * AS_MTMD
    encoder.close()
    lm.close()


def test_sizes_are_the_authors(case: PairCase) -> None:
    manifest = manifest_from_bundle(case.bundle)
    rng = np.random.default_rng(0)
    cut = 0
    for _ in range(300):
        width, height = (int(n) for n in np.exp(rng.uniform(np.log(16), np.log(6000), 2)))
        grid, whole = published_grid(width, height), published_shape(width, height)
        tiles = [] if grid is None else [(TILE, TILE)] * (grid[0] * grid[1])
        layout = picture_to_layout((width, height), manifest)
        if whole[0] * whole[1] > 256 * UNIT**2:
            continue  # so long that the authors' rule makes more than the most visual tokens
        assert layout.shapes == (*tiles, whole[::-1])
        assert layout.grid == (None if grid is None else grid[::-1])
        cut += grid is not None
    assert 50 < cut < 250


def test_the_gate_records_what_it_saw(case: PairCase) -> None:
    data = json.loads((case.bundle / "manifest.json").read_text())
    assert data["image"]["max_tiles"] == 11
    assert data["image"]["tiling"]["uncut_pixels"] == 2 * TILE**2
    assert "image_positions" not in data["lm"]
    figures = data["parity"]["figures"]
    assert figures["vision fp32 against libmtmd"]["relative_error"] < AS_MTMD
    assert figures["vision fp32 against libmtmd"]["pictures"] == len(peer.SHAPES)
    assert figures["vision fp32"]["relative_error"] == 0
    assert 1e-3 < figures["vision int8"]["relative_error"] < 0.08
    assert figures["greedy text"]["same_from_the_start"] > 0
    assert figures["speed on the converting machine"]["graph_seconds_per_tile"] > 0


def test_greedy_text_in_float32(case: PairCase) -> None:
    """At each place the caption has the token that a language model in float64 finds likeliest."""
    pixels = noise(300, 200)
    rows = reference(case, pixels)
    actual, expected = float64_text(case, pixels, rows, tiny_lm(MARKS), N_TOKENS)
    assert expected == actual


def test_the_pair_says_the_same(case: PairCase) -> None:
    """The same greedy text in libmtmd and as a float32 graph, on an uncut picture and a cut one."""
    by_graph, by_mtmd = greedy_texts(
        case.captioner(), case.lm, case.mmproj, ((288, 288), (1280, 640)), N_TOKENS
    )
    assert by_graph == by_mtmd


def test_a_folder_is_captioned_alike(case: PairCase, tmp_path: Path) -> None:
    """Worker processes hand on tiles of several shapes; the captions are those of one process."""
    paths = [tmp_path / "uncut.png", tmp_path / "cut.png"]
    for path, size in zip(paths, ((300, 200), (1280, 640)), strict=True):
        Image.fromarray(noise(*size)).save(path)
    made: dict[str, str] = {}

    def keep(outcome: Outcome) -> None:
        assert outcome.record is not None, outcome.error
        made[Path(outcome.picture.name).name] = outcome.record["caption"]

    with case.captioner() as captioner:
        plan = captioner.plan(caption_tokens=8)
        caption_folder(tmp_path, captioner, plan=plan, use_store=False, parallel=1, on_outcome=keep)
        single = {p.name: captioner.caption(p, caption_tokens=8).text for p in paths}
    assert made == single


def test_a_trial_takes_tiles_of_several_shapes(case: PairCase) -> None:
    bundle = open_bundle(case.bundle)
    shapes = trial._tile_shapes(bundle.manifest, is_small=True, together=False)
    assert (1, TILE, TILE, 3) in shapes
    trial.try_captioner(bundle, bundle.manifest.vision.variants[0], trial.Settings(), Cancel())
