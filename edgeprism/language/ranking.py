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
    continuations: Sequence[Sequence[Sequence[int]]],
    ends: Sequence[int],
) -> list[Likelihood] | None:
    """Return how likely each continuation is of what sequence `slot` holds.

    A continuation may have several spellings, such as with a capital and without; the one whose
    first token is the likeliest stands for it. Its tokens count, and any of `ends` behind them. The
    prompt ends at position `start`, and its last logits are there. The continuations are read in
    their order, each from where it parts from the one before. The sequence then holds the last.
    None, with an empty sequence, for a model that cannot go back to the prompt's end
    (`LanguageContext.keep`).
    """
    read: list[int] = []
    after = [context.logits()]  # after the prompt, and after each token of `read`
    found = []
    first = after[0]
    for spellings in continuations:
        ids = max(spellings, key=lambda spelling: float(first[spelling[0]]))
        same = common_tokens(read, ids)
        if same < len(read) and not context.keep(slot, start + same):
            return None
        read, new = list(ids), ids[same:]
        del after[same + 1 :]
        if new:
            after += list(context.logits_of_tokens(new, seq=slot, start=start + same))
        total = sum(_log_share(after[i], [token]) for i, token in enumerate(ids))
        total += _log_share(after[len(ids)], ends)
        found.append(Likelihood(total, total / (len(ids) + 1)))
    return found


def _log_share(logits: np.ndarray, tokens: Sequence[int]) -> float:
    """Return the log-probability of any of `tokens`."""
    highest = logits.max()
    of_all = np.log(np.exp(logits - highest).sum(dtype=np.float64))
    return float(np.logaddexp.reduce(logits[list(tokens)] - highest, dtype=np.float64) - of_all)
