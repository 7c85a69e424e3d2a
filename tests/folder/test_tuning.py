"""The shape of a batch: measured on this machine, and remembered if the machine was quiet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edgeprism.folder import tuning
from edgeprism.folder.tuning import BatchShape, batch_shape, decode_rates
from edgeprism.machine.load import LoadMeter
from edgeprism.perceive.captioner import Captioner


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.load("nano", threads=1)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[int, int]]]:
    """Let each measurement return the next of these rates; returns what was measured."""

    def answer(*rates: float) -> list[tuple[int, int]]:
        left, asked = list(rates), []

        def rate(_captioner: Captioner, width: int, lanes: int) -> float:
            asked.append((width, lanes))
            return left.pop(0)

        monkeypatch.setattr(tuning, "_lanes_rate", rate)
        return asked

    return answer


def set_load(monkeypatch: pytest.MonkeyPatch, cores: float | None) -> None:
    monkeypatch.setattr(LoadMeter, "others", lambda _self: cores)


def test_a_real_measurement_is_remembered(
    captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_load(monkeypatch, 0.0)
    monkeypatch.setattr(tuning, "_SECONDS", 0.0)
    measured = batch_shape(captioner)
    assert measured.width in tuning.WIDTHS
    monkeypatch.setattr(tuning, "_lanes_rate", lambda *_: pytest.fail("it is known already"))
    assert batch_shape(captioner) == measured


def test_what_a_busy_machine_showed_is_measured_again(
    captioner: Captioner,
    monkeypatch: pytest.MonkeyPatch,
    says: Callable[..., list[tuple[int, int]]],
) -> None:
    monkeypatch.setattr(tuning, "available_cores", lambda: 1)
    set_load(monkeypatch, 1.2)
    says(10.0, 5.0, 5.0)
    assert batch_shape(captioner) == BatchShape(1, 1)
    set_load(monkeypatch, None)  # not told: systems without /proc/stat
    says(10.0, 20.0, 30.0, 40.0, 50.0)
    assert batch_shape(captioner) == BatchShape(16, 1)
    says()
    assert batch_shape(captioner) == BatchShape(16, 1)


def test_a_short_interruption_ends_no_search(
    captioner: Captioner, says: Callable[..., list[tuple[int, int]]]
) -> None:
    asked = says(10.0, 4.0, 20.0, 30.0, 25.0, 26.0)  # 2 is slow once, 8 twice
    assert decode_rates(captioner) == {1: 10.0, 2: 20.0, 4: 30.0, 8: 26.0}
    assert [width for width, _ in asked] == [1, 2, 2, 4, 8, 8]


def test_lanes_take_turns(
    captioner: Captioner,
    monkeypatch: pytest.MonkeyPatch,
    says: Callable[..., list[tuple[int, int]]],
) -> None:
    monkeypatch.setattr(tuning, "available_cores", lambda: 2)
    set_load(monkeypatch, 0.0)
    asked = says(50.0, 20.0, 40.0, 90.0)  # two lanes are slow in the first turn
    assert batch_shape(captioner, 4) == BatchShape(4, 2)
    assert asked == [(4, 1), (4, 2), (4, 1), (4, 2)]
