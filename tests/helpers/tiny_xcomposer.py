"""Tiny InternLM-XComposers in their published layout, and stock classes that compute the same.

Sources: the published folders `internlm-xcomposer-7b` and `internlm-xcomposer-vl-7b` (config.json,
index file, code), and ShareGPT4V's `share-cap_batch_infer.py`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from torch import nn
from transformers import BlipImageProcessor, LlamaConfig, LlamaForCausalLM

from tests.helpers import tiny_eva
from tests.helpers.checkpoints import FIRST_RESERVED, LAST_RESERVED, write_tokenizer
from tests.helpers.tiny_captioners import (
    Case,
    Reference,
    make,
    processed,
    save_bin,
    square,
    tensors_of,
    write_json,
)

# `meta_instruction` of internlm-xcomposer-7b; internlm-xcomposer-vl-7b has none
META = """meta instruction
You are an AI assistant whose name is 浦语.
- 浦语 is a conversational language model that is developed by Shanghai AI Laboratory \
(上海人工智能实验室). It is designed to be helpful, honest, and harmless.
- 浦语 can understand and communicate fluently in the language chosen by the user such as English \
and 中文.
conversation
"""


@dataclasses.dataclass(frozen=True)
class _Kind:
    before: str
    after: str
    end: str  # tokenised apart
    n_queries: int
    image_size: int
    added: tuple[str, ...] = ()
    rank: int = 8
    alpha: int = 8


_END_OF_TURN = "\n<TOKENS_UNUSED_0> <|Bot|>:"
KINDS = {
    "xcomposer": _Kind(f"{META} <|User|>:", "{}", _END_OF_TURN, 6, 56),
    "vl": _Kind(
        " <|User|>:", "{}", _END_OF_TURN, 5, 56, ("<ITG_TOKEN>", "<SOI_TOKEN>"), rank=4, alpha=8
    ),
    "sharecaptioner": _Kind("<|User|>:", "{}<TOKENS_UNUSED_0>\n<|Bot|>:", "", 9, 84),
}


@dataclasses.dataclass
class PiecewiseReference(Reference):
    """`end` follows the instruction and is tokenised apart from it."""

    end: str = ""

    def prompt_ids(self) -> list[list[int]]:
        before, between, after = super().prompt_ids()
        model = sentencepiece.SentencePieceProcessor(
            model_file=str(self.tokenizer / "tokenizer.model")
        )
        return [before, between, after + self._pieces(model, self.end)]


class LoraLinear(nn.Linear):
    """A Linear that keeps its LoRA apart: every row, of text or of a picture, takes both."""

    def __init__(self, base: nn.Linear, rank: int, alpha: int) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[…, in] → […, out]"""
        change: torch.Tensor = self.lora_B(self.lora_A(x))
        return super().forward(x) + self.scale * change


def write_xcomposer(folder: Path, *, kind: str = "xcomposer", lora: bool = True, meta: bool = True,
                    seed: int = 34) -> Case:  # fmt: skip
    """Write a folder of `kind` (of KINDS).

    Without `lora` its LoRA is merged already (`internlm_lora` null, as in the 4-bit folder);
    without `meta` the reference's prompt has no meta instruction.
    """
    folder.mkdir(parents=True)
    spec = KINDS[kind]
    n_vocab = _write_tokenizer(folder, spec.added)
    lm = _language_model(n_vocab, spec if lora else None, seed)
    tower = tiny_eva.eva_tower(seed, image_size=spec.image_size)
    tiny_eva.halved(tower)
    former, queries = tiny_eva.qformer(seed + 1, spec.n_queries)
    n_embd = lm.config.hidden_size
    projection = make(nn.Linear(tiny_eva.QUERY_WIDTH, n_embd), seed + 2)
    generator = torch.Generator().manual_seed(seed + 3)
    first, last = torch.randn(2, 1, 1, n_embd, generator=generator)
    tensors = {
        **_half(tiny_eva.published_tower(tower)), **tiny_eva.published_norm(tower),
        **tiny_eva.published_qformer(former, queries), **_published_lm(lm),
        **tensors_of(projection, "internlm_proj."),
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
        "flag_image_start": first.clone(), "flag_image_end": last.clone(),
    }  # fmt: skip
    save_bin(folder, tensors)
    write_json(folder / "config.json", _config(lm.config, spec, lora))

    def connector(rows: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = projection(tiny_eva.query_rows(former, queries, rows))
        return torch.cat([first, seen, last], dim=1)

    reference = PiecewiseReference(
        [processed(BlipImageProcessor(size=square(spec.image_size)))],
        [lambda pixels: tiny_eva.tower_rows(tower, pixels)],
        connector, lm, folder,
        spec.before if meta else spec.before.removeprefix(META), spec.after,
        added=_user_defined(folder), end=spec.end,
    )  # fmt: skip
    return Case("xcomposer", {"captioner": folder}, reference)


def _write_tokenizer(folder: Path, added: tuple[str, ...]) -> int:
    """Write tokenizer.model with `<TOKENS_UNUSED_n>`, no ▁ at the start; return the vocabulary."""
    n_pieces = write_tokenizer(folder, add_dummy_prefix=False, user_defined_reserved=True)
    path = folder / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    first = n_pieces - (LAST_RESERVED - FIRST_RESERVED + 1)
    for i in range(first, n_pieces):
        model.pieces[i].piece = f"<TOKENS_UNUSED_{i - first}>"
    path.write_bytes(model.SerializeToString())
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", names)
    write_json(folder / "tokenizer_config.json", {
        **names, "tokenizer_class": "InternLMXComposerTokenizer", "model_max_length": 10**30,
        "clean_up_tokenization_spaces": False,
        "auto_map": {"AutoTokenizer": ["tokenization_InternLM_XComposer.InternLMXComposerTokenizer",
                                       None]},
    })  # fmt: skip
    if added:
        numbers = {name: n_pieces + i for i, name in enumerate(added)}
        write_json(folder / "added_tokens.json", numbers)
    return n_pieces + len(added)


def _user_defined(folder: Path) -> dict[str, int]:
    """Return {text: id} of the pieces that match anywhere."""
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "tokenizer.model").read_bytes())
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED
    return {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type == kind}


