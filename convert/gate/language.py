"""The gate's reference of language models: what the published tensors compute, in torch float32.

It deliberately shares no code with the converter, not even for reading files: a mistake in both
would cancel out. Attention works on the matrices as published, LoRA is a separate product
(x·Aᵀ·Bᵀ) that is never merged, RoPE rotates halves, and the output head is the files' own if they
hold one, whatever the configuration says of tied embeddings. Only one layer's weights are in memory
at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from edgeprism.convert.gate.files import RawTensors, weight_files
from edgeprism.convert.gate.settings import Rotation, settings_from_config
from edgeprism.convert.gate.tiktoken import tiktoken_ids
from edgeprism.errors import CheckpointError

Tick = Callable[[], None]


@dataclass(frozen=True)
class InnerLora:
    """LoRA among the model's own files.

    Parameters:
        lead: what stands before its names.
        scale: its factor.
        half: what its halves are called, but for A and B.
        rows: of each text the rows that go through it, the pictures'; None: all go.
    """

    lead: str
    scale: float
    half: str = "lora_"
    rows: Sequence[range] | None = None

    def mask(self, lengths: Sequence[int]) -> torch.Tensor:
        """Return [rows of all texts, 1]: 1 for those that go through it, 0 for the others."""
        runs = self.rows or [range(length) for length in lengths]
        texts = [[float(i in run) for i in range(n)] for n, run in zip(lengths, runs, strict=True)]
        return torch.tensor([row for text in texts for row in text])[:, None]


class _Weights:
    """The base model's linear layers, with the adapter's product added to their outputs."""

    def __init__(
        self,
        files: Iterable[Path],
        adapter: Path | None,
        inner: InnerLora | None,
        lengths: Sequence[int],
    ) -> None:
        self.base = RawTensors(files)
        self.inner = inner
        self.mask = inner.mask(lengths) if inner else torch.ones(1)
        self.adapter = RawTensors(weight_files(adapter)) if adapter else None
        self.scale = 0.0
        if adapter:
            config = json.loads((adapter / "adapter_config.json").read_text())
            root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
            self.scale = config["lora_alpha"] / root

    def vector(self, name: str) -> torch.Tensor:
        return self.base[name].float()

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """x [rows, in] → [rows, out]; slices the weight's rows, which saves memory at the head."""
        weight = self.base[name + ".weight"]
        y = torch.cat([x @ part.float().t() for part in weight.split(16384)], dim=1)
        if name + ".bias" in self.base:
            y += self.base[name + ".bias"].float()
        for suffix in ("", ".default"):
            a, b = (f"base_model.model.{name}.lora_{h}{suffix}.weight" for h in "AB")
            if self.adapter is not None and a in self.adapter:
                low = x @ self.adapter[a].float().t()
                y += self.scale * (low @ self.adapter[b].float().t())
            if self.inner is not None:
                stem = f"{self.inner.lead}{name}.{self.inner.half}"
                a, b = (f"{stem}{h}{suffix}.weight" for h in "AB")
                if a in self.base:
                    low = x @ self.base[a].float().t()
                    y += self.mask * self.inner.scale * (low @ self.base[b].float().t())
        return y


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


# Names of one layer's tensors, which differ by publisher
_LLAMA = {
    "embedding": "embed_tokens", "layers": "layers", "norm1": "input_layernorm", "packed": "",
    "out": "self_attn.o_proj", "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj",
    "up": "mlp.up_proj", "down": "mlp.down_proj", "norm": "norm", "head": "lm_head",
}  # fmt: skip
_INTERNLM2 = {
    "embedding": "tok_embeddings", "layers": "layers", "norm1": "attention_norm",
    "packed": "attention.wqkv", "out": "attention.wo", "norm2": "ffn_norm",
    "gate": "feed_forward.w1", "up": "feed_forward.w3", "down": "feed_forward.w2", "norm": "norm",
    "head": "output",
}  # fmt: skip
_QWEN = {
    "embedding": "wte", "layers": "h", "norm1": "ln_1", "packed": "attn.c_attn",
    "out": "attn.c_proj", "norm2": "ln_2", "gate": "mlp.w2", "up": "mlp.w1", "down": "mlp.c_proj",
    "norm": "ln_f", "head": "lm_head",
}  # fmt: skip


