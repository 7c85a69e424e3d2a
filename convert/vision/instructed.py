"""The two graphs of a captioner whose visual tokens depend on the instruction.

The tower's features are the same for every instruction, so they are computed once for a picture;
the connector, a Q-Former that reads the instruction, runs again for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.graph import Affine, GraphModule, Tower, tile_inputs
from edgeprism.convert.vision.qformer import QFormer, QFormerConfig
from edgeprism.convert.vision.quantize import FEATURES, IDS
from edgeprism.vision.graph_memory import TEXT_LENGTH


@dataclass(frozen=True)
class TextSide:
    """What a vision half needs besides its first graph if it reads the instruction.

    Args:
        connector: Makes the second graph's module, with placeholders of a dtype for weights; the
            weights are among those of the vision half.
        pieces: A WordPiece vocabulary, by ids.
        max_ids: The most ids of an instruction, with the marks at both ends.
        truncation: The end at which a longer one is cut, "left" or "right".
        features: Rows that the first graph makes of a tile.
        width: The numbers of each row.
        reference_ids: The published tokenizer's own text → ids function, for the gate.
    """

    connector: Callable[[torch.dtype], GraphModule]
    pieces: Sequence[str]
    max_ids: int
    truncation: str
    features: int
    width: int
    reference_ids: Callable[[str], list[int]]


class TowerGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → features [n, rows, width], float32."""

    outputs = (FEATURES,)

    def __init__(self, tower: TowerConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.image_size, self.dtype = tower.image_size, dtype
        self.tower = Tower(tower, dtype)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles."""
        return tile_inputs(self.image_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → features [n, rows, width]."""
        rows: torch.Tensor = self.tower(pixels)
        return rows.float()


class ConnectorGraph(GraphModule):
    """Features [n, rows, width], ids [1, T] → visual tokens [n, n_queries, n_out], float32.

    A Q-Former that reads the ids, and one Linear layer.
    """

    def __init__(self, queries: QFormerConfig, n_rows: int, n_out: int, dtype: torch.dtype) -> None:
        """`n_rows`: the features of a tile; `n_out`: the width of the language model."""
        super().__init__()
        self.dtype, self.n_rows = dtype, n_rows
        self.qformer = QFormer(queries, dtype)
        self.projector = Affine(dtype, queries.n_embd, n_out)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Features of any number of tiles, and a text's ids."""
        config = self.qformer.config
        features = torch.zeros((2, self.n_rows, config.n_image))
        ids = torch.zeros((1, 5), dtype=torch.int64)
        length = torch.export.Dim(TEXT_LENGTH, min=2, max=config.n_positions)
        return {
            FEATURES: (features, {0: torch.export.Dim("n", min=1, max=1024)}),
            IDS: (ids, {1: length}),
        }

    def forward(self, features: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Features [n, rows, width], ids int64 [1, T] → visual tokens [n, n_queries, n_out]."""
        rows: torch.Tensor = self.projector(self.qformer(features.to(self.dtype), ids))
        return rows.float()
