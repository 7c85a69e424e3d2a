"""Measure this machine's limits, with which the other scripts compare their figures."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path


def has_bfloat16() -> bool:
    """Return whether the CPU multiplies bfloat16; engines emulate it elsewhere, many times slower.

    Only Linux says so.
    """
    try:
        words = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def installed_environment() -> dict[str, str]:
    """Return the environment for child processes, in which Python keeps what it compiles.

    Where this variable is set, as in many containers, Python would compile EdgePrism anew in each
    process, which takes longer than the rest of a start. An installation is compiled once.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def spread(values: list[float]) -> str:
    """Format `values` as minimum / median / maximum."""
    return f"{min(values):.3g} / {statistics.median(values):.3g} / {max(values):.3g}"


def cpu_limits() -> tuple[float, float]:
    """Measure fp32 GFLOP/s of a matrix product and GB/s of reading memory, with all cores.

    What is read is larger than the caches.
    """
    from edgeprism.bench.limits import measure_limits

    rates = measure_limits(1 << 30, seconds=3)
    return rates.float32_gflops, rates.read_gbs


def gpu_limits(edge: int = 8192, size: int = 1 << 30, runs: int = 10) -> tuple[float, float]:
    """Measure an NVIDIA GPU's fp16 GFLOP/s of a square matrix product and GB/s of reading memory.

    Both are the best of `runs` with PyTorch's kernels, or 0 without PyTorch with CUDA.
    """
    try:
        import torch
    except ImportError:
        return 0.0, 0.0
    if not torch.cuda.is_available():
        return 0.0, 0.0

    def best(work: Callable[[], object]) -> float:
        def timed() -> None:
            work()
            torch.cuda.synchronize()

        timed()
        return min(_seconds(timed) for _ in range(runs))

    a, b = (torch.randn(edge, edge, device="cuda").half() for _ in range(2))
    data = torch.ones(size // 4, device="cuda")
    return 2 * edge**3 / best(lambda: a @ b) / 1e9, size / best(data.sum) / 1e9


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


class ThreadClock(threading.Thread):
    """Measure the CPU seconds of this process's Python threads, by name, inside a `with`.

    `seconds` also has the CPU seconds of the libraries' own threads and of child processes. Linux.
    """

    def __init__(self) -> None:
        super().__init__(name="clock", daemon=True)
        self._over = threading.Event()
        self._threads: dict[int, tuple[str, float]] = {}  # thread id → name, CPU seconds
        self.seconds: dict[str, float] = {}

    def _look(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        for thread in threading.enumerate():
            try:
                path = Path(f"/proc/self/task/{thread.native_id}/stat")
                fields = path.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended meanwhile
                continue
            cpu = (int(fields[11]) + int(fields[12])) / tick
            self._threads[int(path.parent.name)] = (thread.name, cpu)

    def run(self) -> None:
        while not self._over.wait(0.02):
            self._look()

    def __enter__(self) -> ThreadClock:
        self._look()
        self._before = dict(self._threads)
        self._own, self._times = time.process_time(), os.times()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        times = os.times()
        for number, (name, cpu) in self._threads.items():
            spent = cpu - self._before.get(number, ("", 0.0))[1]
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        own = time.process_time() - self._own
        self.seconds["libraries' threads"] = own - sum(self.seconds.values())
        self.seconds["processes"] = (
            times.children_user - self._times.children_user
            + times.children_system - self._times.children_system
        )  # fmt: skip
