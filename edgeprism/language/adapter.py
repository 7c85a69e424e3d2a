"""Low-rank matrices (LoRA) whose products llama.cpp adds to those of a language model's own.

An adapter is on for everything that a context decodes (`switch_on`), or for a picture's rows alone
(`applied`). Rows meet only in attention, over keys and values that each row made by itself. So a
sequence whose rows went through the adapter while they were read is the same as one in which the
adapter's products were added to these rows alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeprism.bundle.adapter_checks import adapter_faults, other_kind, read_adapter_header
from edgeprism.bundle.adapter_values import value_faults
from edgeprism.bundle.gguf import GgufHeader
from edgeprism.errors import ModelError
from edgeprism.language.llama import forget_words, last_words

_ANOTHER = "Name an adapter that was made for this model, or copy or convert it again."


class Adapter:
    """An adapter of a language model, in memory beside it."""

    def __init__(
        self, path: Path, model: GgufHeader, llama: Any, native_model: Any, *, of_rows: bool
    ) -> None:
        """Load `path` for the language model with the header `model`.

        `of_rows` says that a picture's rows alone shall go through it.
        Raises ModelError, which names `path`, if the file is damaged or made for another model, or
        if it holds values that are no finite numbers. Those of a bundle's own adapter, which can
        have gigabytes, were looked at when it was converted.
        """
        header = read_adapter_header(path)
        if kind := other_kind(header):
            raise ModelError(f"{path}: {kind}.", _ANOTHER)
        if faults := adapter_faults(header, model, of_rows=of_rows):
            raise ModelError(
                f"{path}: no adapter for this language model: {'; '.join(faults)}.", _ANOTHER
            )
        if faults := [] if of_rows else value_faults(path, header):
            raise ModelError(f"{path}: is damaged: {'; '.join(faults)}.", _ANOTHER)
        self.path, self._llama = path, llama
        forget_words()
        self._adapter = llama.llama_adapter_lora_init(native_model, os.fsencode(path))
        if not self._adapter:
            raise ModelError(f"{path}: llama.cpp cannot load it: {last_words(2)}.", _ANOTHER)

    def switch_on(self, context: Any) -> None:
        """Have llama.cpp's `context` add the adapter's products from now on."""
        adapters = (self._llama.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        self._set(context, adapters, 1, (ctypes.c_float * 1)(1.0))

    @contextlib.contextmanager
    def applied(self, context: Any) -> Iterator[None]:
        """Inside the block llama.cpp's `context` adds the adapter's products."""
        try:
            self.switch_on(context)
            yield
        finally:
            self._set(context, None, 0, None)

    def _set(self, context: Any, adapters: Any, n: int, scales: Any) -> None:
        if code := self._llama.llama_set_adapters_lora(context, adapters, n, scales):
            raise ModelError(f"{self.path}: llama.cpp failed with code {code}.", _ANOTHER)

    def close(self) -> None:
        """Free the adapter; close all contexts first, and the language model after."""
        if self._adapter:
            self._llama.llama_adapter_lora_free(self._adapter)
            self._adapter = None
