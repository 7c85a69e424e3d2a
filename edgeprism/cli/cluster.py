"""`edgeprism caption --ray`: a folder or a bucket, captioned on a cluster into Parquet files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeprism.cli.bar import ProgressBar
from edgeprism.cli.command import SECTIONS
from edgeprism.cli.errors import show_error
from edgeprism.cli.named_models import told_to_pull
from edgeprism.cli.summary import tell_other_files, tell_result, tell_what_is_passed_over
from edgeprism.cli.terminal import is_quiet, say
from edgeprism.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOTHING,
    EXIT_SOME_FAILED,
    EdgePrismError,
    Interrupted,
    UsageError,
)
from edgeprism.files.safe_text import listed
from edgeprism.folder.causes import cause_key, reason_of
from edgeprism.folder.run import FolderResult
from edgeprism.machine.cancel import finishing_first

if TYPE_CHECKING:
    from edgeprism.scale.storage import Place

# what --ray takes: parameters that are keywords of a captioner, and those of the cluster
_OF_CAPTIONER = (
    "lm_chat_format", "device", "gpu_layers", "vision_quant", "visual_tokens", "instruction",
    "focus", "caption_tokens", "temperature", "seed", "parallel",
)  # fmt: skip
# what does on a cluster what an option does elsewhere
_INSTEAD = {
    "--threads": "Actors get CPUs with --actor-cpus.",
    "--limit": "To caption some pictures, name a folder that has no others.",
    "--dry-run": "To try it, name a folder with a few hundred of the pictures.",
    "--shard": "The cluster itself gives every actor its part.",
}
_OF_CLUSTER = ("images", "model", "ray", "parquet", "actors", "actor_cpus", "actor_gpus")


def caption_on_ray(images: Sequence[str], model: str, options: dict[str, Any]) -> int:
    """Caption what lies below the one source; return the exit code."""
    _check_options()
    if len(images) != 1 or images[0] == "-":
        raise UsageError(
            "--ray captions one folder or one prefix of a bucket.", "Name one: s3://bucket/prefix"
        )
    from edgeprism.scale.cluster import ClusterOptions, caption_on_cluster
    from edgeprism.scale.storage import Place

    cluster = ClusterOptions(
        options["ray"], options["actors"], options["actor_cpus"], options["actor_gpus"]
    )
    captioner = {name: options[name] for name in _OF_CAPTIONER if options[name] is not None}
    source, output = Place.of(images[0]), Place.of(options["parquet"])
    report, result = _Report(), None
    # a cluster on this machine takes some seconds to end, and what it left is deleted after that
    with contextlib.closing(report), finishing_first(_interrupt, second_ends=True):
        try:
            with told_to_pull(model, "captioner"):
                result = caption_on_cluster(
                    source, output, cluster, {"model": model, **captioner},
                    on_start=_tell_start, on_begin=report.begin, on_progress=report.show,
                )  # fmt: skip
        except KeyboardInterrupt:
            if report.result is None:
                raise
            raise _interrupted(output) from None
    return _finish(result)


def _interrupt() -> None:
    """End the run; a second signal ends the process at once."""
    if threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def _interrupted(output: Place) -> Interrupted:
    """Return what a run that was interrupted says of its output."""
    if output.parts():
        return Interrupted(
            f"Interrupted: {output} has every part that was finished.",
            "The same command goes on from here.",
        )
    return Interrupted(
        f"Interrupted before a part was finished: {output} has no captions yet.",
        "The same command begins again.",
    )


def _tell_start() -> None:
    """Say why nothing moves: without a terminal there is no bar either."""
    if not is_quiet():
        say("starting a cluster on this machine, which takes 20 seconds or more")


def _check_options() -> None:
    """Refuse options that mean this machine, or other results."""
    context = click.get_current_context()
    general = (*_OF_CAPTIONER, *_OF_CLUSTER, *SECTIONS["General"], "yes", "no_cache")
    flags = [
        max(parameter.opts, key=len)
        for parameter in context.command.get_params(context)
        if parameter.name not in general
        and context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if flags:
        verb, it = ("has", "it") if len(flags) == 1 else ("have", "them")
        raise UsageError(
            f"--ray writes Parquet files and nothing else; {listed(flags)} {verb} no effect there.",
            " ".join(
                [f"Leave {it} out.", *(words for flag, words in _INSTEAD.items() if flag in flags)]
            ),
        )


class _Report:
    """The bar of a run, and of failures with the same cause the first."""

    result: FolderResult | None = None

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._bar: ProgressBar | None = None
        self._causes: set[str] = set()
        self._seen = 0

    def begin(self, result: FolderResult) -> None:
        """Say what there is, and show the bar."""
        self.result = result
        if not is_quiet():
            tell_what_is_passed_over(result.passed)
        self._bar = self._stack.enter_context(ProgressBar(result, quiet=is_quiet()))

    def show(self, result: FolderResult) -> None:
        """Show how far it is, and new failures."""
        for failure in result.failures[self._seen :]:
            key = cause_key(reason_of(failure.path, failure.error))
            if key not in self._causes:
                self._causes.add(key)
                with self._bar.aside() if self._bar else contextlib.nullcontext():
                    show_error(failure.error)
        self._seen = len(result.failures)
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        """Take the bar off the screen."""
        self._stack.close()


def _finish(result: FolderResult) -> int:
    if not result.total:
        if not is_quiet():
            tell_other_files(0, result.passed, 0, (), say)
        show_error(EdgePrismError("There is no picture to caption.", "Check the folder."))
        return EXIT_NOTHING
    if not is_quiet():
        tell_result(result)
    if not result.failures:
        return EXIT_DONE
    return EXIT_SOME_FAILED if result.captioned + result.known else EXIT_FAILED
