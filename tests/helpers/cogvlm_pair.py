"""A tiny pair of GGUF files of llama.cpp's architecture and projector `cogvlm`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers import bundles, mmprojs

_WIDTH, _FF, _LAYERS, _PATCH, _SIZE = 32, 48, 2, 7, 28


def write_cogvlm_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write the language model and its mmproj with random weights; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return (
        _language_model(seed).write(folder / "cogvlm.gguf"),
        _mmproj(seed).write(folder / "mmproj-cogvlm.gguf"),
    )


def _language_model(seed: int) -> bundles.GgufParts:
    rng = np.random.default_rng(seed)
    parts = bundles.lm_parts(seed)
    parts.metadata = {
        key.replace("llama.", "cogvlm.", 1): value for key, value in parts.metadata.items()
    }
    parts.architecture = "cogvlm"
    tensors = dict(parts.tensors)
    for i in range(bundles.LmShape().n_layer):
        block = f"blk.{i}."
        packed = [tensors.pop(f"{block}attn_{part}.weight") for part in "qkv"]
        tensors[f"{block}attn_qkv.weight"] = np.concatenate(packed)
        for own, of_rows in (("attn_qkv", "vis_attn_qkv"), ("attn_output", "vis_attn_output"),
                             ("ffn_gate", "vis_gate"), ("ffn_up", "vis_up"),
                             ("ffn_down", "vis_down")):  # fmt: skip
            shape = tensors[f"{block}{own}.weight"].shape
            noise = rng.standard_normal(shape, dtype=np.float32)
            tensors[f"{block}{of_rows}.weight"] = noise * np.float32(3 / shape[1] ** 0.5)
    parts.tensors = tensors
    return parts


def _mmproj(seed: int) -> bundles.GgufParts:
    rng = np.random.default_rng(seed)
    n = bundles.N_EMBD

    def weight(*shape: int) -> np.ndarray:
        noise = rng.standard_normal(shape, dtype=np.float32)
        return noise / np.float32(np.prod(shape[1:]) ** 0.5)

    def vector(size: int, around: float = 0.0) -> np.ndarray:
        return np.float32(around) + np.float32(0.2) * rng.standard_normal(size, dtype=np.float32)

    parts = bundles.GgufParts(architecture="clip")
    parts.metadata = mmprojs.header(
        "cogvlm", eps=1e-6, image_size=_SIZE, patch_size=_PATCH, embedding_length=_WIDTH,
        feed_forward_length=_FF, block_count=_LAYERS, projection_dim=n, attention__head_count=2,
    )  # fmt: skip
    parts.metadata["clip.use_gelu"] = ("bool", True)
    t = parts.tensors
    t["v.class_embd"] = vector(_WIDTH)
    t["v.patch_embd.weight"] = weight(_WIDTH, 3, _PATCH, _PATCH)
    t["v.patch_embd.bias"] = vector(_WIDTH)
    t["v.position_embd.weight"] = weight((_SIZE // _PATCH) ** 2 + 1, _WIDTH)
    for i in range(_LAYERS):
        block = f"v.blk.{i}."
        for name, rows, columns in (
            ("attn_qkv", 3 * _WIDTH, _WIDTH),
            ("attn_out", _WIDTH, _WIDTH),
            ("ffn_up", _FF, _WIDTH),
            ("ffn_down", _WIDTH, _FF),
        ):
            t[f"{block}{name}.weight"] = weight(rows, columns)
            t[f"{block}{name}.bias"] = vector(rows)
        for name in ("ln1", "ln2"):
            t[f"{block}{name}.weight"], t[f"{block}{name}.bias"] = vector(_WIDTH, 1), vector(_WIDTH)
    t["mm.model.fc.weight"] = weight(n, _WIDTH)
    t["mm.post_fc_norm.weight"], t["mm.post_fc_norm.bias"] = vector(n, 1), vector(n)
    for name, rows, columns in (("gate", _FF, n), ("up", _FF, n), ("down", n, _FF)):
        t[f"mm.{name}.weight"] = weight(rows, columns)
    t["v.boi"], t["v.eoi"] = vector(n), vector(n)
    return parts
