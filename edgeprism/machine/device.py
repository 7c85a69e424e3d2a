"""What this machine offers: cores, instruction set, memory; and which device each engine takes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TypedDict

from edgeprism.choices import DEVICES, STAGES
from edgeprism.errors import DeviceError, UsageError
from edgeprism.machine.facts import available_cores


class EngineOptions(TypedDict, total=False):
    """Keywords of everything that runs an engine."""

    device: str  # "auto", "cpu", "cuda" or "metal"
    threads: int | None  # CPU threads; None: the cores that this process may use
    gpu_layers: int | None  # of the language model; None: all that it has


ALL_LAYERS = 999  # more than any model has
SMALL_MODEL_BYTES = 16 << 20
CPU_PROVIDER = "CPUExecutionProvider"

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "metal": "CoreMLExecutionProvider"}
GPU_PROVIDERS = tuple(_PROVIDERS.values())
_ONNX_FIX = {
    "cuda": 'pip uninstall onnxruntime, then pip install "edgeprism[gpu]"',
    "metal": 'pip install "edgeprism[cpu]" on macOS',
}
START_FIX = {  # by provider: what helps where it is in the build and does not start
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


def choose_provider(
    requested: str, providers: Mapping[str, str], system: str = sys.platform
) -> str:
    """ONNX Runtime's execution provider for a device.

    `providers`: those of this build → what keeps each from starting, empty where nothing does.
    `auto` takes the GPU's where it starts; an explicit device that does not raises DeviceError.
    """
    here = _gpu_here(requested, system)
    provider = _PROVIDERS[here]
    starts = provider in providers and not providers[provider]
    if requested == "cpu" or (requested == "auto" and not starts):
        return CPU_PROVIDER
    if provider not in providers:
        raise DeviceError(
            f"Device {requested}: ONNX Runtime has only {', '.join(providers)} here.",
            f'{_ONNX_FIX[here]}; or use `device="auto"`.',
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
    """How many of the language model's layers go to the GPU (default: all that it has)."""
    here = _gpu_here(requested, system)
    if requested == "cpu" and gpu_layers:
        raise DeviceError("Layers on a GPU need one, but the device is cpu.", "Drop one of them.")
    if not llama_offload and (requested == here or gpu_layers):
        raise DeviceError(
            f"Device {here}: llama.cpp was built without it.",
            f'{LLAMA_FIX[here]}; or use `device="cpu"`.',
        )
    if requested == "cpu" or not llama_offload:
        return 0
    return ALL_LAYERS if gpu_layers is None else gpu_layers


def device_name(provider: str, gpu_layers: int, system: str = sys.platform) -> str:
    """`cpu`, `cuda` or `metal`; vision+language where the two engines' differ."""
    here = _gpu_here("auto", system)
    vision = "cpu" if provider == CPU_PROVIDER else here
    language = here if gpu_layers else "cpu"
    return vision if vision == language else f"{vision}+{language}"


def _gpu_here(requested: str, system: str) -> str:
    if requested not in DEVICES:
        raise DeviceError(f"Unknown device {requested!r}.", f"Known: {', '.join(DEVICES)}.")
    here = "metal" if system == "darwin" else "cuda"
    if requested not in ("auto", "cpu", here):
        raise DeviceError(f"Device {requested} does not exist on {system}.", 'Use `device="auto"`.')
    return here


def choose_threads(requested: int | None, model_bytes: int) -> int:
    """Threads for an engine with a model of that size, unless a number was asked for.

    A small model's steps are over before a second thread is awake, and waiting for each other
    costs more than the work: measured with `benchmarks/speed/threads.py`.
    """
    if requested is not None:
        if requested < 1:
            raise UsageError(f"{requested} threads cannot work.", "Give at least 1.")
        return requested
    return 1 if model_bytes < SMALL_MODEL_BYTES else available_cores()


def stages_apart(requested: str, model_bytes: int, memory: int | None) -> bool:
    """Whether captioner and reasoner take turns in memory (`stages`).

    `model_bytes` is of both models' files, `memory` the machine's; `auto` leaves one half of it to
    the KV caches, to pictures and to others. Where memory is not known, they stay together.
    """
    if requested not in STAGES:
        raise UsageError(f"Stages {requested!r} are not known.", f"Known: {', '.join(STAGES)}.")
    if requested == "auto":
        return memory is not None and 2 * model_bytes > memory
    return requested == "apart"
