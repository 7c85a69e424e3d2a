"""How many captions to decode at a time, and in how many lanes: measured once on this machine.

A step for eight sequences costs little more than a step for one while weights are what is read;
how much more depends on the machine. So the steps are timed, on short prompts of noise, and the
smallest width within a few percent of the best rate is kept, for each bundle. Where the language
model leaves cores idle, lanes side by side are timed the same way. Memory for the KV cache bounds
both.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeprism.files.remembered import Remembered
from edgeprism.language.generator import Generator
from edgeprism.language.request import Request, Sampling
from edgeprism.machine.facts import available_cores, cpu_name, memory_bytes
from edgeprism.picture.layout import most_visual_tokens

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner

WIDTHS = (1, 2, 4, 8, 16)
ENOUGH = 0.95  # of the best rate
_STEPS, _MOST_STEPS = 6, 200  # at least and at most
_SECONDS = 0.05  # enough not to be swayed by a hiccup
_PROMPT_ROWS = 8
_KV_SHARE = 0.2  # of the machine's memory, at most, for all sequences together
_shapes = Remembered("tuning.json")


class Shape(NamedTuple):
    """How a batch is laid out: captions that decode together, and lanes that do so side by side."""

    width: int
    lanes: int


def batch_shape(captioner: Captioner, width: int | None = None) -> Shape:
    """What serves this bundle best on this device, measured when first asked; `width` fixes one."""
    settings = (
        captioner.bundle.digest,
        captioner.device,
        captioner.engines.lm_threads(),
        cpu_name(),
    )
    key = ":".join(map(str, (*settings, available_cores(), width or "best")))
    if (shape := _as_shape(_shapes.read().get(key))) is not None:
        return shape
    width = width or best_width(decode_rates(captioner))
    shape = Shape(width, best_width(lane_rates(captioner, width)))
    _shapes.remember(key, shape)
    return shape


def _as_shape(value: Any) -> Shape | None:
    """A shape as it was kept; None for anything else, which is then measured again."""
    sound = isinstance(value, list) and len(value) == 2
    if not sound or not all(isinstance(number, int) and number > 0 for number in value):
        return None
    return Shape(value[0], value[1])


def best_width(rates: dict[int, float]) -> int:
    """The smallest width whose tokens/s reach ENOUGH of the best."""
    best = max(rates.values())
    return min(width for width, rate in rates.items() if rate >= ENOUGH * best)


def decode_rates(captioner: Captioner) -> dict[int, float]:
    """Tokens/s of all sequences together, by width; ends early where it no longer rises."""
    rates: dict[int, float] = {}
    for width in WIDTHS:
        if width > 1 and not _fits(captioner, width):
            break
        rates[width] = _lanes_rate(captioner, width, 1)
        if rates[width] < ENOUGH * max(rates.values()):
            break
    return rates


def lane_rates(captioner: Captioner, width: int) -> dict[int, float]:
    """Tokens/s of all lanes together, by their number: one, or as many as there are cores for."""
    rates = {1: _lanes_rate(captioner, width, 1)}
    most = available_cores() // captioner.engines.lm_threads() if captioner.device == "cpu" else 1
    if most > 1 and _fits(captioner, width * most):
        rates[most] = _lanes_rate(captioner, width, most)
    return rates


def _lanes_rate(captioner: Captioner, width: int, lanes: int) -> float:
    """Tokens/s of `lanes` generators side by side, `width` sequences in each."""
    rows = np.random.default_rng(0).standard_normal(
        (_PROMPT_ROWS, captioner.bundle.manifest.lm.n_embd), dtype=np.float32
    )
    request = Request((rows, [0]), Sampling(max_tokens=_MOST_STEPS + 4, stop_at_end=False))
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
    generator.step()  # the first builds the graph
    start = time.perf_counter()
    for step in range(1, _MOST_STEPS + 1):
        generator.step()
        elapsed = time.perf_counter() - start
        if step >= _STEPS and elapsed >= _SECONDS:
            break
    return width * step / elapsed


def _fits(captioner: Captioner, width: int) -> bool:
    """Whether that many whole captions' KV cells stay within their share of memory."""
    memory = memory_bytes()
    if memory is None:
        return width <= WIDTHS[2]
    manifest = captioner.bundle.manifest
    cells = most_visual_tokens(manifest) + manifest.prompts.max_tokens + 128
    return width * cells * captioner.engines.kv_bytes_per_token() <= _KV_SHARE * memory
