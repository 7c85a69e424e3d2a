"""The same tiny weights through both vision engines: our ONNX graph and llama.cpp's libmtmd.

libmtmd (of llama-cpp-python 0.3.36) differs from the published models in three ways. It puts a
tower's class row behind the patches, so that every patch has the position of its neighbour. Of
LLaVA's rows it then leaves out the first patch and hands on the class row. Its GELU is the tanh
form, looked up in half precision, where the models' is the erf form. Torch shows who is right:
transformers' classes give our rows as they are, and libmtmd's with these three planted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import bundles
import numpy as np
import peer_mmproj
import pytest
import tiled
import tiny_captioners
import tiny_internvl
import torch
from PIL import Image
from safetensors.torch import load_file
from test_families import converted
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.activations import GELUActivation

from edgeprism.captioner import Captioner
from edgeprism.convert.families import internvl
from edgeprism.lm import LanguageModel
from edgeprism.mtmd import MtmdEncoder

TOLERANCE = 2e-3  # of the largest value: what libmtmd's GELU costs
TABLE = "v.position_embd.weight"


@dataclass
class Peer:
    """One checkpoint, made twice, and torch's reading of it."""

    bundle: Path
    mmproj: bundles.GgufParts
    model: nn.Module
    rows: Callable[[nn.Module, Image.Image], np.ndarray]  # of patches, and LLaVA's class row first
    table: str  # the model's position table, the class row's position first
    picture: Image.Image
    # of rows with the class row first: what the model takes, and what libmtmd does
    taken: slice | list[int]
    taken_by_mtmd: slice | list[int]

    def expected(self) -> np.ndarray:
        return self.rows(self.model, self.picture)[self.taken]

    def expected_of_mtmd(self) -> np.ndarray:
        """The model with libmtmd's ways planted."""
        planted = copy.deepcopy(self.model)
        place = planted.get_parameter(self.table)
        # patch i stands at i instead of i + 1, the class row at the end
        place.data = place.data.roll(1, dims=-2)
        for module in list(planted.modules()):
            for name, child in module.named_children():
                if isinstance(child, GELUActivation | nn.GELU):
                    setattr(module, name, nn.GELU(approximate="tanh"))
        return self.rows(planted, self.picture)[self.taken_by_mtmd]

    def by_onnx(self) -> np.ndarray:
        with Captioner.load(self.bundle, device="cpu", threads=1) as captioner:
            return captioner.encode(self.picture).visual_tokens

    def by_mtmd(self, mmproj: bundles.GgufParts, path: Path) -> np.ndarray:
        lm = LanguageModel(self.bundle / "lm.gguf")
        encoder = MtmdEncoder(mmproj.write(path), lm, flash_attention=False)
        try:
            return encoder.encode_picture(np.asarray(self.picture)[None])[0]
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
        states = model[0](pixels, output_hidden_states=True).hidden_states  # type: ignore[index]
        return model[1](states[-2])[0].numpy()  # type: ignore[index]

    n = (size // tiny_captioners.PATCH) ** 2
    return Peer(
        converted(case, folder / "b"), peer_mmproj.llava_mmproj(tensors, config, size),
        nn.Sequential(tower, connector), rows,
        "0.vision_model.embeddings.position_embedding.weight",
        tiled.pictures()[0].resize((size, size)), slice(1, None), [*range(2, n + 1), 0],
    )  # fmt: skip


def intern(folder: Path) -> Peer:
    made = tiny_internvl.write(folder / "c", tiny_internvl.SPECS[0])
    tensors = load_file(folder / "c" / "model.safetensors")
    config = json.loads((folder / "c" / "config.json").read_text())

    def rows(model: nn.Module, picture: Image.Image) -> np.ndarray:
        with torch.inference_mode():
            return made.features(picture, model).flatten(0, 1).numpy()

    return Peer(
        tiled.converted(internvl, folder / "c", folder / "b"),
        peer_mmproj.internvl_mmproj(tensors, config), made.model, rows,
        "model.vision_tower.embeddings.position_embeddings",
        tiled.pictures()[0].resize((96, 64)),  # three tiles across, two down, and the thumbnail
        slice(None), slice(None),
    )  # fmt: skip


PEERS = {"llava": llava, "internvl": intern}


@pytest.fixture(scope="module", params=PEERS)
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    return PEERS[request.param](tmp_path_factory.mktemp(request.param))


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a part of the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_torch_says_which_engine_is_right(peer: Peer, tmp_path: Path) -> None:
    ours, theirs = peer.by_onnx(), peer.by_mtmd(peer.mmproj, tmp_path / "mm.gguf")
    right = peer.expected()
    assert apart(ours, right) < 1e-4
    assert apart(theirs, peer.expected_of_mtmd()) < TOLERANCE
    assert apart(theirs, right) > 50 * TOLERANCE


def test_with_positions_turned_the_engines_agree(peer: Peer, tmp_path: Path) -> None:
    """In an mmproj file whose positions are moved by one, each patch finds its own."""
    table = peer.mmproj.tensors[TABLE]
    turned = copy.copy(peer.mmproj)
    turned.tensors = {**peer.mmproj.tensors, TABLE: np.roll(table, -1, axis=0)}
    ours, theirs = peer.by_onnx(), peer.by_mtmd(turned, tmp_path / "mm.gguf")
    if peer.taken != peer.taken_by_mtmd:  # LLaVA's first patch is missing, its class row is last
        ours, theirs = ours[1:], theirs[:-1]
    assert apart(theirs, ours) < TOLERANCE
