"""Language models of true dimensions whose weights are a hole in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType
_BUCKETS = 32  # kinds of relative positions


@dataclass(frozen=True)
class Shape:
    """The dimensions of a language model."""

    layers: int
    width: int
    wide: int  # of the feed-forward layers
    heads: int
    shared_heads: int  # of keys and values
    head: int  # width of one
    vocabulary: int = 3000
    kind: Type = Type.Q4_K
    table: Type = Type.Q6_K  # of embeddings and output
    output: bool = True  # False: the embeddings are the output
    context: int = 8192  # tokens of a prompt and its answer


def write_hollow_lm(path: Path, shape: Shape, architecture: str = "llama") -> Path:
    """Write the header of a model, and as many zeros as it has weights; return the path."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.wide)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.shared_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    if architecture == "t5":
        writer.add_relative_attn_buckets_count(_BUCKETS)
        writer.add_decoder_start_token_id(0)
    else:
        writer.add_rope_dimension_count(shape.head)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{i}" for i in range(len(tokens), shape.vocabulary)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * shape.vocabulary)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (shape.vocabulary - 259))
    size = 0
    for name, dimensions, kind in _tensors(shape, architecture):
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = math.prod(dimensions) // per_block * block_bytes
        raw = None if kind == Type.F32 else kind
        writer.add_tensor_info(name, dimensions, np.dtype(np.float32), n_bytes, raw_dtype=raw)
        size += -(-n_bytes // writer.data_alignment) * writer.data_alignment
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // writer.data_alignment) * writer.data_alignment
    with path.open("r+b") as file:
        file.truncate(start + size)
    return path


def _tensors(shape: Shape, architecture: str) -> list[tuple[str, list[int], Type]]:
    """Return name, dimensions (rows first) and type of every tensor."""
    if architecture == "t5":
        return _tensors_of_t5(shape)
    width, kind, table = shape.width, shape.kind, [shape.vocabulary, shape.width]
    own, shared = shape.heads * shape.head, shape.shared_heads * shape.head
    tensors = [("token_embd.weight", table, shape.table), ("output_norm.weight", [width], Type.F32)]
    if shape.output:
        tensors.append(("output.weight", table, shape.table))
    for i in range(shape.layers):
        matrices = {
            "attn_q": [own, width], "attn_k": [shared, width], "attn_v": [shared, width],
            "attn_output": [width, own], "ffn_gate": [shape.wide, width],
            "ffn_up": [shape.wide, width], "ffn_down": [width, shape.wide],
        }  # fmt: skip
        tensors += [(f"blk.{i}.{name}.weight", rows, kind) for name, rows in matrices.items()]
        norms = {"attn_norm": width, "ffn_norm": width}
        if architecture in ("qwen3", "gemma3"):
            norms |= {"attn_q_norm": shape.head, "attn_k_norm": shape.head}
        if architecture == "gemma3":
            norms |= {"post_attention_norm": width, "post_ffw_norm": width}
        tensors += [(f"blk.{i}.{name}.weight", [n], Type.F32) for name, n in norms.items()]
    return tensors


def _tensors_of_t5(shape: Shape) -> list[tuple[str, list[int], Type]]:
    width, own, table = shape.width, shape.heads * shape.head, [shape.vocabulary, shape.width]
    tensors = [(f"{name}.weight", table, shape.table) for name in ("token_embd", "output")]
    for side in ("enc", "dec"):
        tensors.append((f"{side}.output_norm.weight", [width], Type.F32))
        attentions = ("attn", "cross_attn") if side == "dec" else ("attn",)
        for i in range(shape.layers):
            block = f"{side}.blk.{i}."
            matrices = {f"{a}_{x}": [own, width] for a in attentions for x in "qkv"}
            matrices |= {f"{attention}_o": [width, own] for attention in attentions}
            matrices |= {"ffn_gate": [shape.wide, width], "ffn_up": [shape.wide, width],
                         "ffn_down": [width, shape.wide]}  # fmt: skip
            tensors += [(f"{block}{n}.weight", rows, shape.kind) for n, rows in matrices.items()]
            norms = (*(f"{attention}_norm" for attention in attentions), "ffn_norm")
            tensors += [(f"{block}{name}.weight", [width], Type.F32) for name in norms]
        biases = [_BUCKETS, shape.heads]
        tensors.append((f"{side}.blk.0.attn_rel_b.weight", biases, Type.F32))
    return tensors
