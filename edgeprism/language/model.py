"""A language model of llama.cpp: its weights and its vocabulary.

This module uses llama_cpp's low-level API, because its high-level class compiles templates from
model files and has only one sequence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_checks import gguf_faults
from edgeprism.bundle.gguf_parts import part_paths, read_model_header
from edgeprism.bundle.gguf_purpose import ADAPTER, no_model, purpose_in_header
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.errors import COPY_AGAIN, Interrupted, ModelError
from edgeprism.language.adapter import Adapter
from edgeprism.language.context import Context
from edgeprism.language.embeddings import token_rows
from edgeprism.language.encoder_context import EncoderContext, require_kv_type
from edgeprism.language.engine import LanguageContext
from edgeprism.language.kv_memory import kv_bytes
from edgeprism.language.llama import (
    forget_words,
    has_amx,
    import_llama,
    last_words,
    repacked_types,
)
from edgeprism.language.vocabulary import Vocabulary
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.mapped_files import drop_mapped_pages, large_files

if TYPE_CHECKING:
    import numpy as np

_DROP_EVERY = 0.05  # of loading
_AXES = 4  # positions of a row with M-RoPE: time, down, across, unused


class LanguageModel:
    """A GGUF model in memory: its vocabulary, and contexts over its weights."""

    context_class: ClassVar[type[Context]] = Context

    def __init__(
        self,
        path: Path,
        *,
        expected: LanguageModelFile | None = None,
        rows: Path | None = None,
        adapter: Path | None = None,
        gpu_layers: int = 0,
        threads: int = 1,
        cancel: Cancel | None = None,
    ) -> None:
        """Load `path`; with `expected`, first compare its dimensions with the manifest's.

        `rows` is the file of the adapter that a picture's rows go through, if they go through one;
        `adapter` that of one which everything goes through.
        Raises ModelError if a file is damaged, or its dimensions differ, and for a model with an
        encoder unless `expected` says so.
        """
        self.path, self.gpu_layers, self.threads = path, gpu_layers, threads
        self.cancel = cancel or Cancel()
        self.row_adapter: Adapter | None = None
        self.adapter: Adapter | None = None
        header = read_model_header(path, tokens=True)
        if other := no_model(header):
            raise ModelError(f"{path}: {other}.", _hint(header, path))
        if expected is not None:
            check_dimensions(path, header, expected)
        self._encodes = expected is not None and expected.encodes
        if faults := gguf_faults(header, encodes=self._encodes):
            raise ModelError(f"{path}: cannot be run: it has {'; '.join(faults)}.", COPY_AGAIN)
        # frees up to 92,544 strings
        self.header = dataclasses.replace(header, tokens=(), charsmap=b"")
        self._llama = llama = import_llama()
        self._model: Any = self._load()
        self.vocabulary = Vocabulary(path, self._model, header.chat_template)
        self.n_embd: int = llama.llama_model_n_embd(self._model)
        # wider than n_embd if rows also carry values that later layers add
        self.n_embd_row: int = llama.llama_model_n_embd_inp(self._model)
        multi_axis = (llama.LLAMA_ROPE_TYPE_MROPE, llama.LLAMA_ROPE_TYPE_IMROPE)
        rope = llama.llama_model_rope_type(self._model)
        self.row_axes = _AXES if rope in multi_axis else 1  # positions per visual token
        self.rows_apart = False
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self._model)
        # before any context: llama.cpp makes room for the adapter's products when it makes one
        if rows is not None:
            self.row_adapter = self._open_adapter(rows, of_rows=True)
        if adapter is not None:
            self.adapter = self._open_adapter(adapter, of_rows=False)
        if expected is not None and self.row_axes == 1 and expected.image_positions != "one-by-one":
            self.close()
            raise ModelError(
                f"{path}: counts positions one by one, but the manifest places image rows down and "
                "across (M-RoPE).",
                COPY_AGAIN,
            )

    def _load(self) -> object:
        """Return llama.cpp's model of the file."""
        llama, path = self._llama, self.path
        params = llama.llama_model_default_params()
        params.n_gpu_layers = self.gpu_layers
        # repacked weights; off where the AMX layout would be chosen, which crashes
        params.use_extra_bufts = not has_amx()
        # llama.cpp copies weights to a GPU, or into a layout that the CPU multiplies faster
        copied = large_files(part_paths(path)) if self.gpu_layers or repacked_types() else []
        progress = llama.llama_progress_callback(self._progress(copied))
        params.progress_callback = progress
        forget_words()
        model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            if self.cancel.is_set():
                raise Interrupted()
            raise ModelError(f"{path}: llama.cpp cannot load it: {last_words(2)}.", COPY_AGAIN)
        for part in copied:
            drop_mapped_pages(part)
        return model

    def _open_adapter(self, path: Path, *, of_rows: bool) -> Adapter:
        try:
            return Adapter(path, self.header, self._llama, self._model, of_rows=of_rows)
        except ModelError:
            self.close()
            raise

    def _progress(self, copied: Sequence[Path]) -> Callable[[float, object], bool]:
        """Return what llama.cpp calls while it loads: whether to go on.

        At every few per cent the pages of files that it copies from are given back. It reads in all
        of them first, and most of its copies would then stand beside them.
        """
        dropped = -1.0

        def go_on(share: float, _: object) -> bool:
            nonlocal dropped
            if share >= dropped + _DROP_EVERY:
                for part in copied:
                    drop_mapped_pages(part)
                dropped = share
            return not self.cancel.is_set()

        return go_on

    @property
    def native(self) -> Any:
        """llama.cpp's own model object, which libmtmd needs."""
        return self._model

    def kv_bytes_per_token(self, kv_type: str = "f16") -> float:
        """See `LanguageEngine.kv_bytes_per_token`."""
        return kv_bytes(self.header, 1, kv_type)

    def close(self) -> None:
        """Free the weights; close all contexts first."""
        if self._model:
            for adapter in filter(None, (self.row_adapter, self.adapter)):
                adapter.close()
            self.row_adapter = self.adapter = None
            self._llama.llama_model_free(self._model)
            self._model = None

    def embed(self, ids: Sequence[int]) -> np.ndarray | None:
        """Return the rows float32 [n, n_embd] as which `ids` enter the model, if known.

        See `embeddings.token_rows`; visual tokens of this model must have the same width, and go
        through the same weights.
        """
        apart = self.row_axes > 1 or self.row_adapter is not None or self.adapter is not None
        if apart or self.n_embd_row != self.n_embd:
            return None
        return token_rows(self.path, self.header, ids)

    def context(
        self,
        n_ctx: int,
        *,
        n_seq: int = 1,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        all_logits: bool = False,
        n_batch: int = 0,
    ) -> LanguageContext:
        """Return a KV cache: `LanguageEngine.context`.

        Each sequence has n_ctx / n_seq cells of its own; with shared cells each token would have
        to skip the cells of all other sequences.
        """
        if self._encodes:
            return self._encoder_context(n_ctx // n_seq, n_seq, kv_type, flash_attention)
        return self.context_class(
            self, self._llama, self._model, n_ctx, n_seq, kv_type, flash_attention, all_logits,
            max(n_batch, Context.N_BATCH),
        )  # fmt: skip

    def _encoder_context(
        self, n_ctx: int, n_seq: int, kv_type: str, flash_attention: bool | None
    ) -> LanguageContext:
        """Return a context of `n_ctx` cells for each sequence, which take a prompt in one batch.

        To llama.cpp each row that the encoder makes is an output, as logits are.
        """
        require_kv_type(kv_type)
        with contextlib.ExitStack() as made:  # the first ones are freed if a later one fails
            decoders = []
            for _ in range(n_seq):
                decoders.append(Context(self, self._llama, self._model, n_ctx, 1, kv_type,
                                        flash_attention, True, n_ctx))  # fmt: skip
                made.callback(decoders[-1].close)
            start = self._llama.llama_model_decoder_start_token(self._model)
            context = EncoderContext(self, decoders, start)
            made.pop_all()
        return context


def _hint(header: GgufHeader, path: Path) -> str:
    """Return what to do with a file that is no model."""
    if purpose_in_header(header) == ADAPTER:
        return f"Name the model that it was made for before it: MODEL.gguf+{path.name}"
    return "Name a language model's GGUF file."


def check_dimensions(path: Path, header: GgufHeader, expected: LanguageModelFile) -> None:
    """Raise ModelError if the header's dimensions are not those of the manifest."""
    pairs = [
        ("architecture", header.architecture, expected.architecture),
        ("n_embd", header.n_embd, expected.n_embd),
        ("n_vocab", header.n_vocab, expected.n_vocab),
        (
            "context_length",
            header.metadata.get(f"{header.architecture}.context_length"),
            expected.context_length,
        ),
    ]
    wrong = [f"{name} is {own!r}, not {other!r}" for name, own, other in pairs if own != other]
    if wrong:
        raise ModelError(f"{path}: not the manifest's model: {', '.join(wrong)}.", COPY_AGAIN)
