"""How likely a model holds each of several texts to be, after one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeprism.language.engine import LanguageContext
from edgeprism.language.kv_reuse import common_tokens


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
    last logits are there. They are read in their order, each from where it parts from the one
    before, and only as long as it can still be likelier than one that is read whole, as a whole or
    on average: of others the figures are bounds, which are too high. The sequence then holds the
    last. None, with an empty sequence, for a model that cannot go back to the prompt's end
    (`LanguageContext.keep`).
    """
    read: list[int] = []
    after = [_log_softmax(context.logits())]  # after the prompt, and after each token of `read`
    found: list[Likelihood] = []
    best = Likelihood(-np.inf, -np.inf)
    for ids in continuations:
        same = common_tokens(read, ids)
        if same < len(read) and not context.keep(slot, start + same):
            return None
        del read[same:], after[same + 1 :]
        total, n = 0.0, len(ids) + 1
        for i, token in enumerate(ids):
            total += float(after[i][token])
            if total < best.total and total / n < best.mean:
                break
            if i == len(read):
                context.step([(slot, token, start + i)])
                read.append(token)
                after.append(_log_softmax(context.logits()))
        else:
            total += float(np.logaddexp.reduce(after[len(ids)][list(ends)]))
            best = Likelihood(max(best.total, total), max(best.mean, total / n))
        found.append(Likelihood(total, total / n))
    return found


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum())
    return result
