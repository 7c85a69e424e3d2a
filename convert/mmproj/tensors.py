"""The tensors of an mmproj file as float32 arrays, in any type that the package gguf can read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from edgeprism.convert.mmproj.shape import LEAVE_IT
from edgeprism.errors import ModelError, NoGraphError

_HINT = "Copy or download the mmproj file again."
_VISION = ("v.", "mm.", "resampler.")
_NOT_VISION = "mm.a."  # the projector of a file's sound encoder
_SHOWN = 5


class MmprojTensors:
    """The tensors of the file at `path`, each read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, slowest dimension first; () if there is none."""
        if name not in self._tensors:
            return ()
        return tuple(int(n) for n in reversed(self._tensors[name].shape))

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32; raises ModelError for a type or values that are no use."""
        tensor = self._tensors[name]
        kind = gguf.GGMLQuantizationType(tensor.tensor_type)
        try:
            # older versions of gguf raise their own, undocumented errors for unknown types
            values = gguf.quants.dequantize(tensor.data, kind)
        except (NotImplementedError, ValueError, KeyError) as error:
            raise ModelError(
                f"{self.path}: {name} has the type {kind.name}, which cannot be read.",
                "Use an mmproj file in F16, BF16, F32 or Q8_0.",
            ) from error
        array = np.asarray(values, dtype=np.float32).reshape(self.shape(name))
        if not np.isfinite(array).all():
            raise ModelError(f"{self.path}: {name} holds values that are not finite.", _HINT)
        return array

    def require(self, shapes: Mapping[str, tuple[int, ...]], idle: str = "") -> None:
        """Raise NoGraphError unless the vision half is exactly `shapes`.

        Tensors whose whole name matches the pattern `idle` may be there too. A tensor that the
        graph has no place for would be left out in silence, so it is a fault like a missing one.
        """
        present = {
            name
            for name in self._tensors
            if name.startswith(_VISION) and not name.startswith(_NOT_VISION)
        }
        faults = [f"no {name}" for name in sorted(shapes.keys() - present)]
        faults += [
            f"{name} of shape {list(self.shape(name))}, not {list(shape)}"
            for name, shape in shapes.items()
            if name in present and self.shape(name) != shape
        ]
        spare = sorted(name for name in present - shapes.keys() if not re.fullmatch(idle, name))
        faults += [f"{name}, which the graph has no place for" for name in spare]
        if faults:
            more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
            raise NoGraphError(
                f"{self.path}: no ONNX graph is built for it: it has "
                f"{'; '.join(faults[:_SHOWN])}{more}.",
                LEAVE_IT,
            )
