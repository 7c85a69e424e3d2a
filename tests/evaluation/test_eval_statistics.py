"""Intervals and tests against closed forms and published examples."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from edgeprism.evaluation.statistics import bootstrap_interval, holm, mcnemar, paired_interval


def test_mcnemar_against_counting_all_outcomes() -> None:
    """Under the null each of the 2**n ways to split the disagreeing questions is equally likely."""
    for n in range(1, 11):
        sides = [sum(side) for side in product((0, 1), repeat=n)]
        for wins in range(n + 1):
            fewer = min(wins, n - wins)
            extreme = sum(min(s, n - s) <= fewer for s in sides) / 2**n
            assert mcnemar(wins, n - wins) == pytest.approx(min(1.0, extreme), abs=1e-12)


def test_mcnemar_known_values() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(1, 5) == pytest.approx(0.21875)
    assert mcnemar(10, 10) == pytest.approx(1)
    assert mcnemar(0, 20) == pytest.approx(2 * 0.5**20)
    assert mcnemar(2100, 1900) == pytest.approx(math.erfc(199 / math.sqrt(2 * 4000)), rel=0.02)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1, 1]


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    scores = [1.0] * 240 + [0.0] * 160
    low, high = bootstrap_interval(scores, seed=3, resamples=4000)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    assert low == pytest.approx(0.6 - half, abs=0.006)
    assert high == pytest.approx(0.6 + half, abs=0.006)
    assert bootstrap_interval(scores, seed=3, resamples=4000) == (low, high)
    assert bootstrap_interval(scores, seed=4, resamples=4000) != (low, high)
    assert bootstrap_interval([1.0, 1.0], seed=0) == (1, 1)
    assert all(map(math.isnan, bootstrap_interval([], seed=0)))


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        scores = (rng.random(120) < 0.4).astype(float)
        low, high = bootstrap_interval(scores.tolist(), seed=seed, resamples=400)
        covered += low <= 0.4 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_pairs_are_compared_question_by_question() -> None:
    """Two cells that differ in few questions differ significantly, though intervals overlap."""
    scores_b = [float(i % 2) for i in range(300)]
    scores_a = [max(score, float(i < 24)) for i, score in enumerate(scores_b)]
    difference, low, high = paired_interval(scores_a, scores_b, seed=0)
    assert difference == pytest.approx(12 / 300)
    assert low > 0
    half = 1.96 * math.sqrt(0.04 * 0.96 / 300)
    assert (low, high) == pytest.approx((0.04 - half, 0.04 + half), abs=0.006)
    assert bootstrap_interval(scores_a, seed=0)[0] < bootstrap_interval(scores_b, seed=0)[1]
