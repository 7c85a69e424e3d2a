"""The vision half of a captioner, whichever family it is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeprism.convert.gate.towers import Tick
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import ProjectorConfig, TowerConfig
from edgeprism.convert.vision.weights import VisionWeights


@dataclass(frozen=True)
class VisionSide:
    """Towers whose features stand side by side, and the projector behind them."""

    towers: Sequence[TowerConfig]
    projector: ProjectorConfig
    weights: VisionWeights
    reference: Callable[[np.ndarray, Tick], np.ndarray]  # pixels → visual tokens, by the gate's way
    # patterns of tensors that may stand beside the weights and never run, by checkpoint
    unused: Sequence[tuple[Checkpoint, tuple[str, ...]]] = ()
    drop_first_patch: bool = False
    newline: bool = False  # the weights hold a "newline_row"
