"""The GPU that llama.cpp would use, and how much of its memory is free."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edgeprism.language.llama import import_ggml, supports_offload

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
    gpus = _gpus_of(ggml)
    gpus.sort(key=lambda gpu: gpu.shared)  # those of one kind stay in llama.cpp's order
    return gpus[0] if gpus else None


@functools.cache
def gpu_form() -> str:
    """Return what decides numbers beside the weights where llama.cpp may use a GPU, else "".

    A build for GPUs may use them even where no layer lies there: it lends them the large products
    of a prefill. Drivers outside of the system's kernel, such as Mesa's, do not tell their version.
    """
    if not supports_offload():
        return ""
    names = [gpu.name for gpu in _gpus_of(import_ggml())]
    nvidia = ""
    with contextlib.suppress(OSError):
        nvidia = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    switches = sorted(item for item in os.environ.items() if item[0].startswith("GGML_"))
    return repr((names, platform.system(), platform.release(), nvidia, switches))


def _gpus_of(ggml: ctypes.CDLL | None) -> list[Gpu]:
    if ggml is None:
        return []
    ggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    ggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    ggml.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    ggml.ggml_backend_dev_type.restype = ctypes.c_int
    ggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    devices = [ggml.ggml_backend_dev_get(i) for i in range(ggml.ggml_backend_dev_count())]
    kinds = [(ggml.ggml_backend_dev_type(device), device) for device in devices]
    return [
        _describe(ggml, device, shared=kind == _INTEGRATED)
        for kind, device in kinds
        if kind in (_GPU, _INTEGRATED)
    ]


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
