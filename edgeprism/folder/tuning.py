"""Measures how many captions to decode at a time, and in how many lanes, on this machine.

A step spends most of its time reading weights, so a step for eight sequences costs little more
than a step for one; how much more depends on the machine. This module times steps on short prompts
of noise and remembers, for each bundle, the smallest width within a few percent of the best rate.
If the language model leaves cores idle, it times concurrent lanes in the same way. Memory for the
KV cache limits both. What was measured while other programs kept cores busy serves one run and is
not remembered, because a slow shape would stay for good.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeprism.files.remembered import Remembered
from edgeprism.language.generator import Generator
from edgeprism.language.request import Request, Rows, Sampling
from edgeprism.machine.facts import available_cores, cpu_name, granted_share, memory_bytes
from edgeprism.machine.load import LoadMeter
from edgeprism.picture.layout import most_visual_tokens
from edgeprism.vision.token_reduction import most_rows

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner

WIDTHS = (1, 2, 4, 8, 16)
ENOUGH = 0.95  # share of the best rate
_MIN_STEPS, _MAX_STEPS = 6, 200
_SECONDS = 0.05  # long enough that a short interruption does not change the result
_PROMPT_ROWS = 8
_KV_SHARE = 0.2  # largest share of the machine's memory for all sequences together
_QUIET = 0.2  # cores that other programs may keep busy while a shape is measured
_shapes = Remembered("batch_shapes.json")


class BatchShape(NamedTuple):
    """The size of a batch: captions that decode together in a lane, and concurrent lanes."""

    width: int
    lanes: int


def batch_shape(captioner: Captioner, width: int | None = None) -> BatchShape:
    """Return the best batch shape for this bundle on this device; the first quiet call measures it.

    A given `width` is used as it is.
    """
    key = f"{machine_key(captioner)}:{width or 'best'}"
    if (shape := _as_shape(_shapes.read().get(key))) is not None:
        return shape
    meter = LoadMeter()
    with captioner.in_use():
        width = width or best_width(decode_rates(captioner))
        shape = BatchShape(width, best_lanes(captioner, width))
    if (meter.others() or 0.0) <= _QUIET:
        _shapes.remember(key, shape)
    return shape


def machine_key(captioner: Captioner) -> str:
    """Return a key for facts that depend on the bundle, the device, its threads and cores.

    They also depend on the visual tokens, which take time and memory.
    """
    limit = captioner.engines.visual_tokens
    settings = (
        captioner.bundle.digest,
        captioner.device,
        captioner.engines.lm_threads(),
        cpu_name(),
        available_cores(),
        *(() if limit is None else (f"{limit} visual tokens",)),
    )
    return ":".join(map(str, settings))


def _as_shape(value: Any) -> BatchShape | None:
    """Read a remembered shape; None for anything invalid, which is then measured again."""
    sound = isinstance(value, list) and len(value) == 2
    if not sound or not all(isinstance(number, int) and number > 0 for number in value):
        return None
    return BatchShape(value[0], value[1])


def best_width(rates: dict[int, float]) -> int:
    """Return the smallest width whose tokens/s reach ENOUGH of the best rate."""
    best = max(rates.values())
    return min(width for width, rate in rates.items() if rate >= ENOUGH * best)


def decode_rates(captioner: Captioner) -> dict[int, float]:
    """Measure tokens/s of all sequences together, by width, until the rate falls."""
    rates: dict[int, float] = {}
    for width in WIDTHS:
        if width > 1 and not _fits(captioner, width):
            break
        rates[width] = _lanes_rate(captioner, width, 1)
        if rates[width] < ENOUGH * max(rates.values()):  # it may be another program's doing
            rates[width] = max(rates[width], _lanes_rate(captioner, width, 1))
        if rates[width] < ENOUGH * max(rates.values()):
            break
    return rates


def best_lanes(captioner: Captioner, width: int) -> int:
    """Return 1 or as many concurrent lanes as the cores allow, whichever gives more tokens/s.

    They take turns, and the best of each counts, because another program can only slow them.
    """
    most = available_cores() // captioner.engines.lm_threads() if captioner.device == "cpu" else 1
    if most <= 1 or not _fits(captioner, width * most):
        return 1
    turns = [{lanes: _lanes_rate(captioner, width, lanes) for lanes in (1, most)} for _ in "ab"]
    return best_width({lanes: max(rates[lanes] for rates in turns) for lanes in (1, most)})


def _lanes_rate(captioner: Captioner, width: int, lanes: int) -> float:
    """Measure tokens/s of `lanes` concurrent generators with `width` sequences each."""
    lm = captioner.engines.lm()
    numbers = np.random.default_rng(0).standard_normal(
        (_PROMPT_ROWS, lm.n_embd_row), dtype=np.float32
    )
    rows = Rows(numbers, apart=lm.rows_apart)
    request = Request((rows, [0]), Sampling(max_tokens=_MAX_STEPS + 4, stop_at_end=False))
    generators = [captioner.engines.new_generator(width) for _ in range(lanes)]
    try:
        with ThreadPoolExecutor(lanes) as pool:
            return sum(pool.map(lambda generator: _rate(generator, request, width), generators))
    finally:
        for generator in generators:
            generator.close()


def _rate(generator: Generator, request: Request, width: int) -> float:
    for index in range(width):
        generator.add(index, request)
    generator.step()  # not timed, because the first step builds the graph
    start = time.perf_counter()
    for step in range(1, _MAX_STEPS + 1):
        generator.step()
        elapsed = time.perf_counter() - start
        if step >= _MIN_STEPS and elapsed >= _SECONDS:
            break
    return width * step / elapsed


def _fits(captioner: Captioner, width: int) -> bool:
    """Return whether the KV cells of `width` longest captions fit into their share of memory."""
    memory = memory_bytes()
    if memory is None:
        return width <= WIDTHS[2]
    manifest = captioner.bundle.manifest
    visual = most_rows(most_visual_tokens(manifest), captioner.engines.visual_tokens)
    cells = visual + manifest.prompts.max_tokens + 128
    share = _KV_SHARE * granted_share()  # other processes of a cluster have theirs
    return width * cells * captioner.engines.kv_bytes_per_token() <= share * memory
