"""LoRA of a picture's rows alone ("partial LoRA", PLoRA) → the halves of a GGUF adapter.

Each matrix of a layer has two halves beside its weight: A [rank, in] and B [out, rank]. The
published code adds B · A · x · alpha / rank to the products of a picture's rows and to no other, in
all four copies of it with rank 256 and alpha 256. Source: InternLM-XComposer2's `build_mlp.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprism.convert.language.config import LmTensor
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

HALF = "Plora_"
_RANK = 256


@dataclass(frozen=True)
class RowAdapter:
    """The adapter of a picture's rows, as the pipeline writes and measures it.

    Args:
        tensors: The halves, in the GGUF's order, each with its published source.
        alpha: The factor of the products, times the rank.
        embedding: The published name of the table of the tokens' embeddings [n_vocab, n_embd].
        reference_logits: Returns the logits of texts, given of each the rows that are a picture's,
            and called back after each layer.
    """

    tensors: Sequence[LmTensor]
    alpha: float
    embedding: str
    reference_logits: Callable[
        [list[list[int]], Sequence[range], Callable[[], None]], list[np.ndarray]
    ]


def partial_lora(checkpoint: Checkpoint, tensors: Sequence[LmTensor]) -> tuple[list[LmTensor], int]:
    """Return the halves for those of a model's `tensors` that are matrices of layers, and the rank.

    Raises CheckpointError for a rank that differs between them, or from the published one: what
    factor its products would have is not known. Who requires the halves' tensors finds out what is
    missing.
    """
    matrices = [t for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    ranks = {
        checkpoint.sizes(name, 2)[0]
        for t in matrices
        if (name := _half(t, "A")) in checkpoint.names
    }
    if ranks != {_RANK}:
        raise CheckpointError(
            f"{checkpoint.folder}: its partial LoRA ({HALF}A) has the ranks "
            f"{', '.join(map(str, sorted(ranks))) or 'of no matrix'}; {_RANK} is expected of all.",
            "Use the files as they were published.",
        )
    halves = []
    for t in matrices:
        n_out, n_in = t.source_shape
        a, b = (_RANK, n_in), (n_out, _RANK)
        halves.append(LmTensor(f"{t.name}.lora_a", a, _half(t, "A"), a))
        # what a packed matrix has in rows, its B has, too
        halves.append(LmTensor(f"{t.name}.lora_b", (t.shape[0], _RANK), _half(t, "B"), b, t.turn))
    return halves, _RANK


def _half(tensor: LmTensor, which: str) -> str:
    return f"{tensor.source.removesuffix('.weight')}.{HALF}{which}.weight"
