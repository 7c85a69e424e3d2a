"""Tiny random T5s as published, and their GGUF file written by hand.

transformers' T5ForConditionalGeneration computes the same; its tokenizer is SentencePiece's own.
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from tests.helpers.checkpoints import CORPUS

N_EXTRA, N_PIECES, N_VOCAB = 4, 400, 416  # <extra_id_N> behind the pieces, and rows to fill up
PAD, END, UNKNOWN = 0, 1, 2
_SIZES: dict[str, Any] = {
    "d_model": 64, "d_kv": 32, "d_ff": 96, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "n_positions": 512,
    "decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": END,
}  # fmt: skip
_TIE = 5e-4  # of the largest score
EXTRA = [f"<extra_id_{i}>" for i in range(N_EXTRA)]


@dataclass
class TinyT5:
    """A T5 in float32, and its tokenizer."""

    model: Any
    tokenizer: sentencepiece.SentencePieceProcessor

    def as_ggml(self) -> TinyT5:
        """Return a copy whose GELU is ggml's: its tanh form, in a table of half-precision numbers.

        Without it the logits differ by some 5e-4 of the largest, enough to turn what is nearly a
        tie.
        """
        model = copy.deepcopy(self.model)
        for module in model.modules():
            if isinstance(module, T5DenseGatedActDense):
                module.act = _GgmlGelu()
        return TinyT5(model, self.tokenizer)

    def embed(self, ids: list[int]) -> np.ndarray:
        """[n, n_embd], as the ids enter the encoder."""
        table: np.ndarray = self.model.shared.weight.detach().numpy()
        return table[ids]

    @torch.inference_mode()
    def logits(self, prompt: np.ndarray, answer: list[int]) -> np.ndarray:
        """[1 + n_answer, n_vocab]: after the token that begins an answer, and after each of it."""
        return self._decoded(self._encoded(prompt), answer)

    @torch.inference_mode()
    def greedy(
        self,
        prompt: np.ndarray,
        n_tokens: int,
        penalty: float = 1.0,
        said: Sequence[int] = (),
    ) -> list[int]:
        """Return the likeliest tokens of an answer to a prompt [n, n_embd].

        `penalty` makes those less likely that the answer holds already. Where `said` is as likely
        as the likeliest, but for what the rounding in a table of GELU can turn, it is followed.
        """
        ids: list[int] = []
        encoded = self._encoded(prompt)
        while len(ids) < n_tokens:
            scores = self._decoded(encoded, ids)[-1]
            used = sorted(set(ids))
            scores[used] *= np.where(scores[used] > 0, 1 / penalty, penalty)
            best, other = int(scores.argmax()), said[len(ids)] if len(ids) < len(said) else -1
            tied = scores[best] - scores[other] < _TIE * np.abs(scores).max()
            ids.append(other if other >= 0 and tied else best)
        return ids

    def _encoded(self, prompt: np.ndarray) -> torch.Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(prompt))[None]
        encoded: torch.Tensor = self.model.encoder(inputs_embeds=rows).last_hidden_state
        return encoded

    def _decoded(self, encoded: torch.Tensor, answer: list[int]) -> np.ndarray:
        ids = torch.tensor([[self.model.config.decoder_start_token_id, *answer]])
        made = self.model(encoder_outputs=(encoded,), decoder_input_ids=ids, use_cache=False)
        logits: np.ndarray = made.logits[0].numpy()
        return logits


class _GgmlGelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x >= 10, x, torch.where(x <= -10, torch.zeros_like(x), rounded))


def t5_config(**changes: Any) -> T5Config:
    return T5Config(**{**_SIZES, "vocab_size": N_VOCAB, "dropout_rate": 0.0, **changes})


def fill_t5(model: torch.nn.Module, seed: int) -> None:
    """Fill a T5 with random weights under which greedy texts vary and depend on the prompt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * noise)
            elif "relative_attention_bias" in name or "shared" in name:
                parameter.copy_(noise)
            elif name.endswith((".q.weight", ".k.weight")):
                # T5 divides no product of queries and keys by its width
                parameter.copy_(noise * (0.5 / parameter.shape[1] ** 0.5))
            else:
                parameter.copy_(noise * (1.2 / parameter.shape[1] ** 0.5))


