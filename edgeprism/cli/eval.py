"""`edgeprism eval`: scores every combination of captioners and reasoners on a question set."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.choices import DEFAULT_MODEL, INSTRUCTION_MODES, OPTION_FORMS
from edgeprism.cli import completion
from edgeprism.cli.command import OLD_NAMES, Command, with_examples
from edgeprism.cli.options import (
    default_captioner,
    default_reasoner,
    engine_options,
    open_reasoners,
    reasoner_options,
    visual_tokens_option,
    working,
)
from edgeprism.cli.terminal import print_json, say
from edgeprism.errors import EXIT_DONE, EXIT_SOME_FAILED, Interrupted
from edgeprism.files.safe_text import counted, printable_line

if TYPE_CHECKING:
    from edgeprism.evaluation.questions import QuestionFile

_SHOWN_SKIPS = 10
_PIPE_WIDTH = 10_000  # columns


@with_examples(
    "edgeprism eval",
    "edgeprism eval --data MMStar.tsv --sample 200 --out mmstar-200",
    "edgeprism eval -m nano -m ./my-bundle --reasoner ./chat.gguf",
    old_names=OLD_NAMES,
)
@click.command("eval", cls=Command)
@click.option("--data", type=click.Path(dir_okay=False), metavar="FILE.tsv",
              help="A VLMEvalKit TSV (MMStar, AI2D, MMMU, MathVista, …).  [default: nano's own "
              "questions]")  # fmt: skip
@click.option("--pictures", type=click.Path(file_okay=False, exists=True), metavar="DIR",
              help="The folder of the data's image_path column.  [default: the folder of "
              "--data]")  # fmt: skip
@click.option("-m", "--model", "captioners", multiple=True, shell_complete=completion.captioners,
              metavar="NAME|BUNDLE|REFERENCE",
              help="The captioner; repeat for several.  [default: $EDGEPRISM_MODEL, "
              f"`edgeprism use`, or {DEFAULT_MODEL}]")  # fmt: skip
@click.option("--reasoner", "reasoners", multiple=True, shell_complete=completion.reasoners,
              metavar="NAME|FILE.gguf|REFERENCE|URL", default=lambda: (default_reasoner(),),
              show_default="`edgeprism use`, or smollm2-135m",
              help="The reasoner; repeat for several.")  # fmt: skip
@reasoner_options
@click.option("--instruction-mode", "modes", multiple=True, default=INSTRUCTION_MODES,
              type=click.Choice(INSTRUCTION_MODES), show_default=True,
              help="generic: one instruction for all questions. question: an instruction that "
              "asks for what each question needs. Repeatable.")  # fmt: skip
@click.option("--split", "splits", multiple=True, metavar="NAME",
              help="Only questions of this split; repeatable.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N",
              help="Only the first N questions.")  # fmt: skip
@click.option("--sample", type=click.IntRange(min=1), metavar="N",
              help="Only N questions, drawn at random by --seed.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Random seed of the sample and of the intervals.")  # fmt: skip
@click.option("--judge", shell_complete=completion.reasoners, metavar="NAME|FILE.gguf|URL",
              help="A reasoner that interprets answers which no rule can match.")  # fmt: skip
@click.option("--instruction", metavar="TEXT", help="The captioners' generic instruction.")
@visual_tokens_option
@click.option("--max-tokens", "caption_tokens", type=click.IntRange(min=1), metavar="N",
              help="Longest caption.  [default: the model's]")  # fmt: skip
@click.option("--answer-tokens", type=click.IntRange(min=1), default=64, show_default=True,
              metavar="N", help="Longest answer.")  # fmt: skip
@click.option("--options", type=click.Choice(OPTION_FORMS),
              help="letters: the prompt lists lettered options. free: it lists none, and the "
              "answer is matched with them. bound: the answer must be an option's text.  "
              "[default: letters; free for nano's own questions]")  # fmt: skip
@engine_options
@click.option("-o", "--out", type=click.Path(file_okay=False), metavar="DIR",
              help="Folder of the results, in which the same command continues.  [default: "
              "eval-NAME]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    data: str | None,
    captioners: tuple[str, ...],
    reasoners: tuple[str, ...],
    modes: tuple[str, ...],
    judge: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure perception and reasoning separately.

    Scores every combination of captioner, instruction mode and reasoner, each reasoner without a
    caption, and chance. Results go to --out: report.html, report.json, answers.csv, and the
    records of the run, from which the same command continues after an interruption. Exit code 3
    means that rows were skipped or questions failed; no score counts those.
    """
    from edgeprism.evaluation.evaluate import check_out, evaluate, own_questions
    from edgeprism.evaluation.matrix import Matrix, Settings
    from edgeprism.evaluation.questions import QuestionFile
    from edgeprism.perceive.captioner import Captioner

    path = Path(data) if data else own_questions()
    out = Path(options["out"] or f"eval-{path.stem if data else 'nano'}")
    check_out(out, path)
    engine = {name: options[name] for name in ("device", "threads", "gpu_layers")}
    network = {"allow_network": options["allow_network"]}
    captioners = captioners or (default_captioner(),)
    # Models first, so that a missing one is reported before a large file is read.
    matrix = Matrix(
        [
            Captioner.load(name, visual_tokens=options["visual_tokens"], **engine)
            for name in dict.fromkeys(captioners)
        ],
        open_reasoners(reasoners, served_models=options["served_models"], **engine, **network),
        modes,
        Settings(
            options["caption_tokens"],
            options["answer_tokens"],
            options["instruction"],
            options=options["options"] or ("letters" if data else "free"),
        ),
    )
    opened_judge = open_reasoners([judge], **engine, **network)[0] if judge else None
    with working("reading the questions…"):
        file = QuestionFile(
            path,
            pictures=Path(options["pictures"]) if options["pictures"] else None,
        )
    _show_skipped(file)
    selection = {name: options[name] for name in ("splits", "limit", "sample", "seed")}
    try:
        with _progress() as progress:
            report = evaluate(file, matrix, out, judge=opened_judge, progress=progress, **selection)
    except (Interrupted, KeyboardInterrupt):
        say(f"Results so far are in {out}; the same command goes on from there.")
        raise
    return _show(report, out, as_json)


