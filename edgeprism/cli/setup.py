"""`edgeprism setup`: models that fit this machine, and the choice of two of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import click

from edgeprism.choices import DEFAULT_MODEL
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.errors import show_error
from edgeprism.cli.named_models import make_default
from edgeprism.cli.options import working
from edgeprism.cli.terminal import StderrProgress, in_columns, print_json, print_line, say
from edgeprism.errors import (
    EXIT_DONE,
    EdgePrismError,
    HubUnreachableError,
    Interrupted,
    ModelError,
    TemplateError,
)

if TYPE_CHECKING:
    from edgeprism.bundle.defaults import Kind
    from edgeprism.install.offers import Offer
    from edgeprism.install.setup import Survey

_KINDS = ("captioner", "reasoner")
_UNIT = {"captioner": "a picture", "reasoner": "an answer"}
# what a person should know of a licence besides its name
_TERMS = {"own terms": ": the publisher's own terms", "restricted": ": restricts its use"}
_SCHEMA = 1  # of --json


@dataclass
class _Outcome:
    """What became of the models that were chosen."""

    unreachable: bool = False  # the hub: what must be fetched is left out
    chosen: dict[str, str] = field(default_factory=dict)  # kind → the new default
    failed: list[dict[str, str]] = field(default_factory=list)  # kind, name and error
    exit_code: int = EXIT_DONE


@with_examples(
    "edgeprism setup", "edgeprism setup --yes", "edgeprism setup --only captioner --json"
)
@click.command("setup", cls=Command)
@click.option("--only", type=click.Choice(_KINDS), help="Offer models of this kind alone.")
@click.option("--yes", is_flag=True,
              help="Take, without asking, the first of each kind that runs here and whose licence "
              "does not restrict its use.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True,
              help="Print the machine and the offers as one JSON object; ask nothing.")  # fmt: skip
def command(only: str | None, yes: bool, as_json: bool) -> int:
    """Find a captioner and a reasoner for this machine, fetch them, and make them the default.

    Looks at processor, memory and GPU, measures for two seconds, and offers up to three models of
    each kind, those on the disk first. Times are estimates, and so is the memory of models that
    are not on the disk. Nothing is fetched or changed before you choose; without a terminal and
    without --yes, nothing is changed at all. A chosen model is tried before it becomes the default;
    if it cannot be run, the next is taken.
    """
    from edgeprism.install.setup import survey_machine

    kinds = [only] if only else list(_KINDS)
    with working("looking at this machine…"):
        survey = survey_machine()
    if not as_json:
        _describe(survey, kinds)
    asks = sys.stdin.isatty() and sys.stderr.isatty() and not as_json
    chosen = {kind: _choose(kind, survey.offers[kind], yes=yes, asks=asks) for kind in kinds}
    outcome = _Outcome()
    for kind, offer in chosen.items():
        if offer is not None and outcome.unreachable and not offer.installed:
            say(f"{offer.name} was not tried: the hub cannot be reached.")
        elif offer is not None:
            _install_or_next(offer, survey.offers[kind], outcome, yes=yes, asks=asks)
    if as_json:
        print_json(_as_data(survey, kinds, outcome), indent=2)
    restricted = [o for kind in kinds if yes and not chosen[kind] for o in survey.offers[kind]]
    if any(chosen.values()):
        if restricted:
            say(f"note: {_not_taken(restricted).summary}")
        if outcome.exit_code == EXIT_DONE:
            _say_what_to_try()
        return outcome.exit_code
    if restricted:
        raise _not_taken(restricted)
    if not any(survey.offers[kind] for kind in kinds):
        raise ModelError(
            f"No {' and no '.join(kinds)} can be offered.",
            survey.obstacle
            or "`edgeprism models list` shows all; `edgeprism models discover` looks for yours.",
        )
    if not as_json:
        more = "" if asks else " `edgeprism setup --yes` takes the first of each kind."
        say(f"Nothing was changed.{more}")
    return EXIT_DONE


def _not_taken(offers: Sequence[Offer]) -> ModelError:
    """Return the error of --yes where all that can be offered has a licence that restricts it."""
    names = ", ".join(f"{offer.name} ({offer.license})" for offer in offers)
    first = next((offer for offer in offers if offer.name != _default(offer.kind)), None)
    hint = f"{offers[0].name} is the default {offers[0].kind} already, and stays."
    if first is not None:
        get = "" if first.installed else f"edgeprism pull {first.name}, then "
        hint = f"If your use is allowed, name one: {get}edgeprism use {first.name}"
    return ModelError(f"--yes takes no model whose licence restricts its use: {names}.", hint)


def _describe(survey: Survey, kinds: list[str]) -> None:
    for line in survey.lines:
        print_line(line)
    for kind in kinds:
        offers = survey.offers[kind]
        print_line(f"{kind.capitalize()}s that fit:" if offers else f"No {kind} to offer.")
        _print_offers(offers)


def _print_offers(offers: Sequence[Offer]) -> None:
    from edgeprism.install.extras import install_extra, missing_for_convert

    for line in in_columns(_cells(number, offer) for number, offer in enumerate(offers, 1)):
        print_line(f"  {line}")
    for offer in offers:
        if offer.convert_memory_bytes is not None:
            line = f"To convert {offer.name} takes about {offer.convert_memory_bytes / 1e9:.1f} GB "
            first = f", and first: {install_extra('convert')}" if missing_for_convert() else ""
            print_line(f"  {line}of memory and PyTorch{first}")


def _cells(number: int, offer: Offer) -> tuple[str, ...]:
    fetch = "on this disk" if offer.here else f"{offer.fetch_bytes / 1e9:.1f} GB to fetch"
    fetch += " and convert" if offer.convert_memory_bytes is not None else ""
    about = "" if offer.memory_counted else "about "
    memory = f"{about}{offer.memory_bytes / 1e9:.1f} GB memory" if offer.memory_bytes else ""
    seconds = "time unknown"
    if offer.seconds is not None:
        seconds = f"about {_rounded(offer.seconds)} s {_UNIT[offer.kind]}"
    license_ = f"{offer.license or 'licence unknown'}{_TERMS.get(offer.terms, '')}"
    return f"{number}.", offer.name, fetch, memory, seconds, f"{offer.description} ({license_})"


def _rounded(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 2 else f"{seconds:.0f}"


def _as_data(survey: Survey, kinds: list[str], outcome: _Outcome) -> dict[str, object]:
    return {
        "schema": _SCHEMA,
        "machine": asdict(survey.machine),
        "obstacle": survey.obstacle,
        **{f"{kind}s": [asdict(offer) for offer in survey.offers[kind]] for kind in kinds},
        "chosen": outcome.chosen,
        "failed": outcome.failed,
    }


def _choose(kind: str, offers: Sequence[Offer], *, yes: bool, asks: bool) -> Offer | None:
    """Return the offer to take; without a person, the first whose use no licence restricts."""
    free = next((offer for offer in offers if offer.terms != "restricted"), None)
    if yes or not asks or not offers:
        return free if yes else None
    numbers = [str(number) for number in range(len(offers) + 1)]
    answer = click.prompt(
        f"Which {kind}? (0 for none)", default=str(offers.index(free) + 1) if free else "0",
        type=click.Choice(numbers), err=True, show_choices=False,
    )  # fmt: skip
    return offers[int(answer) - 1] if answer != "0" else None


def _install_or_next(
    first: Offer, offers: Sequence[Offer], outcome: _Outcome, *, yes: bool, asks: bool
) -> None:
    """Make an offer the default; where its model cannot be run, go on to another of its kind.

    What keeps a model from being fetched (the network, the disk) ends it: another would be fetched
    in its place, and the next `setup` continues this one. The other kind is wanted all the same,
    unless the hub cannot be reached.
    """
    offer: Offer | None = first
    left = list(offers)
    while offer is not None:
        try:
            _install(offer)
        except EdgePrismError as error:
            if isinstance(error, Interrupted):
                raise
            show_error(error)
            outcome.failed.append({"kind": offer.kind, "name": offer.name, "error": error.summary})
            left.remove(offer)
            ends = not isinstance(error, ModelError | TemplateError)
            outcome.unreachable |= isinstance(error, HubUnreachableError)
            code = error.exit_code
        else:
            outcome.chosen[offer.kind] = offer.name
            return
        offer = None if ends else _choose_next(left, yes=yes, asks=asks)
    outcome.exit_code = outcome.exit_code or code


def _choose_next(left: Sequence[Offer], *, yes: bool, asks: bool) -> Offer | None:
    if not left:
        return None
    if asks:
        _print_offers(left)
    offer = _choose(left[0].kind, left, yes=yes, asks=asks)
    if offer is not None and not asks:
        say(f"Taking {offer.name} instead.")
    return offer


def _say_what_to_try() -> None:
    from edgeprism.reason.find import find_reasoner

    # nano, which stays where no captioner is chosen, knows nothing of photographs
    picture = "drawing.png" if _default("captioner") == DEFAULT_MODEL else "photo.jpg"
    tries = [f"edgeprism caption {picture}"]
    try:
        find_reasoner(_default("reasoner"))
        tries.append(f'edgeprism ask {picture} "What is this?"')
    except ModelError:
        pass  # nobody chose a reasoner, and none is there
    say(f"Try it: {' or '.join(tries)}")


def _install(offer: Offer) -> None:
    """Get a model, try it, and make it the default."""
    from edgeprism.bundle.defaults import chosen_model
    from edgeprism.install.pull import pull
    from edgeprism.install.setup import try_model

    if not offer.installed:
        with StderrProgress().shown() as progress:
            pull(offer.name, progress=progress)
    with working(f"trying {offer.name}…"):
        try_model(offer.kind, offer.name)
    kind: Kind = "captioner" if offer.kind == "captioner" else "reasoner"
    before = chosen_model(kind)
    make_default(kind, offer.name)
    instead = f" instead of {before}" if before not in (None, offer.name) else ""
    say(f"{offer.name} is now the {offer.kind} that commands use{instead}.")
    if (now := _default(offer.kind)) != offer.name:
        variable = "EDGEPRISM_MODEL" if os.environ.get("EDGEPRISM_MODEL") else "the environment"
        say(f"note: {variable} goes before it and names {now}.")


def _default(kind: str) -> str:
    from edgeprism.bundle.defaults import default_model

    return default_model("captioner" if kind == "captioner" else "reasoner")
