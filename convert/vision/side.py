"""The vision half of a captioner of any family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edgeprism.convert.gate.towers import Tick
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import ProjectorConfig, TowerConfig
from edgeprism.convert.vision.frames import FramePooling
from edgeprism.convert.vision.graph import GraphModule, VisionGraph
from edgeprism.convert.vision.instructed import TextSide
from edgeprism.convert.vision.weights import VisionWeights

Reference = Callable[[np.ndarray, Tick], np.ndarray]  # pixels → visual tokens, in torch
# (checkpoint, patterns of the tensors that it may hold and that never run)
Unused = Sequence[tuple[Checkpoint, tuple[str, ...]]]


@dataclass(frozen=True)
class VisionSide:
    """What computes a captioner's visual tokens, and the weights for it.

    Args:
        graph: Makes the module that is exported, with placeholders of a dtype for weights.
        grid: Visual tokens of a tile [down, across]; [1, n] for n of them in no order of place.
        weights: The weights of the module.
        reference: Computes the gate's expected visual tokens.
        n_ticks: How often `reference` calls its Tick.
        unused: The tensors that the checkpoints may hold and that never run.
        drop_first_patch: Whether the graph leaves out the first patch.
        newline: Whether the weights hold a "newline_row".
        separator: Whether they hold a "separator_row".
        constant_rows: How many of a tile's visual tokens, at its beginning and end, are learned
            rows, the same for all pictures.
        most_tokens: The visual tokens of the largest tile where tiles have free shapes; 0: as many
            as `grid` has.
        text: The second graph, if the visual tokens depend on the instruction. Then `graph` makes
            features, and `reference` visual tokens for the gate's instruction of each picture.
    """

    graph: Callable[[torch.dtype], GraphModule]
    grid: tuple[int, int]
    weights: VisionWeights
    reference: Reference
    n_ticks: int
    unused: Unused = ()
    drop_first_patch: bool = False
    newline: bool = False
    text: TextSide | None = None
    constant_rows: tuple[int, int] = (0, 0)
    separator: bool = False
    most_tokens: int = 0


def tower_side(
    towers: Sequence[TowerConfig],
    projector: ProjectorConfig,
    weights: VisionWeights,
    reference: Reference,
    unused: Unused = (),
    drop_first_patch: bool = False,
    newline: bool = False,
    n_views: int = 1,
    pooling: FramePooling | None = None,
) -> VisionSide:
    """Return the usual vision half: towers, whose features are concatenated, and a projector.

    With `n_views`, each tower has a view of the picture of its own. With `pooling`, `reference`
    gives the visual tokens of frames after those of pictures. It calls its Tick for each layer.
    """
    side = projector.side(towers[0].grid)

    def graph(dtype: torch.dtype) -> GraphModule:
        return VisionGraph(towers, projector, drop_first_patch, dtype, newline, n_views, pooling)

    n_ticks = sum(tower.n_layers for tower in towers)
    return VisionSide(
        graph, (side, side), weights, reference, n_ticks, unused, drop_first_patch, newline
    )
