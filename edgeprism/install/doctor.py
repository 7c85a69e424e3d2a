"""`edgeprism doctor`: what this installation can do, what is wrong with it, and the exact fix.

The doctor loads each engine in a child process: an engine built for another processor kills the
process that loads it, and the doctor must survive to report that.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import edgeprism
from edgeprism.bundle.adapters import model_of, shipped_adapter
from edgeprism.bundle.defaults import BUILT_IN, chosen_model
from edgeprism.bundle.open import find_dead_link
from edgeprism.bundle.pulled import places_of, pull_command
from edgeprism.choices import DEFAULT_MODEL
from edgeprism.errors import (
    EXIT_MODEL,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    DeviceError,
    ModelError,
    TemplateError,
    UsageError,
)
from edgeprism.files.config import find_config
from edgeprism.files.home import find_data_dir
from edgeprism.files.size_text import size_text
from edgeprism.install.diagnosis import BAD, OK, WARN, Diagnosis
from edgeprism.install.extras import install_extra, missing_for
from edgeprism.install.inventory import ModelEntry, check_captioner, list_models
from edgeprism.machine import cgroup, child, device, facts
from edgeprism.reason.find import find_reasoner
from edgeprism.reason.remote import is_url

# Each of these distributions installs the module `onnxruntime`.
ONNXRUNTIME_BUILDS = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino",
    "onnxruntime-qnn", "onnxruntime-silicon",
)  # fmt: skip
_REINSTALL = 'pip install --force-reinstall --no-deps "edgeprism"'
_LOW_DISK = 2 * 10**9
_PROBE_SECONDS = 120

# Every build of ONNX Runtime lists it. It calls a service on the network, so it is no device here.
_NOT_DEVICES = ("AzureExecutionProvider",)
_LANGUAGE_FIX = (
    "pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python llama-cpp-python"
)


def examine(
    environment: Mapping[str, str] = os.environ,
    pair: tuple[str, str] | None = None,
    check_settings: Callable[[], object] | None = None,
) -> Diagnosis:
    """Examine engines, machine, data folder and models, without a network or any change.

    `pair` adds a language model's GGUF and its mmproj. `check_settings` raises UsageError for a
    setting that a command would refuse.
    """
    diagnosis = Diagnosis()
    diagnosis.add("edgeprism", OK, edgeprism.__version__)
    diagnosis.add(
        "python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    _examine_packages(diagnosis)
    providers = _examine_vision(diagnosis)
    offload = _examine_language(diagnosis)
    _examine_device(diagnosis, providers, offload, environment)
    _examine_machine(diagnosis)
    _examine_data_dir(diagnosis)
    if _examine_settings(diagnosis, check_settings):  # else nobody knows which models are meant
        _examine_models(diagnosis, environment)
    _examine_extras(diagnosis)
    if pair is not None:
        _examine_pair(diagnosis, *pair)
    return diagnosis


def machine_facts() -> dict[str, Any]:
    """Return processor, cores, instruction set, memory and engine versions; nothing personal."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": facts.cpu_name(),
        "cores": facts.available_cores(),
        "int8_dot": facts.has_int8_dot(),
        "memory_bytes": facts.memory_bytes(),
        **{
            name: version
            for name in (*ONNXRUNTIME_BUILDS, "llama-cpp-python", "torch", "transformers")
            if (version := version_of(name))
        },
    }


