"""`edgeprism setup`: which models suit this machine, of those on its disk and in the catalogue.

How long a model would take follows from two rates of the machine (`edgeprism.machine.rates`) and
from how much work the model is, which the catalogue knows. The factors between a rate and what the
engines reach were measured with a captioner of PrismCaptioner-2B's dimensions on two cores, where
the same minutes gave 125 GFLOP/s and 23 GB/s: encoding with libmtmd 6.5 s and with an int8 graph
2.9 s, prefill of 768 rows 17 s, 14 tokens a second.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.install.discover import discover
from edgeprism.install.extras import install_extra
from edgeprism.install.inventory import ModelEntry, list_models
from edgeprism.install.memory_needs import needed_memory
from edgeprism.install.work_folder import offline_switch
from edgeprism.machine import facts
from edgeprism.machine.available_memory import available_memory
from edgeprism.machine.load import busy_cores
from edgeprism.machine.rates import Rates, assumed_rates, measure_rates
from edgeprism.models.catalogue import KINDS, Catalogue, Work, read_catalogue

# parts of the two rates that the engines reach
ENCODE, ENCODE_GRAPH, PREFILL, DECODE = 0.8, 1.8, 1.2, 0.65
CAPTION_TOKENS, ANSWER_TOKENS = 80, 30
QUESTION_TOKENS = 400  # the captions, the question and the examples of its prompt
PATIENCE_S = 12.0  # for one picture, or one answer; above it a faster model is recommended
OFFERED = 3
_MEMORY_SHARE = 0.8  # of what the machine has, for one model


@dataclass(frozen=True)
class Offer:
    """One model that fits this machine."""

    name: str  # as commands take it
    kind: str  # captioner | reasoner
    fetch: int  # bytes to fetch; 0 if it is here
    memory: int | None  # estimated bytes
    seconds: float | None  # estimated for a picture, or an answer
    license: str
    description: str

    @property
    def here(self) -> bool:
        """Whether it is on this machine already."""
        return self.fetch == 0


@dataclass(frozen=True)
class Machine:
    """What was found out about this machine."""

    cpu: str
    cores: int
    busy_cores: int  # that other programs use at the moment
    int8_dot: bool
    memory: int | None  # bytes that this process may use
    free_memory: int | None
    gpu: bool  # llama.cpp can use it
    rates: Rates


@dataclass(frozen=True)
class Survey:
    """A machine with the models that fit it, the recommended ones first."""

    machine: Machine
    offers: dict[str, list[Offer]]  # kind → at most three
    offline: str  # why nothing can be fetched; "" if it can

    @property
    def lines(self) -> list[str]:
        """The machine in words."""
        m = self.machine
        memory = f"{m.memory / 1e9:.0f} GB of memory" if m.memory else "memory unknown"
        lines = [
            f"{m.cpu}: {m.cores} core{'s' * (m.cores != 1)}, {memory}, "
            f"{'a GPU that llama.cpp uses' if m.gpu else 'no GPU that llama.cpp uses'}; "
            f"measured {m.rates.gflops:.0f} GFLOP/s and {m.rates.read_gbs:.0f} GB/s"
        ]
        if m.busy_cores:
            lines.append(
                f"Other programs use {m.busy_cores} of the cores, so the times below are longer "
                "than on a quiet machine."
            )
        if m.gpu:
            lines.append("The times below are the CPU's; a GPU is faster.")
        if self.offline:
            lines.append(f"{self.offline} Only models on the disk are offered.")
        return lines


def survey_machine(seconds: float = 2.0, catalogue: Catalogue | None = None) -> Survey:
    """Measure the machine for `seconds` and choose the models to offer."""
    from edgeprism.language.llama import supports_offload

    catalogue = catalogue or read_catalogue()
    machine = Machine(
        cpu=facts.cpu_name(),
        cores=facts.available_cores(),
        busy_cores=busy_cores(),
        int8_dot=facts.has_int8_dot(),
        memory=facts.memory_bytes(),
        free_memory=available_memory(),
        gpu=supports_offload(),
        rates=measure_rates(seconds),
    )
    offline = _obstacle_to_fetching()
    listed = list_models(catalogue)
    entries = [*listed, *_others_models(listed)]
    offers = {
        kind: choose_offers(kind, entries, catalogue.work, machine.rates, offline=bool(offline))
        for kind in KINDS
    }
    return Survey(machine, offers, offline)


def suggest_captioner(catalogue: Catalogue | None = None) -> Offer | None:
    """Return a captioner of photographs for this machine, without measuring it; None if none fits.

    It does not look for the models of other programs, which takes longer.
    """
    catalogue = catalogue or read_catalogue()
    entries = list_models(catalogue)
    offers = choose_offers(
        "captioner", entries, catalogue.work, assumed_rates(), offline=bool(_obstacle_to_fetching())
    )
    return offers[0] if offers else None


def _others_models(listed: Sequence[ModelEntry]) -> list[ModelEntry]:
    """Return the models that other programs keep, but those that are installed here by a link."""
    own = {key for entry in listed if entry.path for key in _file_keys(Path(entry.path))}
    return [
        ModelEntry(
            found.reference, found.kind, "installed", found.size, "",
            f"{found.program}: {' '.join(filter(None, (found.architecture, found.quant)))}",
            memory=needed_memory(found.size), disk=found.size,
        )
        for found in discover()
        if found.kind in KINDS and not own.intersection(_file_keys(*map(Path, found.paths)))
    ]  # fmt: skip


def _file_keys(*paths: Path) -> Iterator[tuple[int, int]]:
    """Yield device and inode of files, and of the files in folders."""
    for path in paths:
        with contextlib.suppress(OSError):  # gone meanwhile
            for file in path.iterdir() if path.is_dir() else [path]:
                status = file.stat()
                yield status.st_dev, status.st_ino


def choose_offers(
    kind: str, entries: Sequence[ModelEntry], work: dict[str, Work], rates: Rates, *, offline: bool
) -> list[Offer]:
    """Return at most three models of a kind that fit, the recommended one first.

    What is on the disk goes before what must be fetched. Among models to fetch, the recommended
    one is the largest that takes no longer than `PATIENCE_S`; a larger and a faster one follow.
    """
    fitting = [
        _to_offer(entry, work.get(entry.name), rates)
        for entry in entries
        if entry.kind == kind
        and entry.name != DEFAULT_MODEL  # it is made for drawn scenes
        and entry.state != "damaged"
        and _fits(entry.memory)
    ]
    here = sorted((o for o in fitting if o.here), key=_impatience)
    known = [o for o in fitting if not o.here and o.seconds is not None and not offline]
    known.sort(key=lambda offer: offer.seconds or 0.0)
    return [*here, *_around_best(known)][:OFFERED]


def _impatience(offer: Offer) -> tuple[bool, float]:
    """Order what is here: the largest that is fast enough, then the rest, the fastest first."""
    if offer.seconds is None or offer.seconds <= PATIENCE_S:
        return False, -(offer.memory or 0)
    return True, offer.seconds


def _around_best(by_seconds: list[Offer]) -> list[Offer]:
    if not by_seconds:
        return []
    quick = [i for i, offer in enumerate(by_seconds) if (offer.seconds or 0.0) <= PATIENCE_S]
    best = quick[-1] if quick else 0
    places = [best, best + 1, best - 1, best + 2, best - 2]
    return [by_seconds[i] for i in places if 0 <= i < len(by_seconds)]


def _fits(memory: int | None) -> bool:
    most = min(
        (x for x in (facts.memory_bytes(), available_memory()) if x is not None), default=None
    )
    return memory is None or most is None or memory <= _MEMORY_SHARE * most


def _to_offer(entry: ModelEntry, work: Work | None, rates: Rates) -> Offer:
    fetch = (entry.size or 0) if entry.state == "available" else 0
    weights = entry.disk or entry.size or 0
    seconds = None
    if work is not None:
        answer = entry.kind == "reasoner"
        rows, tokens = (QUESTION_TOKENS, ANSWER_TOKENS) if answer else (work.rows, CAPTION_TOKENS)
        has_graph = work.graph and _is_there("onnx")
        encode = work.encode_gflop / (rates.gflops * (ENCODE_GRAPH if has_graph else ENCODE))
        prefill = 2 * work.parameters_b * rows / (rates.gflops * PREFILL)
        read = weights - work.vision_gb * 1e9  # of each token; the encoder's weights are not
        seconds = encode + prefill + tokens * max(read, 0) / (rates.read_gbs * 1e9 * DECODE)
    return Offer(entry.name, entry.kind, fetch, entry.memory, seconds, entry.license,
                 entry.description)  # fmt: skip


def _obstacle_to_fetching() -> str:
    """Return why no model can be fetched from a hub, in words; "" if one can."""
    if switch := offline_switch():
        return f"{switch} is set, so nothing can be fetched."
    if not _is_there("huggingface_hub"):
        return f"Fetching models needs huggingface_hub: {install_extra('pairs')}."
    return ""


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
