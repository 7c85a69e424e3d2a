"""Pixels → visual tokens, through ONNX Runtime. No other module imports onnxruntime."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprism.errors import COPY_AGAIN, DeviceError, Interrupted, ModelError
from edgeprism.machine.cancel import Cancel, uninterrupted
from edgeprism.machine.shortage import shortage_hint
from edgeprism.picture.layout import PictureLayout, tiles_by_shape

# since 1.29 official builds report usage by default; the library reads this when it loads
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy, Manifest

_CPU = "CPUExecutionProvider"
_FATAL_ONLY = 4
_TILES_AT_ONCE = 8  # on accelerators
FLOATS = "tensor(float)"  # ONNX Runtime's names of types
# {name: (type, lengths after the first; None: any)} of a graph's inputs or outputs
Interface = Mapping[str, tuple[str, list[int | None]]]
_KERNEL = "_kernel_time"  # the end of an event's name in a profile
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
        onnxruntime.set_default_logger_severity(_FATAL_ONLY)
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
            _SMALLEST_GRAPH, providers=[provider, _CPU], enable_fallback=0
        )
    except Exception as error:  # its exception types share no public base class
        return str(error)
    if provider in session.get_providers():
        return ""
    first, *_ = [*printed.getvalue().splitlines(), "no GPU that it can use"]
    return first.strip()


def time_graph(graph: bytes, inputs: dict[str, np.ndarray], threads: int, seconds: float) -> float:
    """Run a small graph of EdgePrism's own again and again; return the seconds of the best run."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(graph, options, providers=[_CPU])
    session.run(None, inputs)
    best, end = float("inf"), time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        session.run(None, inputs)
        best = min(best, time.perf_counter() - start)
    return best


def profile_graph(path: Path, *inputs: np.ndarray) -> list[dict[str, Any]]:
    """Run a vision graph once as it is written, and return what ONNX Runtime says of each node.

    `inputs` are in the order in which the graph lists them.

    Each dict has `op_name`, the types and shapes of inputs and outputs, and the shapes of its
    `weights`, which the file holds; see `bench.work.nodes_to_operations`.

    Raises ModelError for a graph that does not run.
    """
    import tempfile

    from edgeprism.vision.graph_memory import weights_of_nodes

    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = _FATAL_ONLY
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        try:
            session = ort.InferenceSession(str(path), options, providers=[_CPU])
            names = [each.name for each in session.get_inputs()]
            session.run(None, dict(zip(names, inputs, strict=True)))
        except Exception as error:  # its exception types share no public base class
            raise ModelError(
                f"{path}: not a vision graph that can run: {error}.", COPY_AGAIN
            ) from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    weights = weights_of_nodes(path)
    return [
        event["args"] | {"weights": weights.get(event["name"].removesuffix(_KERNEL), [])}
        for event in events
        if event["name"].endswith(_KERNEL)
    ]


class GraphSession:
    """A graph that ONNX Runtime has loaded; `cancel` ends its runs."""

    def __init__(self, path: Path, *, provider: str, threads: int, cancel: Cancel) -> None:
        """Load `path`.

        Raises ModelError if the graph is damaged, DeviceError if the provider does not start.
        """
        ort = import_onnxruntime()
        self.path, self.cancel, self._ort = path, cancel, ort
        # On a CPU one tile at a time: more are not faster, and take more memory. Also an int8
        # graph computes its scales over a batch, so alone a tile always gets the same tokens.
        self.tiles_at_once = 1 if provider == _CPU else _TILES_AT_ONCE
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        # its plan of memory for a second run lies beside the memory of the first
        options.enable_mem_pattern = False
        # waiting threads must not spin, because the language model needs the cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = list(dict.fromkeys([provider, _CPU]))
        try:
            # no fallback of ONNX Runtime's: it prints on stdout and silently changes the device
            self._session = ort.InferenceSession(
                str(path), options, providers=providers, enable_fallback=0
            )
        except Exception as error:  # its exception types share no public base class
            # a provider that cannot start raises these two; faults of the graph have other types
            if provider != _CPU and isinstance(error, (ValueError, RuntimeError)):
                raise _did_not_start(provider, error) from error
            raise ModelError(
                f"{path}: not a vision graph that can run: {error}.", COPY_AGAIN
            ) from error
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
        # new for each run: once `terminate` is set, they end every later run too
        options = self._ort.RunOptions()

        def terminate() -> None:
            options.terminate = True

        with self.cancel.calling(terminate):
            try:
                made: list[np.ndarray] = self._session.run(list(outputs), dict(inputs), options)
            except Exception as error:  # its exception types share no public base class
                if self.cancel.is_set():
                    raise Interrupted() from error
                raise ModelError(
                    f"{self.path}: the vision graph failed: {error}.", COPY_AGAIN
                ) from error
        for output, shape in zip(made, outputs.values(), strict=True):
            if output.shape != shape or not np.isfinite(output).all():
                raise ModelError(
                    f"{self.path}: the vision graph gave {list(output.shape)} or values that are "
                    f"not finite; expected finite {list(shape)}.",
                    COPY_AGAIN,
                )
        return made


