"""Load a bundle's weights for further training, because the checkpoints are not kept.

The 8-bit weights of a bundle stay rounded. A bundle lacks the heads that stage ``tower`` needs, so
these start from new random weights.
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
    """Read a bundle that ``export`` and ``convert`` made (int8 or float tower, Q8_0 decoder)."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    model = Nano(NanoConfig())
    vision = _vision_tensors(bundle / manifest["vision"]["variants"][0]["file"])
    lm = _lm_tensors(bundle / manifest["lm"]["file"])
    tensors = _to_tower(vision, model) | _to_decoder(lm, model)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    wrong = [name for name in missing if not name.startswith("heads.")] + unexpected
    if wrong:
        raise ValueError(f"{bundle}: not a nano of these dimensions: {', '.join(sorted(wrong))}")
    return model


def _vision_tensors(path: Path) -> dict[str, Tensor]:
    """Return the graph's tensors, matrices as [in, out], by name without ``towers.0.``."""
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    tensors = {}
    for name, array in stored.items():
        if name.endswith("_quantized"):
            whole = name.removesuffix("_quantized")
            zero = stored[whole + "_zero_point"].astype("float32")
            array = (array.astype("float32") - zero) * stored[whole + "_scale"]
            name = whole
        elif name.endswith(("_scale", "_zero_point")) or not name.startswith(("tow", "proj")):
            continue
        tensors[name.removeprefix("towers.0.")] = torch.from_numpy(array.copy()).float()
    return tensors


def _to_tower(tensors: dict[str, Tensor], model: Nano) -> dict[str, Tensor]:
    def matrix(name: str) -> Tensor:
        tensor = tensors[name]
        return tensor.T if tensor.ndim == 2 and name != "position" else tensor

    weights = {f"tower.{name}": matrix(graph_name) for graph_name, name in _TOWER.items()}
    # the graph has a patch's colours last, the tower first
    width, side = model.config.vision_width, model.config.patch
    patch = weights["tower.embed.weight"].view(width, side, side, 3)
    weights["tower.embed.weight"] = patch.permute(0, 3, 1, 2).reshape(width, -1)
    for i in range(len(model.tower.layers)):
        for part in ("norm1", "norm2", "out", "fc1", "fc2"):
            for kind in ("weight", "bias"):
                name = f"layers.{i}.{part}.{kind}"
                weights[f"tower.{name}"] = matrix(name)
        for kind in ("weight", "bias"):
            packed = torch.cat([matrix(f"layers.{i}.{part}.{kind}") for part in "qkv"])
            weights[f"tower.layers.{i}.qkv.{kind}"] = packed
    for linear, index in ((0, 0), (1, 2)):
        for kind in ("weight", "bias"):
            weights[f"projector.{index}.{kind}"] = matrix(f"projector.linears.{linear}.{kind}")
    return weights


def _lm_tensors(path: Path) -> dict[str, Tensor]:
    return {
        t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()).float()
        for t in gguf.GGUFReader(path).tensors
    }


def _to_decoder(tensors: dict[str, Tensor], model: Nano) -> dict[str, Tensor]:
    c = model.config
    weights = {
        "decoder.tok_embeddings.weight": tensors["token_embd.weight"],
        "decoder.norm.weight": tensors["output_norm.weight"],
        "decoder.output.weight": tensors["output.weight"],
    }
    names = {
        "attention_norm": "attn_norm", "wo": "attn_output", "ffn_norm": "ffn_norm",
        "w1": "ffn_gate", "w3": "ffn_up", "w2": "ffn_down",
    }  # fmt: skip
    for i in range(c.lm_layers):
        layer, block = f"decoder.layers.{i}", f"blk.{i}"
        for name, gguf_name in names.items():
            weights[f"{layer}.{name}.weight"] = tensors[f"{block}.{gguf_name}.weight"]
        q = _halves(tensors[f"{block}.attn_q.weight"], c.lm_heads)
        k = _halves(tensors[f"{block}.attn_k.weight"], c.lm_kv_heads)
        v = tensors[f"{block}.attn_v.weight"]
        # for each kv head: its queries, its key, its value
        packed = [rows.view(c.lm_kv_heads, -1, c.lm_width) for rows in (q, k, v)]
        weights[f"{layer}.wqkv.weight"] = torch.cat(packed, 1).view(-1, c.lm_width)
    return weights


def _halves(rows: Tensor, n_heads: int) -> Tensor:
    """Reorder each head's rows from llama.cpp's interleaved pairs to (first half, second half)."""
    pairs = rows.view(n_heads, rows.shape[0] // n_heads // 2, 2, rows.shape[1])
    return pairs.transpose(1, 2).reshape(rows.shape)
