"""The vision half of captioners on EVA-ViT-g: a Q-Former, or neighbouring patches, then one Linear.

Sources: the public code of InternLM-XComposer (`modeling_InternLM_XComposer.py`) and MiniGPT-4
(`minigpt4.py`, `minigpt_v2.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.convert.gate import eva as reference
from edgeprism.convert.gate import towers
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import Preparation, TowerConfig, one_tile
from edgeprism.convert.vision.eva_vit import (
    MEAN,
    STD,
    EvaTensors,
    eva_vit_config,
    eva_vit_weights,
)
from edgeprism.convert.vision.graph import Affine, GraphModule, Tower, placeholder, tile_inputs
from edgeprism.convert.vision.qformer import (
    QFormer,
    QFormerConfig,
    QFormerTensors,
    qformer_config,
    qformer_unused,
    qformer_weights,
)
from edgeprism.convert.vision.side import Unused, VisionSide
from edgeprism.convert.vision.weights import (
    VisionWeights,
    Weight,
    Weights,
    linear_weights,
    norm_weights,
)
from edgeprism.errors import CheckpointError

EPS_LAST = 1e-5  # torch's default, of LAVIS' norm behind the tower
N_JOINED = 4  # patches that become one visual token where there is no Q-Former
_NORM = "ln_vision"


class QueryGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, n_tokens, width of the LM], float32.

    A tower, a Q-Former without text and one Linear layer. With `framed`, a learned row stands
    before the queries' rows, and another behind them.
    """

    def __init__(
        self,
        tower: TowerConfig,
        queries: QFormerConfig,
        n_out: int,
        dtype: torch.dtype,
        framed: bool,
    ) -> None:
        super().__init__()
        self.image_size, self.dtype = tower.image_size, dtype
        self.tower, self.qformer = Tower(tower, dtype), QFormer(queries, dtype)
        self.projector = Affine(dtype, queries.n_embd, n_out)
        self.first_row = placeholder(dtype, 1, n_out) if framed else None
        self.last_row = placeholder(dtype, 1, n_out) if framed else None

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles."""
        return tile_inputs(self.image_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → visual tokens [n, n_tokens, width of the LM]."""
        rows: torch.Tensor = self.projector(self.qformer(self.tower(pixels)))
        if self.first_row is not None and self.last_row is not None:
            first, last = (
                row.expand(rows.shape[0], -1, -1) for row in (self.first_row, self.last_row)
            )
            rows = torch.cat([first, rows, last], dim=1)
        return rows.float()


