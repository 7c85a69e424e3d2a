"""ONNX Runtime: its library, and graphs that it runs. No other module imports onnxruntime."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.errors import COPY_AGAIN, DeviceError, Interrupted, ModelError
from edgeprism.machine.cancel import Cancel, uninterrupted
from edgeprism.machine.device import CPU_PROVIDER
from edgeprism.machine.shortage import shortage_hint

# since 1.29 official builds report usage by default; the library reads this when it loads
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

FATAL_ONLY = 4  # the severity of the lines that ONNX Runtime logs
_TILES_AT_ONCE = 8  # on accelerators
FLOATS = "tensor(float)"  # ONNX Runtime's names of types
# {name: (type, lengths after the first; None: any)} of a graph's inputs or outputs
Interface = Mapping[str, tuple[str, list[int | None]]]
# a graph of one Identity node, to try a provider with; a test reads it with the package onnx
_SMALLEST_GRAPH = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def import_onnxruntime() -> Any:
    """Return onnxruntime; raises DeviceError (exit code 5), which says how to install it."""
    try:
        with uninterrupted():
            import onnxruntime
    except (ImportError, OSError) as error:
        raise DeviceError(
            f"ONNX Runtime cannot be loaded: {error}.",
            shortage_hint(error)
            or 'Install one of its builds: pip install "edgeprism[cpu]" (or "edgeprism[gpu]").',
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DeviceError(
            "ONNX Runtime is broken: onnxruntime and onnxruntime-gpu overwrote each other.",
            'Uninstall both, then install one: pip install "edgeprism[cpu]".',
        )
    if not os.environ.get("EDGEPRISM_NATIVE_LOG"):
        onnxruntime.set_default_logger_severity(FATAL_ONLY)
    return onnxruntime


def available_providers(to_try: Collection[str] = ()) -> dict[str, str]:
    """Return {execution provider of this build: why it cannot start, or ""}.

    It starts a session with each provider of `to_try`, because a build may have a GPU's provider
    where the GPU, its driver or its vendor's libraries are missing. It assumes that others start.
    """
    ort = import_onnxruntime()
    names = ort.get_available_providers()
    return {name: _obstacle(ort, name) if name in to_try else "" for name in names}


def _obstacle(ort: Any, provider: str) -> str:
    """Return why `provider` does not start, or ""."""
    printed = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(printed):
            ort.preload_dlls()  # finds NVIDIA's libraries where pip has installed them
    try:
        session = ort.InferenceSession(
            _SMALLEST_GRAPH, providers=[provider, CPU_PROVIDER], enable_fallback=0
        )
    except Exception as error:  # its exception types share no public base class
        return str(error)
    if provider in session.get_providers():
        return ""
    first, *_ = [*printed.getvalue().splitlines(), "no GPU that it can use"]
    return first.strip()


class GraphSession:
    """A graph that ONNX Runtime has loaded; `cancel` ends its runs."""

    def __init__(
        self,
        path: Path,
        *,
        provider: str,
        threads: int,
        cancel: Cancel,
        what: str = "vision graph",
    ) -> None:
        """Load `path`; errors call it `what`.

        Raises ModelError if the graph is damaged, DeviceError if the provider does not start.
        """
        ort = import_onnxruntime()
        self.path, self.cancel, self._ort, self._what = path, cancel, ort, what
        # On a CPU one tile at a time: more are not faster, and take more memory. Also an int8
        # graph computes its scales over a batch, so alone a tile always gets the same tokens.
        self.tiles_at_once = 1 if provider == CPU_PROVIDER else _TILES_AT_ONCE
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = FATAL_ONLY
        # its plan of memory for a second run lies beside the memory of the first
        options.enable_mem_pattern = False
        # waiting threads must not spin, because the language model needs the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = list(dict.fromkeys([provider, CPU_PROVIDER]))
        try:
            # no fallback of ONNX Runtime's: it prints on stdout and silently changes the device
            self._session = ort.InferenceSession(
                str(path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # its exception types share no public base class
            # a provider that cannot start raises these two; faults of the graph have other types
            if provider != CPU_PROVIDER and isinstance(error, (ValueError, RuntimeError)):
                raise _did_not_start(provider, error) from error
            raise ModelError(f"{path}: not a {what} that can run: {error}.", COPY_AGAIN) from error
        if provider not in self._session.get_providers():
            raise _did_not_start(provider, "")

    def check_interface(self, inputs: Interface, outputs: Interface) -> None:
        """Raise ModelError if the graph has other inputs or outputs than these."""
        for what, values, expected in (
            ("input", self._session.get_inputs(), inputs),
            ("output", self._session.get_outputs(), outputs),
        ):
            # without the first dimension, which is the batch and may be anything; a length that
            # differs from tile to tile has a name or nothing
            actual = {
                value.name: (
                    value.type,
                    [length if isinstance(length, int) else None for length in value.shape[1:]],
                )
                for value in values
            }
            if actual != expected:
                raise ModelError(
                    f"{self.path}: its {what} is {_described(actual)}, "
                    f"but the manifest says {_described(expected)}.",
                    COPY_AGAIN,
                )

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[int, ...]]
    ) -> list[np.ndarray]:
        """Run the graph; return the outputs, each with the shape that `outputs` names.

        Raises ModelError if the graph fails, or gives other shapes or values that are not finite;
        Interrupted when `cancel` is set.
        """
        made: list[np.ndarray] = self._cancelled_by(
            lambda options: self._session.run(list(outputs), dict(inputs), options)
        )
        for output, shape in zip(made, outputs.values(), strict=True):
            if output.shape != shape or not np.isfinite(output).all():
                raise ModelError(
                    f"{self.path}: the {self._what} gave {list(output.shape)} or values that are "
                    f"not finite; expected finite {list(shape)}.",
                    COPY_AGAIN,
                )
        return made

    def run_in_place(
        self, inputs: Mapping[str, np.ndarray], states: Mapping[str, np.ndarray], output: str
    ) -> np.ndarray:
        """Run the graph on arrays where they lie; return `output`.

        Each of `states` is an input, and what the graph gives as "new_" and its name is written
        over it. All arrays are contiguous, and on the CPU. Raises ModelError if the graph fails or
        gives values that are not finite, Interrupted when `cancel` is set.
        """
        binding = self._session.io_binding()
        for name, array in (*inputs.items(), *states.items()):
            where = ("cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            binding.bind_input(name, *where)
            if name in states:
                binding.bind_output(f"new_{name}", *where)
        binding.bind_output(output)
        self._cancelled_by(lambda options: self._session.run_with_iobinding(binding, options))
        made: np.ndarray = binding.get_outputs()[-1].numpy()
        if not np.isfinite(made).all():
            raise ModelError(
                f"{self.path}: the {self._what} gave values that are not finite.", COPY_AGAIN
            )
        return made

    def _cancelled_by(self, run: Callable[[Any], Any]) -> Any:
        """Call `run` with options that `cancel` ends it by; translate what it raises."""
        # new for each run: once `terminate` is set, they end every later run too
        options = self._ort.RunOptions()

        def terminate() -> None:
            options.terminate = True

        with self.cancel.calling(terminate):
            try:
                return run(options)
            except Exception as error:  # its exception types share no public base class
                if self.cancel.is_set():
                    raise Interrupted() from error
                raise ModelError(
                    f"{self.path}: the {self._what} failed: {error}.", COPY_AGAIN
                ) from error


def _did_not_start(provider: str, reason: object) -> DeviceError:
    why = f": {reason}" if reason else ""
    return DeviceError(f"{provider} did not start{why}.", "`edgeprism doctor` says more.")


def _described(interface: Interface) -> str:
    return ", ".join(
        f"{name}: {kind} [n, {', '.join('any' if n is None else str(n) for n in shape)}]"
        for name, (kind, shape) in interface.items()
    )
