"""Count the operations of a vision graph."""

from __future__ import annotations

import numpy as np

from edgeprism import Captioner
from edgeprism.bench.work import nodes_to_operations
from edgeprism.vision.onnx import profile_graph


def picture_operations(captioner: Captioner, size: tuple[int, int]) -> float:
    """Count multiplications and additions for all tiles of a picture of `size` (width, height).

    The products of weights, attention and patches all count. Quantization changes nothing.
    """
    bundle, image = captioner.bundle, captioner.bundle.manifest.image
    tile = np.zeros((1, image.size, image.size, 3 * len(image.fills)), np.uint8)
    nodes = profile_graph(bundle.file(captioner.engines.vision_variant().file), tile)
    return nodes_to_operations(nodes).total * captioner.cost(size).tiles
