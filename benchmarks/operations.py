"""Count the operations of a vision graph."""

from __future__ import annotations

from collections import Counter

import numpy as np

from edgeprism import Captioner
from edgeprism.bench.work import nodes_to_operations
from edgeprism.picture.layout import picture_to_layout
from edgeprism.vision.onnx import profile_graph


def picture_operations(captioner: Captioner, size: tuple[int, int]) -> float:
    """Count multiplications and additions for all tiles of a picture of `size` (width, height).

    The products of weights, attention and patches all count. Quantization changes nothing.
    """
    bundle, image = captioner.bundle, captioner.bundle.manifest.image
    graph = bundle.file(captioner.engines.vision_variant().file)
    total = 0.0
    for shape, n_tiles in Counter(picture_to_layout(size, bundle.manifest).shapes).items():
        tile = np.zeros((1, *shape, 3 * len(image.fills)), np.uint8)
        total += nodes_to_operations(profile_graph(graph, tile)).total * n_tiles
    return total