def version_of(distribution: str) -> str | None:
    """Return the installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def probe(engine: str) -> dict[str, Any]:
    """Load an engine in a child process; return what it offers, or `error` and `hint`."""
    command = child.edgeprism_command("edgeprism.install.engine_probe", engine)
    try:
        ended = child.run(command, timeout_s=_PROBE_SECONDS)
    except TimeoutError:
        return {"error": f"it does not load within {_PROBE_SECONDS} s", "hint": ""}
    if ended.by_signal:
        return {"error": f"loading it ends the process ({ended.how})", "hint": ""}
    try:
        answer = json.loads(ended.output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": ended.last_line(), "hint": ""}
    return answer if isinstance(answer, dict) else {"error": "an unexpected answer", "hint": ""}


# ---- a function for each topic


def _examine_packages(diagnosis: Diagnosis) -> None:
    for name in ("numpy", "pillow"):
        version = version_of(name)
        if version:
            diagnosis.add(name, OK, version)
        else:
            diagnosis.add(name, BAD, "not installed", f"pip install {name}", EXIT_UNAVAILABLE)


def _examine_vision(diagnosis: Diagnosis) -> dict[str, str]:
    builds = [name for name in ONNXRUNTIME_BUILDS if version_of(name)]
    if len(builds) > 1:
        keep = "onnxruntime-gpu" if "onnxruntime-gpu" in builds else "onnxruntime"
        diagnosis.add(
            "vision engine",
            BAD,
            f"{' and '.join(builds)} are both installed and overwrite each other",
            f"pip uninstall -y {' '.join(builds)} && pip install {keep}",
            EXIT_UNAVAILABLE,
        )
    engine = probe("vision")
    if "error" in engine:
        fix = "pip install onnxruntime"
        if len(builds) == 1:
            fix = f"pip install --force-reinstall --no-deps {builds[0]}"
        diagnosis.add("vision engine", BAD, str(engine["error"]), fix, EXIT_UNAVAILABLE)
        return {}
    providers = {str(name): str(obstacle) for name, obstacle in engine["providers"].items()}
    named = " ".join(f"{build} {version_of(build)}" for build in builds) or "onnxruntime"
    if len(builds) < 2:
        usable = [
            name
            for name, obstacle in providers.items()
            if not obstacle and name not in _NOT_DEVICES
        ]
        diagnosis.add("vision engine", OK, f"{named}: {', '.join(usable)}")
    # edgeprism.machine.onnx_runtime switches telemetry off before it loads the library.
    diagnosis.add("telemetry", OK, "ONNX Runtime's usage reports are switched off")
    return providers


def _examine_language(diagnosis: Diagnosis) -> bool:
    version = version_of("llama-cpp-python")
    engine = probe("language")
    if "error" in engine:
        fix = _LANGUAGE_FIX if version else "pip install llama-cpp-python"
        diagnosis.add("language engine", BAD, str(engine["error"]), fix, EXIT_UNAVAILABLE)
        return False
    offload = bool(engine["offload"])
    where = "can use a GPU" if offload else "built for the CPU alone"
    if engine.get("amx"):
        where += "; EdgePrism does not use its AMX code, which may crash"
    diagnosis.add("language engine", OK, f"llama-cpp-python {version}: {where}")
    return offload


def _examine_device(
    diagnosis: Diagnosis, providers: dict[str, str], offload: bool, environment: Mapping[str, str]
) -> None:
    if not providers:
        return  # the finding on the vision engine says why
    requested = environment.get("EDGEPRISM_DEVICE") or "auto"
    try:
        provider = device.choose_provider(requested, providers)
        layers = device.choose_gpu_layers(requested, offload, None)
    except DeviceError as error:
        diagnosis.add(
            "device",
            BAD,
            f"EDGEPRISM_DEVICE={requested}: {error.message}",
            error.hint,
            EXIT_UNAVAILABLE,
        )
        return
    why = "EDGEPRISM_DEVICE" if requested != "auto" else "each engine's best"
    name = device.device_name(provider, layers)
    diagnosis.add("device", OK, f"{name} ({why}; vision through {provider})")
    if requested == "cpu":
        return
    for name, obstacle in providers.items():
        if obstacle:
            text = f"{name} does not start: {obstacle}"
            diagnosis.add("gpu", WARN, text, device.START_FIX[name])
    if has_nvidia_gpu() and providers.keys().isdisjoint(device.GPU_PROVIDERS):
        diagnosis.add(
            "gpu",
            WARN,
            "there is an NVIDIA GPU, but ONNX Runtime is a CPU build",
            'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda]" nvidia-cublas',
        )
    if has_nvidia_gpu() and not offload:
        text = "there is an NVIDIA GPU, but llama.cpp is a CPU build"
        diagnosis.add("gpu", WARN, text, device.LLAMA_FIX["cuda"])


def has_nvidia_gpu() -> bool:
    """Return whether NVIDIA's driver shows a GPU, without loading a library."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or Path("/dev/nvidia0").exists()


