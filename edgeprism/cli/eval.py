"""`edgeprism eval`: questions about pictures, put to every combination of the two stages."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.bundle.open import DEFAULT_MODEL
from edgeprism.choices import INSTRUCTION_MODES, OPTION_FORMS
from edgeprism.cli.options import engine_options, open_reasoners, reasoner_options, working
from edgeprism.errors import EXIT_DONE, EXIT_SOME_FAILED, Interrupted

if TYPE_CHECKING:
    from edgeprism.evaluation.questions import QuestionFile

_SHOWN_SKIPS = 10


@click.command("eval")
@click.option("--data", type=click.Path(dir_okay=False), metavar="FILE.tsv",
              help="A VLMEvalKit TSV (MMStar, AI2D, MMMU, MathVista, …).  [default: nano's own "
              "questions]")  # fmt: skip
@click.option("--pictures", type=click.Path(file_okay=False, exists=True), metavar="DIR",
              help="Where image_path leads to.  [default: beside --data]")  # fmt: skip
@click.option("--captioner", "captioners", multiple=True, metavar="NAME|BUNDLE",
              help="Who perceives; repeat for several.  [default: $EDGEPRISM_MODEL or "
              f"{DEFAULT_MODEL}]")  # fmt: skip
@click.option("--reasoner", "reasoners", multiple=True, default=("smollm2-135m",),
              show_default=True, metavar="NAME|FILE.gguf|URL", help="Who answers; repeat for "
              "several.")  # fmt: skip
@reasoner_options
@click.option("--instruction-mode", "modes", multiple=True, default=INSTRUCTION_MODES,
              type=click.Choice(INSTRUCTION_MODES), show_default=True,
              help="The captioner's instruction: the same for all questions, or with what each "
              "one needs.")  # fmt: skip
@click.option("--split", "splits", multiple=True, metavar="NAME", help="Only these splits.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="N drawn by --seed.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="Of the sample and of the intervals.")  # fmt: skip
@click.option("--judge", metavar="NAME|FILE.gguf|URL",
              help="A reasoner that says what an answer means where no rule can.")  # fmt: skip
@click.option("--instruction", metavar="TEXT", help="The captioners' generic instruction.")
@click.option("--max-tokens", "caption_tokens", type=click.IntRange(min=1), metavar="N",
              help="Longest caption.  [default: the model's]")  # fmt: skip
@click.option("--answer-tokens", type=click.IntRange(min=1), default=64, show_default=True,
              metavar="N", help="Longest answer.")  # fmt: skip
@click.option("--options", type=click.Choice(OPTION_FORMS),
              help="How reasoners meet options: lettered; not at all, their free answer being "
              "matched; or bound to the options' texts.  [default: letters; free for nano's own "
              "questions]")  # fmt: skip
@engine_options
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR",
              help="Where results are kept, and gone on with.  [default: eval-NAME]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    data: str | None,
    captioners: tuple[str, ...],
    reasoners: tuple[str, ...],
    modes: tuple[str, ...],
    judge: str | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Measure perception and reasoning apart.

    Every captioner, instruction mode and reasoner is combined, besides what the reasoner makes of
    the question without a caption, and chance. Results go to --out: report.html, report.json,
    answers.csv, and the run itself, which the same command goes on with after any interruption.
    Exit code 3 says that rows were skipped or questions failed; no score counts those.
    """
    from edgeprism.evaluation.evaluate import evaluate, own_questions
    from edgeprism.evaluation.matrix import Matrix, Settings
    from edgeprism.evaluation.questions import QuestionFile
    from edgeprism.perceive.captioner import Captioner

    engine = {name: asked[name] for name in ("device", "threads", "gpu_layers")}
    network = {"allow_network": asked["allow_network"]}
    captioners = captioners or (os.environ.get("EDGEPRISM_MODEL") or DEFAULT_MODEL,)
    # models first: one that is missing is said before a large file is read
    matrix = Matrix(
        [Captioner.load(name, **engine) for name in dict.fromkeys(captioners)],
        open_reasoners(reasoners, served_models=asked["served_models"], **engine, **network),
        modes,
        Settings(
            asked["caption_tokens"],
            asked["answer_tokens"],
            asked["instruction"],
            options=asked["options"] or ("letters" if data else "free"),
        ),
    )
    arbiter = open_reasoners([judge], **engine, **network)[0] if judge else None
    with working("reading the questions…"):
        file = QuestionFile(
            Path(data) if data else own_questions(),
            pictures=Path(asked["pictures"]) if asked["pictures"] else None,
        )
    _tell_skipped(file)
    out = Path(asked["out"] or f"eval-{'nano' if data is None else file.tsv.path.stem}")
    which = {name: asked[name] for name in ("splits", "limit", "sample", "seed")}
    try:
        with _progress() as progress:
            report = evaluate(file, matrix, out, judge=arbiter, progress=progress, **which)
    except (Interrupted, KeyboardInterrupt):
        click.echo(f"What was made is in {out}; the same command goes on from there.", err=True)
        raise
    return _show(report, out, as_json)


def _tell_skipped(file: QuestionFile) -> None:
    """Which rows ask nothing, the first of them by name; the report has all."""
    from edgeprism.files.safe_text import printable

    for skip in file.skipped[:_SHOWN_SKIPS]:
        click.echo(printable(f"{file.tsv.path}, {skip}; skipped"), err=True)
    if len(file.skipped) > _SHOWN_SKIPS:
        click.echo(f"… and {len(file.skipped) - _SHOWN_SKIPS} more rows skipped", err=True)


def _show(report: dict[str, Any], out: Path, as_json: bool) -> int:
    from edgeprism.evaluation.evaluate import CSV, JSON, PAGE
    from edgeprism.evaluation.report import print_report
    from edgeprism.files.safe_text import printable

    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        from rich.console import Console

        print_report(report, Console(soft_wrap=not sys.stdout.isatty()))
    for failure in report["failures"][:_SHOWN_SKIPS]:
        line = f"question {failure['index']}, {failure['cell']}: {failure['error']}"
        click.echo(printable(line), err=True)
    click.echo(f"{out / PAGE}, {JSON}, {CSV}", err=True)
    return EXIT_SOME_FAILED if report["data"]["skipped"] or report["failures"] else EXIT_DONE


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A live bar for each stage on a terminal; elsewhere a line when a stage begins."""
    if not sys.stderr.isatty():
        begun: set[str] = set()

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in begun:
                begun.add(stage)
                click.echo(f"{stage}: {total} questions", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], completed=done)

        yield show
