"""`edgeprism pull` of GGUF files from a model hub, which need no conversion.

The files stay in the hub's cache, which other programs share; the data folder gets links to them.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeprism.bundle.choose_gguf import (
    Choice,
    choose_files,
    language_models,
    quant_in_name,
)
from edgeprism.bundle.gguf import license_in_header
from edgeprism.bundle.gguf_parts import part_names, part_paths, read_model_header
from edgeprism.bundle.open import find_model, open_bundle
from edgeprism.bundle.pulled import PulledFrom, places_of, pulled_from, remember_pulled
from edgeprism.convert.mmproj.speed_up import speed_up_pair
from edgeprism.errors import EdgePrismError, ModelError, OutputError, PullError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.files.links import link_or_copy, links_work
from edgeprism.files.size_text import size_text
from edgeprism.install.cache_folder import cache_folder
from edgeprism.install.gguf_request import GgufRequest
from edgeprism.install.hub import Fetched, Listing, fetch_files, list_repository
from edgeprism.install.hub_cache import bytes_to_fetch, cached_listing
from edgeprism.install.licenses import published_license, restriction
from edgeprism.install.memory_needs import estimated_memory
from edgeprism.install.pair_graph import earlier_graph, pair_options, with_installed_quants
from edgeprism.install.pulled_models import (
    check_intact,
    encoder_is_chosen,
    remember_encoder_choice,
)
from edgeprism.install.work_folder import (
    mend_interrupted,
    offline_switch,
    require_space,
    work_folder,
    written_safely,
)
from edgeprism.language.trial import try_reasoner
from edgeprism.machine.cancel import Cancel
from edgeprism.memory.plan import machine_memory
from edgeprism.models.catalogue import GgufModel
from edgeprism.progress import Progress
from edgeprism.vision.pair import Origin, write_pair
from edgeprism.vision.trial import remember_captioner

EXTRA = "pairs"


@dataclass(frozen=True)
class Plan:
    """What a pull will fetch and install."""

    name: str
    kind: str  # captioner | reasoner
    listing: Listing
    choice: Choice
    verified: bool  # the project has run this very commit
    to_fetch: int  # bytes that the hub's cache does not hold yet
    replaces: PulledFrom | None = None  # the installed model that goes

    @property
    def memory(self) -> int:
        """Estimated bytes of memory to run it."""
        return estimated_memory(self.choice.size)

    def lines(self) -> list[str]:
        """Return what a person should know before a byte is fetched."""
        listing, choice = self.listing, self.choice
        where = f"{listing.repo} at commit {listing.revision[:12]}"
        unknown = "the hub's cache does not say it" if listing.offline else "the page names none"
        lines = [
            f"  {where}{'' if self.verified else ', unverified: this project has not run it'}",
            f"  licence: {listing.license or unknown}{restriction(listing.license)}",
            *(f"  language model: {_described(listing, name, choice.quant)}" for name in choice.lm),
        ]
        if choice.mmproj:
            about = _described(listing, choice.mmproj, choice.mmproj_quant)
            lines.append(f"  vision tower: {about}")
        if listing.gated:
            lines.append(
                "  The publisher grants access: accept the terms on its page, set HF_TOKEN."
            )
        cached = choice.size - self.to_fetch
        lines.append(
            f"  {size_text(self.to_fetch) if self.to_fetch else 'nothing'} to fetch"
            f"{f', {size_text(cached)} in the cache' if cached else ''}; to run it takes about "
            f"{size_text(self.memory)} of memory, estimated from the files' size"
        )
        lines += self._lines_on_replaced()
        if listing.renamed:
            lines.append(f"  The hub calls this repository {listing.renamed} now.")
        return lines

    def _lines_on_replaced(self) -> list[str]:
        """Return what goes, and how to keep it where only its quantization is another."""
        old, new = self.replaces, self.choice.lm[0]
        if old is None:
            return []
        lines = [f"  It will replace the installed {old.lm} of {old.source}, once it is complete."]
        if not old.has(new):
            apart = f"{self.name}-{self.choice.quant.lower() or 'other'}"
            wanted = f"hf:{self.listing.repo}:{self.choice.quant or new}"
            lines.append(f"  To keep both: edgeprism pull {wanted} --name {apart}")
        return lines


def plan_gguf(name: str, entry: GgufModel, quant: str, progress: Progress) -> Plan:
    """Ask the hub, or offline its cache, for a model's files, and choose among them.

    Args:
        name: The name to install it under.
        entry: Where it is; its kind may be "" for what the repository holds.
        quant: The wanted quantization or file; "" for the installed model's, where there is one,
            else the entry's, or the rule's.
        progress: Is told what is asked for.

    Raises:
        PullError: The hub refuses or cannot be reached, or offline the cache lacks the model.
        ModelError: The repository holds no model of this kind, or several that fit.
        UsageError: It does not hold the wanted quantization; or huggingface_hub is missing.
    """
    if switch := offline_switch():
        listing = cached_listing(entry.repo, entry.revision, switch)
    else:
        listing = list_repository(entry.repo, entry.revision, progress, extra=EXTRA)
    license_ = published_license(listing.license, entry.license)
    listing = dataclasses.replace(listing, license=license_)
    try:
        wanted = quant or _installed_lm(name, listing) or entry.quant
        choice = choose_files(listing.sizes, wanted)
    except EdgePrismError as error:
        place = "the cache" if listing.offline else listing.repo
        raise type(error)(f"{place}: {error.summary}", error.hint, error.details) from error
    if entry.kind == "reasoner" and choice.mmproj:
        size = choice.size - listing.sizes[choice.mmproj]
        choice = Choice(choice.lm, "", choice.quant, "", size)
    if entry.kind == "captioner" and not choice.mmproj:
        raise ModelError(
            f"{entry.repo}: {'the cache holds' if listing.offline else 'there is'} no mmproj file, "
            "so it captions nothing.",
            "Unset the offline switch to fetch it." if listing.offline else "Name another one.",
        )
    kind = "captioner" if choice.mmproj else "reasoner"
    verified = entry.verified and listing.revision == entry.revision
    missing = bytes_to_fetch(listing, choice.files)
    return Plan(name, kind, listing, choice, verified, missing, _replaced(name, listing, choice))


def _installed_lm(name: str, listing: Listing) -> str:
    """Return the language model that stays where none is named: its file, else its quantization.

    "" if this repository's model is not installed under the name, or has no such language model
    any more.
    """
    origin = pulled_from(name)
    if origin is None or not any(map(os.path.lexists, places_of(name))):
        return ""
    if origin.repo != listing.repo:
        return ""
    files = [model.name for model in language_models(listing.sizes)]
    if origin.lm in files:
        return origin.lm
    return origin.quant if origin.quant in map(quant_in_name, files) else ""


def _replaced(name: str, listing: Listing, choice: Choice) -> PulledFrom | None:
    """Return what is installed under a name, if `pull` put it there and it is another model."""
    origin = pulled_from(name)
    if origin is None or not any(place.exists() for place in places_of(name)):
        return None
    same = (origin.source, origin.lm) == (f"{listing.repo}@{listing.revision}", choice.lm[0])
    return None if same else origin


def installed_gguf(name: str, entry: GgufModel, quant: str, progress: Progress) -> Path | None:
    """Return where the model is installed, if it is the wanted one and intact; say if it is not.

    Raises UsageError if something else is installed under this name.
    """
    origin = pulled_from(name)
    if origin is None or origin.repo != entry.repo:
        for place in places_of(name):
            if place.exists():
                raise UsageError(
                    f"There is another model {name} already: {place}.",
                    f"Choose a name with `name`, or remove it first: edgeprism models remove {name}"
                )  # fmt: skip
        return None
    try:
        path = find_model(name)
        check_intact(path, origin)
    except ModelError as error:
        progress.say(f"{error.summary} It is pulled again.")
        return None
    moved = entry.revision not in ("main", origin.commit)
    return path if origin.has(quant) and not moved else None


def pull_gguf(
    plan: Plan, request: GgufRequest, progress: Progress, *, anew: bool = False
) -> tuple[Path, Fetched]:
    """Fetch a planned model into the hub's cache, try it, and link it into the data folder.

    What was installed under its name is replaced when the new model is complete. Then a captioner
    gets a faster encoder, as `request` says: the one that an installed model has of the same mmproj
    file, but for `anew`, or else a new one. Raises PullError, and ModelError or TemplateError if
    the model does not run.
    """
    folder, single = places_of(plan.name)
    with written_safely(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(plan.name) as work:
            mend_interrupted(folder)
            mend_interrupted(single)
            _require_room(plan, folder.parent)
            _warn_of_memory(plan, progress)
            fetched = fetch_files(plan.listing, plan.choice.files, progress, extra=EXTRA)
            progress.stage(f"Trying {plan.name}")
            if plan.kind == "captioner":
                request = with_installed_quants(request, folder)
                digests = {file.name: file.sha256 for file in fetched.files}
                mmproj = digests[plan.choice.mmproj]
                earlier = None if anew else earlier_graph(folder, mmproj, request, work / "graph")
                _install_pair(plan, fetched.folder, folder, request.chat_format)
                speed_up(folder, request, progress, earlier)
                return folder, fetched
            return _install_reasoner(plan, fetched, folder, single), fetched


def speed_up(
    bundle: Path, request: GgufRequest, progress: Progress, earlier: Path | None = None
) -> None:
    """Give an installed pair a faster encoder, and say what became; "mtmd" leaves it as it is.

    With "auto" a fault leaves llama.cpp's encoder; with "onnx" it is raised. `earlier` holds a
    graph of the same mmproj file, see `keep_graph`.
    """
    if request.encoder == "mtmd":
        return
    options = pair_options(request)
    try:
        with written_safely(bundle):
            progress.say(speed_up_pair(bundle, progress, options, earlier))
    except (ModelError, OutputError, PullError) as error:
        if options.always:
            raise
        progress.say(f"llama.cpp's own encoder stays: {error.summary}")
        if not isinstance(error, ModelError):
            return  # the disk was full, and may have room when the next pull tries
    remember_encoder_choice(bundle)


def has_encoder(path: Path, request: GgufRequest) -> bool:
    """Return whether an installed model has the vision graphs that are asked for, or none yet.

    `path` is the bundle, or a reasoner's file, which has none: UsageError where they are asked for.
    """
    if not path.is_dir():
        require_no_vision_quants(request)
        return True
    manifest = open_bundle(path).manifest
    return manifest.vision.mmproj is not None or manifest.has_quants(request.vision_quants)


def require_no_vision_quants(request: GgufRequest) -> None:
    """Raise UsageError if vision graphs are asked for, of a model that turned out to have none."""
    if request.vision_quants:
        raise UsageError(
            f"{request.name} is a reasoner: it has no vision graph.", "Drop `vision_quants`."
        )


def finish_installed(path: Path, request: GgufRequest, progress: Progress) -> None:
    """Build the encoder of an installed pair, if it is asked for or a pull was stopped before it.

    `path` is the bundle, or a reasoner's file, which has no encoder.
    """
    if not path.is_dir() or open_bundle(path).manifest.vision.mmproj is None:
        return
    if request.encoder == "onnx" or request.vision_quants or not encoder_is_chosen(path):
        with written_safely(path), work_folder(request.name):
            speed_up(path, request, progress)


def mend_leftovers(name: str) -> None:
    """Clear up what a killed pull of this model left; a pull that runs now keeps its own."""
    places = places_of(name)
    stopped = (data_dir() / "partial" / name).exists()
    if stopped or any(list(place.parent.glob(f".{place.name}.*")) for place in places):
        with written_safely(places[0]), work_folder(name):
            for place in places:
                mend_interrupted(place)


def _install_pair(plan: Plan, files: Path, target: Path, chat_format: str | None) -> None:
    lm, mmproj = files / plan.choice.lm[0], files / plan.choice.mmproj
    source = f"{plan.listing.repo}@{plan.listing.revision}"
    origin = Origin(f"{source}: {lm.name}", f"{source}: {mmproj.name}", plan.listing.license)
    write_pair(
        lm, mmproj, target, lm_chat_format=chat_format, name=plan.name, overwrite=target.exists(),
        symbolic=True, origin=origin,
    )  # fmt: skip
    # the trial of the pair has just run each of its files
    remember_captioner(open_bundle(target))


def _install_reasoner(plan: Plan, fetched: Fetched, folder: Path, single: Path) -> Path:
    first = fetched.folder / plan.choice.lm[0]
    header = read_model_header(first)
    try_reasoner(first, gpu_layers=0, cancel=Cancel())
    parts = part_paths(first)
    several = part_names(f"{plan.name}-00001-of-{len(parts):05}.gguf")
    names = [single.name] if len(parts) == 1 else several
    license_ = plan.listing.license or license_in_header(header)
    digests = dict(zip(names, (file.sha256 for file in fetched.files), strict=True))
    source = f"{plan.listing.repo}@{plan.listing.revision}"
    target = single if len(parts) == 1 else folder
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        if target == single:
            link_or_copy(first, partial, symbolic=True)
        else:
            partial.mkdir()
            for part, name in zip(parts, names, strict=True):
                link_or_copy(part, partial / name, symbolic=True)
        remember_pulled(plan.name, PulledFrom(source, plan.choice.lm[0], license_, digests))
        _put_in_place(partial, target)
        _delete(folder if target == single else single)  # the model as it was in another form
    finally:
        _delete(partial)  # renaming one of two links to a file leaves it where it is
    return single if target == single else folder / names[0]


def _put_in_place(new: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old-{os.getpid()}")
    if target.is_dir():
        target.rename(old)
    os.replace(new, target)
    _delete(old)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _require_room(plan: Plan, models: Path) -> None:
    cache = plan.listing.cache or cache_folder()
    while not cache.is_dir():  # the disk of a folder that the first pull makes
        cache = cache.parent
    require_space(cache, plan.to_fetch, "HF_HOME")
    if not links_work(cache, models):
        both = cache.stat().st_dev == models.stat().st_dev
        require_space(models, plan.choice.size + (plan.to_fetch if both else 0))


def _warn_of_memory(plan: Plan, progress: Progress) -> None:
    if shortage := machine_memory(None).lacks(plan.memory):
        progress.say(
            f"{plan.name} may fail or be slow: about {shortage}. A smaller quantization takes "
            f"less: hf:{plan.listing.repo}:QUANT"
        )


def _described(listing: Listing, name: str, quant: str) -> str:
    return f"{name}, {f'{quant}, ' if quant else ''}{size_text(listing.sizes[name])}"