def _examine_machine(diagnosis: Diagnosis) -> None:
    total = os.cpu_count() or 1
    quota = cgroup.cgroup_cores()
    limit = f", container quota {quota}" if quota else ""
    diagnosis.add("cpu", OK, facts.cpu_name())
    diagnosis.add("cores", OK, f"{facts.available_cores()} of {total} usable{limit}")
    dot = facts.has_int8_dot()
    diagnosis.add(
        "int8",
        OK,
        "dot product instructions (VNNI or Arm): full-range int8 is safe"
        if dot
        else "no dot product instructions: reduced-range int8 graphs are used",
    )
    diagnosis.add("memory", OK, _memory())


def _memory() -> str:
    """Return how much memory may be used, and what limits it below the machine's."""
    limit, physical = facts.memory_limit(), facts.physical_memory()
    if limit is None:
        return "unknown"
    if limit.is_physical:
        return size_text(limit.size)
    of = f" of {size_text(physical)}" if physical else ""
    return f"{size_text(limit.size)}{of}, limited by {limit.source}"


def _examine_data_dir(diagnosis: Diagnosis) -> None:
    fix = "export EDGEPRISM_HOME=FOLDER  # one that you may write to"
    folder = find_data_dir()
    if folder is None:
        diagnosis.add("data folder", WARN, "none: this user has no home folder", fix)
        return
    existing = folder
    # os.path's functions: pathlib's raise an error where a folder above may not be entered
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent  # the first pull creates the data folder in this one
    if not os.path.isdir(existing) or not os.access(existing, os.W_OK | os.X_OK):
        diagnosis.add("data folder", WARN, f"{folder}: cannot be written", fix)
        return
    free = shutil.disk_usage(existing).free
    text = f"{folder}{'' if folder.exists() else ' (not created yet)'}: {size_text(free)} free"
    if free < _LOW_DISK:
        diagnosis.add("data folder", WARN, text, "export EDGEPRISM_HOME=FOLDER  # on another disk")
    else:
        diagnosis.add("data folder", OK, text)


def _examine_settings(diagnosis: Diagnosis, check: Callable[[], object] | None) -> bool:
    """Return whether the user's settings can be read, and commands take them all."""
    path = find_config()
    try:
        for kind in BUILT_IN:
            chosen_model(kind)
        if check is not None:
            check()
    except UsageError as error:
        diagnosis.add("settings", BAD, error.message.strip(), f"mend {path}", EXIT_USAGE)
        return False
    if path is not None and path.is_file():
        diagnosis.add("settings", OK, str(path))
    return True