def _language_model(n_vocab: int, lora: _Kind | None, seed: int) -> LlamaForCausalLM:
    """Return InternLM: a Llama with biases of q, k, v and o, and LoRA on q, v, up and down."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, rms_norm_eps=1e-5,
        attention_bias=True, vocab_size=n_vocab,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if lora is not None:
        for layer in model.model.layers:
            for part, name in ((layer.self_attn, "q_proj"), (layer.self_attn, "v_proj"),
                               (layer.mlp, "up_proj"), (layer.mlp, "down_proj")):  # fmt: skip
                setattr(part, name, LoraLinear(getattr(part, name), lora.rank, lora.alpha))
    model = make(model, seed)
    with torch.no_grad():
        for layer in model.model.layers:  # attention to few rows: no prompt drowns the picture
            layer.self_attn.q_proj.weight.mul_(3)
        for name, parameter in model.named_parameters():
            if "lora" not in name:
                parameter.copy_(parameter.half().float())
    return model


def _published_lm(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    tensors = tensors_of(model, "internlm_model.")
    half = {name: tensor for name, tensor in tensors.items() if "lora" not in name}
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    frequencies = 1 / 10000 ** (torch.arange(0, head_dim, 2) / head_dim)
    for i in range(model.config.num_hidden_layers):
        lead = f"internlm_model.model.layers.{i}."
        tensors[f"{lead}self_attn.rotary_emb.inv_freq"] = frequencies.clone()
    return {**tensors, **_half(half)}


def _half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.half() for name, tensor in tensors.items()}


def _config(lm: LlamaConfig, spec: _Kind, lora: bool) -> dict[str, Any]:
    settings = None
    if lora:
        settings = {
            "freeze": False, "learn_param": ["q", "v", "ffn"], "lora_alpha": spec.alpha,
            "lora_dropout": 0.05, "lora_r": spec.rank,
        }  # fmt: skip
    model = "modeling_InternLM_XComposer.InternLMXComposerForCausalLM"
    published = {
        "_name_or_path": "chat", "architectures": ["InternLMXComposerForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_InternLM_XComposer.InternLMXComposerConfig",
            "AutoModel": model, "AutoModelForCausalLM": model,
        },
        "bias": True, "bos_token_id": 1, "device": "cuda", "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": lm.hidden_size, "initializer_range": 0.02,
        "intermediate_size": lm.intermediate_size, "intern_converted_llm": True,
        "internlm_lora": settings, "kqvo_bias": True, "lora_cfg": settings,
        "max_position_embeddings": 2048, "model_type": "InternLMXComposer",
        "num_attention_heads": lm.num_attention_heads, "num_hidden_layers": lm.num_hidden_layers,
        "num_quant": 32, "num_query_token": spec.n_queries, "pad_token_id": -1,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "float32",
        "transformers_version": "4.30.2", "use_cache": True, "vocab_size": lm.vocab_size,
    }  # fmt: skip
    return dict(json.loads(json.dumps(published)))
