"""Pixels → visual tokens, through ONNX Runtime. The only importer of onnxruntime."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprism.errors import DeviceError, Interrupted, ModelError
from edgeprism.machine.cancel import Cancel
from edgeprism.picture.layout import PictureLayout

# official builds report usage by default since 1.29; read when the library loads
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy, Manifest

_CPU = "CPUExecutionProvider"
_FATAL_ONLY = 4
_TILES_AT_ONCE = 8  # on accelerators
_HINT = "Copy or convert the model again."
# a graph of one Identity node, to try a provider with; a test holds it against onnx
_SMALLEST_GRAPH = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04'
    b"\n\x02\x08\x01b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


def import_onnxruntime() -> Any:
    """onnxruntime, or a DeviceError (exit code 5) that says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            f"ONNX Runtime cannot be loaded: {error}.",
            'Install one of its builds: pip install "edgeprism[cpu]" (or "edgeprism[gpu]").',
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise DeviceError(
            "ONNX Runtime is broken: onnxruntime and onnxruntime-gpu overwrote each other.",
            'Uninstall both, then install one: pip install "edgeprism[cpu]".',
        )
    if not os.environ.get("EDGEPRISM_NATIVE_LOG"):
        onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    return onnxruntime


def available_providers(to_try: Collection[str] = ()) -> dict[str, str]:
    """ONNX Runtime's execution providers here → what keeps each from starting, "" for nothing.

    Those `to_try` are started for it: a build has a GPU's whether or not the driver, its vendor's
    libraries and a GPU are there.
    """
    ort = import_onnxruntime()
    names = ort.get_available_providers()
    return {name: _obstacle(ort, name) if name in to_try else "" for name in names}


def _obstacle(ort: Any, provider: str) -> str:
    said = io.StringIO()
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(said):
            ort.preload_dlls()  # finds NVIDIA's libraries where pip has put them
    try:
        session = ort.InferenceSession(
            _SMALLEST_GRAPH, providers=[provider, _CPU], enable_fallback=0
        )
    except Exception as error:  # its exception types share no public base class
        return str(error)
    if provider in session.get_providers():
        return ""
    first, *_ = [*said.getvalue().splitlines(), "no GPU that it can use"]
    return first.strip()


class VisionEncoder:
    """A vision graph, ready to run: uint8 pixels → float32 visual tokens."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        provider: str = _CPU,
        threads: int = 0,
        cancel: Cancel | None = None,
    ) -> None:
        """Load `path`; raises ModelError for a damaged graph or one of another shape."""
        ort = import_onnxruntime()
        self.cancel = cancel or Cancel()
        self._ort = ort
        self._input, self._output = manifest.vision.input, manifest.vision.output
        self._newline = manifest.vision.newline
        self.tokens_per_tile, self.n_embd = manifest.vision.tokens_per_tile, manifest.vision.n_embd
        self._newline_row = np.empty((0, self.n_embd), np.float32)  # comes with the first tile
        # One at a time on a CPU, where more are no faster: memory stays that of one tile, and
        # int8 graphs, whose scales span a batch, give a tile the same tokens in any company.
        self._tiles_at_once = 1 if provider == _CPU else _TILES_AT_ONCE
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        # between pictures the language model needs the cores that spinning threads would burn
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = list(dict.fromkeys([provider, _CPU]))
        try:
            # its own fallback prints on stdout and would quietly leave the device asked for
            self._session = ort.InferenceSession(
                str(path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # its exception types share no public base class
            # what a provider raises that cannot start; faults of the graph have types of their own
            if provider != _CPU and isinstance(error, (ValueError, RuntimeError)):
                raise _did_not_start(provider, error) from error
            raise ModelError(f"{path}: not a vision graph that can run: {error}.", _HINT) from error
        if provider not in self._session.get_providers():
            raise _did_not_start(provider, "")
        self._check_interface(path, manifest.image)

    def _check_interface(self, path: Path, image: ImagePolicy) -> None:
        found_in = {i.name: (i.type, i.shape) for i in self._session.get_inputs()}
        found_out = {o.name: (o.type, o.shape) for o in self._session.get_outputs()}
        shape = [image.size, image.size, 3 * len(image.fills)]
        wanted_in = {self._input: ("tensor(uint8)", shape)}
        wanted_out = {self._output: ("tensor(float)", [self.tokens_per_tile, self.n_embd])}
        if self._newline:
            wanted_out[self._newline] = ("tensor(float)", [self.n_embd])
        for what, found, wanted in (
            ("input", found_in, wanted_in),
            ("output", found_out, wanted_out),
        ):
            # the first dimension is the batch and may be anything
            seen = {name: (kind, list(shape[1:])) for name, (kind, shape) in found.items()}
            if seen != wanted:
                raise ModelError(
                    f"{path}: its {what} is {_described(seen)}, "
                    f"but the manifest says {_described(wanted)}.",
                    _HINT,
                )

    def close(self) -> None:
        """Nothing to do: the session ends with its last reference."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] → float32 [n, tokens_per_tile, n_embd]; may be cancelled."""
        names = [self._output, *([self._newline] if self._newline else [])]
        options = self._ort.RunOptions()  # one for all: once terminated it refuses the next run

        def terminate() -> None:
            options.terminate = True

        tokens = np.empty((len(pixels), self.tokens_per_tile, self.n_embd), np.float32)
        with self.cancel.calling(terminate):
            for at in range(0, len(pixels), self._tiles_at_once):
                part = pixels[at : at + self._tiles_at_once]
                try:
                    found, *rest = self._session.run(names, {self._input: part}, options)
                except Exception as error:  # its exception types share no public base class
                    if self.cancel.is_set():
                        raise Interrupted() from error
                    raise ModelError(f"The vision graph failed: {error}.", _HINT) from error
                self._check(found, (len(part), self.tokens_per_tile, self.n_embd))
                for row in rest:
                    self._check(row, (len(part), self.n_embd))
                    self._newline_row = row[:1]
                tokens[at : at + len(part)] = found
        return tokens

    def encode_picture(self, tiles: np.ndarray, layout: PictureLayout) -> np.ndarray:
        """A picture's tiles → its rows as they stand in the prompt, float32 [n_rows, n_embd]."""
        rows = self.encode(tiles).reshape(-1, self.n_embd)
        # the newline is the last of them, as NEWLINE counts
        rows = np.concatenate([rows, self._newline_row])
        taken: np.ndarray = rows[layout.rows]
        return taken

    def _check(self, found: np.ndarray, expected: tuple[int, ...]) -> None:
        if found.shape != expected or not np.isfinite(found).all():
            raise ModelError(
                f"The vision graph gave {list(found.shape)} or values that are not finite; "
                f"expected finite {list(expected)}.",
                _HINT,
            )


def _did_not_start(provider: str, reason: object) -> DeviceError:
    why = f": {reason}" if reason else ""
    return DeviceError(f"{provider} did not start{why}.", "`edgeprism doctor` says more.")


def _described(interface: dict[str, tuple[str, list[Any]]]) -> str:
    return ", ".join(
        f"{name}: {kind} [n, {str(shape)[1:]}" for name, (kind, shape) in interface.items()
    )
