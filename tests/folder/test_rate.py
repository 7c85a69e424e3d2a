"""Pictures a second: what counts, and what is remembered."""

from __future__ import annotations

import pytest

from edgeprism.folder import rate
from edgeprism.folder.rate import Rate, RateMeter, known_rate, remember_rate
from edgeprism.perceive.captioner import Captioner


class Clock:
    """A clock that tests set."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    return clock


def test_captions_that_come_in_groups(clock: Clock) -> None:
    """Four at a time every two seconds, after three seconds of loading: half a second each."""
    meter = RateMeter(4)
    clock.now = 3.0
    for _ in range(5):
        clock.now += 2.0
        for _ in range(4):
            meter.add(made=True)
    assert meter.rate() == Rate(0.5, 20)


def test_known_pictures_and_failures_take_no_part(clock: Clock) -> None:
    meter = RateMeter(1)
    for _ in range(10):
        clock.now += 0.25
        meter.add(made=True)
        clock.now += 7.0
        meter.add(made=False)
    assert meter.rate() == Rate(0.25, 10)
    assert RateMeter(1).rate() is None


def test_few_captions_give_a_rate_with_the_start_in_it(clock: Clock) -> None:
    meter = RateMeter(8)
    clock.now = 3.0
    meter.add(made=True)
    meter.add(made=True)
    assert meter.rate() == Rate(1.5, 2)


def test_a_rate_of_more_captions_is_kept(scripted_captioner: Captioner) -> None:
    plan = scripted_captioner.plan()
    assert known_rate(scripted_captioner, plan) is None
    for made, kept in ((Rate(3.0, 2), 2), (Rate(1.0, 1), 2), (Rate(0.5, 30), 30),
                       (Rate(9.0, 3), 30), (Rate(0.25, 20), 20), (None, 20)):  # fmt: skip
        remember_rate(scripted_captioner, plan, made)
        known = known_rate(scripted_captioner, plan)
        assert known is not None
        assert known.captions == kept
    assert known_rate(scripted_captioner, plan) == Rate(0.25, 20)
    assert known_rate(scripted_captioner, scripted_captioner.plan(caption_tokens=3)) is None


@pytest.mark.parametrize("value", [None, 5, [], [0, 3], [1.0], ["1", 2], [1.0, 2, 3], {"a": 1}])
def test_a_damaged_memory_is_no_rate(scripted_captioner: Captioner, value: object) -> None:
    plan = scripted_captioner.plan()
    rate._rates.remember(rate._key(scripted_captioner, plan), value)
    assert known_rate(scripted_captioner, plan) is None
