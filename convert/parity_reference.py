"""The gate's reference: what the published tensors compute, in torch float32, layer by layer.

It shares no code with the converter on purpose, down to reading the files: a mistake in unpacking,
merging or reading would otherwise cancel out. Attention works on the packed `wqkv` as published,
LoRA is applied beside its matrix (x·Aᵀ·Bᵀ) and never merged, and RoPE rotates halves. Weights of
one layer at a time are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

Tick = Callable[[], None]


class RawTensors:
    """{name: tensor} of every weight file of a folder, read when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._sources: dict[str, Any] = {}
        files = sorted(folder.glob("*.safetensors"))
        for path in files:
            opened = safe_open(str(path), framework="pt")
            self._sources |= dict.fromkeys(opened.keys(), opened.get_tensor)
        for path in () if files else sorted(folder.glob("*.bin")):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            self._sources |= dict.fromkeys(loaded, loaded.__getitem__)

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._sources[name](name)
        return tensor


@torch.inference_mode()
def siglip_visual_tokens(
    vision: Path, projector: Path, pixels: np.ndarray, drop_first: bool, tick: Tick
) -> np.ndarray:
    """pixels uint8 [n, size, size, 3] → visual tokens [n, n_tokens, n_embd] float32.

    The tower up to `hidden_states[-2]`, i.e. all layers but the last, then the projector.
    """
    config = json.loads((vision / "config.json").read_text())
    config = config.get("vision_config", config)
    prepare_path = vision / "preprocessor_config.json"
    prepare = json.loads(prepare_path.read_text()) if prepare_path.is_file() else {}
    raw = RawTensors(vision)
    lead = "" if "embeddings.patch_embedding.weight" in raw else "vision_model."

    def w(name: str) -> torch.Tensor:
        return raw[lead + name].float()

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w(f"{name}.weight"), w(f"{name}.bias"))

    eps, heads = config.get("layer_norm_eps", 1e-6), config["num_attention_heads"]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) * prepare.get("rescale_factor", 1 / 255)
    mean = torch.tensor(prepare.get("image_mean", [0.5] * 3)).view(1, 3, 1, 1)
    std = torch.tensor(prepare.get("image_std", [0.5] * 3)).view(1, 3, 1, 1)
    x = F.conv2d(
        (x - mean) / std,
        w("embeddings.patch_embedding.weight"),
        w("embeddings.patch_embedding.bias"),
        stride=config["patch_size"],
    )
    x = x.flatten(2).transpose(1, 2) + w("embeddings.position_embedding.weight")
    approximate = "none" if config.get("hidden_act") == "gelu" else "tanh"
    for i in range(config["num_hidden_layers"] - 1):
        p = f"encoder.layers.{i}."
        y = F.layer_norm(
            x, x.shape[-1:], w(p + "layer_norm1.weight"), w(p + "layer_norm1.bias"), eps
        )
        q, k, v = (
            linear(y, f"{p}self_attn.{part}_proj").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in "qkv"
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(y, p + "self_attn.out_proj")
        y = F.layer_norm(
            x, x.shape[-1:], w(p + "layer_norm2.weight"), w(p + "layer_norm2.bias"), eps
        )
        x = x + linear(F.gelu(linear(y, p + "mlp.fc1"), approximate=approximate), p + "mlp.fc2")
        tick()
    x = x[:, 1:] if drop_first else x
    raw = RawTensors(projector)
    lead = ""
    for i in range(json.loads((projector / "config.json").read_text()).get("depth", 2)):
        x = linear(x if i == 0 else F.gelu(x), f"model.{2 * i}")
    result: np.ndarray = x.numpy()
    return result


class _Weights:
    """Linear layers of the base model with the adapter standing beside them."""

    def __init__(self, llm: Path, adapter: Path | None) -> None:
        self.base = RawTensors(llm)
        self.adapter = RawTensors(adapter) if adapter else None
        self.scale = 0.0
        if adapter:
            config = json.loads((adapter / "adapter_config.json").read_text())
            root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
            self.scale = config["lora_alpha"] / root

    def vector(self, name: str) -> torch.Tensor:
        return self.base[name].float()

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x [rows, in] → [rows, out]; in slices of rows of the weight, for large vocabularies."""
        weight = self.base[name + ".weight"]
        y = torch.cat([x @ part.float().t() for part in weight.split(16384)], dim=1)
        for suffix in ("", ".default"):
            a, b = (f"base_model.model.{name}.lora_{h}{suffix}.weight" for h in "AB")
            if self.adapter is not None and a in self.adapter:
                low = x @ self.adapter[a].float().t()
                y += self.scale * (low @ self.adapter[b].float().t())
        return y


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def _rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """RoPE over [rows, …, head_dim] where row t stands at position t."""
    half = x.shape[-1] // 2
    rates = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(x.shape[0], dtype=torch.float64)[:, None] * rates
    angles = angles.view(x.shape[0], *[1] * (x.dim() - 2), half)
    cos, sin = angles.cos().float(), angles.sin().float()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


@torch.inference_mode()
def internlm2_logits(
    llm: Path, adapter: Path | None, texts: list[list[int]], tick: Tick
) -> list[np.ndarray]:
    """Teacher-forced logits [n_tokens, n_vocab] float32 of each text (ids, BOS included)."""
    config = json.loads((llm / "config.json").read_text())
    weights = _Weights(llm, adapter)
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    groups = config["num_attention_heads"] // kv_heads
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    eps, theta = config.get("rms_norm_eps", 1e-6), float(config.get("rope_theta", 10000))
    lengths = [len(text) for text in texts]
    ids = torch.tensor([token for text in texts for token in text])
    # all texts as one block of rows; only attention looks at each alone
    x = weights.base["model.tok_embeddings.weight"][ids].float()  # [rows, hidden]
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        y = _rms(x, weights.vector(p + "attention_norm.weight"), eps)
        packed = weights.linear(y, p + "attention.wqkv")
        packed = packed.view(-1, kv_heads, groups + 2, head_dim)
        y = torch.cat([_attention(part, groups, theta) for part in packed.split(lengths)])
        x = x + weights.linear(y, p + "attention.wo")
        y = _rms(x, weights.vector(p + "ffn_norm.weight"), eps)
        gate = F.silu(weights.linear(y, p + "feed_forward.w1"))
        x = x + weights.linear(gate * weights.linear(y, p + "feed_forward.w3"),
                               p + "feed_forward.w2")  # fmt: skip
        tick()
    logits = weights.linear(_rms(x, weights.vector("model.norm.weight"), eps), "output")
    return [part.numpy() for part in logits.split(lengths)]


def _attention(packed: torch.Tensor, groups: int, theta: float) -> torch.Tensor:
    """Causal attention of one text; packed [t, kv_heads, groups + 2, head_dim] → [t, hidden]."""
    q = _rotated(packed[:, :, :groups], theta)
    k = _rotated(packed[:, :, groups], theta)
    scores = torch.einsum("tkgd,skd->kgts", q, k) / packed.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    seen = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return torch.einsum("kgts,skd->tkgd", seen, packed[:, :, groups + 1]).flatten(1)


def sentencepiece_ids(llm: Path) -> Callable[[str], list[int]]:
    """text → the ids that SentencePiece itself gives, no BOS."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(llm / "tokenizer.model"))
    return lambda text: list(model.encode(text))