def _show_skipped(file: QuestionFile) -> None:
    """Print the first skipped rows and the number of the others; the report has all."""
    for skip in file.skipped[:_SHOWN_SKIPS]:
        say(f"{file.tsv.path}, {skip}; skipped")
    if len(file.skipped) > _SHOWN_SKIPS:
        more = counted(len(file.skipped) - _SHOWN_SKIPS, "more row")
        say(f"… and {more} skipped")


def _show(report: dict[str, Any], out: Path, as_json: bool) -> int:
    from edgeprism.evaluation.evaluate import CSV, JSON, PAGE
    from edgeprism.evaluation.report import print_report

    if as_json:
        print_json(report, indent=2)
    else:
        from rich.console import Console

        # In a pipe nothing is as wide as a terminal: a row stays on one line.
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        print_report(report, Console(width=width, soft_wrap=width is not None))
    for failure in report["failures"][:_SHOWN_SKIPS]:
        say(f"question {failure['index']}, {failure['cell']}: {failure['error']}")
    say(f"{out / PAGE}, {JSON}, {CSV}")
    return EXIT_SOME_FAILED if report["data"]["skipped"] or report["failures"] else EXIT_DONE


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar for each stage on a terminal; elsewhere a line when a stage begins."""
    if not sys.stderr.isatty():
        begun: set[str] = set()

        def show_begin(stage: str, done: int, total: int) -> None:
            if stage not in begun:
                begun.add(stage)
                say(f"{stage}: {counted(total, 'question')}")

        yield show_begin
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def show_done(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(escape(printable_line(stage)), total=total)
            bar.update(tasks[stage], completed=done)

        yield show_done
