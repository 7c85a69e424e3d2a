"""OPT as published → the tensors of llama.cpp's `mpt` architecture, which can compute the same.

llama.cpp has no `opt`. Its `mpt` has OPT's layers: norms with biases in front of both halves of a
layer, one matrix of queries, keys and values, a feed-forward network without a gate, and a table of
positions if the file holds one. Two things differ:

- OPT's activation is ReLU, that of `mpt` GELU, whose result is divided by `ffn.act.scales` if a
  file holds them. GELU(SCALE · x) / SCALE approaches ReLU(x) the more, the larger SCALE is, so the
  first matrix and its bias are multiplied by SCALE. docs/architecture.md says how it was chosen.
- OPT's table of positions begins with two rows that no position uses.

Source of the names: transformers' OPTForCausalLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from edgeprism.convert.language.config import LmConfig, LmTensor
from edgeprism.convert.language.vocabulary import TokenRules

if TYPE_CHECKING:
    import torch

SCALE = 256.0  # a power of two, so that multiplying by it rounds nothing
N_UNUSED_POSITIONS = 2  # at the beginning of the table
BEGIN = "</s>"  # of every text; no text ends with it
# Its vocabulary has these among its pieces, where nothing marks the first and the last as special
TOKENS = TokenRules(eos=BEGIN, needed=(BEGIN,), control=("<s>", "<pad>", BEGIN, "<unk>", "<mask>"))
# A tensor of the first files, which counts their version
UNUSED = (r"(^|\.)decoder\.version$",)

_PROBE = "decoder.layers.0.self_attn_layer_norm.weight"


def lead(names: Iterable[str]) -> str:
    """Return the prefix of a checkpoint's tensor names, e.g. "language_model.model."."""
    found = (name.removesuffix(_PROBE) for name in sorted(names) if name.endswith(_PROBE))
    return next(found, "model.")


def gguf_tensors(config: LmConfig, lead: str, head: str) -> Iterator[LmTensor]:
    """Yield the GGUF's tensors in file order, each with its published source."""
    e, f, body = config.n_embd, config.n_ffn, f"{lead}decoder."
    n_rows = config.context_length

    def same(name: str, source: str, *shape: int) -> LmTensor:
        return LmTensor(name, shape, source, shape)

    def norm(name: str, source: str) -> Iterator[LmTensor]:
        for kind in ("weight", "bias"):
            yield same(f"{name}.{kind}", f"{source}.{kind}", e)

    yield same("token_embd.weight", f"{body}embed_tokens.weight", config.n_vocab, e)
    yield LmTensor(
        "position_embd.weight", (n_rows, e),
        f"{body}embed_positions.weight", (n_rows + N_UNUSED_POSITIONS, e), _used_positions,
    )  # fmt: skip
    for i in range(config.n_layers):
        layer, block = f"{body}layers.{i}.", f"blk.{i}."
        attention = f"{layer}self_attn."
        yield from norm(f"{block}attn_norm", f"{layer}self_attn_layer_norm")
        for kind, shape in (("weight", (e, e)), ("bias", (e,))):
            q, k, v = (f"{attention}{part}_proj.{kind}" for part in "qkv")
            packed = (3 * e, *shape[1:])
            yield LmTensor(f"{block}attn_qkv.{kind}", packed, q, shape, _packed, (k, v))
        yield same(f"{block}attn_output.weight", f"{attention}out_proj.weight", e, e)
        yield same(f"{block}attn_output.bias", f"{attention}out_proj.bias", e)
        yield from norm(f"{block}ffn_norm", f"{layer}final_layer_norm")
        for kind, shape in (("weight", (f, e)), ("bias", (f,))):
            yield LmTensor(f"{block}ffn_up.{kind}", shape, f"{layer}fc1.{kind}", shape, _scaled)
        yield LmTensor(f"{block}ffn.act.scales", (f,), "", (), _scales(f))
        yield same(f"{block}ffn_down.weight", f"{layer}fc2.weight", e, f)
        yield same(f"{block}ffn_down.bias", f"{layer}fc2.bias", e)
    yield from norm("output_norm", f"{body}final_layer_norm")
    if not config.tied:  # without a head, llama.cpp uses the embedding
        yield same("output.weight", head, config.n_vocab, e)


def _used_positions(table: torch.Tensor) -> torch.Tensor:
    return table[N_UNUSED_POSITIONS:]


def _packed(*parts: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat(parts)


def _scaled(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * SCALE


def _scales(n: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what makes the divisors [n] of the activations, from nothing published."""

    def make(_: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.full((n,), SCALE)

    return make
