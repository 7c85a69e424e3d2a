"""Image rows through a second model, from whose keys and values the language model goes on.

Some models have a set of weights for text and another for the rows of pictures. A row passes
through its own set in every layer, and looks at the others by their keys and values alone. So the
rows are decoded in a context of the other weights, an "expert", and what it holds of the sequence
is handed over: from the language model before the rows, and back after them. Both models must agree
in all that decides what keys and values are: `check_alike`.

llama.cpp writes what it holds of a sequence as bytes: a head with the number of the context's
streams; for each stream the number of cells; after it, if it has any, the cells (llama.cpp's
`llama_kv_cache::state_write`). It reads them only in a context of as many streams. The expert's
context has one, the language model's one for each sequence, so the head is written anew.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, cast

import numpy as np

from edgeprism.bundle.gguf import GgufHeader
from edgeprism.bundle.gguf_parts import read_model_header
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.errors import COPY_AGAIN, ModelError
from edgeprism.language.context import Context, check_rows
from edgeprism.language.llama import forget_words, import_llama, last_words
from edgeprism.language.model import LanguageModel
from edgeprism.machine.cancel import Cancel

_HEAD = struct.Struct("<IiI")  # llama.cpp's mark, the sequence, the number of streams
_COUNT = struct.Struct("<I")  # of a stream's cells
# of the architecture's metadata, what keys and values do not depend on
_FREE = ("feed_forward_length", "vocab_size")


class ContextWithExpert(Context):
    """Sequences of a ModelWithExpert. The expert's own context holds one sequence at a time."""

    _expert: Context | None = None  # made when the first rows come

    def prefill_rows(
        self,
        seq: int,
        rows: np.ndarray,
        start: int,
        *,
        causal: bool = True,
        positions: np.ndarray | None = None,
    ) -> None:
        """Put visual tokens into `seq`: through the expert, but for the last ones (`own_last`).

        Parameters as of `Context.prefill_rows`; all of them in one call are one picture. Raises
        ModelError for rows that do not fit, or that are not causal.
        """
        check_rows(self.lm, rows)
        if not causal:
            raise ModelError(
                "Visual tokens that look at each other cannot go through an expert.",
                "Set lm.image_attention of the manifest to causal.",
            )
        positions = self.on_all_axes(positions, len(rows))
        lm = cast("ModelWithExpert", self.lm)  # which alone makes such a context
        n = max(0, len(rows) - lm.own_last)
        if n:
            expert = self._expert = self._expert or self._new_expert(lm)
            expert.clear()
            hand_over(self, seq, expert, 0)
            expert.prefill_rows(0, rows[:n], start, positions=positions[:, :n])
            hand_over(expert, 0, self, seq)
        if n < len(rows):
            super().prefill_rows(seq, rows[n:], start, positions=positions[:, n:])

    def _new_expert(self, lm: ModelWithExpert) -> Context:
        """Return a context of the expert with the cells of one sequence."""
        if lm.expert is None:
            raise ModelError(f"{lm.path}: was closed.", "Load the model again.")
        kv_type, flash_attention = self.settings
        expert = lm.expert.context(
            self.n_ctx // self.n_seq,
            kv_type=kv_type,
            flash_attention=flash_attention,
            n_batch=self.n_batch,
        )
        return cast("Context", expert)  # an expert is read as the language model itself

    def close(self) -> None:
        """Free both contexts."""
        if self._expert is not None:
            self._expert.close()
            self._expert = None
        super().close()


