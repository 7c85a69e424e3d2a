"""The machine's rates as far as `edgeprism setup` has measured them here, the best of all runs.

Each run measures for a second or two beside whatever else the machine does, so that one run finds
less than another. What a quiet machine does is the best of them, and offers that follow from it do
not change from run to run.
"""

from __future__ import annotations

from edgeprism.files.remembered import Remembered
from edgeprism.machine import facts
from edgeprism.machine.rates import Rates, assumed_rates

_LARGEST = 1e9  # of a rate that can have been measured
_rates = Remembered("machine.json", limit=20)  # a home folder may be shared by machines


def best_rates(measured: Rates) -> Rates:
    """Return the best of `measured` and of the earlier runs on this machine, and remember it."""
    earlier = _remembered()
    best = measured
    if earlier is not None:
        best = Rates(max(measured.gflops, earlier.gflops), max(measured.read_gbs, earlier.read_gbs))
    if best != earlier:
        _rates.remember(_machine(), {"gflops": best.gflops, "read_gbs": best.read_gbs})
    return best


def known_rates() -> Rates:
    """Return the best rates that were measured on this machine, or those of a usual one."""
    return _remembered() or assumed_rates()


def _machine() -> str:
    return f"{facts.cpu_name()}, cores: {facts.available_cores()}"


def _remembered() -> Rates | None:
    """Return this machine's best rates; None if there are none, or if the file was damaged."""
    fact = _rates.read().get(_machine())
    if not isinstance(fact, dict):
        return None
    values = [fact.get("gflops"), fact.get("read_gbs")]
    numbers = [float(v) for v in values if isinstance(v, int | float) and 0 < v < _LARGEST]
    return Rates(numbers[0], numbers[1]) if len(numbers) == len(values) else None
