"""How fast this machine multiplies matrices and reads its memory: two rates that bound a model.

Taking in a prompt and encoding a picture are products of large matrices; making one more token
reads all weights once. So two seconds of measurement foretell roughly what a model takes that is
not on this machine yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from edgeprism.machine.facts import available_cores

_EDGE = 768  # of a matrix: its three operands fit into a core's own cache and the next
_BLOCK_BYTES = 64 << 20  # read again and again by each thread; larger than any cache it has alone


@dataclass(frozen=True)
class Rates:
    """What all cores do together."""

    gflops: float  # 10^9 operations of a float32 matrix product a second
    read_gbs: float  # 10^9 bytes of memory read a second
    measured: bool = True


def assumed_rates() -> Rates:
    """Return rates of a usual core of a laptop, for a machine that nobody has measured."""
    cores = available_cores()
    return Rates(50.0 * cores, min(10.0 * cores, 25.0), measured=False)


def measure_rates(seconds: float = 2.0, block_bytes: int = _BLOCK_BYTES) -> Rates:
    """Measure both rates, each for half of `seconds`, on the cores that this process may use.

    Each core reads `block_bytes` again and again; what fits into a cache is read faster.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    cores = available_cores()
    matrices = [rng.random((_EDGE, _EDGE), dtype=np.float32) for _ in range(cores)]
    blocks = [rng.random(block_bytes // 4, dtype=np.float32) for _ in range(cores)]
    products = _rate([partial(np.matmul, m, m) for m in matrices], seconds / 2)
    reads = _rate([partial(np.dot, b, b) for b in blocks], seconds / 2)
    return Rates(products * 2 * _EDGE**3 / 1e9, reads * block_bytes / 1e9)


def _rate(calls: list[Callable[[], object]], seconds: float) -> float:
    """Return how many calls a second all threads make together on a quiet machine.

    Counts the processor time of the whole process, so that what other programs take at the moment
    does not count, and that of threads which numpy's own library starts for a call does.
    """

    def repeat(call: Callable[[], object]) -> int:
        count = 0
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    for call in calls:
        call()  # touches the memory, and wakes the library's threads
    with ThreadPoolExecutor(len(calls)) as pool:  # numpy lets the threads run at once
        begin, end = time.process_time(), time.perf_counter() + seconds
        count = sum(pool.map(repeat, calls))
        return count / max(time.process_time() - begin, 1e-9) * len(calls)
