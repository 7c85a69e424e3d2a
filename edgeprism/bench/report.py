"""What a benchmark found, as `edgeprism bench --json` writes it (`bench.schema.json`)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import ManifestError, UsageError
from edgeprism.files.regular import read_limited
from edgeprism.files.strict_json import record_from_json

SCHEMA = 1
_MAX_BYTES = 16 << 20  # of a file of results
GROUPS = {  # group → what it says of its stages
    "cold": "cold: a process of its own, as a shell sees it",
    "warm": "warm: one process, models loaded",
    "reasoner": "reasoner: models loaded",
    "folder": "folder: a process of its own, start and loading included",
}
LABELS = {
    "start": "process start", "load": "load", "decode_image": "decode image",
    "preprocess": "preprocess", "encode": "encode", "prefill": "prefill", "decode": "decode",
    "first_text": "time to first token", "decode_rate": "decode", "rest": "the rest",
    "whole": "whole caption", "focus": "focus", "answer": "answer", "evidence": "evidence",
    "throughput": "throughput",
}  # fmt: skip


@dataclass(frozen=True)
class Floor:
    """The least that a stage needs on this machine: milliseconds, or the highest rate."""

    value: float
    share: float  # of what the machine can do, 1.0 for all of it
    basis: str  # what was counted, and the rate it was divided by


@dataclass(frozen=True)
class Stage:
    """The measured values of one stage, in the order of the runs."""

    group: str
    name: str
    unit: str  # "ms", "tokens/s" or "pictures/s"
    median: float
    min: float
    max: float
    p95: float  # of times the slow end, of rates the low end
    values: list[float]
    floor: Floor | None

    @property
    def label(self) -> str:
        """The stage's name for people."""
        return LABELS.get(self.name, self.name)


@dataclass(frozen=True)
class Machine:
    """The computer, as far as it matters for time."""

    cpu: str
    cores: int
    memory_bytes: int | None
    system: str
    python: str


@dataclass(frozen=True)
class Settings:
    """How it was measured."""

    runs: int
    images: list[str]
    caption_tokens: int | None
    folder_pictures: int
    visual_tokens: str | None = None  # the most of a picture that the language model gets


@dataclass(frozen=True)
class Model:
    """A model that was measured."""

    name: str
    digest: str
    vision_quant: str
    lm_quant: str
    device: str
    threads: int | None


@dataclass(frozen=True)
class Rates:
    """What all cores do together, measured right before the stages."""

    float32_gflops: float
    int8_gops: float
    read_gbs: float
    read_bytes: int  # size of what was read: as large as the captioner's language model


@dataclass(frozen=True)
class Conditions:
    """What else went on; None where the system does not say."""

    others_before: float | None  # cores that other programs kept busy
    others_during: float | None
    clock_mhz_before: float | None
    clock_mhz_after: float | None
    temperature_c_before: float | None
    temperature_c_after: float | None
    throttled: int | None  # how often the processor slowed down because of heat
    disturbed: list[str]  # why the figures cannot be relied on; empty: nothing was noticed


@dataclass(frozen=True)
class Tokens:
    """Median token counts of the warm captions."""

    visual: int
    prompt: int
    generated: int


@dataclass(frozen=True)
class Memory:
    """Peak resident bytes of the process that captions, up to each point; None: not told."""

    imports: int | None
    encoded: int | None
    captioned: int | None
    reasoner: int | None  # of the process that answers
    device: int | None = None  # of a GPU's memory, that the captioner took; None: on the CPU


@dataclass(frozen=True)
class Energy:
    """Joules a warm caption, of all that the machine's sensors count; None with the reason."""

    joules_per_caption: float | None
    reason: str
    counted: str = ""  # what the sensors count


@dataclass(frozen=True)
class Report:
    """One run of the benchmark."""

    schema: int
    version: str
    date: str
    machine: Machine
    settings: Settings
    model: Model
    reasoner: Model | None
    rates: Rates
    conditions: Conditions
    tokens: Tokens
    stages: list[Stage]
    memory: Memory
    energy: Energy
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self)

    def stage(self, group: str, name: str) -> Stage | None:
        """Return a stage, or None if it was not measured."""
        found = [stage for stage in self.stages if (stage.group, stage.name) == (group, name)]
        return found[0] if found else None

    @property
    def title(self) -> str:
        """The models, and the machine's processor."""
        names = [self.model.name, *([self.reasoner.name] if self.reasoner else [])]
        return f"{' and '.join(names)} on {self.machine.cpu}, {self.machine.cores} cores"


def summarize(
    group: str, name: str, values: Sequence[float], unit: str = "ms", floor: Floor | None = None
) -> Stage:
    """Return the stage of `values`; raises ValueError if there are none."""
    if not values:
        raise ValueError(f"{name} was not measured")
    slow = 0.95 if unit == "ms" else 0.05
    return Stage(
        group, name, unit, statistics.median(values), min(values), max(values),
        quantile(values, slow), list(values), floor,
    )  # fmt: skip


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of `values` lie, interpolated between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def read_report(path: Path) -> Report:
    """Read a file that `edgeprism bench --json` wrote; raises UsageError, which names it."""
    hint = "Give a file that `edgeprism bench --json FILE` wrote with this version."
    try:
        report = record_from_json(Report, read_limited(path, _MAX_BYTES), str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}.", hint) from error
    except ManifestError as error:
        faults = "; ".join(error.faults[:3])
        raise UsageError(f"{path}: no results of a benchmark: {faults}.", hint) from error
    if report.schema != SCHEMA:
        raise UsageError(f"{path}: its schema is {report.schema}, not {SCHEMA}.", hint)
    return report
