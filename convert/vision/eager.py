"""A vision module run by torch itself: the gate's reference for models that no library has.

It sees what export, packing and quantization change. It cannot see that the module itself computes
something else than the published model; that is for tests with references of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from edgeprism.convert.gate.towers import Tick
from edgeprism.convert.vision.graph import GraphModule
from edgeprism.convert.vision.weights import VisionWeights


def module_reference(
    graph: Callable[[torch.dtype], GraphModule], weights: VisionWeights
) -> Callable[[np.ndarray, Tick], np.ndarray]:
    """Return pixels uint8 [n, height, width, 3] → visual tokens [n, n_tokens, n_embd] float32.

    The function calls its Tick for each picture; it holds all weights in float32 while it runs.
    """

    @torch.inference_mode()
    def run(pixels: np.ndarray, tick: Tick) -> np.ndarray:
        module = with_weights(graph(torch.float32), weights)
        rows = []
        for picture in torch.from_numpy(pixels.copy()).split(1):
            made = module(picture)
            rows.append(made[0] if isinstance(made, tuple) else made)
            tick()
        result: np.ndarray = torch.cat(rows).numpy()
        return result

    return run


def with_weights(module: GraphModule, weights: VisionWeights) -> GraphModule:
    """Put the published weights in the place of the module's placeholders, and return it."""
    names = [name for name, _ in module.named_parameters()]
    state = {name: weights.read(name, module.dtype) for name in names}
    module.load_state_dict(state, assign=True)
    return module.eval()
