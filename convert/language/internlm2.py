"""InternLM2 as published → the tensors of llama.cpp's `internlm2` architecture.

InternLM2 is a Llama with packed attention: `wqkv` holds, for each key/value head, its query heads,
then the key, then the value: [kv_heads, q_per_kv + 2, head_dim, hidden]. Source: the model's public
repository (`modeling_internlm2.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from edgeprism.convert.language.config import LmConfig, LmTensor
from edgeprism.convert.language.rope import permute_for_rope
from edgeprism.convert.language.vocabulary import TokenRules

if TYPE_CHECKING:
    import torch

# Buffers that some files hold in addition to the weights
UNUSED = (r"rotary_emb\.inv_freq$",)
_PROBE = "model.layers.0.attention_norm.weight"

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
TOKENS = TokenRules(
    eos=IM_END,
    needed=(IM_START, IM_END),
    # The chat models' names of reserved pieces. Captioners were trained with these names, but the
    # base model's tokenizer_config.json does not have them.
    renamed={
        "[UNUSED_TOKEN_141]": "<|plugin|>",
        "[UNUSED_TOKEN_142]": "<|interpreter|>",
        "[UNUSED_TOKEN_143]": "<|action_end|>",
        "[UNUSED_TOKEN_144]": "<|action_start|>",
        "[UNUSED_TOKEN_145]": IM_END,
        "[UNUSED_TOKEN_146]": IM_START,
    },
    # llama.cpp recognises this template by its wording; other programs run it as Jinja.
    chat_template=(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
)


def lead(names: Iterable[str]) -> str:
    """Return the prefix of a captioner checkpoint's tensor names, e.g. "language_model."."""
    return next((name.removesuffix(_PROBE) for name in sorted(names) if name.endswith(_PROBE)), "")


def gguf_tensors(config: LmConfig, lead: str = "") -> Iterator[LmTensor]:
    """Yield the GGUF's tensors in file order, each with its published source.

    `lead` is the prefix of every tensor name in a captioner's checkpoint.
    """
    e, f, body = config.n_embd, config.n_ffn, f"{lead}model."

    def same(name: str, source: str, *shape: int) -> LmTensor:
        return LmTensor(name, shape, source, shape)

    yield same("token_embd.weight", f"{body}tok_embeddings.weight", config.n_vocab, e)
    n_kv = config.n_kv_heads * config.head_dim
    n_rows = {"q": config.n_heads * config.head_dim, "k": n_kv, "v": n_kv}
    for i in range(config.n_layers):
        layer, block = f"{body}layers.{i}.", f"blk.{i}."
        yield same(f"{block}attn_norm.weight", f"{layer}attention_norm.weight", e)
        for part, rows in n_rows.items():
            yield LmTensor(
                f"{block}attn_{part}.weight", (rows, e),
                f"{layer}attention.wqkv.weight", (sum(n_rows.values()), e),
                partial(_unpacked, config, part),
            )  # fmt: skip
        yield same(f"{block}attn_output.weight", f"{layer}attention.wo.weight", e, e)
        yield same(f"{block}ffn_norm.weight", f"{layer}ffn_norm.weight", e)
        yield same(f"{block}ffn_gate.weight", f"{layer}feed_forward.w1.weight", f, e)
        yield same(f"{block}ffn_up.weight", f"{layer}feed_forward.w3.weight", f, e)
        yield same(f"{block}ffn_down.weight", f"{layer}feed_forward.w2.weight", e, f)
    yield same("output_norm.weight", f"{body}norm.weight", e)
    yield same("output.weight", f"{lead}output.weight", config.n_vocab, e)


def _unpacked(config: LmConfig, part: str, packed: torch.Tensor) -> torch.Tensor:
    return unpack_wqkv(packed, config, part)


def unpack_wqkv(packed: torch.Tensor, config: LmConfig, part: str) -> torch.Tensor:
    """Return `part` ("q", "k", "v") of `packed` [(heads + 2 · kv_heads) · head_dim, in]."""
    q_per_kv, n_in = config.n_heads // config.n_kv_heads, packed.shape[1]
    groups = packed.view(config.n_kv_heads, q_per_kv + 2, config.head_dim, n_in)
    if part == "q":
        return permute_for_rope(groups[:, :q_per_kv].reshape(-1, n_in), config.n_heads)
    if part == "k":
        return permute_for_rope(groups[:, -2].reshape(-1, n_in), config.n_kv_heads)
    return groups[:, -1].reshape(-1, n_in)
