"""The same tiny weights in both vision engines: EdgePrism's ONNX graph and llama.cpp's libmtmd.

transformers' classes are the reference: they compute EdgePrism's rows, and with libmtmd's
deviations planted they compute libmtmd's (of llama-cpp-python 0.3.36). libmtmd deviates in the
tower:

- LLaVA, InternVL: it puts the class row after the patches, so that every patch has the position of
  its neighbour. For LLaVA it then drops the first patch and passes on the class row.
- LLaVA, InternVL: it uses the tanh form of GELU; the models use the erf form.
- All: it looks GELU up in a table of half precision.

SmolVLM's tower (SigLIP) has no class row and uses the tanh form of GELU, so only the half precision
differs: rows, tiles and the text between them are equal. libmtmd also deviates before the tower:

- LLaVA: it pads a picture that is not square after scaling. The original pads before scaling,
  which differs at the picture's border; llava-hf's preparation, which this test uses, crops.
- InternVL: it chooses the grid that keeps most pixels and fits the picture on black, like
  LLaVA-NeXT. The model takes the grid of the closest ratio and stretches the picture.
- SmolVLM: it shrinks the width first and the height second, like older Pillows. Pillow from 13 on
  shrinks the height of some pictures first (python-pillow/Pillow#9549), with other roundings
  between. It rounds to whole tiles once, transformers twice: the grid differs only if the longest
  edge is not a whole number of tiles, which it is in every published SmolVLM and Idefics3.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, Idefics3ImageProcessor
from transformers.activations import GELUActivation
from transformers.image_processing_utils import select_best_resolution

from edgeprism.convert.families import internvl, smolvlm
from edgeprism.language.model import LanguageModel
from edgeprism.perceive.captioner import Captioner
from edgeprism.records import EncodedImage
from edgeprism.segments import ImageRows, Segment, Text, Tokens
from edgeprism.vision.mtmd import MtmdEncoder
from tests.helpers import bundles, peer_mmproj, tiled, tiny_captioners, tiny_internvl, tiny_smolvlm
from tests.helpers.family_checks import converted

TOLERANCE = 2e-3  # share of the largest value: the error of libmtmd's GELU


@dataclass
class Peer:
    """One checkpoint in both formats, and its torch reference."""

    bundle: Path
    mmproj: bundles.GgufParts
    model: nn.Module
    rows: Callable[[nn.Module, Image.Image], np.ndarray]  # of patches, and LLaVA's class row first
    picture: Image.Image
    table: str = ""  # the model's position table where its first is the class row's
    # indices of rows with the class row first: what the model takes, and what libmtmd does
    taken: EllipsisType | list[int] = ...
    taken_by_mtmd: EllipsisType | list[int] = ...

    def expected(self) -> np.ndarray:
        return self.rows(self.model, self.picture)[self.taken]

    def expected_of_mtmd(self, prepared: Image.Image | None = None) -> np.ndarray:
        """Return the model's rows with libmtmd's deviations, for a picture without preparation."""
        planted = copy.deepcopy(self.model)
        if self.table:
            # patch i has position i instead of i + 1, and the class row the last
            place = planted.get_parameter(self.table)
            place.data = place.data.roll(1, dims=-2)
        for module in list(planted.modules()):
            for name, child in module.named_children():
                if isinstance(child, GELUActivation | nn.GELU):
                    setattr(module, name, nn.GELU(approximate="tanh"))
        return self.rows(planted, prepared or self.picture)[self.taken_by_mtmd]

    def by_onnx(self, picture: Image.Image | None = None) -> EncodedImage:
        with Captioner.load(self.bundle, device="cpu", threads=1) as captioner:
            return captioner.encode(picture or self.picture)

    def by_mtmd(
        self, path: Path, picture: Image.Image | None = None
    ) -> tuple[np.ndarray, tuple[Segment, ...]]:
        with self.mtmd(path) as encoder:
            return encoder.encode_picture(np.asarray(picture or self.picture)[None])

    @contextmanager
    def mtmd(self, path: Path) -> Iterator[MtmdEncoder]:
        lm = LanguageModel(self.bundle / "lm.gguf")
        encoder = MtmdEncoder(self.mmproj.write(path), lm, flash_attention=False)
        try:
            yield encoder
        finally:
            encoder.close()
            lm.close()


def llava(folder: Path) -> Peer:
    case = tiny_captioners.write_llava_hf(folder / "c")
    tensors = load_file(folder / "c" / "model.safetensors")
    config = json.loads((folder / "c" / "config.json").read_text())
    connector = tiny_captioners.mlp(0, 48, 64, 64)
    lead = "multi_modal_projector.linear_"
    connector.load_state_dict(
        {f"{2 * i}.{end}": tensors[f"{lead}{i + 1}.{end}"] for i in (0, 1)
         for end in ("weight", "bias")}
    )  # fmt: skip
    tower = CLIPVisionModel(CLIPVisionConfig(**config["vision_config"])).eval()
    tower.load_state_dict(
        {n.removeprefix("vision_tower."): t for n, t in tensors.items() if "vision_tower" in n}
    )
    size = tiny_captioners.SIZE

    @torch.inference_mode()
    def rows(model: nn.Module, picture: Image.Image) -> np.ndarray:
        pixels = case.reference.pixels[0](picture)
        tower, connector = model.children()
        states = tower(pixels, output_hidden_states=True).hidden_states
        projected: torch.Tensor = connector(states[-2])[0]
        return projected.numpy()

    n = (size // tiny_captioners.PATCH) ** 2
    return Peer(
        converted(case, folder / "b"), peer_mmproj.llava_mmproj(tensors, config, size),
        nn.Sequential(tower, connector), rows, tiled.pictures()[0].resize((size, size)),
        "0.vision_model.embeddings.position_embedding.weight",
        [*range(1, n + 1)], [*range(2, n + 1), 0],
    )  # fmt: skip


def intern(folder: Path) -> Peer:
    tiny = tiny_internvl.write(folder / "c", tiny_internvl.SPECS[0])
    tensors = load_file(folder / "c" / "model.safetensors")
    config = json.loads((folder / "c" / "config.json").read_text())
    return Peer(
        tiled.converted(internvl.FAMILY, folder / "c", folder / "b"),
        peer_mmproj.internvl_mmproj(tensors, config), tiny.model, rows_of(tiny),
        tiled.pictures()[0].resize((96, 64)),  # three tiles across, two down, and the thumbnail
        "model.vision_tower.embeddings.position_embeddings",
    )  # fmt: skip


def smol(folder: Path) -> Peer:
    tiny = tiny_smolvlm.write(folder / "c", tiny_smolvlm.SPECS[0])
    tensors: dict[str, torch.Tensor] = {}
    for path in (folder / "c").glob("*.safetensors"):
        tensors |= load_file(path)
    config, prepare = (
        json.loads((folder / "c" / f"{name}.json").read_text())
        for name in ("config", "preprocessor_config")
    )
    return Peer(
        tiled.converted(smolvlm.FAMILY, folder / "c", folder / "b"),
        peer_mmproj.smolvlm_mmproj(tensors, config, prepare), tiny.model, rows_of(tiny),
        tiled.pictures()[1],  # four tiles across, three down, and the overview
    )  # fmt: skip


def rows_of(tiny: Any) -> Callable[[nn.Module, Image.Image], np.ndarray]:
    return lambda model, picture: tiny.features(picture, model).flatten(0, 1).numpy()


PEERS = {"llava": llava, "internvl": intern, "smolvlm": smol}


@pytest.fixture(scope="module")
def peer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Peer]:
    cached: dict[str, Peer] = {}

    def peer(name: str) -> Peer:
        if name not in cached:
            cached[name] = PEERS[name](tmp_path_factory.mktemp(name))
        return cached[name]

    return peer


def apart(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference as a share of the largest value."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", PEERS)
def test_torch_says_what_each_engine_computes(
    name: str, peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    peer = peer_of(name)
    assert apart(peer.by_onnx().visual_tokens, peer.expected()) < 1e-4
    assert apart(peer.by_mtmd(tmp_path / "mm.gguf")[0], peer.expected_of_mtmd()) < TOLERANCE


# ---- towers with a class row


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_a_class_row_at_the_end_is_not_the_model(
    name: str, peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    peer = peer_of(name)
    assert apart(peer.by_mtmd(tmp_path / "mm.gguf")[0], peer.expected()) > 50 * TOLERANCE


@pytest.mark.parametrize("name", ["llava", "internvl"])
def test_with_positions_turned_the_engines_agree(
    name: str, peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    """In an mmproj file whose positions are shifted by one, each patch gets its own."""
    peer = peer_of(name)
    turned = copy.copy(peer)
    turned.mmproj = peer_mmproj.with_positions_turned(peer.mmproj)
    ours, theirs = peer.by_onnx().visual_tokens, turned.by_mtmd(tmp_path / "mm.gguf")[0]
    if peer.taken != peer.taken_by_mtmd:  # LLaVA's first patch is missing, its class row is last
        ours, theirs = ours[1:], theirs[:-1]
    assert apart(theirs, ours) < TOLERANCE


def fitted(picture: Image.Image, size: tuple[int, int], fill: tuple[int, ...]) -> Image.Image:
    """Scale into `size` with the same ratio, centred on `fill`."""
    scale = min(size[0] / picture.width, size[1] / picture.height)
    inner = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
    canvas = Image.new("RGB", size, fill)
    small = picture.resize(inner, Image.Resampling.BICUBIC)
    canvas.paste(small, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return canvas


@pytest.mark.parametrize("size", [(112, 84), (90, 160)])
def test_llava_is_scaled_and_then_padded(
    size: tuple[int, int], peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    peer, picture = peer_of("llava"), tiled.pictures()[2].resize(size)
    theirs, _ = peer.by_mtmd(tmp_path / "mm.gguf", picture)
    edge, clip_mean = tiny_captioners.SIZE, (122, 116, 104)
    prepared = fitted(picture, (edge, edge), clip_mean)
    assert apart(theirs, peer.expected_of_mtmd(prepared)) < TOLERANCE
    assert apart(theirs, peer.expected_of_mtmd(picture)) > 50 * TOLERANCE
    right = peer.rows(peer.model, picture)[peer.taken]
    assert apart(peer.by_onnx(picture).visual_tokens, right) < 1e-4


# (112, 84): both rules take 4 × 3 tiles, which the picture fills
@pytest.mark.parametrize(("size", "same"), [((112, 84), True), ((200, 113), False),
                                            ((400, 31), False)])  # fmt: skip
def test_internvl_is_cut_by_another_rule(
    size: tuple[int, int], same: bool, peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    peer, picture = peer_of("internvl"), tiled.pictures()[1].resize(size)
    theirs, _ = peer.by_mtmd(tmp_path / "mm.gguf", picture)
    tile, most, per_tile = 32, tiny_internvl.SPECS[0].most, 16
    grids = [(tile * down, tile * across) for across in range(1, most + 1)
             for down in range(1, most // across + 1)]  # fmt: skip
    canvas = fitted(picture, select_best_resolution(size[::-1], grids)[::-1], (0, 0, 0))
    # a canvas of whole tiles is cut without scaling; only its thumbnail differs
    expected = peer.expected_of_mtmd(canvas)
    assert apart(theirs[:-per_tile], expected[:-per_tile]) < TOLERANCE
    wrong = peer.expected_of_mtmd(picture)
    assert (theirs.shape == wrong.shape and apart(theirs, wrong) < TOLERANCE) == same
    right = peer.rows(peer.model, picture)
    assert apart(peer.by_onnx(picture).visual_tokens, right) < 1e-4


# ---- SmolVLM: no class row


def as_ids(segments: tuple[Segment, ...], lm: LanguageModel) -> list[Any]:
    """Return rows as (first, last + 1) and text as token ids."""
    actual: list[Any] = []
    for segment in segments:
        if isinstance(segment, ImageRows):
            actual.append((segment.start, segment.stop))
        elif isinstance(segment, Tokens):
            actual.append(list(segment.ids))
        else:
            assert isinstance(segment, Text)
            actual.append(lm.vocabulary.tokenize(segment.text, parse_special=True))
    return actual


@pytest.mark.parametrize("size", tiled.SIZES[:4] + tiled.SIZES[5:])
def test_smolvlm_is_the_same_in_both(
    size: tuple[int, int], peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    """Compare rows and every marker between them."""
    peer, picture = peer_of("smolvlm"), tiled.pictures()[tiled.SIZES.index(size)]
    ours = peer.by_onnx(picture)
    with peer.mtmd(tmp_path / "mm.gguf") as encoder:
        rows, segments = encoder.encode_picture(np.asarray(picture)[None])
        assert as_ids(segments, encoder.lm) == as_ids(ours.layout, encoder.lm)
    assert apart(rows, ours.visual_tokens) < TOLERANCE
    assert apart(rows, peer.rows(peer.model, picture)) < TOLERANCE


def test_both_count_positions_as_published(peer_of: Callable[[str], Peer], tmp_path: Path) -> None:
    """transformers' class in float32 does not: test_smolvlm.py says why."""
    peer = peer_of("smolvlm")
    as_is = copy.deepcopy(peer.model)
    del as_is.get_submodule("model.vision_model.embeddings").forward
    shifted = peer.rows(as_is, peer.picture)
    assert apart(peer.by_onnx().visual_tokens, shifted) > 50 * TOLERANCE
    assert apart(peer.by_mtmd(tmp_path / "mm.gguf")[0], shifted) > 50 * TOLERANCE


