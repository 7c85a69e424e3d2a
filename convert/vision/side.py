"""The vision half of a captioner of any family."""

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
    """Towers, whose features are concatenated, and the projector that follows them."""

    towers: Sequence[TowerConfig]
    projector: ProjectorConfig
    weights: VisionWeights
    reference: Callable[[np.ndarray, Tick], np.ndarray]  # pixels → visual tokens, in torch
    # (checkpoint, patterns of the tensors that it may hold and that never run)
    unused: Sequence[tuple[Checkpoint, tuple[str, ...]]] = ()
    drop_first_patch: bool = False
    newline: bool = False  # the weights hold a "newline_row"
