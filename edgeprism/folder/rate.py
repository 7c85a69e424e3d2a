"""How many pictures a second a machine captions: measured, and remembered from run to run.

The time of one caption says little about it, because several pictures are in progress at a time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprism.choices import ALL
from edgeprism.files.remembered import Remembered
from edgeprism.folder.batch import Batch
from edgeprism.folder.tuning import BatchShape, machine_key

if TYPE_CHECKING:
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.perceive.options import Plan
    from edgeprism.picture.find import PictureFile

ENOUGH = 20  # captions after which a run's rate is worth more than a measurement
SAMPLE = 3  # pictures that are captioned at least to measure a rate
_SECONDS = 3.0  # spent on more pictures, where captions come faster than one a second
_GROUPS = 8  # groups of captions that decode together, so that the rate does not depend on one
_rates = Remembered("rates.json")


@dataclass(frozen=True)
class Rate:
    """Seconds that a picture takes in a run, and the number of captions that say so."""

    seconds_per_picture: float
    captions: int


class RateMeter:
    """Measures a run's rate from the moments at which captions come.

    Captions that decode together come together, in groups of `group`. The time until the first
    group is complete is left out: it includes the start of workers and the loading of models.
    """

    def __init__(self, group: int) -> None:
        self._group, self._count = group, 0
        self._last = time.perf_counter()
        self._busy = self._until_group = 0.0  # seconds spent on captions

    def add(self, *, made: bool) -> None:
        """Note an outcome; the time before one that was not `made` now does not count."""
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        if not made:
            return
        self._count += 1
        self._busy += elapsed
        if self._count == self._group:
            self._until_group = self._busy

    def rate(self) -> Rate | None:
        """Return the rate so far; None if nothing was captioned."""
        if not self._count:
            return None
        if self._count > self._group:
            seconds = (self._busy - self._until_group) / (self._count - self._group)
        else:
            seconds = self._busy / self._count
        return Rate(seconds, self._count)


def known_rate(captioner: Captioner, plan: Plan) -> Rate | None:
    """Return the rate of an earlier run with the same model and settings on this machine."""
    value = _rates.read().get(_key(captioner, plan))
    match value:
        case [int() | float() as seconds, int() as captions] if seconds > 0 and captions > 0:
            return Rate(float(seconds), captions)
        case _:
            return None


def remember_rate(captioner: Captioner, plan: Plan, rate: Rate | None) -> None:
    """Keep a run's rate for later estimates, unless an earlier one rests on more captions."""
    if rate is None or rate.seconds_per_picture <= 0:
        return
    before = known_rate(captioner, plan)
    if before is None or rate.captions >= min(ENOUGH, before.captions):
        value = [round(rate.seconds_per_picture, 5), rate.captions]
        _rates.remember(_key(captioner, plan), value)


def measure_rate(
    captioner: Captioner, plan: Plan, pictures: Sequence[PictureFile], shape: BatchShape
) -> Rate | None:
    """Caption some of the pictures and throw the captions away; None if none can be read.

    They are SAMPLE pictures, and where these take less than a second each, as many more as some
    seconds allow: enough for several groups that decode together.
    """
    width, lanes = shape
    batch = Batch(captioner, plan, parallel=width, lanes=lanes, limit=SAMPLE)
    start = time.perf_counter()
    made = [outcome.record is not None for outcome in batch.run(_spread(pictures, 4 * SAMPLE))]
    if not any(made):
        return None
    first = Rate((time.perf_counter() - start) / sum(made), sum(made))
    if first.seconds_per_picture > 1:
        return first
    group = width * lanes
    batch, meter = Batch(captioner, plan, parallel=width, lanes=lanes), RateMeter(group)
    end: float | None = None  # counted from the first caption on, when all has started
    for outcome in batch.run(_spread(pictures, _GROUPS * group)):
        meter.add(made=outcome.record is not None)
        end = end or time.perf_counter() + _SECONDS
        if time.perf_counter() > end:
            batch.stop()
    more = meter.rate()
    return more if more is not None and more.captions > group else first


def _spread(pictures: Sequence[PictureFile], number: int) -> Sequence[PictureFile]:
    """Return up to `number` pictures from all parts of the sequence."""
    step = max(1, len(pictures) // number)
    return pictures[step // 2 :: step][:number]


def _key(captioner: Captioner, plan: Plan) -> str:
    limit = plan.visual_tokens
    other = "" if limit == captioner.engines.visual_tokens else f":{limit or ALL} visual tokens"
    return f"{machine_key(captioner)}:{plan.sampling.max_tokens}{other}"
