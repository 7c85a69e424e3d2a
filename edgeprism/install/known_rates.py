"""The machine's rates as far as `edgeprism setup` has measured them: the best of its latest runs.

Each run measures for a second or two beside whatever else the machine does, so that one run finds
less than another. What a quiet machine does is the best of several, and offers that follow from it
do not change from run to run. Only the latest runs count, because a machine may become slower for
good: its cooling fails, its power is limited, or the same name stands for another host.
"""

from __future__ import annotations

import time

from edgeprism.files.remembered import Remembered
from edgeprism.machine import facts
from edgeprism.machine.rates import Rates, assumed_rates

_LARGEST = 1e12  # number that can stand in the file
_RUNS = 5
_AGE_S = 30 * 24 * 3600.0  # between an earlier run and the latest one
_rates = Remembered("machine.json", limit=20)  # a home folder may be shared by machines

_Run = tuple[float, float, float]  # seconds since 1970, 10^9 operations a second, GB a second


def best_rates(measured: Rates) -> Rates:
    """Remember `measured`, and return the best of the latest runs on this machine, it included."""
    run = (time.time(), measured.gflops, measured.read_gbs)
    runs = [*_remembered(), run][-_RUNS:]
    _rates.remember(_machine(), runs)
    return _best(runs)


def known_rates() -> Rates:
    """Return the best rates of the latest runs on this machine, or those of a usual one."""
    runs = _remembered()
    return _best(runs) if runs else assumed_rates()


def _best(runs: list[_Run]) -> Rates:
    latest = runs[-1][0]
    _, gflops, read_gbs = zip(*(r for r in runs if abs(latest - r[0]) <= _AGE_S), strict=True)
    return Rates(max(gflops), max(read_gbs))


def _machine() -> str:
    return f"{facts.cpu_name()}, cores: {facts.available_cores()}"


def _remembered() -> list[_Run]:
    """Return this machine's runs, the latest last; none if the file is of another form."""
    runs = _rates.read().get(_machine())
    return [run for item in runs if (run := _to_run(item))] if isinstance(runs, list) else []


def _to_run(item: object) -> _Run | None:
    if not isinstance(item, list) or len(item) != 3:
        return None
    numbers = [float(v) for v in item if isinstance(v, int | float) and 0 < v < _LARGEST]
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None
