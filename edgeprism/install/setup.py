"""`edgeprism setup`: look at this machine, and offer models of its disk and of the catalogue."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprism.errors import EdgePrismError, NoAnswerError
from edgeprism.install.discover import Discovered, discover
from edgeprism.install.extras import has_module, install_extra
from edgeprism.install.inventory import ModelEntry, list_models
from edgeprism.install.known_rates import best_rates, known_rates
from edgeprism.install.memory_needs import counted_memory, counted_pair_memory, estimated_memory
from edgeprism.install.offers import Offer, choose_offers
from edgeprism.install.work_folder import offline_switch
from edgeprism.machine import facts
from edgeprism.machine.available_memory import available_memory
from edgeprism.machine.load import busy_cores
from edgeprism.machine.rates import Rates, measure_rates
from edgeprism.models.catalogue import KINDS, Catalogue, read_catalogue

_HUB = "hub:"


@dataclass(frozen=True)
class Machine:
    """What was found out about this machine."""

    cpu: str
    cores: int
    busy_cores: int  # that other programs use at the moment
    int8_dot: bool
    memory_bytes: int | None  # that this process may use
    free_memory_bytes: int | None
    gpu: bool  # llama.cpp can use it
    rates: Rates


@dataclass(frozen=True)
class Survey:
    """A machine with the models that fit it, the recommended ones first."""

    machine: Machine
    offers: dict[str, list[Offer]]  # kind → at most three
    obstacle: str  # why nothing can be fetched; "" if it can

    @property
    def lines(self) -> list[str]:
        """The machine in words."""
        m = self.machine
        memory = f"{m.memory_bytes / 1e9:.1f} GB of memory" if m.memory_bytes else "memory unknown"
        lines = [
            f"{m.cpu}: {m.cores} core{'s' * (m.cores != 1)}, {memory}, "
            f"{'a GPU that llama.cpp uses' if m.gpu else 'no GPU that llama.cpp uses'}; "
            f"measured {m.rates.gflops:.0f} GFLOP/s and {m.rates.read_gbs:.0f} GB/s at best"
        ]
        if m.busy_cores:
            lines.append("Other programs are busy; the times below hold for a quiet machine.")
        if m.gpu:
            lines.append("The times below are the CPU's; a GPU is faster.")
        if self.obstacle:
            lines.append(f"{self.obstacle} Only models on the disk are offered.")
        return lines


def survey_machine(seconds: float = 2.0, catalogue: Catalogue | None = None) -> Survey:
    """Measure the machine for `seconds` and choose the models to offer.

    The rates are the best of this run and of earlier ones.
    """
    from edgeprism.language.llama import supports_offload

    catalogue = catalogue or read_catalogue()
    machine = Machine(
        cpu=facts.cpu_name(),
        cores=facts.available_cores(),
        busy_cores=busy_cores(),
        int8_dot=facts.has_int8_dot(),
        memory_bytes=facts.memory_bytes(),
        free_memory_bytes=available_memory(),
        gpu=supports_offload(),
        rates=best_rates(measure_rates(seconds)),
    )
    obstacle = obstacle_to_fetching()
    listed = list_models(catalogue, count_memory=True)
    found = discover()
    entries = [*listed, *_others_models(found, listed, catalogue)]
    cached = _cached_names(found, catalogue) if has_module("huggingface_hub") else frozenset()
    offers = {
        kind: choose_offers(kind, entries, catalogue.work, machine.rates, offline=bool(obstacle),
                            cached=cached)
        for kind in KINDS
    }  # fmt: skip
    return Survey(machine, offers, obstacle)


def suggest_captioner(catalogue: Catalogue | None = None) -> Offer | None:
    """Return a captioner of photographs for this machine; None if none fits.

    It goes by what `setup` measured here, else by a usual machine. It does not look for the models
    of other programs, which takes longer, and names none whose licence restricts its use.
    """
    catalogue = catalogue or read_catalogue()
    entries = list_models(catalogue, count_memory=True)
    offline = bool(obstacle_to_fetching())
    offers = choose_offers("captioner", entries, catalogue.work, known_rates(), offline=offline)
    return next((offer for offer in offers if offer.terms != "restricted"), None)


def obstacle_to_fetching() -> str:
    """Return why no model can be fetched from a hub, in words; "" if one can."""
    if switch := offline_switch():
        return f"{switch} is set, so nothing can be fetched."
    if not has_module("huggingface_hub"):
        return f"Fetching models needs huggingface_hub: {install_extra('pairs')}."
    return ""


def try_model(kind: str, name: str) -> None:
    """Run an installed model, or one that another program keeps, once in a child process.

    A reasoner is then loaded and writes one token, so that its chat template is tried as well.
    Raises ModelError or TemplateError if the model cannot be run as it is, DeviceError if this
    machine's device does not start.
    """
    if kind == "captioner":
        from edgeprism.perceive.captioner import Captioner

        with Captioner.load(name) as captioner:
            captioner.engines.try_first()
        return
    from edgeprism.language.chat import Message
    from edgeprism.reason.local import Reasoner

    with contextlib.closing(Reasoner.load(name)) as reasoner, contextlib.suppress(NoAnswerError):
        reasoner.complete([Message("user", "Hello")], max_tokens=1)


def _others_models(
    found: Sequence[Discovered], listed: Sequence[ModelEntry], catalogue: Catalogue
) -> list[ModelEntry]:
    """Return the models of other programs that work as they are and are not listed by a name.

    A model with a note, such as one without a chat template, may need an option at each use.
    """
    own = {key for entry in listed if entry.path for key in _file_keys(Path(entry.path))}
    repositories = {model.repo for model in catalogue.gguf.values()}
    return [
        _to_entry(model)
        for model in found
        if model.kind in KINDS
        and not model.note
        and _repository(model) not in repositories
        and not own.intersection(_file_keys(*map(Path, model.paths)))
    ]


def _to_entry(model: Discovered) -> ModelEntry:
    first, last = Path(model.paths[0]), Path(model.paths[-1])
    counted = True
    try:
        pair = model.kind == "captioner"  # the mmproj comes last
        memory = counted_pair_memory(first, last) if pair else counted_memory(first)
    except EdgePrismError:  # it went away, or there is no llama.cpp
        memory, counted = estimated_memory(model.size), False
    return ModelEntry(
        model.reference, model.kind, "installed", model.size, model.license,
        " ".join(filter(None, (model.architecture, model.quant, f"of {model.program}"))),
        memory=memory, memory_counted=counted, disk=model.size,
    )  # fmt: skip


def _cached_names(found: Sequence[Discovered], catalogue: Catalogue) -> frozenset[str]:
    """Return the catalogue's models whose files lie in the hub's cache, whole."""
    whole = {(_repository(model), model.kind) for model in found if _repository(model)}
    return frozenset(
        name for name, model in catalogue.gguf.items() if (model.repo, model.kind) in whole
    )


def _repository(model: Discovered) -> str:
    """Return the repository of a model in the hub's cache, "" for any other."""
    if not model.reference.startswith(_HUB):
        return ""
    return model.reference.removeprefix(_HUB).partition(":")[0]


def _file_keys(*paths: Path) -> Iterator[tuple[int, int]]:
    """Yield device and inode of files, and of the files in folders."""
    for path in paths:
        with contextlib.suppress(OSError):  # gone meanwhile
            for file in path.iterdir() if path.is_dir() else [path]:
                status = file.stat()
                yield status.st_dev, status.st_ino
