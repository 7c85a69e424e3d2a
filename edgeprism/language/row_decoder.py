"""A language model among whose tokens a picture's rows stand, by ONNX Runtime.

Its graph is that of the manifest's `Decoder` without `cross`. All that enters it is a row: tokens
are looked up in the table of the GGUF file, so that the table takes no memory but the file's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeprism.bundle.gguf_checks import TOKENIZERS, UNIGRAM
from edgeprism.bundle.manifest_language import LanguageModelFile
from edgeprism.errors import COPY_AGAIN, ModelError
from edgeprism.language.embeddings import token_rows
from edgeprism.language.onnx_decoder import Interface, OnnxContext, OnnxDecoder, common_interface
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.onnx_runtime import FLOATS


class RowDecoder(OnnxDecoder):
    """The graph, the vocabulary in memory, and the table of embeddings in its file."""

    rows_apart = False
    tokenizers = (*TOKENIZERS, UNIGRAM)

    def __init__(
        self,
        path: Path,
        graph: Path,
        *,
        expected: LanguageModelFile,
        threads: int = 1,
        cancel: Cancel | None = None,
    ) -> None:
        """Load the vocabulary at `path`, and the decoder's `graph`.

        Raises ModelError for a file that is damaged, or not what the manifest says.
        """
        super().__init__(
            path, graph, None, expected=expected, row_width=expected.n_embd, threads=threads,
            cancel=cancel,
        )  # fmt: skip
        self.embed([0, self.n_vocab - 1])  # a file that lacks them is refused now

    def interface(self) -> tuple[Interface, Interface]:
        """Return inputs and outputs of the decoder's graph, without the first length of each."""
        inputs, outputs = common_interface(self.shape, self.n_vocab)
        return {"rows": (FLOATS, [None, self.n_embd]), **inputs}, outputs

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """Return the rows float32 [n, n_embd] as which `ids` enter the model.

        Raises ModelError if the file's table has them not, or has another width.
        """
        rows = token_rows(self.path, self.header, ids)
        if rows is None or rows.shape[1] != self.n_embd:
            raise ModelError(f"{self.path}: its embeddings cannot be read.", COPY_AGAIN)
        return rows

    @property
    def context_kind(self) -> type[OnnxContext]:
        """The class of its contexts."""
        return RowContext


class RowContext(OnnxContext):
    """Sequences: the keys and values of their tokens and of their pictures' rows, in order."""

    lm: RowDecoder

    def prefill_rows(
        self,
        seq: int,
        rows: np.ndarray,
        start: int,
        *,
        causal: bool = True,
        positions: np.ndarray | None = None,
    ) -> None:
        """Put visual tokens, float32 [n, n_embd], at positions `start`… of `seq`.

        Raises ModelError for rows of another width, or with positions of their own.
        """
        self._check_rows(rows)
        own = positions is not None and not np.array_equal(positions, np.arange(len(rows))[None])
        if own or not causal:
            raise ModelError(
                "The visual tokens have positions of their own, or look at those after them, and "
                "an ONNX graph reads them one after another.",
                "Encode the picture with this captioner.",
            )
        for i in range(0, len(rows), self.n_batch):
            part = np.ascontiguousarray(rows[None, i : i + self.n_batch], np.float32)
            self._decode(seq, part, [start + i], [part.shape[1] - 1])

    def _run(
        self,
        first: int,
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        wanted: Sequence[int],
    ) -> np.ndarray:
        rows = self.lm.embed([token for each in tokens for token in each])
        return self._decode(first, rows.reshape(len(tokens), -1, self.lm.n_embd), starts, wanted)

    def _inputs(
        self, sequences: slice, entering: np.ndarray, ends: np.ndarray
    ) -> dict[str, np.ndarray]:
        return {"rows": entering}
