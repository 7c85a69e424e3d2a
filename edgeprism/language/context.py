"""Tokens and visual tokens → KV cache → logits, through llama.cpp. Not thread-safe."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprism.errors import COPY_AGAIN, Interrupted, ModelError, PromptTooLongError
from edgeprism.language.engine import reserved_outputs
from edgeprism.language.kv_memory import check_kv_memory, kv_bytes
from edgeprism.language.llama import engine_build, forget_words, last_words
from edgeprism.language.llama_batch import LlamaBatch
from edgeprism.machine.cancel import nonzero_when_set
from edgeprism.machine.fork import use_team

if TYPE_CHECKING:
    from edgeprism.language.model import LanguageModel

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
_FLASH_ATTENTION = {None: -1, False: 0, True: 1}


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
        self._most_outputs = n_batch if all_logits else reserved_outputs(n_seq)
        params.n_outputs_max = self._most_outputs
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
        if lm.adapter is not None:
            lm.adapter.switch_on(self._ctx)
        # no more than the context holds: llama.cpp ends the process at a longer batch
        self.n_batch = min(llama.llama_n_batch(self._ctx), llama.llama_n_ubatch(self._ctx))
        self._memory = llama.llama_get_memory(self._ctx)
        self.settings = kv_type, flash_attention
        self._abort = ctypes.cast(nonzero_when_set(), llama.ggml_abort_callback)
        llama.llama_set_abort_callback(
            self._ctx, self._abort, ctypes.cast(lm.cancel.flag, ctypes.c_void_p)
        )
        self._batch = LlamaBatch(llama.llama_batch, n_batch, lm.row_axes)

    @property
    def native(self) -> Any:
        """llama.cpp's own context."""
        return self._ctx

    @property
    def form(self) -> str:
        """What decides the numbers in the KV cache, besides the weights and the tokens."""
        from edgeprism.language.gpu import gpu_form  # not at the top: captions keep no state

        # some models turn positions otherwise in a context that is longer than they first learnt
        first = self.lm.header.metadata.get(
            f"{self.lm.header.architecture}.rope.scaling.original_context_length"
        )
        is_long = isinstance(first, int) and self.n_ctx // self.n_seq > first
        gpu = (self.lm.gpu_layers, form) if (form := gpu_form()) else ()
        return repr((engine_build(), *self.settings, self.n_seq, self.n_batch, is_long, *gpu))

    def state(self, seq: int, *, limit: int) -> bytes | None:
        """Return the KV cache of `seq` as llama.cpp writes it; None if that exceeds `limit`."""
        size = self._llama.llama_state_seq_get_size(self._ctx, seq)
        if not 0 < size <= limit:
            return None
        buffer = (ctypes.c_uint8 * size)()
        copied = self._llama.llama_state_seq_get_data(self._ctx, buffer, size, seq)
        return bytes(buffer) if copied == size else None

    def restore(self, seq: int, state: bytes) -> bool:
        """Replace the KV cache of `seq` by a `state` of the same form.

        Returns False, and leaves `seq` empty, where llama.cpp does not take it.
        """
        data = ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))
        taken = self._llama.llama_state_seq_set_data(self._ctx, data, len(state), seq)
        if taken and taken == len(state):
            return True
        self._llama.llama_memory_seq_rm(self._memory, seq, -1, -1)
        return False

    def close(self) -> None:
        """Free the context."""
        if self._ctx:
            self._llama.llama_free(self._ctx)
            self._ctx = None

    def prefill_tokens(
        self, seq: int, tokens: Sequence[int], start: int, *, logits: bool = True
    ) -> None:
        """See `LanguageContext.prefill_tokens`."""
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
        """See `LanguageContext.prefill_rows`; more than `n_batch` rows must be causal."""
        check_rows(self.lm, rows)
        positions = self.on_all_axes(positions, len(rows))
        if not causal and len(rows) > self.n_batch:  # llama.cpp would end the process
            raise ModelError(
                f"{len(rows)} visual tokens that look at each other do not fit a batch of "
                f"{self.n_batch}.",
                "Use a smaller picture.",
            )
        rows = np.ascontiguousarray(rows, dtype=np.float32)
        with self._as_for_rows(causal):
            for i, _ in self._chunks(len(rows)):
                n = self._batch.place_rows(seq, start, positions[:, i : i + self.n_batch])
                self._batch.want_logits([], n)
                self._decode(self._batch.with_rows(rows[i : i + n]))

    @contextlib.contextmanager
    def _as_for_rows(self, causal: bool) -> Iterator[None]:
        """Inside the block the context treats what it decodes as a picture's rows."""
        adapter = self.lm.row_adapter
        with adapter.applied(self._ctx) if adapter else contextlib.nullcontext():
            self._llama.llama_set_causal_attn(self._ctx, causal)
            try:
                yield
            finally:
                self._llama.llama_set_causal_attn(self._ctx, True)

    def on_all_axes(self, positions: np.ndarray | None, n: int) -> np.ndarray:
        """Return the positions of `n` rows, int32 [row_axes, n]; raises ModelError if they fail.

        Rows that share a position have their order along the axes down and across: by it llama.cpp
        knows which of them come before a row. Without such axes it would show them all to each.
        """
        axes = self.lm.row_axes
        if positions is None:
            positions = np.tile(np.arange(n, dtype=np.int32), (axes, 1))
        if positions.shape == (1, n) and axes > 1:
            order = np.arange(n, dtype=np.int32)
            rest = np.zeros((axes - 2, n), np.int32)
            positions = np.concatenate([positions.astype(np.int32), order[None], rest])
        if positions.shape != (axes, n) or (axes == 1 and (np.diff(positions[0]) <= 0).any()):
            raise ModelError(
                f"Positions {list(positions.shape)} do not fit {n} visual tokens of {axes} each.",
                "Encode the picture with this captioner.",
            )
        return positions

    def encode(self, rows: np.ndarray) -> None:
        """Run the encoder on a whole prompt, float32 [n, n_embd] with n up to `n_batch`.

        The decoder looks at what it makes until the next prompt is encoded.
        """
        n = self._batch.place(0, 0, len(rows))
        self._batch.want_logits(range(n), n)
        self._run(self._llama.llama_encode, self._batch.with_rows(rows))

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """See `LanguageContext.step`."""
        n = self._batch.place_each([seq for seq, _, _ in tokens], [pos for _, _, pos in tokens])
        self._batch.want_logits(range(n), n)
        self._decode(self._batch.with_tokens(np.array([t for _, t, _ in tokens], np.int32)))

    def logits_of_tokens(
        self, tokens: Sequence[int], *, seq: int = 0, start: int = 0
    ) -> np.ndarray:
        """See `LanguageContext.logits_of_tokens`; with `all_logits` as fast as a prompt is read."""
        rows = []
        ids = np.asarray(tokens, dtype=np.int32)
        most = min(self.n_batch, self._most_outputs)
        for i in range(0, len(ids), most):
            n = self._batch.place(seq, start + i, min(most, len(ids) - i))
            self._batch.want_logits(range(n), n)
            self._decode(self._batch.with_tokens(ids[i : i + n]))
            rows += [self.logits(row) for row in range(n)]
        return np.stack(rows)

    def logits(self, index: int = -1) -> np.ndarray:
        """See `LanguageContext.logits`."""
        pointer = self._llama.llama_get_logits_ith(self._ctx, index)
        return np.ctypeslib.as_array(pointer, (self.lm.vocabulary.size,)).copy()

    def keep(self, seq: int, length: int, rows: int = 0) -> bool:
        """See `LanguageContext.keep`.

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
        self._run(self._llama.llama_decode, batch)

    def _run(self, call: Callable[[Any, Any], int], batch: Any) -> None:
        """Have llama.cpp decode or encode `batch`. Raises EdgePrismError where it does not."""
        if self.lm.cancel.is_set():
            raise Interrupted()
        code = call(self._ctx, batch)
        if code == 0:
            return
        if self.lm.cancel.is_set():
            raise Interrupted()
        if code == 1:
            raise PromptTooLongError(
                f"The context of {self.n_ctx} tokens is full.",
                "Lower `caption_tokens` or `answer_tokens`.",
            )
        raise ModelError(f"llama.cpp failed with code {code}: {last_words()}.", COPY_AGAIN)


def check_rows(lm: LanguageModel, rows: np.ndarray) -> None:
    """Raise ModelError for visual tokens of another width than `lm` takes."""
    if rows.ndim != 2 or rows.shape[1] != lm.n_embd_row:
        raise ModelError(
            f"Visual tokens {list(rows.shape)} do not fit a language model of width "
            f"{lm.n_embd_row}.",
            "Encode the picture with this captioner.",
        )
