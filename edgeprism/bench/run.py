"""Measures a captioner and a reasoner on this machine, with the floor of each stage."""

from __future__ import annotations

import datetime
import math
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import numpy as np

from edgeprism.bench import report as r
from edgeprism.bench.floors import Work, with_floors
from edgeprism.bench.limits import measure_limits
from edgeprism.bench.measure import (
    Order,
    Samples,
    measure_cold,
    measure_folder,
    median_tokens,
    run_worker,
    warm_samples,
)
from edgeprism.bench.work import Operations, language_work, nodes_to_operations
from edgeprism.bundle.gguf_parts import model_bytes, read_model_header
from edgeprism.bundle.open import Bundle
from edgeprism.errors import ModelError
from edgeprism.files.safe_text import counted
from edgeprism.machine.facts import available_cores, cpu_name, memory_bytes
from edgeprism.machine.load import LoadMeter
from edgeprism.machine.sensors import clock_mhz, temperature_c, throttle_count
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.layout import PictureLayout, picture_to_layout
from edgeprism.picture.read import read_picture
from edgeprism.reason.local import Reasoner
from edgeprism.version import __version__
from edgeprism.vision.onnx import profile_graph
from edgeprism.vision.wordpiece import WordPiece

_LOOK_S = 0.5  # seconds of looking at other programs before the start
_DISTURBING_CORES = 0.2  # that other programs keep busy on average
_UNITS = {"decode_rate": "tokens/s", "throughput": "pictures/s"}  # of all others: ms
Progress = Callable[[str, int], Callable[[], None]]


@dataclass(frozen=True)
class _Opened:
    """The models that are measured, and the pictures' sizes (width, height)."""

    captioner: Captioner
    reasoner: Reasoner | None
    sizes: list[tuple[int, int]]


@dataclass(frozen=True)
class _Measured:
    """What the processes measured."""

    cold: Samples
    warm: dict[str, Any]
    answers: dict[str, Any] | None
    folder_pictures: int
    folder_rates: list[float]


@dataclass(frozen=True)
class _Found:
    """What follows from it."""

    rates: r.Rates
    conditions: r.Conditions
    tokens: r.Tokens
    stages: list[r.Stage]
    notes: list[str]


def bench(order: Order, progress: Progress = lambda *_: lambda: None) -> r.Report:
    """Measure, and return what was found.

    Parameters:
        order: what to measure.
        progress: called when a part begins, with its name and its number of steps (0: unknown);
            what it returns is called after each step.

    Raises ModelError, ImageError and their like for models and pictures that cannot be used,
    before anything is measured.
    """
    opened = _open(order)
    manifest = opened.captioner.bundle.manifest
    before = _look()
    progress("the machine's limits", 0)
    rates = measure_limits(model_bytes(opened.captioner.bundle.file(manifest.lm.file)))
    meter, throttled = LoadMeter(), throttle_count()
    measured = _measure(order, progress)
    conditions = _conditions(before, meter, throttled)
    tokens = r.Tokens(**median_tokens(measured.warm["made"]))
    stages, notes = _stages(measured), notes_of_cold_starts(cache_from_source(__file__))
    if order.visual_tokens is not None:
        notes.append(f"With visual_tokens={order.visual_tokens} a picture had {tokens.visual}.")
    if manifest.lm.decoder is not None:
        notes.append("No floors: the work of a language model's ONNX graph is not counted.")
    elif (device := measured.warm["device"]) == "cpu":
        progress("counting operations", 0)
        work = _count_work(opened, measured.warm["vision_file"], notes)
        stages = with_floors(stages, work, rates, tokens)
    else:
        notes.append(f"No floors: the rates are the processor's, the models ran on {device}.")
    if measured.answers and (failed := measured.answers["failed"]):
        notes.append(f"The reasoner gave no answer in {failed} of {counted(order.runs, 'run')}.")
    return _report(order, opened, measured, _Found(rates, conditions, tokens, stages, notes))


def _open(order: Order) -> _Opened:
    """Open what the order names, so that a wrong name or picture is told before the work."""
    captioner = Captioner.load(
        order.model,
        **order.engine,
        vision_quant=order.vision_quant,
        visual_tokens=order.visual_tokens,
    )
    reasoner = None if order.reasoner is None else Reasoner.load(order.reasoner, **order.engine)
    return _Opened(captioner, reasoner, [read_picture(image).size for image in order.images])


def _measure(order: Order, progress: Progress) -> _Measured:
    cold = measure_cold(order, progress("cold captions", order.runs))
    progress("warm captions", 0)
    warm = run_worker(
        {
            "work": "caption",
            "model": order.model,
            "engine": {
                **order.engine,
                "vision_quant": order.vision_quant,
                "visual_tokens": order.visual_tokens,
            },
            "images": list(order.images),
            "runs": order.runs,
            "caption_tokens": order.caption_tokens,
        }
    )
    answers = None
    if order.reasoner is not None:
        progress("the reasoner", 0)
        answers = run_worker(
            {
                "work": "answer",
                "reasoner": order.reasoner,
                "engine": dict(order.engine),
                "captions": warm["made"],
                "runs": order.runs,
            }
        )
    count, rates = 0, list[float]()
    if order.folder:
        progress("a folder", 0)
        count, rates = measure_folder(order, statistics.median(m["whole"] for m in warm["made"]))
    return _Measured(cold, warm, answers, count, rates)


def _stages(measured: _Measured) -> list[r.Stage]:
    """Return every stage that was measured, without floors."""
    groups: dict[str, Samples] = {
        "cold": measured.cold, "warm": warm_samples(measured.warm["made"]), "reasoner": {},
        "folder": {"throughput": measured.folder_rates},
    }  # fmt: skip
    if measured.answers:
        reasoner: Samples = {"load": [measured.answers["load"]]}
        for times in measured.answers["made"]:
            for name, value in times.items():
                reasoner.setdefault(name, []).append(value)
        groups["reasoner"] = reasoner
    return [
        r.summarize(group, name, values, _UNITS.get(name, "ms"))
        for group, samples in groups.items()
        for name, values in samples.items()
        if values
    ]