class ModelWithExpert(LanguageModel):
    """A language model, and the expert that image rows go through."""

    context_class: ClassVar[type[Context]] = ContextWithExpert

    def __init__(
        self,
        path: Path,
        expert: Path,
        own_last: int,
        *,
        expected: LanguageModelFile | None = None,
        gpu_layers: int = 0,
        threads: int = 1,
        cancel: Cancel | None = None,
    ) -> None:
        """Load both models; `own_last` rows at a picture's end go through the model itself.

        Raises ModelError if a file is damaged, or if the two do not belong together.
        """
        self.own_last = own_last
        self.expert: LanguageModel | None = None
        check_alike(path, expert)
        super().__init__(
            path, expected=expected, gpu_layers=gpu_layers, threads=threads, cancel=cancel
        )
        try:
            self.expert = LanguageModel(
                expert, gpu_layers=gpu_layers, threads=threads, cancel=self.cancel
            )
        except BaseException:
            self.close()
            raise

    def embed(self, ids: Sequence[int]) -> np.ndarray | None:
        """Return None: text goes through other weights than image rows."""
        return None

    def close(self) -> None:
        """Free the weights of both; close all contexts first."""
        if self.expert is not None:
            self.expert.close()
            self.expert = None
        super().close()


def hand_over(source: Context, seq: int, target: Context, target_seq: int) -> None:
    """Replace `target_seq` of `target` by what `source` holds of `seq`.

    Raises ModelError if llama.cpp does not take it.
    """
    llama = import_llama()
    size = llama.llama_state_seq_get_size(source.native, seq)
    # zeros behind the state say that further streams are empty
    buffer = (ctypes.c_uint8 * (size + _COUNT.size * target.n_seq))()
    copied = llama.llama_state_seq_get_data(source.native, buffer, size, seq)
    if copied != size:
        raise _not_taken(source, f"{copied} of {size} bytes were written")
    view = memoryview(buffer).cast("B")
    stream = min(seq, source.n_seq - 1)
    if not _has_known_form(view, source.n_seq, stream):
        raise _not_taken(source, "their form is not known")
    # counts of the streams before this one make room for the head right before its own count
    start = _COUNT.size * stream
    mark, number, _ = _HEAD.unpack_from(view)
    if not _COUNT.unpack_from(view, start + _HEAD.size)[0]:
        target.keep(target_seq, 0)  # nothing to hand over
        return
    _HEAD.pack_into(view, start, mark, number, target.n_seq)
    length = size + _COUNT.size * (target.n_seq - source.n_seq)
    data = ctypes.cast(ctypes.addressof(buffer) + start, ctypes.POINTER(ctypes.c_uint8))
    forget_words()
    taken = llama.llama_state_seq_set_data(target.native, data, length, target_seq)
    if taken != length:
        raise _not_taken(target, last_words())


def _has_known_form(state: memoryview, n_streams: int, stream: int) -> bool:
    """Return whether a sequence's state has this many streams, those before `stream` empty."""
    if len(state) < _HEAD.size + _COUNT.size * n_streams:
        return False
    before = state[_HEAD.size : _HEAD.size + _COUNT.size * stream]
    return _HEAD.unpack_from(state)[2] == n_streams and not any(before)


def _not_taken(context: Context, why: str) -> ModelError:
    return ModelError(
        f"{context.lm.path}: keys and values cannot be handed over: {why}.",
        "Install the llama-cpp-python that constraints.txt names, or convert the model again.",
    )


def check_alike(path: Path, expert: Path) -> None:
    """Raise ModelError if keys and values of the expert would not be those of the model at `path`.

    Compared are the architecture and its metadata: numbers of layers and heads, widths, rotation.
    """
    if wrong := list(_differences(read_model_header(path), read_model_header(expert))):
        raise ModelError(
            f"{expert}: no expert for the image rows of {path.name}: {', '.join(wrong)}.",
            COPY_AGAIN,
        )


def _differences(model: GgufHeader, expert: GgufHeader) -> Iterator[str]:
    name = model.architecture
    if expert.architecture != name:
        yield f"its architecture is {expert.architecture!r}, not {name!r}"
        return
    for key in sorted(model.metadata.keys() | expert.metadata.keys()):
        if not key.startswith(f"{name}.") or key.removeprefix(f"{name}.") in _FREE:
            continue
        own, other = (header.metadata.get(key) for header in (expert, model))
        if own != other:
            yield f"{key} is {own!r}, not {other!r}"
