"""Confidence intervals of scores, and tests of whether two cells differ. Only numpy; seeded.

Intervals: percentile bootstrap over questions (Efron & Tibshirani, "An Introduction to the
Bootstrap", 1993, ch. 13). Pairs: the bootstrap of the difference over the questions scored in both
cells; for right/wrong scores McNemar's test in its exact, binomial form (McNemar 1947); for
several pairs Holm's correction (Holm 1979). All of them treat questions as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_CELLS_AT_ONCE = 4_000_000  # resampled scores in memory


def bootstrap_interval(
    scores: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % interval of the mean of `scores` [n]; (nan, nan) if there are none."""
    values = np.asarray(scores, np.float64)
    if not values.size:
        return math.nan, math.nan
    means = _resampled_means(values, np.random.default_rng(seed), resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def paired_interval(
    scores_a: Sequence[float], scores_b: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """Return the mean difference a - b of paired scores, and its 95 % interval."""
    difference = np.asarray(scores_a, np.float64) - np.asarray(scores_b, np.float64)
    low, high = bootstrap_interval(difference.tolist(), seed=seed, resamples=resamples)
    return float(difference.mean()) if difference.size else math.nan, low, high


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided exact p of McNemar's test.

    `only_a` and `only_b` count the questions that only one of two cells answered right.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return 1.0
    # The sum of binomial(n, k) / 2**n for k <= fewer, in logarithms because n may be thousands.
    logs = [_log_choose(n, k) - n * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's step-down correction, in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, highest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def _resampled_means(
    values: np.ndarray, rng: np.random.Generator, resamples: int
) -> np.ndarray:  # [resamples]
    block = max(1, _CELLS_AT_ONCE // values.size)
    means = [
        values[rng.integers(0, values.size, (min(block, resamples - done), values.size))].mean(1)
        for done in range(0, resamples, block)
    ]
    return np.concatenate(means)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