def write_t5_tokenizer(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """Write spiece.model and tokenizer_config.json as T5's are; return the tokenizer."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 4), model_writer=trained, model_type="unigram",
        vocab_size=N_PIECES, normalization_rule_name="nmt_nfkc", character_coverage=1.0,
        hard_vocab_limit=False, minloglevel=2, pad_id=PAD, eos_id=END, unk_id=UNKNOWN, bos_id=-1,
    )  # fmt: skip
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(trained.getvalue())
    for i in range(len(proto.pieces), N_PIECES):  # the corpus is small
        proto.pieces.add(piece=f"▁zq{i}", score=-20.0 - i / 100)
    (folder / "spiece.model").write_bytes(proto.SerializeToString())
    special = {PAD: "<pad>", END: "</s>", UNKNOWN: "<unk>"}
    special |= {N_PIECES + i: name for i, name in enumerate(reversed(EXTRA))}
    added = {str(i): {"content": name, "special": True} for i, name in special.items()}
    config = {
        "added_tokens_decoder": added, "additional_special_tokens": EXTRA, "eos_token": "</s>",
        "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": N_EXTRA,
        "tokenizer_class": "T5Tokenizer",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())


def write_t5(folder: Path, *, seed: int = 0, **changes: Any) -> TinyT5:
    """Write model and tokenizer to `folder`, `changes` in its configuration; return both."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_t5_tokenizer(folder)
    model = T5ForConditionalGeneration(t5_config(**changes)).eval()
    fill_t5(model, seed)
    model.save_pretrained(folder, max_shard_size="300KB")
    return TinyT5(model, tokenizer)


def write_t5_gguf(path: Path, t5: TinyT5, **changes: Any) -> Path:
    """Write the GGUF file of a T5; `changes` replace metadata by the last part of the key."""
    config, state = t5.model.config, t5.model.state_dict()
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(t5.tokenizer.serialized_model_proto())
    special = [f"<{i}>" for i in range(len(proto.pieces), config.vocab_size)]
    kinds = [piece.type for piece in proto.pieces] + [int(gguf.TokenType.CONTROL)] * len(special)
    metadata = {
        "t5.context_length": config.n_positions,
        "t5.embedding_length": config.d_model,
        "t5.block_count": config.num_layers,
        "t5.feed_forward_length": config.d_ff,
        "t5.attention.head_count": config.num_heads,
        "t5.attention.key_length": config.d_kv,
        "t5.attention.value_length": config.d_kv,
        "t5.attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "t5.attention.relative_buckets_count": config.relative_attention_num_buckets,
        "t5.decoder_start_token_id": config.decoder_start_token_id,
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*(piece.piece for piece in proto.pieces), *special],
        "tokenizer.ggml.scores": [piece.score for piece in proto.pieces] + [0.0] * len(special),
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.precompiled_charsmap": proto.normalizer_spec.precompiled_charsmap,
        "tokenizer.ggml.remove_extra_whitespaces": True,
        "tokenizer.ggml.add_space_prefix": True,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.eos_token_id": END,
        "tokenizer.ggml.unknown_token_id": UNKNOWN,
        "tokenizer.ggml.padding_token_id": PAD,
    }
    writer = gguf.GGUFWriter(path, "t5")
    for key, value in metadata.items():
        value = changes.get(key.rpartition(".")[2], value)
        kind = {bool: "bool", int: "uint32", float: "float32", str: "string"}.get(type(value))
        if value is not None:
            getattr(writer, f"add_{kind or 'array'}")(key, value)
    for name, source in _tensor_names(config.num_layers).items():
        writer.add_tensor(name, state[source].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensor_names(n_layers: int) -> dict[str, str]:
    """Return {GGUF's name: T5's}."""
    names = {
        "token_embd": "shared", "output": "lm_head", "enc.output_norm": "encoder.final_layer_norm",
        "dec.output_norm": "decoder.final_layer_norm",
    }  # fmt: skip
    for side, stack in (("enc", "encoder"), ("dec", "decoder")):
        for i in range(n_layers):
            block, layer = f"{side}.blk.{i}.", f"{stack}.block.{i}.layer."
            parts = [("attn_", "0.SelfAttention"), ("cross_attn_", "1.EncDecAttention")]
            parts = parts if side == "dec" else parts[:1]
            for own, theirs in parts:
                names |= {f"{block}{own}{x}": f"{layer}{theirs}.{x}" for x in "qkvo"}
                names[f"{block}{own}norm"] = f"{layer}{theirs[0]}.layer_norm"
            last = f"{layer}{len(parts)}."
            names[f"{block}ffn_norm"] = f"{last}layer_norm"
            for own, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("down", "wo")):
                names[f"{block}ffn_{own}"] = f"{last}DenseReluDense.{theirs}"
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        names[f"{side}.blk.0.attn_rel_b"] = bias
    return {f"{own}.weight": f"{theirs}.weight" for own, theirs in names.items()}
