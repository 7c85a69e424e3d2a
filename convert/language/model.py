"""A captioner's language model of any kind, as the pipeline writes and measures it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.gate import language as reference_language
from edgeprism.convert.gate import opt as reference_opt
from edgeprism.convert.gate import t5 as reference_t5
from edgeprism.convert.language import internlm2, llama, opt, qwen, t5
from edgeprism.convert.language.config import (
    LmConfig,
    LmTensor,
    lm_config_from_dict,
    published_shapes,
)
from edgeprism.convert.language.read_vocabulary import vocabulary_from_folder
from edgeprism.convert.language.row_adapter import RowAdapter
from edgeprism.convert.language.vocabulary import TokenRules, Vocabulary
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.read.fields import text_fields

if TYPE_CHECKING:
    import numpy as np
    import torch

Tick = Callable[[], None]


@dataclass(frozen=True)
class RowPrompt:
    """A prompt of the gate in which the embeddings of `rows` stand for a picture's rows."""

    before: list[int]
    rows: list[int]
    after: list[int]


@dataclass(frozen=True)
class RowExpert:
    """The second language model that a picture's rows go through, in the same checkpoint.

    `reference` returns each prompt's rows, float32 [n, n_embd], and the logits [n, n_vocab] of the
    text after them. It calls its Tick once per layer.
    """

    config: LmConfig
    vocabulary: Vocabulary  # of which nothing is used
    tensors: Sequence[LmTensor]
    own_last: int  # rows at a picture's end that go through the language model itself
    reference: Callable[[Sequence[RowPrompt], Tick], list[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class LmParts:
    """The parts of a language model; the references call their Tick once per layer."""

    checkpoint: Checkpoint
    config: LmConfig
    vocabulary: Vocabulary
    tensors: Sequence[LmTensor]
    read: Callable[[str], torch.Tensor]  # a published tensor by name, float32
    reference_logits: Callable[[list[list[int]], Tick], list[np.ndarray]]
    reference_ids: Callable[[str], list[int]]
    row_adapter: RowAdapter | None = None  # what a picture's rows alone go through
    row_expert: RowExpert | None = None
    image_positions: str = "one-by-one"  # as in the manifest

    @property
    def row_width(self) -> int:
        """The width of visual tokens: they are rows like those of the text."""
        return self.config.n_embd

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {name: shape} of every tensor that the checkpoint must hold."""
        adapter = self.row_adapter.tensors if self.row_adapter else ()
        expert = self.row_expert.tensors if self.row_expert else ()
        return published_shapes([*self.tensors, *adapter, *expert])

    @property
    def unused(self) -> tuple[str, ...]:
        """Return patterns of the tensors that the checkpoint may hold and nothing needs."""
        # with tied embeddings, the head is a copy of the embedding
        copies = (r"(^|\.)lm_head\.weight$",) if self.config.tied else ()
        return (*_UNUSED[self.config.model_type], *copies)


_UNUSED = {
    "llama": llama.UNUSED,
    "mistral": llama.UNUSED,
    "qwen2": llama.UNUSED,
    "internlm2": internlm2.UNUSED,
    "minicpm": llama.UNUSED,
    "qwen": qwen.UNUSED,
    "gemma": llama.UNUSED,
    "opt": opt.UNUSED,
    "t5": t5.UNUSED,
}


def open_language_model(
    checkpoint: Checkpoint, data: Mapping[str, Any], where: str, tokenizer: Path, rules: TokenRules
) -> LmParts:
    """Open the language model in `checkpoint`; `data` has the fields of its config.json.

    `tokenizer` is the folder of its tokenizer, `where` names `data` in errors. The function finds
    the tensors' prefix in the checkpoint; the caller checks that all tensors exist (`shapes`).
    Raises CheckpointError for a language model or a tokenizer that cannot be converted.
    """
    config = lm_config_from_dict(data, where)
    if config.model_type == "internlm2":
        tensors = list(internlm2.gguf_tensors(config, internlm2.lead(checkpoint.names)))
    elif config.model_type == "qwen":
        tensors = list(qwen.gguf_tensors(config))
    elif config.model_type == "opt":
        lead = opt.lead(checkpoint.names)
        head = llama.head_name(checkpoint.names, lead)
        tensors = list(opt.gguf_tensors(config, lead, head))
    elif config.model_type == "t5":
        tensors = list(t5.gguf_tensors(config, t5.lead(checkpoint.names)))
    else:
        body = llama.body_prefix(checkpoint.names, str(checkpoint.folder))
        head = llama.head_name(checkpoint.names, body)
        tensors = list(llama.gguf_tensors(config, body, head))
    others = {"opt": reference_opt.logits, "t5": reference_t5.logits}
    reference = others.get(config.model_type, reference_language.logits)
    return LmParts(
        checkpoint,
        config,
        vocabulary_from_folder(tokenizer, config.n_vocab, rules),
        tensors,
        checkpoint.read_float32,
        lambda texts, tick: reference(checkpoint.files, dict(data), texts, tick),
        reference_language.text_to_ids(tokenizer),
    )


def open_inner_language_model(
    checkpoint: Checkpoint, config: Mapping[str, Any], rules: TokenRules
) -> LmParts:
    """Open the language model inside a captioner's `checkpoint`, whose config.json is `config`.

    Its fields are those of text_config; the tensors tell how many rows the vocabulary has, for
    [PAD] and <image> were added to some published ones, and their number rounded up. Raises as
    `open_language_model`.
    """
    path = checkpoint.folder / "config.json"
    text = text_fields(config, checkpoint.names, "", str(path))
    rows = [
        checkpoint.sizes(name, 2)[0]
        for name in checkpoint.names
        if name.endswith(("embed_tokens.weight", "shared.weight"))  # the latter of T5
    ]
    text |= {"vocab_size": rows[0]} if rows else {}
    return open_language_model(checkpoint, text, f"{path} (text_config)", checkpoint.folder, rules)
