"""`edgeprism setup`: models that fit this machine, and the choice of two of them."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.errors import show_error
from edgeprism.cli.options import working
from edgeprism.cli.terminal import StderrProgress, print_json, print_line, say
from edgeprism.errors import EXIT_DONE, EdgePrismError, ModelError

if TYPE_CHECKING:
    from edgeprism.install.offers import Offer
    from edgeprism.install.setup import Survey

_KINDS = ("captioner", "reasoner")
_UNIT = {"captioner": "a picture", "reasoner": "an answer"}
_SCHEMA = 1  # of --json


@with_examples(
    "edgeprism setup", "edgeprism setup --yes", "edgeprism setup --only captioner --json"
)
@click.command("setup", cls=Command)
@click.option("--only", type=click.Choice(_KINDS), help="Offer models of this kind alone.")
@click.option("--yes", is_flag=True, help="Take the first of each kind, without asking.")
@click.option("--json", "as_json", is_flag=True,
              help="Print the machine and the offers as one JSON object; ask nothing.")  # fmt: skip
def command(only: str | None, yes: bool, as_json: bool) -> int:
    """Find a captioner and a reasoner for this machine, fetch them, and make them the default.

    Looks at processor, memory and GPU, measures for two seconds, and offers up to three models of
    each kind, those on the disk first. Times and memory are estimates. Nothing is fetched or
    changed before you choose; without a terminal and without --yes, nothing is changed at all.
    """
    from edgeprism.install.setup import survey_machine

    kinds = [only] if only else list(_KINDS)
    with working("looking at this machine…"):
        survey = survey_machine()
    if not as_json:
        _describe(survey, kinds)
    asks = sys.stdin.isatty() and sys.stderr.isatty() and not as_json
    chosen = [
        offer for kind in kinds if (offer := _choose(kind, survey.offers[kind], yes=yes, asks=asks))
    ]
    if as_json:
        print_json(_as_data(survey, kinds, chosen), indent=2)
    if chosen:
        return _install_all(chosen)
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


def _describe(survey: Survey, kinds: list[str]) -> None:
    for line in survey.lines:
        print_line(line)
    for kind in kinds:
        offers = survey.offers[kind]
        print_line(f"{kind.capitalize()}s that fit:" if offers else f"No {kind} to offer.")
        rows = [_cells(number, offer) for number, offer in enumerate(offers, 1)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            print_line("  " + "  ".join(cells).rstrip())


def _cells(number: int, offer: Offer) -> tuple[str, ...]:
    fetch = "on this disk" if offer.here else f"{offer.fetch_bytes / 1e9:.1f} GB to fetch"
    memory = f"{offer.memory_bytes / 1e9:.1f} GB memory" if offer.memory_bytes else ""
    seconds = "time unknown"
    if offer.seconds is not None:
        seconds = f"about {_rounded(offer.seconds)} s {_UNIT[offer.kind]}"
    about = f"{offer.description} ({offer.license})" if offer.license else offer.description
    return f"{number}.", offer.name, fetch, memory, seconds, about


def _rounded(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 2 else f"{seconds:.0f}"


def _as_data(survey: Survey, kinds: list[str], chosen: list[Offer]) -> dict[str, object]:
    return {
        "schema": _SCHEMA,
        "machine": asdict(survey.machine),
        "obstacle": survey.obstacle,
        **{f"{kind}s": [asdict(offer) for offer in survey.offers[kind]] for kind in kinds},
        "chosen": {offer.kind: offer.name for offer in chosen},
    }


def _choose(kind: str, offers: list[Offer], *, yes: bool, asks: bool) -> Offer | None:
    if not offers or not (yes or asks):
        return None
    if yes:
        return offers[0]
    numbers = [str(number) for number in range(len(offers) + 1)]
    answer = click.prompt(
        f"Which {kind}? (0 for none)", default="1", type=click.Choice(numbers), err=True,
        show_choices=False,
    )  # fmt: skip
    return offers[int(answer) - 1] if answer != "0" else None


def _install_all(chosen: list[Offer]) -> int:
    """Install the models, each by itself: if one fails, the other is still wanted."""
    from edgeprism.bundle.open import find_model

    code = EXIT_DONE
    for offer in chosen:
        try:
            _install(offer)
        except EdgePrismError as error:
            show_error(error)
            code = code or error.exit_code
    if code == EXIT_DONE:
        tries = ["edgeprism caption photo.jpg"]
        try:
            find_model(_default("reasoner"))
            tries.append('edgeprism ask photo.jpg "What is this?"')
        except ModelError:
            pass  # nobody chose a reasoner, and none is there
        say(f"Try it: {' or '.join(tries)}")
    return code


def _install(offer: Offer) -> None:
    from edgeprism.bundle.defaults import choose_model
    from edgeprism.install.pull import pull

    if not offer.installed:
        with StderrProgress().shown() as progress:
            pull(offer.name, progress=progress)
    choose_model("captioner" if offer.kind == "captioner" else "reasoner", offer.name)
    say(f"{offer.name} is now the {offer.kind} that commands use.")
    if (now := _default(offer.kind)) != offer.name:
        variable = "EDGEPRISM_MODEL" if os.environ.get("EDGEPRISM_MODEL") else "the environment"
        say(f"note: {variable} goes before it and names {now}.")


def _default(kind: str) -> str:
    from edgeprism.bundle.defaults import default_model

    return default_model("captioner" if kind == "captioner" else "reasoner")
