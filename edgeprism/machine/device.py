"""Which device each engine runs on, and with how many threads."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TypedDict

from edgeprism.arguments import check_integer
from edgeprism.choices import DEVICES
from edgeprism.errors import DeviceError
from edgeprism.machine.facts import available_cores, granted_cores
from edgeprism.machine.load import LoadMeter, busy_cores


class EngineOptions(TypedDict, total=False):
    """The keywords that every function with an engine accepts."""

    device: str
    """One of auto, cpu, cuda, metal."""
    threads: int | None
    """CPU threads; None: the cores that this process may use."""
    gpu_layers: int | None
    """Layers of the language model that go to the GPU; None: as many as it has memory for."""


ALL_LAYERS = 999  # more than any model has
SMALL_MODEL_BYTES = 16 << 20
CPU_PROVIDER = "CPUExecutionProvider"

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "metal": "CoreMLExecutionProvider"}
GPU_PROVIDERS = tuple(_PROVIDERS.values())
_ONNX_FIX = {
    "cuda": 'pip uninstall onnxruntime, then pip install "edgeprism[gpu]"',
    "metal": 'pip install "edgeprism[cpu]" on macOS',
}
START_FIX = {  # {provider: how to repair it if the build has it and it does not start}
    _PROVIDERS["cuda"]: 'pip install "edgeprism[gpu]" brings NVIDIA\'s libraries; '
    "nvidia-smi must show the GPU",
    _PROVIDERS["metal"]: "`edgeprism -v caption --example` shows what CoreML says",
}
LLAMA_FIX = {
    "cuda": "CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir "
    "llama-cpp-python",
    "metal": "CMAKE_ARGS=-DGGML_METAL=on pip install --force-reinstall --no-cache-dir "
    "llama-cpp-python",
}


def check_engine_options(
    device: str = "auto", threads: int | None = None, gpu_layers: int | None = None
) -> None:
    """Refuse values of `EngineOptions` that no machine could take, before anything loads.

    Raises DeviceError for an unknown device, UsageError for other values.
    """
    _gpu_of_system(device, sys.platform)
    if threads is not None:
        check_integer("threads", threads, least=1, hint="Leave it out for all cores.")
    if gpu_layers is not None:
        check_integer("gpu_layers", gpu_layers, least=0, hint="Leave it out for all layers.")


def choose_provider(
    requested: str, providers: Mapping[str, str], system: str = sys.platform
) -> str:
    """Return ONNX Runtime's execution provider for the device `requested`.

    `providers` is {execution provider of this build: why it cannot start, or ""}. "auto" takes the
    GPU's provider if it starts, else the CPU's. Raises DeviceError if another device is requested
    and its provider is missing or does not start.
    """
    gpu = _gpu_of_system(requested, system)
    provider = _PROVIDERS[gpu]
    starts = provider in providers and not providers[provider]
    if requested == "cpu" or (requested == "auto" and not starts):
        return CPU_PROVIDER
    if provider not in providers:
        raise DeviceError(
            f"Device {requested}: this ONNX Runtime has only {', '.join(providers)}.",
            f'{_ONNX_FIX[gpu]}; or use `device="auto"`.',
        )
    if not starts:
        raise DeviceError(
            f"Device {requested}: {provider} does not start: {providers[provider]}.",
            f'{START_FIX[provider]}; or use `device="auto"`.',
        )
    return provider


def choose_gpu_layers(
    requested: str, llama_offload: bool, gpu_layers: int | None, system: str = sys.platform
) -> int:
    """Return how many of the language model's layers go to the GPU (by default all)."""
    gpu = _gpu_of_system(requested, system)
    if requested == "cpu" and gpu_layers:
        raise DeviceError("Layers on a GPU need one, but the device is cpu.", "Drop one of them.")
    if not llama_offload and (requested == gpu or gpu_layers):
        raise DeviceError(
            f"Device {gpu}: llama.cpp was built without it.",
            f'{LLAMA_FIX[gpu]}; or use `device="cpu"`.',
        )
    if requested == "cpu" or not llama_offload:
        return 0
    return ALL_LAYERS if gpu_layers is None else gpu_layers


def device_name(provider: str, gpu_layers: int, system: str = sys.platform) -> str:
    """Return `cpu`, `cuda` or `metal`; where the two engines differ, as in `cuda+cpu`.

    The vision engine's device comes first, then the language engine's.
    """
    gpu = _gpu_of_system("auto", system)
    vision = "cpu" if provider == CPU_PROVIDER else gpu
    language = gpu if gpu_layers else "cpu"
    return vision if vision == language else f"{vision}+{language}"


def _gpu_of_system(requested: str, system: str) -> str:
    """Return "metal" or "cuda"; raises DeviceError if `requested` is unknown or not on `system`."""
    if requested not in DEVICES:
        raise DeviceError(f"Unknown device {requested!r}.", f"Known: {', '.join(DEVICES)}.")
    gpu = "metal" if system == "darwin" else "cuda"
    if requested not in ("auto", "cpu", gpu):
        raise DeviceError(f"Device {requested} does not exist on {system}.", 'Use `device="auto"`.')
    return gpu


def choose_threads(requested: int | None, model_bytes: int, meter: LoadMeter | None = None) -> int:
    """Return `requested`, at most the cores of this process, or a number for a model of this size.

    A small model gets one thread: its steps end before a second thread wakes up, and threads that
    wait for each other cost more than the work. `benchmarks/speed/threads.py` measures it. A large
    one gets the cores that a cluster gave to this process, else those that others leave free at
    this moment, because at every step all threads wait for the one whose core another program uses
    (`benchmarks/speed/neighbour.py`). More threads than cores would wait for each other likewise.
    A `meter` that was made before other work saves the tenth of a second that looking at the cores
    takes.
    """
    if requested is not None:
        check_integer("threads", requested, least=1)
        return min(requested, available_cores())
    if model_bytes < SMALL_MODEL_BYTES:
        return 1
    cores = available_cores()
    if cores == 1 or granted_cores():
        return cores
    return max(1, cores - (meter.busy_cores() if meter else busy_cores()))
