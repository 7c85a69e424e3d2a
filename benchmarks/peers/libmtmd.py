"""llama.cpp with libmtmd, through llama-cpp-python's binding of their functions."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp.llama_cpp as llama
import llama_cpp.mtmd_cpp as mtmd
import numpy as np

from benchmarks.peers.engine import DECODED, INSTRUCTION, Engine, Seconds, Setting
from benchmarks.peers.weights import Weights
from edgeprism.language.llama import has_amx

CONTEXT = 8192
_CALLBACKS: list[Any] = []  # callbacks that native code may call until the process ends


class Libmtmd(Engine):
    """An mmproj and a GGUF: libmtmd prepares, cuts, encodes and places the picture itself."""

    @classmethod
    def settings(cls, cores: int) -> Mapping[str, Sequence[object]]:
        return {"flash_attention": [True, False], "micro_batch": [512, 2048],
                "threads": [cores, 1]}  # fmt: skip

    def __init__(self, weights: Weights, quant: str, setting: Setting) -> None:
        silence()
        threads, flash = int(str(setting["threads"])), int(bool(setting["flash_attention"]))
        path = str(weights.language_model()).encode()
        options = llama.llama_model_default_params()
        # llama.cpp's layout for AMX ends the process on some builds
        options.use_extra_bufts = not has_amx()
        self._lm = llama.llama_model_load_from_file(path, options)
        self._context = llama.llama_init_from_model(self._lm, _context_params(setting))
        params = mtmd.mtmd_context_params_default()
        params.use_gpu, params.n_threads, params.flash_attn_type = False, threads, flash
        params.print_timings = params.warmup = False
        mmproj = str(weights.mmproj(quant)).encode()
        self._mtmd = mtmd.mtmd_init_from_file(mmproj, self._lm, params)
        if not self._mtmd or not self._context:
            raise SystemExit(f"llama.cpp cannot load {mmproj.decode()}")
        self._width = llama.llama_model_n_embd_inp(self._lm)
        self._batch = int(str(setting["micro_batch"]))
        prompts = weights.manifest().prompts
        self._before = prompts.before_image
        self._after = prompts.after_image + INSTRUCTION + prompts.after_instruction
        self._after += prompts.before_caption

    def look(self, pixels: np.ndarray) -> tuple[Seconds, np.ndarray]:
        start = time.perf_counter()
        chunks = self._chunks(pixels)
        rows = self._encode(chunks)
        encoded = time.perf_counter()
        self._prefill(chunks, rows)
        token = self._likeliest()
        first = time.perf_counter()
        for _ in range(DECODED):
            one = llama.llama_batch_get_one((llama.llama_token * 1)(token), 1)
            _require(llama.llama_decode(self._context, one) == 0, "decode")
            token = self._likeliest()
        end = time.perf_counter()
        seconds = Seconds(encoded - start, first - start, (end - first) / DECODED)
        mtmd.mtmd_input_chunks_free(chunks)
        return seconds, np.concatenate([*rows.values()])

    def _chunks(self, pixels: np.ndarray) -> Any:
        """Cut the picture and tokenise the prompt around it."""
        height, width = pixels.shape[:2]
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(width, height, data)
        marker = mtmd.mtmd_default_marker().decode()
        words = f"{self._before}{marker}{self._after}".encode()
        text = mtmd.mtmd_input_text(words, len(words), add_special=True, parse_special=True)
        chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        fault = mtmd.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(text), bitmaps, 1)
        mtmd.mtmd_bitmap_free(bitmap)
        _require(fault == 0, "prepare the picture")
        return chunks

    def _encode(self, chunks: Any) -> dict[int, np.ndarray]:
        """Return {index of chunk: its rows}; a batch has as many tiles as libmtmd accepts."""
        image = mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
        pieces = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(_count(chunks))]
        waiting = [i for i, p in enumerate(pieces) if mtmd.mtmd_input_chunk_get_type(p) == image]
        rows = {}
        while waiting:
            batch = mtmd.mtmd_batch_init(self._mtmd)
            size = 0
            while size < len(waiting):
                if mtmd.mtmd_batch_add_chunk(batch, pieces[waiting[size]]):
                    break
                size += 1
            _require(mtmd.mtmd_batch_encode(batch) == 0, "encode the picture")
            for i in waiting[:size]:
                values = mtmd.mtmd_batch_get_output_embd(batch, pieces[i])
                shape = (mtmd.mtmd_input_chunk_get_n_tokens(pieces[i]), self._width)
                rows[i] = np.ctypeslib.as_array(values, shape).copy()
            mtmd.mtmd_batch_free(batch)
            waiting = waiting[size:]
        return rows

    def _prefill(self, chunks: Any, rows: dict[int, np.ndarray]) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        count, past = _count(chunks), llama.llama_pos(0)
        for i in range(count):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            if i in rows:
                values = rows[i].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
                fault = mtmd.mtmd_helper_decode_image_chunk(
                    self._mtmd, self._context, chunk, values, past, 0, self._batch,
                    ctypes.byref(past), mtmd.mtmd_helper_post_decode_callback(), None,
                )  # fmt: skip
            else:
                fault = mtmd.mtmd_helper_eval_chunk_single(
                    self._mtmd, self._context, chunk, past, 0, self._batch, i == count - 1,
                    ctypes.byref(past),
                )  # fmt: skip
            _require(fault == 0, "prefill")

    def _likeliest(self) -> int:
        n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._lm))
        logits = llama.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (n_vocab,)).argmax())


def silence() -> None:
    """Keep llama.cpp's log from the terminal."""
    _CALLBACKS.append(llama.llama_log_callback(lambda _level, _text, _data: None))
    llama.llama_log_set(_CALLBACKS[0], ctypes.c_void_p(0))
    mtmd.mtmd_helper_log_set(_CALLBACKS[0], ctypes.c_void_p(0))
    llama.llama_backend_init()


def _context_params(setting: Setting) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = int(str(setting.get("context", CONTEXT)))
    params.n_ubatch = int(str(setting["micro_batch"]))
    params.n_threads = params.n_threads_batch = int(str(setting["threads"]))
    params.flash_attn_type = int(bool(setting["flash_attention"]))
    return params


def _count(chunks: Any) -> int:
    return int(mtmd.mtmd_input_chunks_size(chunks))


def _require(done: bool, what: str) -> None:
    if not done:
        raise SystemExit(f"llama.cpp failed to {what}")
