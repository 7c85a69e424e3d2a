"""`edgeprism setup`: models that fit this machine, and the choice of two of them."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.options import working
from edgeprism.cli.terminal import StderrProgress, print_json, say
from edgeprism.errors import ModelError

if TYPE_CHECKING:
    from edgeprism.install.setup import Offer, Survey

_KINDS = ("captioner", "reasoner")
_UNIT = {"captioner": "a picture", "reasoner": "an answer"}


@with_examples("edgeprism setup", "edgeprism setup --yes", "edgeprism setup --json")
@click.command("setup", cls=Command)
@click.option("--yes", is_flag=True, help="Take the first of each kind, without asking.")
@click.option("--json", "as_json", is_flag=True,
              help="Print the machine and the offers as one JSON object.")  # fmt: skip
def command(yes: bool, as_json: bool) -> None:
    """Find a captioner and a reasoner for this machine, fetch them, and make them the default.

    Looks at processor, memory and GPU, measures for two seconds, and offers up to three models of
    each kind, those on the disk first. Times and memory are estimates. Nothing is fetched or
    changed before you choose; without a terminal and without --yes, nothing is changed at all.
    """
    from edgeprism.install.setup import survey_machine

    with working("looking at this machine…"):
        survey = survey_machine()
    asks = sys.stdin.isatty() and sys.stderr.isatty() and not as_json
    if as_json:
        print_json(_as_data(survey), indent=2)
    else:
        _describe(survey)
    if not yes and not asks:
        if not as_json:
            say("Nothing was changed. `edgeprism setup --yes` takes the first of each kind.")
        return
    chosen = [offer for kind in _KINDS if (offer := _choose(kind, survey.offers[kind], yes))]
    if not chosen:
        raise ModelError(
            "No captioner and no reasoner fits this machine, or none can be reached.",
            "`edgeprism models list` shows all; `edgeprism models discover` looks for yours.",
        )
    for offer in chosen:
        _install(offer)
    say('Try it: edgeprism caption photo.jpg, edgeprism ask photo.jpg "What is this?"')


def _describe(survey: Survey) -> None:
    for line in survey.lines:
        say(line)
    for kind in _KINDS:
        offers = survey.offers[kind]
        say(f"{kind.capitalize()}s that fit:" if offers else f"No {kind} fits.")
        rows = [_cells(number, offer) for number, offer in enumerate(offers, 1)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            say("  " + "  ".join(cells).rstrip())


def _cells(number: int, offer: Offer) -> tuple[str, ...]:
    fetch = "on this disk" if offer.here else f"{offer.fetch / 1e9:.1f} GB to fetch"
    memory = f"{offer.memory / 1e9:.1f} GB memory" if offer.memory else ""
    seconds = f"about {_rounded(offer.seconds)} s {_UNIT[offer.kind]}" if offer.seconds else ""
    about = f"{offer.description} ({offer.license})" if offer.license else offer.description
    return f"{number}.", offer.name, fetch, memory, seconds, about


def _rounded(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 2 else f"{seconds:.0f}"


def _as_data(survey: Survey) -> dict[str, object]:
    return {
        "machine": asdict(survey.machine),
        **{f"{kind}s": [asdict(o) for o in survey.offers[kind]] for kind in _KINDS},
    }


def _choose(kind: str, offers: list[Offer], yes: bool) -> Offer | None:
    if not offers:
        return None
    if yes:
        return offers[0]
    numbers = [str(number) for number in range(len(offers) + 1)]
    answer = click.prompt(
        f"Which {kind}? (0 for none)", default="1", type=click.Choice(numbers), err=True,
        show_choices=False,
    )  # fmt: skip
    return offers[int(answer) - 1] if answer != "0" else None


def _install(offer: Offer) -> None:
    from edgeprism.bundle.defaults import choose_model
    from edgeprism.install.pull import pull

    if not offer.here:
        with StderrProgress().shown() as progress:
            pull(offer.name, progress=progress)
    choose_model("captioner" if offer.kind == "captioner" else "reasoner", offer.name)
    say(f"{offer.name} is now the {offer.kind} that commands use.")
