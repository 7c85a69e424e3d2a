"""T5 as published → the tensors of llama.cpp's `t5` architecture: an encoder and a decoder.

Both have attention by relative positions, whose table stands in the first layer and serves all; the
decoder's layers also look at the encoder's rows. Source of the names: transformers'
T5ForConditionalGeneration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgeprism.convert.language.config import LmConfig, LmTensor

# The embeddings once more under the names of those who read them, and a table that nobody reads
UNUSED = (
    r"(^|\.)(encoder|decoder)\.embed_tokens\.weight$",
    r"(^|\.)decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",
)
_PROBE = "encoder.block.0.layer.0.SelfAttention.q.weight"


def lead(names: Iterable[str]) -> str:
    """Return the prefix of a checkpoint's tensor names, e.g. "language_model."."""
    found = (name.removesuffix(_PROBE) for name in sorted(names) if name.endswith(_PROBE))
    return next(found, "")


def gguf_tensors(config: LmConfig, lead: str) -> Iterator[LmTensor]:
    """Yield the GGUF's tensors in file order, each with its published source."""
    table = (config.n_vocab, config.n_embd)
    yield _same("token_embd.weight", f"{lead}shared.weight", *table)
    for side, stack in (("enc", f"{lead}encoder."), ("dec", f"{lead}decoder.")):
        for i in range(config.n_layers):
            yield from _layer(config, f"{side}.blk.{i}.", f"{stack}block.{i}.layer.", side)
        yield _same(f"{side}.output_norm.weight", f"{stack}final_layer_norm.weight", table[1])
    yield _same("output.weight", f"{lead}lm_head.weight", *table)


def _layer(config: LmConfig, block: str, layer: str, side: str) -> Iterator[LmTensor]:
    e, f = config.n_embd, config.n_ffn
    attention = [("attn", "SelfAttention")]
    attention += [("cross_attn", "EncDecAttention")] if side == "dec" else []
    for i, (own, published) in enumerate(attention):
        yield from _attention(config, f"{block}{own}_", f"{layer}{i}.{published}.")
        yield _same(f"{block}{own}_norm.weight", f"{layer}{i}.layer_norm.weight", e)
    if block.endswith("blk.0.") and config.encoder is not None:
        source = f"{layer}0.SelfAttention.relative_attention_bias.weight"
        shape = (config.encoder.n_buckets, config.n_heads)
        yield LmTensor(f"{block}attn_rel_b.weight", shape, source, shape, is_wide=True)
    last = f"{layer}{len(attention)}."
    yield _same(f"{block}ffn_norm.weight", f"{last}layer_norm.weight", e)
    yield _same(f"{block}ffn_gate.weight", f"{last}DenseReluDense.wi_0.weight", f, e)
    yield _same(f"{block}ffn_up.weight", f"{last}DenseReluDense.wi_1.weight", f, e)
    # its input exceeds what half precision holds, so that transformers keeps it in float32, too
    source = f"{last}DenseReluDense.wo.weight"
    yield LmTensor(f"{block}ffn_down.weight", (e, f), source, (e, f), is_wide=True)


def _attention(config: LmConfig, own: str, published: str) -> Iterator[LmTensor]:
    width = config.n_heads * config.head_dim
    for part in "qkv":
        yield _same(f"{own}{part}.weight", f"{published}{part}.weight", width, config.n_embd)
    yield _same(f"{own}o.weight", f"{published}o.weight", config.n_embd, width)


def _same(name: str, source: str, *shape: int) -> LmTensor:
    return LmTensor(name, shape, source, shape)
