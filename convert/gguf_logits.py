"""Logits and token ids of a GGUF file, for the gate: F32 cache, no flash attention, one text a run.

Straight on llama.cpp's C interface: the runtime's class is made for captioning and keeps only the
logits it samples from, while the gate needs those of every position.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.convert.gguf_export import silent_log
from edgeprism.errors import EdgePrismError


class GgufModel:
    """A model on the CPU. Use as a context manager; raises EdgePrismError if it does not load."""

    def __init__(self, path: Path, vocab_only: bool = False) -> None:
        import llama_cpp

        self._lib = llama_cpp
        llama_cpp.llama_log_set(silent_log(), ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        parameters.vocab_only = vocab_only
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise EdgePrismError(f"llama.cpp cannot load {path.name}, which was just written.")
        self._vocab: Any = llama_cpp.llama_model_get_vocab(self._model)

    def __enter__(self) -> GgufModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.llama_model_free(self._model)

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        data = text.encode()
        room = len(data) + 8
        ids = (self._lib.llama_token * room)()
        n = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, False, parse_special)
        return list(ids[:n])

    def logits(self, texts: list[list[int]], tick: Callable[[], None]) -> list[np.ndarray]:
        """Teacher-forced logits [n_tokens, n_vocab] float32 of each text."""
        lib = self._lib
        longest = max(map(len, texts))
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = longest
        parameters.type_k = parameters.type_v = lib.GGML_TYPE_F32
        parameters.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.n_threads = parameters.n_threads_batch = os.cpu_count() or 1
        context = lib.llama_init_from_model(self._model, parameters)
        if not context:
            raise EdgePrismError("llama.cpp cannot make a context for the converted model.")
        batch = lib.llama_batch_init(longest, 0, 1)
        n_vocab = lib.llama_vocab_n_tokens(self._vocab)
        results = []
        try:
            for text in texts:
                lib.llama_memory_clear(lib.llama_get_memory(context), True)
                batch.n_tokens = len(text)
                for i, token in enumerate(text):
                    batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
                    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                if lib.llama_decode(context, batch):
                    raise EdgePrismError("llama.cpp failed to run the converted model.")
                rows = np.ctypeslib.as_array(lib.llama_get_logits(context), (len(text), n_vocab))
                results.append(rows.copy())
                tick()
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)
        return results
