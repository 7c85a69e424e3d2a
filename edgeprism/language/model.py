"""Tokens and visual tokens → KV cache → logits, through llama.cpp.

This module uses llama_cpp's low-level API, because its high-level class compiles templates from
model files and has only one sequence. A `Context` is not thread-safe.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_checks import gguf_faults
from edgeprism.bundle.gguf_parts import read_model_header
from edgeprism.bundle.manifest import LanguageModelFile
from edgeprism.errors import (
    Interrupted,
    ModelError,
    PromptTooLongError,
    TemplateError,
)
from edgeprism.language.chat import Message
from edgeprism.language.kv_memory import check_kv_memory, kv_bytes
from edgeprism.language.llama import forget_words, has_amx, import_llama, last_words
from edgeprism.language.llama_batch import LlamaBatch
from edgeprism.machine.cancel import Cancel, nonzero_when_set
from edgeprism.machine.fork import use_team

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}
_HINT = "Copy or convert the model again."
_AXES = 4  # positions of a row with M-RoPE: time, down, across, unused


class LanguageModel:
    """A GGUF model in memory: tokenizer, chat template, and contexts over its weights."""

    def __init__(
        self,
        path: Path,
        *,
        expected: LanguageModelFile | None = None,
        gpu_layers: int = 0,
        threads: int = 1,
        cancel: Cancel | None = None,
    ) -> None:
        """Load `path`; with `expected`, first compare its dimensions with the manifest's.

        Raises ModelError if the file is damaged or its dimensions differ.
        """
        self.path, self.threads = path, threads
        self.cancel = cancel or Cancel()
        header = read_model_header(path, tokens=True)
        if expected is not None:
            _check_dimensions(path, header, expected)
        if faults := gguf_faults(header):
            raise ModelError(f"{path}: cannot be run: it has {'; '.join(faults)}.", _HINT)
        self.header = dataclasses.replace(header, tokens=())  # frees up to 92,544 strings
        self._llama = llama = import_llama()
        params = llama.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        # repacked weights; off where the AMX layout would be chosen, which crashes
        params.use_extra_bufts = not has_amx()
        progress = llama.llama_progress_callback(lambda _, __: not self.cancel.is_set())
        params.progress_callback = progress
        forget_words()
        self._model = llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            if self.cancel.is_set():
                raise Interrupted()
            raise ModelError(f"{path}: llama.cpp cannot load it: {last_words(2)}.", _HINT)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.n_embd: int = llama.llama_model_n_embd(self._model)
        # wider than n_embd if rows also carry values that later layers add
        self.n_embd_row: int = llama.llama_model_n_embd_inp(self._model)
        multi_axis = (llama.LLAMA_ROPE_TYPE_MROPE, llama.LLAMA_ROPE_TYPE_IMROPE)
        rope = llama.llama_model_rope_type(self._model)
        self.row_axes = _AXES if rope in multi_axis else 1  # positions per visual token
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self._model)

    @property
    def native(self) -> Any:
        """llama.cpp's own model object, which libmtmd needs."""
        return self._model

    def kv_bytes_per_token(self, kv_type: str = "f16") -> float:
        """Return the bytes of the KV cache for one position of one sequence."""
        return kv_bytes(self.header, 1, kv_type)

    def close(self) -> None:
        """Free the weights; close all contexts first."""
        if self._model:
            self._llama.llama_model_free(self._model)
            self._model = None

    # ---- text ↔ tokens

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Return the token ids of `text`; set `parse_special` only for trusted text."""
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        buffer = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(
            self._vocab, data, len(data), buffer, room, False, parse_special
        )
        if count < 0:  # there are more tokens than bytes, namely -count
            buffer = (ctypes.c_int32 * -count)()
            count = self._llama.llama_tokenize(
                self._vocab, data, len(data), buffer, -count, False, parse_special
            )
        return list(buffer[:count])

    def token_to_bytes(self, token: int) -> bytes:
        """Return a token's bytes, which may be part of a character; empty for a special token."""
        buffer = ctypes.create_string_buffer(64)
        length = self._llama.llama_token_to_piece(self._vocab, token, buffer, 64, 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self._llama.llama_token_to_piece(self._vocab, token, buffer, -length, 0, False)
        return buffer.raw[:length]

    def is_end(self, token: int) -> bool:
        """Return whether the vocabulary says that this token ends a generation."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def bos(self) -> list[int]:
        """Return the begin-of-text token as a list, empty if the vocabulary has none."""
        token = self._llama.llama_vocab_bos(self._vocab)
        return [token] if token >= 0 else []

    def adds_bos(self) -> bool:
        """Return whether the vocabulary requires a begin-of-text token before every text."""
        return bool(self._llama.llama_vocab_get_add_bos(self._vocab))

    def render_chat(self, messages: Sequence[Message], chat_format: str | None = None) -> str:
        """Return the chat as one text that ends where the assistant's turn begins.

        It uses llama.cpp's own templates: llama.cpp recognises a fixed list of them and runs no
        Jinja. Raises TemplateError for any other template; `chat_format` names one of the list.
        """
        template = chat_format or self.header.chat_template
        if template is None:
            raise self._template_error(f"{self.path}: has no chat template.")
        turns = (self._llama.llama_chat_message * len(messages))(
            *((m.role.encode(), m.content.encode()) for m in messages)
        )
        room = 2 * sum(len(m.content.encode()) for m in messages) + 1024
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = self._llama.llama_chat_apply_template(
                template.encode(), turns, len(messages), True, buffer, room
            )
            if length < 0:
                what = f"chat format {chat_format!r}" if chat_format else "its chat template"
                raise self._template_error(f"{self.path}: llama.cpp does not know {what}.")
            if length <= room:
                return buffer.raw[:length].decode("utf-8", errors="replace")
            room = length

    def _template_error(self, message: str) -> TemplateError:
        names = (ctypes.c_char_p * 256)()
        count = self._llama.llama_chat_builtin_templates(names, len(names))
        known = ", ".join(sorted(name.decode() for name in names[:count] if name))
        return TemplateError(message, f"Name its format with `chat_format`: {known}.")

    def context(
        self,
        n_ctx: int,
        *,
        n_seq: int = 1,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        all_logits: bool = False,
        n_batch: int = 0,
    ) -> Context:
        """Return a context: a KV cache of `n_ctx` cells for `n_seq` sequences.

        Each sequence has n_ctx / n_seq cells of its own; with shared cells each token would have
        to skip the cells of all other sequences.

        Parameters:
            flash_attention: None leaves the choice to llama.cpp.
            all_logits: reserve memory for the logits of every prompt row.
            n_batch: the least number of rows that go through the model at once; it must hold the
                longest run that is not causal.
        """
        return Context(self, self._llama, self._model, n_ctx, n_seq, kv_type, flash_attention,
                       all_logits, max(n_batch, Context.N_BATCH))  # fmt: skip


class Context:
    """Sequences in one KV cache; the caller chooses the positions of rows and tokens."""

    N_BATCH = 512

    def __init__(
        self,
        lm: LanguageModel,
        llama: Any,
        model: Any,
        n_ctx: int,
        n_seq: int,
        kv_type: str,
        flash_attention: bool | None,
        all_logits: bool,
        n_batch: int,
    ) -> None:
        if kv_type not in KV_TYPES:
            raise ModelError(f"KV type {kv_type!r} is not known.", f"Known: {', '.join(KV_TYPES)}.")
        use_team(lm.threads)
        self.lm, self._llama, self.n_ctx, self.n_seq = lm, llama, n_ctx, n_seq
        check_kv_memory(str(lm.path), kv_bytes(lm.header, n_ctx, kv_type), n_ctx)
        params = llama.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_seq_max = n_seq
        # by default llama.cpp reserves logits for a whole batch: 190 MB for 92,544 tokens
        params.n_outputs_max = n_batch if all_logits else max(n_seq, 1)
        params.n_threads = params.n_threads_batch = lm.threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.flash_attn_type = _FLASH_ATTENTION[flash_attention]
        params.kv_unified = False
        params.no_perf = True
        forget_words()
        self._ctx = llama.llama_init_from_model(model, params)
        if not self._ctx:
            raise ModelError(
                f"{lm.path}: llama.cpp cannot make a context of {n_ctx} cells: {last_words()}.",
                "Free memory, or lower `caption_tokens` or `answer_tokens`.",
            )
        # no more than the context holds: llama.cpp ends the process at a longer batch
        self.n_batch = min(llama.llama_n_batch(self._ctx), llama.llama_n_ubatch(self._ctx))
        self._memory = llama.llama_get_memory(self._ctx)
        self._abort = ctypes.cast(nonzero_when_set(), llama.ggml_abort_callback)
        llama.llama_set_abort_callback(
            self._ctx, self._abort, ctypes.cast(lm.cancel.flag, ctypes.c_void_p)
        )
        self._batch = LlamaBatch(llama.llama_batch, n_batch, lm.row_axes)

    def close(self) -> None:
        """Free the context."""
        if self._ctx:
            self._llama.llama_free(self._ctx)
            self._ctx = None

    def prefill_tokens(
        self, seq: int, tokens: Sequence[int], start: int, *, logits: bool = True
    ) -> None:
        """Put `tokens` at positions `start`… of `seq`; `logits` keeps the last token's logits."""
        ids = np.asarray(tokens, dtype=np.int32)
        for i, last in self._chunks(len(ids)):
            n = self._batch.place(seq, start + i, min(self.n_batch, len(ids) - i))
            self._batch.want_logits([n - 1] if logits and last else [], n)
            self._decode(self._batch.with_tokens(ids[i : i + n]))

    def prefill_rows(
        self,
        seq: int,
        rows: np.ndarray,
        start: int,
        *,
        causal: bool = True,
        positions: np.ndarray | None = None,
    ) -> None:
        """Put visual tokens, float32 [n, n_embd_row], into `seq`.

        They stand at positions `start`…, or at `positions`, which count from `start`. Raises
        ModelError for rows of another width, or for more than `n_batch` rows that are not causal.
        """
        if rows.ndim != 2 or rows.shape[1] != self.lm.n_embd_row:
            raise ModelError(
                f"Visual tokens {list(rows.shape)} do not fit a language model of width "
                f"{self.lm.n_embd_row}.",
                "Encode the picture with this captioner.",
            )
        if positions is None:
            positions = np.tile(np.arange(len(rows), dtype=np.int32), (self.lm.row_axes, 1))
        if positions.shape != (self.lm.row_axes, len(rows)):
            raise ModelError(
                f"Positions {list(positions.shape)} do not fit {len(rows)} visual tokens of "
                f"{self.lm.row_axes} each.",
                "Encode the picture with this captioner.",
            )
        if not causal and len(rows) > self.n_batch:  # llama.cpp would end the process
            raise ModelError(
                f"{len(rows)} visual tokens that look at each other do not fit a batch of "
                f"{self.n_batch}.",
                "Use a smaller picture.",
            )
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        self._llama.llama_set_causal_attn(self._ctx, causal)
        try:
            for i, _ in self._chunks(len(rows)):
                n = self._batch.place_rows(seq, start, positions[:, i : i + self.n_batch])
                self._batch.want_logits([], n)
                self._decode(self._batch.with_rows(rows[i : i + n]))
        finally:
            self._llama.llama_set_causal_attn(self._ctx, True)

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Decode one (seq, token, position) for each of several sequences; keep all logits."""
        n = self._batch.place_each([seq for seq, _, _ in tokens], [pos for _, _, pos in tokens])
        self._batch.want_logits(range(n), n)
        self._decode(self._batch.with_tokens(np.array([t for _, t, _ in tokens], np.int32)))

    def logits_of_tokens(
        self, tokens: Sequence[int], *, seq: int = 0, start: int = 0
    ) -> np.ndarray:
        """Return logits float32 [n, n_vocab] by teacher forcing: row i is after tokens[: i + 1].

        The context must have been made with `all_logits`.
        """
        rows = []
        ids = np.asarray(tokens, dtype=np.int32)
        for i, _ in self._chunks(len(ids)):
            n = self._batch.place(seq, start + i, min(self.n_batch, len(ids) - i))
            self._batch.want_logits(range(n), n)
            self._decode(self._batch.with_tokens(ids[i : i + n]))
            rows += [self.logits(row) for row in range(n)]
        return np.stack(rows)

    def logits(self, index: int = -1) -> np.ndarray:
        """Return logits of the last call, float32 [n_vocab], at `index` of its batch."""
        pointer = self._llama.llama_get_logits_ith(self._ctx, index)
        return np.ctypeslib.as_array(pointer, (self.lm.n_vocab,)).copy()

    def keep(self, seq: int, length: int) -> bool:
        """Forget `seq` from position `length` on; return False if all of it had to be forgotten.

        Not every memory can go back: a recurrent one has only its newest state, and sliding
        windows lose what they have passed.
        """
        llama, memory = self._llama, self._memory
        whole = length > 0 and llama.llama_memory_seq_pos_min(memory, seq) == 0
        if whole and llama.llama_memory_seq_rm(memory, seq, length, -1):
            return True
        llama.llama_memory_seq_rm(memory, seq, -1, -1)
        return length == 0

    def clear(self) -> None:
        """Forget every sequence."""
        self._llama.llama_memory_clear(self._memory, False)

    def _chunks(self, count: int) -> Iterator[tuple[int, bool]]:
        """Yield (start, whether it is the last) of each batch."""
        for start in range(0, count, self.n_batch):
            yield start, start + self.n_batch >= count

    def _decode(self, batch: Any) -> None:
        if self.lm.cancel.is_set():
            raise Interrupted()
        code = self._llama.llama_decode(self._ctx, batch)
        if code == 0:
            return
        if self.lm.cancel.is_set():
            raise Interrupted()
        if code == 1:
            raise PromptTooLongError(
                f"The context of {self.n_ctx} tokens is full.",
                "Lower `caption_tokens` or `answer_tokens`.",
            )
        raise ModelError(f"llama.cpp failed with code {code}: {last_words()}.", _HINT)


def _check_dimensions(path: Path, header: GgufHeader, expected: LanguageModelFile) -> None:
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
        raise ModelError(f"{path}: not the manifest's model: {', '.join(wrong)}.", _HINT)