class VisionEncoder:
    """A vision graph, ready to run: uint8 pixels → float32 visual tokens.

    With text in the vision graph (`Vision.text`) they are features, which a `Connector` takes.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        provider: str = _CPU,
        threads: int = 0,
        cancel: Cancel | None = None,
    ) -> None:
        """Load `path`; raises ModelError if the graph is damaged or of another shape.

        Raises DeviceError if the provider does not start.
        """
        self.cancel = cancel or Cancel()
        self._session = GraphSession(path, provider=provider, threads=threads, cancel=self.cancel)
        vision = manifest.vision
        self._input, self._output = vision.input, vision.output
        # outputs with a learned row, in the order of their indices in a layout: SEPARATOR, NEWLINE
        self._learned = tuple(filter(None, (vision.separator, vision.newline)))
        self._video = manifest.video
        self.tokens_per_tile, self.n_embd = vision.tokens_per_tile, vision.n_embd
        if vision.text is not None:
            self.tokens_per_tile, self.n_embd = vision.text.features, vision.text.width
        self._free = manifest.image.free
        self._learned_rows = np.empty((0, self.n_embd), np.float32)  # set by the first `encode`
        self._check_interface(manifest.image)

    def _check_interface(self, image: ImagePolicy) -> None:
        shape: list[int | None] = [image.size, image.size, image.channels]
        tokens: list[int | None] = [self.tokens_per_tile, self.n_embd]
        if self._free is not None:
            shape[:2], tokens[:1] = [None, None], [self._free.tokens or None]
        outputs = {self._output: (FLOATS, tokens)}
        outputs |= dict.fromkeys(self._learned, (FLOATS, [self.n_embd]))
        if self._video is not None:
            outputs[self._video.output] = (FLOATS, [self._video.tokens_per_frame, self.n_embd])
        self._session.check_interface({self._input: ("tensor(uint8)", shape)}, outputs)

    def close(self) -> None:
        """Do nothing; ONNX Runtime frees the session with its last reference."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Encode tiles uint8 [n, height, width, 3] → float32 [n, tokens, n_embd].

        Raises Interrupted when `cancel` is set.
        """
        return self._encode(pixels, self._output, self._tokens_of(pixels))

    def encode_frames(self, pixels: np.ndarray) -> np.ndarray:
        """Encode frames of a video, uint8 [n, size, size, 3] → float32 [n, tokens, n_embd].

        Raises Interrupted when `cancel` is set.
        """
        if self._video is None:
            raise ValueError("the manifest says nothing of videos")
        return self._encode(pixels, self._video.output, self._video.tokens_per_frame)

    def _encode(self, pixels: np.ndarray, output: str, n_tokens: int) -> np.ndarray:
        at_once = self._session.tiles_at_once
        tokens = np.empty((len(pixels), n_tokens, self.n_embd), np.float32)
        for start in range(0, len(pixels), at_once):
            part = pixels[start : start + at_once]
            shapes: dict[str, tuple[int, ...]] = {output: (len(part), n_tokens, self.n_embd)}
            shapes |= dict.fromkeys(self._learned, (len(part), self.n_embd))
            tokens[start : start + len(part)], *learned = self._session.run(
                {self._input: part}, shapes
            )
            if learned:
                self._learned_rows = np.concatenate([rows[:1] for rows in learned])
        return tokens

    def _tokens_of(self, pixels: np.ndarray) -> int:
        """Return the visual tokens of each of some tiles [n, height, width, 3]."""
        if self._free is None:
            return self.tokens_per_tile
        n_units: int = pixels.shape[1] * pixels.shape[2] // self._free.unit**2
        return self._free.tokens or n_units

    def encode_picture(self, tiles: np.ndarray, layout: PictureLayout) -> np.ndarray:
        """Encode a picture's tiles; return its rows in the prompt's order, [n_rows, n_embd]."""
        each = [self.encode(part) for part in tiles_by_shape(tiles, layout.shapes)]
        # learned rows come last, because their indices are negative
        rows = np.concatenate([*(r.reshape(-1, self.n_embd) for r in each), self._learned_rows])
        in_order: np.ndarray = rows[layout.rows]
        return in_order


def _did_not_start(provider: str, reason: object) -> DeviceError:
    why = f": {reason}" if reason else ""
    return DeviceError(f"{provider} did not start{why}.", "`edgeprism doctor` says more.")


def _described(interface: Interface) -> str:
    return ", ".join(
        f"{name}: {kind} [n, {', '.join('any' if n is None else str(n) for n in shape)}]"
        for name, (kind, shape) in interface.items()
    )
