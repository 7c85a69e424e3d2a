"""Counts what a model's stages must do: multiplications and additions, and bytes that are read.

The counts come from the model's files. They leave out what is small (normalizing, activations), so
that a time which follows from them is a floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeprism.bundle.gguf import GgufHeader

_FLOAT_TYPES = (0, 1, 30)  # F32, F16, BF16: llama.cpp multiplies all other types in 8 bits


@dataclass(frozen=True)
class Operations:
    """Multiplications and additions, by the numbers that are multiplied."""

    float32: float = 0.0
    int8: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        return Operations(self.float32 + other.float32, self.int8 + other.int8)

    def __mul__(self, factor: float) -> Operations:
        return Operations(self.float32 * factor, self.int8 * factor)

    @property
    def total(self) -> float:
        """All of them."""
        return self.float32 + self.int8


@dataclass(frozen=True)
class LanguageWork:
    """What a language model must do; source of the names: the GGUF specification."""

    row: Operations  # of one row of the prompt in all blocks: of the encoder, if there is one
    step: Operations  # of one new token in all blocks of the decoder
    head: Operations  # of turning one row into the next token's scores
    attention: float  # operations of one row with one row before it, in all blocks
    token_bytes: float  # weights that one new token reads

    def prefill(self, rows: int) -> Operations:
        """Return the operations of taking in a prompt; each row attends to those before it.

        An encoder's rows attend to all, which a floor may leave out.
        """
        pairs = rows * (rows + 1) / 2
        return self.row * rows + self.head + Operations(float32=self.attention * pairs)

    def token(self) -> Operations:
        """Return the operations of one new token, without attention."""
        return self.step + self.head


def language_work(header: GgufHeader) -> LanguageWork:
    """Count a language model's work from the shapes and types of its tensors."""
    row = step = head = Operations()
    token_bytes = 0.0
    has_head = "output.weight" in header.tensors
    for name, shape in header.tensors.items():
        is_embedding = name == "token_embd.weight"
        if is_embedding and has_head:
            continue  # one row of it is looked up
        share = _expert_share(header) if len(shape) > 2 else 1.0
        encodes = name.startswith("enc.")
        token_bytes += 0 if encodes else share * header.tensor_bytes(name)
        if len(shape) < 2 or name.endswith("attn_rel_b.weight"):  # looked up, too
            continue
        products = 2.0 * math.prod(shape) * share
        is_float = header.tensor_types[name] in _FLOAT_TYPES
        counted = Operations(products) if is_float else Operations(int8=products)
        if is_embedding or name == "output.weight":
            head += counted
        elif name.startswith("dec.blk."):
            step += counted
        elif name.startswith(("blk.", "enc.blk.")):
            row += counted
            step += Operations() if encodes else counted
    return LanguageWork(row, step, head, _attention(header), token_bytes)


def _expert_share(header: GgufHeader) -> float:
    """Return the share of a mixture's experts that one token uses."""
    count = _number(header, "expert_count")
    used = _number(header, "expert_used_count")
    return used / count if used and count else 1.0


def _attention(header: GgufHeader) -> float:
    heads = _number(header, "attention.head_count")
    width = _number(header, "attention.key_length")
    if heads and not width:
        width = header.n_embd // heads
    # scores and their products with the values: two products of `width` numbers in each head
    return 4.0 * heads * width * _number(header, "block_count")


def _number(header: GgufHeader, key: str) -> int:
    value = header.metadata.get(f"{header.architecture}.{key}")
    return value if isinstance(value, int) else 0  # a list: it differs from block to block


def nodes_to_operations(nodes: Sequence[Mapping[str, Any]]) -> Operations:
    """Count the matrix products and convolutions of a vision graph from a profile.

    Parameters:
        nodes: of ONNX Runtime's profile, `args` of each node that ran: `op_name`,
            `input_type_shape` and `output_type_shape`; constants do not stand among the inputs
            but, by their shapes, in `weights`.
    """
    counted = Operations()
    for node in nodes:
        inputs = [shape for each in node["input_type_shape"] for shape in each.values()]
        outputs = [shape for each in node["output_type_shape"] for shape in each.values()]
        kind = node["op_name"]
        if kind in ("MatMul", "Gemm", "FusedMatMul"):
            counted += Operations(float32=2.0 * math.prod(outputs[0]) * inputs[0][-1])
        elif kind == "MatMulInteger":
            counted += Operations(int8=2.0 * math.prod(outputs[0]) * inputs[0][-1])
        elif kind in ("Conv", "ConvInteger") and node.get("weights"):
            # each number of the output is a product with one filter [channels, *kernel]
            products = 2.0 * math.prod(outputs[0]) * math.prod(node["weights"][0][1:])
            is_float = kind == "Conv"
            counted += Operations(products) if is_float else Operations(int8=products)
        elif kind == "MultiHeadAttention" and len(inputs) > 1 and len(inputs[1]) == 3:
            counted += Operations(float32=4.0 * math.prod(inputs[0]) * inputs[1][1])
    return counted
