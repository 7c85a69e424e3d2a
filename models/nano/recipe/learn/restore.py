"""The weights of a bundle, to train further: the checkpoints they came from are not kept.

What the bundle holds in 8 bits comes back as 8 bits left it. The heads that stage ``tower`` learns
by are in no bundle; they start anew.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from edgeprism.models.nano.recipe.learn.model import Nano, NanoConfig

_TOWER = {"patch.weight": "embed.weight", "patch.bias": "embed.bias", "position": "position"}


def bundle_to_model(bundle: Path) -> Nano:
    """A bundle that ``export`` and ``convert`` made (int8 or float tower, Q8_0 language model)."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    model = Nano(NanoConfig())
    vision = _vision_tensors(bundle / manifest["vision"]["variants"][0]["file"])
    lm = _lm_tensors(bundle / manifest["lm"]["file"])
    found = _to_tower(vision, model) | _to_decoder(lm, model)
    missing, odd = model.load_state_dict(found, strict=False)
    wrong = [name for name in missing if not name.startswith("heads.")] + odd
    if wrong:
        raise ValueError(f"{bundle}: not a nano of these dimensions: {', '.join(sorted(wrong))}")
    return model


def _vision_tensors(path: Path) -> dict[str, Tensor]:
    """Names without ``towers.0.``; matrices as the graph holds them, [in, out]."""
    kept = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    tensors = {}
    for name, array in kept.items():
        if name.endswith("_quantized"):
            whole = name.removesuffix("_quantized")
            zero = kept[whole + "_zero_point"].astype("float32")
            array = (array.astype("float32") - zero) * kept[whole + "_scale"]
            name = whole
        elif name.endswith(("_scale", "_zero_point")) or not name.startswith(("tow", "proj")):
            continue
        tensors[name.removeprefix("towers.0.")] = torch.from_numpy(array.copy()).float()
    return tensors


def _to_tower(tensors: dict[str, Tensor], model: Nano) -> dict[str, Tensor]:
    def matrix(name: str) -> Tensor:
        tensor = tensors[name]
        return tensor.T if tensor.ndim == 2 and name != "position" else tensor

    found = {f"tower.{ours}": matrix(theirs) for theirs, ours in _TOWER.items()}
    # the graph reads a patch colour last, the tower colour first
    width, side = model.config.vision_width, model.config.patch
    patch = found["tower.embed.weight"].view(width, side, side, 3)
    found["tower.embed.weight"] = patch.permute(0, 3, 1, 2).reshape(width, -1)
    for i in range(len(model.tower.layers)):
        for part in ("norm1", "norm2", "out", "fc1", "fc2"):
            for kind in ("weight", "bias"):
                name = f"layers.{i}.{part}.{kind}"
                found[f"tower.{name}"] = matrix(name)
        for kind in ("weight", "bias"):
            packed = torch.cat([matrix(f"layers.{i}.{part}.{kind}") for part in "qkv"])
            found[f"tower.layers.{i}.qkv.{kind}"] = packed
    for linear, at in ((0, 0), (1, 2)):
        for kind in ("weight", "bias"):
            found[f"projector.{at}.{kind}"] = matrix(f"projector.linears.{linear}.{kind}")
    return found


def _lm_tensors(path: Path) -> dict[str, Tensor]:
    return {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).float()
        for t in gguf.GGUFReader(path).tensors
    }


def _to_decoder(tensors: dict[str, Tensor], model: Nano) -> dict[str, Tensor]:
    c = model.config
    found = {
        "decoder.tok_embeddings.weight": tensors["token_embd.weight"],
        "decoder.norm.weight": tensors["output_norm.weight"],
        "decoder.output.weight": tensors["output.weight"],
    }
    names = {
        "attention_norm": "attn_norm", "wo": "attn_output", "ffn_norm": "ffn_norm",
        "w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down",
    }  # fmt: skip
    for i in range(c.lm_layers):
        ours, theirs = f"decoder.layers.{i}", f"blk.{i}"
        for our, their in names.items():
            found[f"{ours}.{our}.weight"] = tensors[f"{theirs}.{their}.weight"]
        q = _halves(tensors[f"{theirs}.attn_q.weight"], c.lm_heads)
        k = _halves(tensors[f"{theirs}.attn_k.weight"], c.lm_kv_heads)
        v = tensors[f"{theirs}.attn_v.weight"]
        # per kv head: its queries, its key, its value
        packed = [rows.view(c.lm_kv_heads, -1, c.lm_width) for rows in (q, k, v)]
        found[f"{ours}.wqkv.weight"] = torch.cat(packed, 1).view(-1, c.lm_width)
    return found


def _halves(rows: Tensor, n_heads: int) -> Tensor:
    """Each head's rows from llama.cpp's neighbouring pairs back to (first half, second half)."""
    pairs = rows.view(n_heads, rows.shape[0] // n_heads // 2, 2, rows.shape[1])
    return pairs.transpose(1, 2).reshape(rows.shape)
