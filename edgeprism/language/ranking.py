"""How likely a model holds each of several texts to be, after one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprism.language.engine import LanguageContext


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of a text: of all its tokens together, and of one on average."""

    total: float
    mean: float


@dataclass(frozen=True)
class Ranking:
    """How likely each continuation is, in the continuations' order."""

    likelihoods: list[Likelihood]
    prefill_ms: float
    decode_ms: float


def rank(
    context: LanguageContext,
    slot: int,
    start: int,
    continuations: Sequence[Sequence[int]],
    ends: Sequence[int],
) -> list[Likelihood] | None:
    """Return how likely each continuation is of what sequence `slot` holds.

    Its tokens count, and any of `ends` behind them. The prompt ends at position `start`, and its
    last logits are there. Continuations that begin alike are read once to where they part; the
    sequence then holds the last that was read. None, with an empty sequence, for a model that
    cannot go back to the prompt's end (`LanguageContext.keep`).
    """
    read: tuple[int, ...] = ()
    after = [_log_softmax(context.logits())]  # after the prompt, and after each token that was read
    found: dict[tuple[int, ...], Likelihood] = {}
    for ids in sorted({tuple(ids) for ids in continuations}):
        same = _common(read, ids)
        if same < len(read) and not context.keep(slot, start + same):
            return None
        del after[same + 1 :]
        for i, token in enumerate(ids[same:], same):
            context.step([(slot, token, start + i)])
            after.append(_log_softmax(context.logits()))
        read = ids
        terms = [after[i][token] for i, token in enumerate(ids)]
        terms.append(np.logaddexp.reduce(after[-1][list(ends)]))
        found[ids] = Likelihood(float(np.sum(terms)), float(np.mean(terms)))
    return [found[tuple(ids)] for ids in continuations]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result
