"""Pixels → visual tokens, through ONNX Runtime."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeprism.errors import COPY_AGAIN, ModelError
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import CPU_PROVIDER
from edgeprism.machine.onnx_runtime import FATAL_ONLY, FLOATS, GraphSession, import_onnxruntime
from edgeprism.picture.layout import PictureLayout, tiles_by_shape

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy, Manifest

_KERNEL = "_kernel_time"  # the end of an event's name in a profile


def time_graph(graph: bytes, inputs: dict[str, np.ndarray], threads: int, seconds: float) -> float:
    """Run a small graph of EdgePrism's own again and again; return the seconds of the best run."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(graph, options, providers=[CPU_PROVIDER])
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
    options.log_severity_level = FATAL_ONLY
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = os.path.join(folder, "profile")
        try:
            session = ort.InferenceSession(str(path), options, providers=[CPU_PROVIDER])
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


class VisionEncoder:
    """A vision graph, ready to run: uint8 pixels → float32 visual tokens.

    With text in the vision graph (`Vision.text`) they are features, which a `Connector` takes.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        provider: str = CPU_PROVIDER,
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