def notes_of_cold_starts(compiled: str) -> list[str]:
    """Say so where Python does not keep what it compiles: `compiled` is this module's, if it does.

    Then it compiles each module anew in each process, which takes longer than other imports.
    """
    if Path(compiled).is_file():
        return []
    return ["Python compiled EdgePrism anew in each cold process: PYTHONDONTWRITEBYTECODE is set, "
            "or the package's folder cannot be written to."]  # fmt: skip


# ---- floors


def _count_work(opened: _Opened, vision_file: str, notes: list[str]) -> Work:
    """Count a caption's work from the bundle's files; add to `notes` what has no floor and why."""
    bundle = opened.captioner.bundle
    manifest = bundle.manifest
    language = language_work(read_model_header(bundle.file(manifest.lm.file)))
    if manifest.vision.mmproj is not None:
        notes.append("No floor of encode: llama.cpp's encoder does not say what it computes.")
        return Work(None, language)
    layouts = [picture_to_layout(each, manifest) for each in opened.sizes]
    # where tiles differ in shape, the picture with the middle number of pixels counts
    layouts.sort(key=_pixels)
    middle = layouts[len(layouts) // 2]
    share = statistics.median(map(_pixels, layouts)) / _pixels(middle)
    work = Operations()
    try:
        for shape, n_tiles in Counter(middle.shapes).items():
            tile = np.zeros((1, *shape, manifest.image.channels), np.uint8)
            nodes = profile_graph(bundle.file(vision_file), tile)
            work += nodes_to_operations(nodes) * (n_tiles * share)
        work += _count_connector(bundle, vision_file) * middle.n_tiles
    except ModelError as error:
        notes.append(f"No floor of encode: {error.summary}")
        return Work(None, language)
    return Work(work, language)


def _count_connector(bundle: Bundle, vision_file: str) -> Operations:
    """Count the work of the second graph for one tile and the instruction, if there is one."""
    text = bundle.manifest.vision.text
    if text is None:
        return Operations()
    (name,) = (v.connector for v in bundle.manifest.vision.variants if v.file == vision_file)
    vocabulary = WordPiece.from_file(
        bundle.file(text.vocabulary), max_ids=text.max_ids, truncation=text.truncation
    )
    ids = np.array([vocabulary.ids(bundle.manifest.prompts.default_instruction)], np.int64)
    features = np.zeros((1, text.features, text.width), np.float32)
    return nodes_to_operations(profile_graph(bundle.file(name), features, ids))


def _pixels(layout: PictureLayout) -> int:
    return sum(map(math.prod, layout.shapes))


# ---- the machine


@dataclass(frozen=True)
class _Look:
    """What the sensors say at one moment."""

    others: float | None
    clock_mhz: float | None
    temperature_c: float | None


def _look() -> _Look:
    meter = LoadMeter()
    time.sleep(_LOOK_S)
    return _Look(meter.others(), clock_mhz(), temperature_c())


def _conditions(before: _Look, meter: LoadMeter, throttled: int | None) -> r.Conditions:
    """Return what went on since `meter` and `throttled` were taken, and what of it disturbed."""
    during, now = meter.others(), throttle_count()
    slowed = None if throttled is None or now is None else now - throttled
    return r.Conditions(
        others_before=before.others, others_during=during,
        clock_mhz_before=before.clock_mhz, clock_mhz_after=clock_mhz(),
        temperature_c_before=before.temperature_c, temperature_c_after=temperature_c(),
        throttled=slowed, disturbed=disturbances(before.others, during, slowed),
    )  # fmt: skip


def disturbances(
    others_before: float | None, others_during: float | None, slowed: int | None
) -> list[str]:
    """Return why a run's figures cannot be relied on, from cores that others used, and heat."""
    disturbed = []
    for when, others in (("before", others_before), ("during", others_during)):
        if others is not None and others > _DISTURBING_CORES:
            disturbed.append(f"other programs kept {others:.1f} cores busy {when} the run")
    if slowed:
        disturbed.append(f"the processor slowed down {slowed} times because of heat")
    return disturbed


def _machine() -> r.Machine:
    return r.Machine(
        cpu_name(), available_cores(), memory_bytes(), platform.platform(),
        sys.version.split()[0],
    )  # fmt: skip


# ---- the report


def _report(
    order: Order,
    opened: _Opened,
    measured: _Measured,
    found: _Found,
) -> r.Report:
    warm, answers = measured.warm, measured.answers
    reasoner = None
    if opened.reasoner is not None and answers is not None:
        reasoner = r.Model(
            **answers["model"], device=order.engine.get("device", "auto"), threads=None
        )
    return r.Report(
        schema=r.SCHEMA,
        version=__version__,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        settings=r.Settings(
            order.runs,
            [Path(image).name for image in order.images],
            order.caption_tokens,
            measured.folder_pictures,
            None if order.visual_tokens is None else str(order.visual_tokens),
        ),
        model=r.Model(
            **asdict(opened.captioner.model), device=warm["device"], threads=warm["threads"]
        ),
        reasoner=reasoner,
        rates=found.rates,
        conditions=found.conditions,
        tokens=found.tokens,
        stages=found.stages,
        memory=r.Memory(**warm["memory"], reasoner=answers["memory"] if answers else None),
        energy=r.Energy(warm["joules_per_caption"], warm["energy_reason"], warm["energy_counted"]),
        notes=found.notes,
    )
