"""EdgePrism through its public API, with its own choices."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.peers.engine import (
    DECODED,
    INSTRUCTION,
    VISUAL_TOKENS,
    Engine,
    Seconds,
    Setting,
)
from benchmarks.peers.weights import Weights
from edgeprism import Captioner
from tests.helpers.captions import stream


class EdgePrism(Engine):
    """The bundle that `convert` writes. Nothing is searched: a user has the defaults."""

    @classmethod
    def settings(cls, cores: int) -> Mapping[str, Sequence[object]]:
        return {"threads": [cores]}

    def __init__(self, weights: Weights, quant: str, setting: Setting) -> None:
        threads = int(str(setting["threads"]))
        self._captioner = Captioner.load(
            weights.bundle(),
            device="cpu",
            vision_quant=quant,
            threads=threads,
            visual_tokens=_limit(setting),
        )

    def look(self, pixels: np.ndarray) -> tuple[Seconds, np.ndarray]:
        start = time.perf_counter()
        encoded = self._captioner.encode(pixels)
        prepared = time.perf_counter() - start
        made = stream(
            self._captioner,
            encoded,
            instruction=INSTRUCTION,
            caption_tokens=1 + DECODED,
            stop_at_end=False,
        ).finished()
        times = made.caption.timings
        seconds = Seconds(
            prepared, prepared + times.prefill / 1000, times.decode / 1000 / DECODED
        )  # fmt: skip
        return seconds, encoded.visual_tokens


class FewerRows(EdgePrism):
    """EdgePrism that hands the language model `VISUAL_TOKENS` rows of a picture at most."""

    @classmethod
    def settings(cls, cores: int) -> Mapping[str, Sequence[object]]:
        return {**super().settings(cores), "visual_tokens": [VISUAL_TOKENS]}


def _limit(setting: Setting) -> int | None:
    limit = setting.get("visual_tokens")
    return None if limit is None else int(str(limit))
