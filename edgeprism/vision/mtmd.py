"""Pixels → visual tokens, through llama.cpp's libmtmd: the second vision engine.

libmtmd resizes the picture, cuts it, encodes it, and adds the text that its model needs around and
between the rows. For that it needs the language model's vocabulary, width and positions, so the
two files are a pair. A file with wrong shapes may end the process, so `pair.py` first tries a pair
in a child process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.errors import ImageError, Interrupted, ModelError
from edgeprism.language.llama import forget_words, import_mtmd, last_words
from edgeprism.language.model import LanguageModel
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.fork import use_team
from edgeprism.segments import ImageRows, Segment, Tokens
from edgeprism.vision.mmproj_checks import check_mmproj, check_positions, unknown_positions

_FLASH_ATTENTION = {None: -1, False: 0, True: 1}
_NODES = 8  # nodes of the graph between two checks of `cancel`
_FAR = 1000  # a second start position, which shows what libmtmd adds to the start
_HINT = "Use the mmproj file that was made for this language model."


class MtmdEncoder:
    """An mmproj file in memory, with its language model. Not thread-safe.

    Close it before the language model.
    """

    def __init__(
        self,
        path: Path,
        lm: LanguageModel,
        *,
        gpu: bool = False,
        threads: int = 1,
        flash_attention: bool | None = None,
        cancel: Cancel | None = None,
    ) -> None:
        """Load `path`; raises ModelError if the file is damaged or belongs to another model."""
        header = check_mmproj(path, lm.n_embd_row)
        check_positions(path, header, lm.path, lm.row_axes > 1)
        self.path, self.lm, self.n_embd = path, lm, lm.n_embd_row
        self.cancel = cancel or Cancel()
        use_team(threads)
        self._mtmd = mtmd = import_mtmd()
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.n_threads = gpu, threads
        params.flash_attn_type = _FLASH_ATTENTION[flash_attention]
        params.print_timings = params.warmup = False
        params.progress_callback = mtmd.mtmd_progress_callback(
            lambda _, __: not self.cancel.is_set()
        )
        # an attribute, because native code calls it as long as the context exists
        self._between_nodes = type(params.cb_eval)(self._may_go_on)
        params.cb_eval = self._between_nodes
        self._node_count = 0
        forget_words()
        self._context = mtmd.mtmd_init_from_file(os.fsencode(path), lm.native, params)
        if not self._context:
            if self.cancel.is_set():
                raise Interrupted()
            raise ModelError(f"{path}: llama.cpp cannot load it: {last_words(2)}.", _HINT)
        self.multi_axis = bool(mtmd.mtmd_decode_use_mrope(self._context))
        self.causal = not mtmd.mtmd_decode_use_non_causal(self._context, None)

    def close(self) -> None:
        """Free libmtmd's model."""
        if self._context:
            self._mtmd.mtmd_free(self._context)
            self._context = None

    def encode_picture(self, pixels: np.ndarray) -> tuple[np.ndarray, tuple[Segment, ...]]:
        """Encode uint8 [1, height, width, 3]; return rows float32 [n, n_embd] and their segments.

        Raises ImageError for a shape that the model's preprocessing cannot take, and Interrupted
        between two nodes of the graph when `cancel` is set.
        """
        with self._chunks(pixels.shape[2], pixels.shape[1], pixels) as chunks:
            segments = self._segments(chunks)
            images = [chunk for chunk in chunks if self._is_image(chunk)]
            rows = np.concatenate(list(self._encoded(images)))
        if not np.isfinite(rows).all():
            raise ModelError(f"{self.path}: gave values that are not finite.", _HINT)
        return rows, segments

    def layout(self, size: tuple[int, int]) -> tuple[Segment, ...]:
        """Return the segments of a picture of `size` (width, height), without encoding it."""
        with self._chunks(*size, None) as chunks:
            return self._segments(chunks)

    def together(self, size: tuple[int, int]) -> int:
        """Return how many tiles of a picture of `size` the encoder takes at once."""
        with self._chunks(*size, None) as chunks, self._batch() as batch:
            images = [chunk for chunk in chunks if self._is_image(chunk)]
            return self._fill(batch, images)

    # ---- libmtmd's chunks: text, or rows of one image

    @contextlib.contextmanager
    def _chunks(self, width: int, height: int, pixels: np.ndarray | None) -> Iterator[list[Any]]:
        """Give libmtmd's chunks of a picture; without `pixels` those of a placeholder, to count."""
        mtmd, data = self._mtmd, None
        if pixels is not None:
            flat = np.ascontiguousarray(pixels[0], dtype=np.uint8)
            data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        with contextlib.ExitStack() as freeing:
            bitmap = mtmd.mtmd_bitmap_init(width, height, data)
            freeing.callback(mtmd.mtmd_bitmap_free, bitmap)
            chunks = mtmd.mtmd_input_chunks_init()
            freeing.callback(mtmd.mtmd_input_chunks_free, chunks)
            part = mtmd.mtmd_input_part(None, bitmap)
            parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
            forget_words()
            code = mtmd.mtmd_tokenize_from_parts(self._context, chunks, parts, 1, False)
            if code:
                raise ImageError(
                    f"llama.cpp cannot prepare {width} × {height} pixels for this model: "
                    f"{last_words()}.",
                    "Cut the picture to another shape.",
                )
            count = mtmd.mtmd_input_chunks_size(chunks)
            yield [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(count)]

    def _is_image(self, chunk: Any) -> bool:
        mtmd = self._mtmd
        return bool(mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE)

    def _segments(self, chunks: list[Any]) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        n_rows = 0
        for chunk in chunks:
            count = self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if self._is_image(chunk):
                causal = not self._mtmd.mtmd_decode_use_non_causal(self._context, chunk)
                positions = self._positions(chunk, count) if self.multi_axis else None
                segments.append(ImageRows(n_rows, n_rows + count, causal, positions))
                n_rows += count
            else:
                segments.append(self._text(chunk))
        return tuple(segments)

    def _text(self, chunk: Any) -> Tokens:
        count = ctypes.c_size_t()
        tokens = self._mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(count))
        ids = tuple(int(tokens[i]) for i in range(count.value))
        if any(not 0 <= token < self.lm.vocabulary.size for token in ids):
            raise ModelError(
                f"{self.lm.path}: its vocabulary lacks the words that {self.path.name} puts "
                "around a picture.",
                _HINT,
            )
        return Tokens(ids)

    def _positions(self, chunk: Any, count: int) -> np.ndarray:
        """Return int32 [4, count] (time, down, across, unused), counted from the first row."""
        mtmd = self._mtmd
        image = mtmd.mtmd_input_chunk_get_tokens_image(chunk)

        def positions_from(start: int) -> np.ndarray:
            each = [mtmd.mtmd_image_tokens_get_decoder_pos(image, start, i) for i in range(count)]
            return np.array([[p.t, p.y, p.x, p.z] for p in each], np.int32).T

        positions = positions_from(0)
        moved = positions_from(_FAR) - positions
        advance = mtmd.mtmd_input_chunk_get_n_pos(chunk)
        if (moved[:3] != _FAR).any() or moved[3].any() or positions.max() + 1 != advance:
            raise unknown_positions(self.path, self.lm.path)
        return positions

    # ---- encoding

    @contextlib.contextmanager
    def _batch(self) -> Iterator[Any]:
        batch = self._mtmd.mtmd_batch_init(self._context)
        try:
            yield batch
        finally:
            self._mtmd.mtmd_batch_free(batch)

    def _fill(self, batch: Any, chunks: list[Any]) -> int:
        """Add the first chunks to `batch`, as many as the encoder takes; return their number."""
        for i, chunk in enumerate(chunks):
            if self._mtmd.mtmd_batch_add_chunk(batch, chunk):
                return i
        return len(chunks)

    def _encoded(self, chunks: list[Any]) -> Iterator[np.ndarray]:
        """Yield the rows [n, n_embd] of each chunk, in order."""
        mtmd = self._mtmd
        while chunks:
            forget_words()
            with self._batch() as batch:
                n = self._fill(batch, chunks)
                if self.cancel.is_set():
                    raise Interrupted()
                failed = n == 0 or mtmd.mtmd_batch_encode(batch)
                if self.cancel.is_set():
                    raise Interrupted()
                if failed:
                    raise ModelError(f"{self.path}: failed on a picture: {last_words()}.", _HINT)
                for chunk in chunks[:n]:
                    count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
                    rows = mtmd.mtmd_batch_get_output_embd(batch, chunk)
                    yield np.ctypeslib.as_array(rows, (count, self.n_embd)).copy()
            chunks = chunks[n:]

    def _may_go_on(self, _tensor: Any, ask: bool, _data: Any) -> bool:
        """Answer ggml, which calls this before each node (`ask`) and after some nodes.

        Before a node: return whether ggml is to call again after it. After a node: return whether
        the graph goes on.
        """
        if not ask:
            return not self.cancel.is_set()
        self._node_count += 1
        return self._node_count % _NODES == 0
