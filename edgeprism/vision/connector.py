"""Features and an instruction → visual tokens: the second graph of models that read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprism.errors import ManifestError
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.onnx_runtime import FLOATS, GraphSession
from edgeprism.vision.onnx import VisionEncoder
from edgeprism.vision.wordpiece import WordPiece

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest
    from edgeprism.picture.layout import PictureLayout


@dataclass(frozen=True)
class ConnectorFiles:
    """The files of a connector."""

    graph: Path
    vocabulary: Path


class Connector:
    """Makes visual tokens of a picture's features and of what is asked about it."""

    def __init__(
        self,
        files: ConnectorFiles,
        manifest: Manifest,
        *,
        provider: str,
        threads: int = 0,
        cancel: Cancel | None = None,
    ) -> None:
        """Load the files; raises ModelError if one is damaged or the graph has another shape.

        Raises DeviceError if the provider does not start.
        """
        vision, text = manifest.vision, manifest.vision.text
        if text is None:
            raise ManifestError(manifest.name, ["vision.text: is missing for the connector"])
        self._names = (text.input, text.ids, text.output)
        self._tokens, self._n_embd = vision.tokens_per_tile, vision.n_embd
        self.tokenizer = WordPiece.from_file(
            files.vocabulary, max_ids=text.max_ids, truncation=text.truncation
        )
        self._session = GraphSession(
            files.graph, provider=provider, threads=threads, cancel=cancel or Cancel()
        )
        self._session.check_interface(
            {
                text.input: (FLOATS, [text.features, text.width]),
                text.ids: ("tensor(int64)", [None]),
            },
            {text.output: (FLOATS, [self._tokens, self._n_embd])},
        )

    def rows(self, features: np.ndarray, instruction: str) -> np.ndarray:
        """Return visual tokens [n, tokens, n_embd] of tiles' features [n, features, width]."""
        return self.rows_of_ids(features, self.tokenizer.ids(instruction))

    def rows_of_ids(self, features: np.ndarray, ids: list[int]) -> np.ndarray:
        """Return visual tokens of tiles' features, as `rows`, for an instruction's ids.

        Raises Interrupted when the engines' work is cancelled.
        """
        input_name, ids_name, output = self._names
        tokens = np.empty((len(features), self._tokens, self._n_embd), np.float32)
        at_once = self._session.tiles_at_once
        for start in range(0, len(features), at_once):
            part = features[start : start + at_once]
            (tokens[start : start + len(part)],) = self._session.run(
                {input_name: part, ids_name: np.array([ids], np.int64)},
                {output: (len(part), self._tokens, self._n_embd)},
            )
        return tokens


class InstructedEncoder:
    """A vision graph and its connector: pixels → features, features + instruction → rows."""

    def __init__(self, tower: VisionEncoder, connector: Connector) -> None:
        self.tower, self.connector = tower, connector

    def encode(self, tiles: np.ndarray) -> np.ndarray:
        """Return the features [n, features, width] of tiles uint8 [n, size, size, 3]."""
        return self.tower.encode(tiles)

    def rows_of_picture(
        self, features: np.ndarray, layout: PictureLayout, instruction: str
    ) -> np.ndarray:
        """Return a picture's rows in the prompt's order, [n_rows, n_embd]."""
        tokens = self.connector.rows(features, instruction)
        rows: np.ndarray = tokens.reshape(-1, tokens.shape[-1])[layout.rows]
        return rows

    def close(self) -> None:
        """Do nothing; ONNX Runtime frees the sessions with their last reference."""