def test_a_tall_picture_is_shrunk_across_first(
    peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    peer, picture = peer_of("smolvlm"), tiled.pictures()[4]
    lanczos, small = Image.Resampling.LANCZOS, (10, 128)  # what its longest edge makes of it
    across_first = picture.resize((small[0], picture.height), lanczos).resize(small, lanczos)
    theirs, _ = peer.by_mtmd(tmp_path / "mm.gguf", picture)
    assert apart(theirs, peer.rows(peer.model, across_first)) < TOLERANCE
    right = peer.rows(peer.model, picture)
    assert apart(peer.by_onnx(picture).visual_tokens, right) < 1e-4
    at_once = picture.resize(small, lanczos)
    same = np.array_equal(np.asarray(across_first), np.asarray(at_once))  # before Pillow 13
    assert (apart(theirs, right) < TOLERANCE) == same


@pytest.mark.parametrize(("longest", "same"), [(96, True), (128, True), (100, False)])
def test_grids_differ_where_the_longest_edge_is_not_whole_tiles(
    longest: int, same: bool, peer_of: Callable[[str], Peer], tmp_path: Path
) -> None:
    peer, picture = copy.copy(peer_of("smolvlm")), tiled.pictures()[0].resize((100, 60))
    key = "clip.vision.preproc_image_size"
    peer.mmproj = copy.copy(peer.mmproj)
    peer.mmproj.metadata = {**peer.mmproj.metadata, key: ("uint32", longest)}
    processor = Idefics3ImageProcessor(
        size={"longest_edge": longest}, max_image_size={"longest_edge": 32}
    )
    inputs = processor(picture, return_tensors="pt", return_row_col_info=True)
    n_tiles = inputs["rows"][0][0] * inputs["cols"][0][0] + 1
    with peer.mtmd(tmp_path / "mm.gguf") as encoder:
        actual = sum(isinstance(s, ImageRows) for s in encoder.layout(picture.size))
    assert (actual == n_tiles) == same
