"""The vision half of captioners on EVA-ViT-g with a Q-Former that reads the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeprism.convert.gate import instruct_blip as reference
from edgeprism.convert.gate import towers
from edgeprism.convert.gate.data import instruction_of
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.read.wordpiece import PublishedWordPiece
from edgeprism.convert.vision.config import TowerConfig
from edgeprism.convert.vision.instructed import ConnectorGraph, TextSide, TowerGraph
from edgeprism.convert.vision.qformer import QFormerConfig, QFormerTensors, qformer_weights
from edgeprism.convert.vision.side import VisionSide
from edgeprism.convert.vision.weights import VisionWeights, Weights, linear_weights
from edgeprism.errors import CheckpointError


@dataclass(frozen=True)
class InstructedParts:
    """The parts of such a vision half, in whichever layout they are published.

    Args:
        tower: The tower.
        tower_weights: Its parameters, with those of the norm after its last block.
        tower_reference: Computes its features for the gate.
        queries: Where the Q-Former and the projection lie.
        former: The Q-Former.
        projection: The projection's name.
        tokenizer: What turns an instruction into ids.
        max_ids: The most of them, with the marks at both ends.
        unused: The tensors that the checkpoints may hold and that never run.
    """

    tower: TowerConfig
    tower_weights: Weights
    tower_reference: towers.Features
    queries: QFormerTensors
    former: QFormerConfig
    projection: str
    tokenizer: PublishedWordPiece
    max_ids: int
    unused: Sequence[tuple[Checkpoint, tuple[str, ...]]]


def instructed_side(parts: InstructedParts, n_out: int) -> VisionSide:
    """Return the vision half for a language model of the width `n_out`.

    Raises CheckpointError for parts that do not belong together.
    """
    _require_fit(parts)
    tower, former, pieces = parts.tower, parts.former, parts.tokenizer.pieces
    files, n_rows = parts.queries.checkpoint.files, 1 + tower.grid**2
    weights = VisionWeights(
        {
            "": linear_weights(
                "projector", parts.queries.checkpoint, parts.projection, former.n_embd, n_out
            ),
            "tower": parts.tower_weights,
            "qformer": qformer_weights(former, parts.queries),
        }
    )
    to_ids = reference.bert_ids(pieces)
    project = towers.mlp(files, [parts.projection])
    return VisionSide(
        lambda dtype: TowerGraph(tower, dtype),
        (1, former.n_queries),
        weights,
        lambda pixels, tick: reference.visual_tokens(
            parts.tower_reference,
            lambda: reference.reader(files, former.n_heads),
            project,
            [to_ids(instruction_of(i)) for i in range(len(pixels))],
            pixels,
            tick,
        ),
        tower.n_layers,
        parts.unused,
        text=TextSide(
            connector=lambda dtype: ConnectorGraph(former, n_rows, n_out, dtype),
            pieces=pieces,
            max_ids=parts.max_ids,
            truncation=parts.tokenizer.truncation,
            features=n_rows,
            width=tower.n_embd,
            reference_ids=to_ids,
        ),
    )


def _require_fit(parts: InstructedParts) -> None:
    tower, former, pieces = parts.tower, parts.former, parts.tokenizer.pieces
    faults = []
    if former.n_image != tower.n_embd:
        faults.append(
            f"the Q-Former reads features of width {former.n_image}, the vision model makes "
            f"{tower.n_embd}"
        )
    if len(pieces) > former.n_vocab:
        faults.append(
            f"the Q-Former knows {former.n_vocab} pieces of text, its tokenizer has {len(pieces)}"
        )
    if faults:
        raise CheckpointError(
            f"{parts.queries.checkpoint.folder}: {'; '.join(faults)}.",
            "Pass the files that belong together.",
        )
