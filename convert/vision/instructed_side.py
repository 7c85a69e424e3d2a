"""The vision half of captioners on EVA-ViT-g with a Q-Former that reads the instruction."""

from __future__ import annotations

from edgeprism.convert.gate import instruct_blip as reference
from edgeprism.convert.gate import towers
from edgeprism.convert.gate.data import instruction_of
from edgeprism.convert.read.wordpiece import PublishedWordPiece
from edgeprism.convert.vision.eva_side import QueryParts
from edgeprism.convert.vision.instructed import ConnectorGraph, TextSide, TowerGraph
from edgeprism.convert.vision.side import VisionSide
from edgeprism.convert.vision.weights import VisionWeights
from edgeprism.errors import CheckpointError


def instructed_side(
    parts: QueryParts, tokenizer: PublishedWordPiece, max_ids: int, n_out: int
) -> VisionSide:
    """Return the vision half whose Q-Former reads the instruction.

    Args:
        parts: What it is made of.
        tokenizer: What turns an instruction into ids.
        max_ids: The most of them, with the marks at both ends.
        n_out: The language model's width.

    Raises CheckpointError for parts that do not belong together.
    """
    tower, former, pieces = parts.tower, parts.former, tokenizer.pieces
    if len(pieces) > former.n_vocab:
        raise CheckpointError(
            f"{parts.queries.checkpoint.folder}: the Q-Former knows {former.n_vocab} pieces of "
            f"text, its tokenizer has {len(pieces)}.",
            "Pass the files that belong together.",
        )
    files, n_rows = parts.queries.checkpoint.files, 1 + tower.grid**2
    to_ids = reference.bert_ids(pieces)
    project = towers.mlp(parts.projector.files, [parts.projection])
    return VisionSide(
        lambda dtype: TowerGraph(tower, dtype),
        (1, former.n_queries),
        VisionWeights(parts.weights(n_out)),
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
            max_ids=max_ids,
            truncation=tokenizer.truncation,
            features=n_rows,
            width=tower.n_embd,
            reference_ids=to_ids,
        ),
    )