@torch.inference_mode()
def logits(
    files: Iterable[Path],
    data: dict[str, Any],
    texts: list[list[int]],
    tick: Tick,
    adapter: Path | None = None,
    inner: InnerLora | None = None,
) -> list[np.ndarray]:
    """Return teacher-forced logits [n_tokens, n_vocab] float32 of each text (ids with BOS).

    `files` hold the model, `data` has the fields of its config.json, `adapter` is a LoRA's folder,
    `inner` a LoRA among `files`.
    """
    lengths = [len(text) for text in texts]
    weights, config = _Weights(files, adapter, inner, lengths), settings_from_config(data)
    kind = data["model_type"]
    names = {"internlm2": _INTERNLM2, "qwen": _QWEN}.get(kind, _LLAMA)
    # vision towers have norms of the same names, but no gate
    body = weights.base.lead_of(f"{names['layers']}.0.{names['gate']}.weight")
    kv_heads, head_dim = config.n_kv_heads, config.head_dim
    rotation, eps = config.rotation, config.eps
    gemma = kind == "gemma"

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = weights.vector(f"{name}.weight")
        return _rms(x, weight + 1 if gemma else weight, eps)

    ids = torch.tensor([token for text in texts for token in text])
    embedding = f"{body}{names['embedding']}"
    # all texts form one block of rows; only attention separates them
    x = weights.base[f"{embedding}.weight"][ids].float() * config.embedding_scale  # [rows, hidden]
    for i in range(config.n_layers):
        p = f"{body}{names['layers']}.{i}."
        y = norm(x, p + names["norm1"])
        if kind == "internlm2":
            q, k, v = _unpacked(weights.linear(y, p + names["packed"]), kv_heads, head_dim)
        elif kind == "qwen":
            thirds = weights.linear(y, p + names["packed"]).chunk(3, dim=-1)
            q, k, v = (third.unflatten(-1, (kv_heads, 1, head_dim)) for third in thirds)
        else:
            q, k, v = (
                weights.linear(y, f"{p}self_attn.{part}_proj").unflatten(
                    -1, (kv_heads, -1, head_dim)
                )
                for part in "qkv"
            )
        parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        added = weights.linear(
            torch.cat([_attention(*part, rotation) for part in parts]), p + names["out"]
        )
        x = x + config.residual_scale * added
        y = norm(x, p + names["norm2"])
        gate, up = (weights.linear(y, p + names[part]) for part in ("gate", "up"))
        gate = F.gelu(gate, approximate="tanh") if gemma else F.silu(gate)
        x = x + config.residual_scale * weights.linear(gate * up, p + names["down"])
        tick()
    x = norm(x, body + names["norm"]) / config.head_divisor
    rows_of_logits = weights.linear(x, _head(weights, body, names["head"]) or embedding)
    return [part.numpy() for part in rows_of_logits.split(lengths)]


def _head(weights: _Weights, body: str, name: str) -> str:
    """Return the output head's full name, or "" if the files hold none."""
    beside = body.removesuffix("model.") + name
    return next((name for name in (beside, "lm_head") if f"{name}.weight" in weights.base), "")


def _unpacked(
    packed: torch.Tensor, kv_heads: int, head_dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Split InternLM2's rows [t, …] into q [t, kv_heads, groups, d], k, v [t, kv_heads, 1, d]."""
    grouped = packed.unflatten(-1, (kv_heads, -1, head_dim))
    return grouped[:, :, :-2], grouped[:, :, -2:-1], grouped[:, :, -1:]


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotation: Rotation
) -> torch.Tensor:
    """Causal attention of one text, in the shapes of `_unpacked`; returns [t, hidden]."""
    q, k = rotation(q), rotation(k)[:, :, 0]
    scores = torch.einsum("tkgd,skd->kgts", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    probabilities = torch.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
    return torch.einsum("kgts,skd->tkgd", probabilities, v[:, :, 0]).flatten(1)


def text_to_ids(folder: Path) -> Callable[[str], list[int]]:
    """Return the published tokenizer's own text → ids function: no BOS, no special tokens.

    Raises CheckpointError if the tokenizer's own library cannot read it.
    """
    path = folder / "tokenizer.model"
    try:
        path = path if path.is_file() else folder / "spiece.model"
        if path.is_file():
            import sentencepiece

            model = sentencepiece.SentencePieceProcessor(model_file=str(path))
            return lambda text: list(model.encode(text))
        if (folder / "qwen.tiktoken").is_file():
            path = folder / "qwen.tiktoken"
            return tiktoken_ids(path)
        from tokenizers import Tokenizer, models, pre_tokenizers

        path = folder / "tokenizer.json"
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        else:  # GPT-2's older pair of files
            path, merges = folder / "vocab.json", folder / "merges.txt"
            tokenizer = Tokenizer(models.BPE.from_file(str(path), str(merges)))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise CheckpointError(f"{path} cannot be read: {error}.", "Download it again.") from error
    return plain_ids(tokenizer)


def plain_ids(tokenizer: Any) -> Callable[[str], list[int]]:
    """Return what a `tokenizers.Tokenizer` makes of a text, without special tokens or limits."""
    tokenizer.encode_special_tokens = True  # text must never become a special token
    # settings of a training, which the file may hold; transformers passes over them, too
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
