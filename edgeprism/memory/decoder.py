"""What a language model takes in memory that ONNX Runtime runs, counted before it loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeprism.bundle.manifest_language import Decoder
from edgeprism.memory.parts import Part
from edgeprism.memory.vision import graph_parts

_FLOAT = 4
_TOKEN_BYTES = 200  # of one token in llama.cpp's vocabulary: two maps and the text


@dataclass(frozen=True)
class DecoderUse:
    """How a decoder is used for one text.

    Parameters:
        rows: a picture's visual tokens.
        tokens: the prompt's and the answer's, at the most.
        n_vocab: entries of the vocabulary.
    """

    rows: int
    tokens: int
    n_vocab: int


def decoder_parts(
    graphs: Sequence[tuple[str, int, int]], decoder: Decoder, working: int, use: DecoderUse
) -> tuple[Part, ...]:
    """Return what a decoder's graphs take.

    Parameters:
        graphs: (name, bytes of the file, bytes of the weights beside it) of each.
        working: what stands between the nodes of one at the most.
    """
    cell = 2 * decoder.n_layers * decoder.n_heads * decoder.head_dim * _FLOAT
    counted = [graph_parts(*graph, 0, 0) for graph in graphs]
    counted[0] = graph_parts(*graphs[0], working, 0)
    language = [
        replace(part, what=part.what.replace("vision", "language"))
        for parts in counted
        for part in parts
        if part.size
    ]
    return (
        *language,
        Part("KV cache", cell * use.tokens, f"{use.tokens} tokens in float32"),
        Part("picture's keys and values", cell * use.rows, f"{use.rows} visual tokens in float32"),
        Part("scores", _FLOAT * use.n_vocab, f"of {use.n_vocab} tokens"),
        Part("vocabulary", _TOKEN_BYTES * use.n_vocab, f"{use.n_vocab} tokens"),
    )
