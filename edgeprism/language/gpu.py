"""The GPU that llama.cpp would use, and how much of its memory is free."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from edgeprism.language.llama import import_ggml

# ggml-backend.h, enum ggml_backend_dev_type
_GPU, _INTEGRATED = 1, 2


@dataclass(frozen=True)
class Gpu:
    """A GPU and its memory in bytes."""

    name: str
    size: int
    free: int
    shared: bool  # its memory is the machine's: Jetson, Apple, processors with graphics


def find_gpu() -> Gpu | None:
    """Return the first GPU of this build of llama.cpp, or None."""
    return gpu_of(import_ggml())


def gpu_of(ggml: ctypes.CDLL | None) -> Gpu | None:
    """Return the first GPU that a loaded ggml library knows, or None.

    A dedicated one goes before an integrated one, as in llama.cpp.
    """
    if ggml is None:
        return None
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.restype = ctypes.c_int
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    kinds = [(ggml.ggml_backend_dev_type(device), device) for device in devices]
    for wanted in (_GPU, _INTEGRATED):
        for kind, device in kinds:
            if kind == wanted:
                return _describe(ggml, device, shared=kind == _INTEGRATED)
    return None


def _describe(ggml: ctypes.CDLL, device: int, *, shared: bool) -> Gpu:
    ggml.ggml_backend_dev_memory.restype = None
    ggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p] + [
        ctypes.POINTER(ctypes.c_size_t)
    ] * 2
    ggml.ggml_backend_dev_description.restype = ctypes.c_char_p
    ggml.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    free, size = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(size))
    name = (ggml.ggml_backend_dev_description(device) or b"").decode("utf-8", "replace")
    return Gpu(name, size.value, free.value, shared)