def _examine_models(diagnosis: Diagnosis, environment: Mapping[str, str]) -> None:
    default = environment.get("EDGEPRISM_MODEL") or chosen_model("captioner") or DEFAULT_MODEL
    try:
        where = check_captioner(default)
    except ModelError as error:
        fix = _REINSTALL
        if (command := pull_command(default)) and places_of(default)[0].is_dir():
            fix = command
        elif environment.get("EDGEPRISM_MODEL"):
            fix = "unset EDGEPRISM_MODEL"
        elif default != DEFAULT_MODEL:
            fix = f"edgeprism use {DEFAULT_MODEL}"
        diagnosis.add("default model", BAD, error.message.strip(), fix, EXIT_MODEL)
    else:
        diagnosis.add("default model", OK, where)
    reasoners = 0
    for entry in list_models():
        if entry.state == "damaged":
            diagnosis.add(f"model {entry.name}", WARN, entry.problem, pull_command(entry.name))
        elif entry.state != "available":
            diagnosis.add(f"model {entry.name}", OK, f"{entry.kind}, {entry.state}: {entry.path}")
            reasoners += entry.kind == "reasoner"
            if entry.kind == "reasoner":
                _examine_adapter(diagnosis, entry)
    if chosen := chosen_model("reasoner"):
        _examine_chosen_reasoner(diagnosis, chosen)
    elif not reasoners:
        diagnosis.add(
            "reasoner", WARN, "none is installed: `edgeprism ask` needs one",
            "edgeprism pull smollm2-135m",
        )  # fmt: skip


def _examine_adapter(diagnosis: Diagnosis, entry: ModelEntry) -> None:
    """Report the adapter that ships for an installed reasoner, if one does."""
    try:
        adapter = shipped_adapter(entry.name, Path(entry.path))
        if adapter is not None:
            adapter.digest()
            diagnosis.add(f"adapter of {entry.name}", OK, str(adapter.path))
    except ModelError as error:
        diagnosis.add(f"adapter of {entry.name}", BAD, error.message, _REINSTALL, EXIT_MODEL)


def _examine_chosen_reasoner(diagnosis: Diagnosis, name: str) -> None:
    if is_url(name):
        diagnosis.add("reasoner", OK, f"{name} (a server, which was not asked)")
        return
    try:
        found = find_reasoner(name)
        files = [str(found.path), *([str(found.adapter.path)] if found.adapter else [])]
        diagnosis.add("reasoner", OK, f"{name} ({' + '.join(files)})")
    except ModelError as error:
        model = model_of(name)
        pull = pull_command(model) if find_dead_link(model) else ""
        fix = pull or "edgeprism config unset reasoner"
        diagnosis.add("reasoner", WARN, error.message, fix)


def _examine_extras(diagnosis: Diagnosis) -> None:
    """Report the extras that some commands need; nobody misses them without those."""
    uses = {"pairs": "`pull` of GGUF models and their faster encoders",
            "convert": "`convert` and `pull` of checkpoints",
            "serve": "`serve` and its page",
            "mcp": "`mcp`"}  # fmt: skip
    for extra, use in uses.items():
        if missing := missing_for(extra):
            text = f"not complete (only {use} need it): {', '.join(missing)}"
            diagnosis.add(f"{extra} extra", OK, text, install_extra(extra))
        else:
            diagnosis.add(f"{extra} extra", OK, "installed")


def _examine_pair(diagnosis: Diagnosis, lm: str, mmproj: str) -> None:
    """Report what a pair of GGUF files can do; `open_pair` tries it in a child process."""
    from edgeprism.bundle.gguf_parts import read_model_header
    from edgeprism.vision.mmproj_checks import departure_of
    from edgeprism.vision.pair import open_pair

    try:
        manifest = open_pair(lm, mmproj).manifest
    except (ModelError, TemplateError) as error:
        diagnosis.add("pair", BAD, error.message.strip(), error.hint, error.exit_code)
        return
    mmproj_facts = manifest.vision.mmproj
    if mmproj_facts is None:
        return
    traits = [
        f"projector {mmproj_facts.projector}",
        f"{manifest.vision.tokens_per_tile} visual tokens for 1024 × 768 pixels",
        "several tiles at a time" if mmproj_facts.tiles_together else "one tile at a time",
        f"attention over rows {manifest.lm.image_attention}",
        "positions in time, down and across" if mmproj_facts.multi_axis else "positions one by one",
    ]
    diagnosis.add("pair", OK, f"{manifest.name}: {', '.join(traits)}")
    if departure := departure_of(read_model_header(Path(lm))):
        diagnosis.add("pair", WARN, f"{manifest.name}: {departure}")
