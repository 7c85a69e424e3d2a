"""The gate of a captioner with two vision graphs: each is measured through the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprism.convert.gate import judge
from edgeprism.convert.gate.int8 import Measured, VisionGate
from edgeprism.convert.vision.quantize import FEATURES, IDS

# Two graphs whose errors are independent and each 1/√2 of a limit keep to it together.
SHARE = 2**-0.5


@dataclass(kw_only=True)
class TowerGate(VisionGate):
    """Measures first graphs: the float connector makes visual tokens of their features.

    Args:
        connector: The connector's graph.
        ids: Each picture's instruction, int64 [1, T].
    """

    connector: Path
    ids: Sequence[np.ndarray]

    def measure(self, path: Path, quant: str) -> Measured:
        """As of one graph; int8 has to leave room for the connector's own error."""
        figures, failures = super().measure(path, quant)
        limit = judge.VISION_LIMITS[quant].relative_error * SHARE
        error = figures.get("relative_error", float("inf"))
        if quant.startswith("int8") and not failures and not error <= limit:
            failures = [f"relative error {error:.3g} > {limit:.3g} before the connector"]
        return figures, failures

    def run(self, path: Path, full_range: bool) -> judge.VisionRun:
        """Run a first graph on the tiles, and the connector on what it makes."""
        made = super().run(path, full_range)
        tokens = judge.run_connector(self.connector, made.tokens, self.ids, full_range)
        return judge.VisionRun(tokens, made.seconds)


@dataclass(kw_only=True)
class ConnectorGate(VisionGate):
    """Measures connectors on the features that a finished first graph makes.

    Args:
        features: Those of each picture, [n, n_features, width].
        ids: Each picture's instruction, int64 [1, T].
    """

    features: np.ndarray
    ids: Sequence[np.ndarray]

    def run(self, path: Path, full_range: bool) -> judge.VisionRun:
        """Run a connector on all features."""
        tokens = judge.run_connector(path, self.features, self.ids, full_range)
        self.progress.advance(len(tokens))
        return judge.VisionRun(tokens, ())

    def sample(self) -> dict[str, np.ndarray]:
        """Return the connector's inputs for one picture."""
        return {FEATURES: self.features[:1], IDS: self.ids[0]}
