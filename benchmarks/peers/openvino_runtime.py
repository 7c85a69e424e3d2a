"""OpenVINO's runtime on the graph that EdgePrism exported: it encodes, nothing more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import has_bfloat16
from benchmarks.peers.engine import Engine, Seconds, Setting
from benchmarks.peers.weights import Weights, calibration_tiles
from edgeprism.picture.layout import picture_to_layout
from edgeprism.picture.read import Picture, read_picture
from edgeprism.picture.tile import picture_to_tiles

CALIBRATION_TILES = 8


class OpenVino(Engine):
    """The fp32 graph as it is ("fp32"), with int8 weights, or quantized by NNCF ("int8")."""

    @classmethod
    def settings(cls, cores: int) -> Mapping[str, Sequence[object]]:
        precisions = ["f32", *(["bf16"] if has_bfloat16() else [])]
        return {"tiles_at_once": [1, 4], "precision": precisions, "threads": [cores, 1]}

    @classmethod
    def obstacle(cls, weights: Weights, quant: str) -> str:
        missing = [name for name in ("openvino", "nncf") if find_spec(name) is None]
        return f"not installed: pip install {' '.join(missing)}" if missing else ""

    def __init__(self, weights: Weights, quant: str, setting: Setting) -> None:
        import openvino

        self._manifest = weights.manifest()
        self._at_once = int(str(setting["tiles_at_once"]))
        model = openvino.Core().read_model(_model_file(weights, quant))
        options = {"INFERENCE_NUM_THREADS": setting["threads"], "PERFORMANCE_HINT": "LATENCY",
                   "INFERENCE_PRECISION_HINT": setting["precision"]}  # fmt: skip
        self._compiled = openvino.Core().compile_model(model, "CPU", options)

    def look(self, pixels: np.ndarray) -> tuple[Seconds, np.ndarray]:
        start = time.perf_counter()
        picture: Picture = read_picture(Image.fromarray(pixels))
        layout = picture_to_layout(picture.size, self._manifest)
        tiles = picture_to_tiles(picture, self._manifest.image, layout.grid)
        parts = [
            self._compiled(tiles[i : i + self._at_once])[0]
            for i in range(0, len(tiles), self._at_once)
        ]
        rows = np.concatenate(parts).reshape(-1, parts[0].shape[-1])[layout.rows]
        return Seconds(time.perf_counter() - start), rows


def _model_file(weights: Weights, quant: str) -> Path:
    """Return the model in OpenVINO's format; make it if it is missing."""
    import nncf
    import openvino

    path = weights.work / f"openvino-{weights.size}-{quant}.xml"
    if path.exists():
        return path
    model: Any = openvino.convert_model(weights.graph("fp32"))
    if quant == "int8 weights":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    elif quant == "int8":
        tiles = list(calibration_tiles(weights.manifest(), CALIBRATION_TILES))
        model = nncf.quantize(
            model, nncf.Dataset(tiles), model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(tiles),
        )  # fmt: skip
    openvino.save_model(model, path, compress_to_fp16=False)
    return path
