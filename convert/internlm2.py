"""InternLM2 as published → the tensors of llama.cpp's `internlm2` architecture.

Source of the layout: the model's public repository (`modeling_internlm2.py`). It is a Llama in
other packing: `wqkv` holds, for each key/value head, its query heads, then the key, then the
value: [kv_heads, q_per_kv + 2, head_dim, hidden].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.checkpoint import read_json
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "internlm2"


@dataclass(frozen=True)
class InternLM2Config:
    """What the weights' shapes and the GGUF's header need."""

    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    n_ffn: int
    n_vocab: int
    context_length: int
    rope_theta: float
    rms_eps: float

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_heads

    @property
    def q_per_kv(self) -> int:
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class LmTensor:
    """One tensor of the GGUF: its name, shape [out, in] or [n], and how to make it (float32)."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


def config_from_folder(folder: Path) -> InternLM2Config:
    """Read config.json; CheckpointError for another model type or a variant that differs."""
    path = folder / "config.json"
    data = read_json(path)
    if data.get("model_type") != "internlm2":
        raise CheckpointError(
            f"{path}: model_type is {data.get('model_type')!r}, expected 'internlm2'.",
            "Pass the folder of the InternLM2 language model with --llm.",
        )
    fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size",
              "vocab_size")  # fmt: skip
    bad = [name for name in fields if not isinstance(data.get(name), int) or data[name] < 1]
    if bad:
        raise CheckpointError(
            f"{path}: {', '.join(bad)} must be whole numbers above 0.", "Download it again."
        )
    _refuse_variants(path, data)
    config = InternLM2Config(
        n_layers=data["num_hidden_layers"],
        n_embd=data["hidden_size"],
        n_heads=data["num_attention_heads"],
        n_kv_heads=data.get("num_key_value_heads") or data["num_attention_heads"],
        n_ffn=data["intermediate_size"],
        n_vocab=data["vocab_size"],
        context_length=data.get("max_position_embeddings", 32768),
        rope_theta=float(data.get("rope_theta", 10000)),
        rms_eps=float(data.get("rms_norm_eps", 1e-6)),
    )
    if config.n_embd % config.n_heads or config.n_heads % config.n_kv_heads:
        raise CheckpointError(
            f"{path}: hidden_size {config.n_embd} must be a multiple of num_attention_heads "
            f"{config.n_heads}, and that of num_key_value_heads {config.n_kv_heads}.",
            "Download it again.",
        )
    return config


def _refuse_variants(path: Path, data: dict[str, Any]) -> None:
    """Settings that would make the weights compute something else than the GGUF does."""
    expected: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu", None),
        "bias": (False, None),
        "tie_word_embeddings": (False, None),
    }
    faults = [
        f"{name} = {data[name]!r} (expected {values[0]!r})"
        for name, values in expected.items()
        if data.get(name) not in values
    ]
    scaling = data.get("rope_scaling")
    # "dynamic" changes nothing within the trained context, which is where captions live
    if scaling is not None and (
        not isinstance(scaling, dict) or scaling.get("type", scaling.get("rope_type")) != "dynamic"
    ):
        faults.append(f"rope_scaling = {scaling!r} (expected null or type dynamic)")
    if faults:
        raise CheckpointError(
            f"{path} describes a variant that is not supported: {'; '.join(faults)}.",
            "Use the published InternLM2 weights.",
        )


def tensor_shapes(config: InternLM2Config) -> dict[str, tuple[int, ...]]:
    """Every tensor that the checkpoint must hold, with its shape."""
    e, f = config.n_embd, config.n_ffn
    n_packed = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (config.n_vocab, e)}
    for i in range(config.n_layers):
        layer = f"model.layers.{i}."
        shapes[layer + "attention_norm.weight"] = (e,)
        shapes[layer + "attention.wqkv.weight"] = (n_packed, e)
        shapes[layer + "attention.wo.weight"] = (e, e)
        shapes[layer + "ffn_norm.weight"] = (e,)
        shapes[layer + "feed_forward.w1.weight"] = (f, e)
        shapes[layer + "feed_forward.w3.weight"] = (f, e)
        shapes[layer + "feed_forward.w2.weight"] = (e, f)
    shapes["model.norm.weight"] = (e,)
    shapes["output.weight"] = (config.n_vocab, e)
    return shapes


def gguf_tensors(
    config: InternLM2Config, merged: Callable[[str], torch.Tensor]
) -> Iterator[LmTensor]:
    """The GGUF's tensors in file order; `merged(name)` gives a published tensor, LoRA added.

    Each is made only when asked for, so one layer's matrix is in memory at a time.
    """
    shapes = tensor_shapes(config)

    def plain(name: str, source: str) -> LmTensor:
        return LmTensor(name, shapes[source], lambda: merged(source))

    def unpacked(packed: str, part: str) -> torch.Tensor:
        return unpack_wqkv(merged(packed), config, part)

    yield plain("token_embd.weight", "model.tok_embeddings.weight")
    n_rows = {"q": config.n_heads * config.head_dim, "k": config.n_kv_heads * config.head_dim}
    n_rows["v"] = n_rows["k"]
    for i in range(config.n_layers):
        layer, block = f"model.layers.{i}.", f"blk.{i}."
        yield plain(block + "attn_norm.weight", layer + "attention_norm.weight")
        packed = layer + "attention.wqkv.weight"
        for part, rows in n_rows.items():
            name, shape = f"{block}attn_{part}.weight", (rows, config.n_embd)
            yield LmTensor(name, shape, partial(unpacked, packed, part))
        yield plain(block + "attn_output.weight", layer + "attention.wo.weight")
        yield plain(block + "ffn_norm.weight", layer + "ffn_norm.weight")
        yield plain(block + "ffn_gate.weight", layer + "feed_forward.w1.weight")
        yield plain(block + "ffn_up.weight", layer + "feed_forward.w3.weight")
        yield plain(block + "ffn_down.weight", layer + "feed_forward.w2.weight")
    yield plain("output_norm.weight", "model.norm.weight")
    yield plain("output.weight", "output.weight")


def unpack_wqkv(packed: torch.Tensor, config: InternLM2Config, part: str) -> torch.Tensor:
    """`part` ("q", "k" or "v") of `packed` [(heads + 2 · kv_heads) · head_dim, hidden]."""
    groups = packed.view(config.n_kv_heads, config.q_per_kv + 2, config.head_dim, config.n_embd)
    if part == "q":
        rows = groups[:, : config.q_per_kv].reshape(-1, config.n_embd)
        return permute_for_rope(rows, config.n_heads)
    if part == "k":
        return permute_for_rope(groups[:, -2].reshape(-1, config.n_embd), config.n_kv_heads)
    return groups[:, -1].reshape(-1, config.n_embd)


def permute_for_rope(rows: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Reorder each head's rows from (first half, second half) to interleaved pairs.

    The checkpoint rotates row i with row i + head_dim/2; llama.cpp's NORM rope rotates neighbours.
    """
    n_rows, n_in = rows.shape
    halves = rows.view(n_heads, 2, n_rows // n_heads // 2, n_in)
    return halves.transpose(1, 2).reshape(n_rows, n_in)