class JoinedPatchGraph(GraphModule):
    """uint8 pixels [n, size, size, 3] → visual tokens [n, patches / N_JOINED, width of the LM].

    Patches that follow each other in a row of the picture are joined, and a Linear layer follows.
    """

    def __init__(self, tower: TowerConfig, n_out: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.image_size, self.dtype = tower.image_size, dtype
        self.tower = Tower(tower, dtype)
        self.projector = Affine(dtype, N_JOINED * tower.n_embd, n_out)

    def inputs(self) -> Mapping[str, tuple[torch.Tensor, dict[int, Any]]]:
        """Pixels of any number of tiles."""
        return tile_inputs(self.image_size)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [n, size, size, 3] → visual tokens [n, patches / N_JOINED, width of the LM]."""
        x = self.tower(pixels)
        n, t, e = x.shape
        rows: torch.Tensor = self.projector(x.reshape(n, t // N_JOINED, N_JOINED * e))
        return rows.float()


@dataclass(frozen=True)
class EvaSources:
    """Where the parts of a vision half lie.

    Args:
        tower: The tower, in LAVIS' layout.
        norm: The checkpoint with the norm behind the tower; None if that was never trained.
        projector: The checkpoint with the Linear layer.
        projector_name: The layer's name.
        unused: Patterns of what `projector`'s checkpoint may hold besides.
        whole_tower: Whether the tower's file is EVA-CLIP's own, of which one block does not run.
    """

    tower: EvaTensors
    norm: Checkpoint | None
    projector: Checkpoint
    projector_name: str
    unused: tuple[str, ...] = ()
    whole_tower: bool = False


@dataclass(frozen=True)
class QueryParts:
    """A tower, a Q-Former and the projection behind it, in whichever layout they are published.

    Args:
        tower: The tower.
        tower_weights: Its parameters, with those of the norm after its last block.
        tower_reference: Computes its features for the gate.
        queries: Where the Q-Former lies.
        former: The Q-Former.
        projector: The checkpoint with the Linear layer behind it.
        projection: That layer's name.
        unused: The tensors that the checkpoints may hold and that never run.
    """

    tower: TowerConfig
    tower_weights: Weights
    tower_reference: towers.Features
    queries: QFormerTensors
    former: QFormerConfig
    projector: Checkpoint
    projection: str
    unused: Unused

    def require_fit(self) -> None:
        """Raise CheckpointError if the Q-Former reads features of another width."""
        if self.former.n_image != self.tower.n_embd:
            checkpoint = self.queries.checkpoint
            raise CheckpointError(
                f"{checkpoint.folder} ({checkpoint.role}): the Q-Former reads features of width "
                f"{self.former.n_image}, and the vision model's have {self.tower.n_embd}.",
                "Pass the files that belong together.",
            )

    def weights(self, n_out: int) -> dict[str, Weights]:
        """Return the parameters of graphs that have a tower, a qformer and a projector."""
        top = linear_weights(
            "projector", self.projector, self.projection, self.former.n_embd, n_out
        )
        return {
            "": top,
            "tower": self.tower_weights,
            "qformer": qformer_weights(self.former, self.queries),
        }


def lavis_parts(sources: EvaSources, queries: QFormerTensors, reads_text: bool) -> QueryParts:
    """Return the parts in LAVIS' layout; `reads_text`: the queries attend to an instruction.

    Raises CheckpointError for parts that do not belong together.
    """
    tower = eva_vit_config(sources.tower, EPS_LAST, whole=sources.whole_tower)
    former = qformer_config(queries, reads_text)
    parts = QueryParts(
        tower,
        _tower_weights(tower, sources),
        reference.eva_tower(_reference_files(tower, sources)),
        queries,
        former,
        sources.projector,
        sources.projector_name,
        [*_unused(sources), (queries.checkpoint, qformer_unused(former))],
    )
    parts.require_fit()
    return parts


def query_side(parts: QueryParts, n_out: int, ends: tuple[str, str] | None = None) -> VisionSide:
    """Return the vision half with a Q-Former that reads no text.

    Args:
        parts: What it is made of.
        n_out: The language model's width.
        ends: The names of the learned rows before and behind, in `parts.projector`; None without.
    """
    tower, former, projector = parts.tower, parts.former, parts.projector
    weights = parts.weights(n_out)
    for row, source in zip(("first_row", "last_row"), ends or (), strict=False):
        weights[""][row] = Weight(projector, {source: (1, 1, n_out)}, lambda tensor: tensor[0])
    read = reference.qformer(parts.queries.checkpoint.files, former.n_heads)
    project = towers.mlp(projector.files, [parts.projection])
    frame = reference.framed(projector.files, ends) if ends else _unchanged
    return VisionSide(
        lambda dtype: QueryGraph(tower, former, n_out, dtype, framed=ends is not None),
        (1, former.n_queries + 2 * (ends is not None)),
        VisionWeights(weights),
        lambda pixels, tick: towers.visual_tokens(
            [parts.tower_reference], lambda rows: frame(project(read(rows))), pixels, tick
        ),
        tower.n_layers,
        parts.unused,
        constant_rows=(1, 1) if ends else (0, 0),
    )


def joined_patch_side(
    sources: EvaSources, n_out: int, scale: int = 1
) -> tuple[VisionSide, ImagePolicy]:
    """Return the vision half without a Q-Former, and how pictures are prepared.

    Its pictures are `scale` times as large as those of the tower's table of positions.
    """
    published = eva_vit_config(sources.tower, EPS_LAST, whole=sources.whole_tower)
    tower = dataclasses.replace(
        published, image_size=scale * published.image_size, keeps_prefix=False
    )
    if tower.grid**2 % N_JOINED:
        raise CheckpointError(
            f"{sources.tower.checkpoint.folder} ({sources.tower.checkpoint.role}): "
            f"{tower.grid**2} patches cannot be joined by {N_JOINED}.",
            "Use the file as it was published.",
        )
    projector, name = sources.projector, sources.projector_name
    weights = VisionWeights(
        {
            "": linear_weights("projector", projector, name, N_JOINED * tower.n_embd, n_out),
            "tower": _tower_weights(tower, sources),
        }
    )
    features = reference.eva_tower(_reference_files(tower, sources))
    project = towers.mlp(projector.files, [name])
    side = VisionSide(
        lambda dtype: JoinedPatchGraph(tower, n_out, dtype),
        (1, tower.grid**2 // N_JOINED),
        weights,
        lambda pixels, tick: towers.visual_tokens(
            [features], lambda rows: project(reference.joined_patches(rows)), pixels, tick
        ),
        tower.n_layers,
        _unused(sources),
    )
    return side, image_policy(tower)


def image_policy(tower: TowerConfig) -> ImagePolicy:
    """Return how BLIP's processor prepares a picture: stretched to a square, bicubic."""
    preparation = Preparation("stretch", tower.image_size, "bicubic", 1 / 255, MEAN, STD)
    return one_tile("stretch", preparation)


def _tower_weights(tower: TowerConfig, sources: EvaSources) -> Weights:
    weights = eva_vit_weights(tower, sources.tower)
    if sources.norm is not None:
        return weights | norm_weights("norm_last", sources.norm, _NORM, tower.n_embd)
    # torch's initial values
    ones, zeros = torch.ones(tower.n_embd), torch.zeros(tower.n_embd)
    weights["norm_last.weight"] = Weight(sources.tower.checkpoint, {}, lambda: ones)
    weights["norm_last.bias"] = Weight(sources.tower.checkpoint, {}, lambda: zeros)
    return weights


def _unused(sources: EvaSources) -> list[tuple[Checkpoint, tuple[str, ...]]]:
    unused = [(sources.projector, sources.unused)]
    if sources.whole_tower:
        # its last block, its head, what training needed: upstream passes over all that it lacks
        unused.append((sources.tower.checkpoint, ("",)))
    return unused


def _reference_files(tower: TowerConfig, sources: EvaSources) -> reference.EvaFiles:
    return reference.EvaFiles(
        tower=sources.tower.checkpoint.files,
        norm=sources.norm.files if sources.norm else [],
        n_blocks=tower.n_layers,
        n_heads=tower.n_heads,
        image_size=tower.image_size,
    )


def _unchanged(rows: torch.Tensor) -> torch.Tensor:
    return rows
