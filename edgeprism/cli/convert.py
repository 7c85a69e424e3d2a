"""`edgeprism convert FAMILY … OUT`: convert a published checkpoint to a bundle."""

from __future__ import annotations

import contextlib
import inspect
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprism.choices import CONVERTED_QUANTS, ENCODERS, PAIR_QUANTS, is_reference
from edgeprism.cli import completion
from edgeprism.cli.chat_format import ChatFormat
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.named_models import told_to_pull
from edgeprism.cli.terminal import StderrProgress, is_quiet, print_path, say
from edgeprism.errors import UsageError

if TYPE_CHECKING:
    from edgeprism.convert.family import Family, Option, Value
    from edgeprism.convert.options import ConvertOptions
    from edgeprism.vision.open_model import PairFiles

_NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "gguf", "safetensors",
           "sentencepiece", "google.protobuf")  # fmt: skip
_NEEDED_FOR_PAIRS = ("gguf", "onnx", "onnxruntime")
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def _list_families(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if not value:
        return
    from edgeprism.convert.discover import families

    for family in families():
        click.echo(f"{family.name}\t{family.summary}")
    if not is_quiet():
        say("No published weights were at hand: docs/reference/families.md says what was seen.")
    context.exit()


class Families(click.Group):
    """A command for each family, which is created when needed, and the command `mmproj`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all families, and `mmproj`."""
        from edgeprism.convert.discover import family_names

        return sorted([*family_names(), "mmproj"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of the family `cmd_name`."""
        from edgeprism.convert.discover import family_named

        if cmd_name == "mmproj":
            return mmproj_pair
        try:
            return _family_command(family_named(cmd_name))
        except UsageError:
            return None  # then `resolve_command` raises an error that lists the families

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve as click does; for an unknown family, also name those with similar names."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            from edgeprism.convert.discover import family_names, likely_family, not_yet

            if os.path.isdir(args[0]):
                if refused := not_yet(Path(args[0])):
                    raise UsageError(*refused) from error
                likely = likely_family(Path(args[0]))
                raise UsageError(
                    f"{args[0]} is a folder, and a family of checkpoints comes first: "
                    f"{', '.join(self.list_commands(ctx))}.",
                    f"Its files resemble {likely}: `edgeprism convert {likely} --help`."
                    if likely
                    else "`edgeprism convert --list` describes each family.",
                ) from error
            # click only suggests commands that it holds, and families are created on demand.
            similar = difflib.get_close_matches(args[0], family_names())
            suggestion = f" Did you mean {' or '.join(map(repr, similar))}?" if similar else ""
            raise UsageError(
                f"{error.format_message()}{suggestion} A family of checkpoints comes first: "
                f"{', '.join(self.list_commands(ctx))}.",
                "`edgeprism convert --list` describes each family.",
            ) from error


@click.group("convert", cls=Families)
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_families,
              help="List the families of checkpoints that can be converted, by name.")  # fmt: skip
def command() -> None:
    """Convert a published checkpoint to a bundle.

    Every conversion ends in a parity gate: it compares the bundle with what the checkpoint
    computes, and refuses a bundle that differs by more than its quantization explains.
    """


def _family_command(family: Family) -> click.Command:
    """Create `convert NAME`, with the options that every family has and then its own."""

    @click.command(
        family.name, cls=Command, help=inspect.cleandoc(family.help), short_help=family.summary
    )
    @click.argument("out", type=click.Path(path_type=Path))
    @click.option("--vision-quant", "vision_quants", multiple=True,
                  type=click.Choice(CONVERTED_QUANTS), default=("int8",), show_default=True,
                  help="Variant of the vision graph; repeatable. auto: int8 for as many matrices "
                  "as a relative error of 0.04 allows.")  # fmt: skip
    @click.option("--lm-quant", default=family.lm_quants[0], show_default=True, metavar="QUANT",
                  help=_lm_quants(family))  # fmt: skip
    @click.option("--name", default="", metavar="NAME",
                  help="The bundle's name.  [default: the captioner's]")  # fmt: skip
    @click.option("--overwrite", is_flag=True, help="Replace the bundle OUT if it exists.")
    @click.option("--force", is_flag=True,
                  help="Write the bundle even if the gate fails, and record it.")  # fmt: skip
    def run(
        out: Path,
        vision_quants: tuple[str, ...],
        lm_quant: str,
        name: str,
        overwrite: bool,
        force: bool,
        **settings: Value,
    ) -> None:
        from edgeprism.convert.options import ConvertOptions

        options = ConvertOptions(vision_quants, lm_quant, overwrite, force, name)
        _convert(family.name, out, options, settings)

    run.params += [_click_option(option) for option in family.options]
    return run


def _lm_quants(family: Family) -> str:
    """Return the quantizations of a family's language model, as a help text."""
    from edgeprism.convert.family import GGUF_QUANTS

    if family.lm_quants == GGUF_QUANTS:
        return "F32, F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, …"
    return ", ".join(family.lm_quants)


def _click_option(option: Option) -> click.Option:
    types: dict[str, click.ParamType[Any]] = {
        "folder": _FOLDER, "choice": click.Choice(option.choices), "flag": click.BOOL,
        "text": click.STRING,
    }  # fmt: skip
    flag = option.kind == "flag"
    # click refuses a default that is no choice, e.g. "", so Family.settings supplies it instead
    left_out = option.kind == "choice" and option.default not in option.choices
    return click.Option(
        [f"--{option.name.replace('_', '-')}", option.name],
        type=types[option.kind],
        is_flag=flag,
        default=None if left_out else option.default,
        required=option.required,
        metavar=option.metavar if option.kind == "text" else None,
        help=option.help,
    )


@with_examples(
    "edgeprism convert mmproj model.gguf mmproj.gguf my-bundle",
    "edgeprism convert mmproj model.gguf mmproj.gguf my-bundle --encoder mtmd",
    "edgeprism convert mmproj ollama:gemma3:4b my-bundle",
    old_names={"--chat-format": "--lm-chat-format"},
)
@click.command(
    "mmproj",
    cls=Command,
    short_help="Any pair of GGUF and mmproj that llama.cpp's mtmd runs, faster where possible.",
)
@click.argument("pair", nargs=-1, required=True, metavar="MODEL.gguf MMPROJ.gguf|NAME|REFERENCE",
                shell_complete=completion.captioners)  # fmt: skip
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--encoder", type=click.Choice(ENCODERS), default="auto", show_default=True,
              help="Who encodes pictures: an ONNX graph built from MMPROJ.gguf (onnx), llama.cpp "
              "(mtmd), or a graph where one can be built and is faster (auto).")  # fmt: skip
@click.option("--vision-quant", "vision_quants", multiple=True,
              type=click.Choice(PAIR_QUANTS), default=("int8",), show_default=True,
              help="Variant of the ONNX graph; repeatable. auto: int8 for as many matrices as a "
              "relative error of 0.04 allows.")  # fmt: skip
@click.option("--lm-chat-format", type=ChatFormat(), metavar="NAME",
              help="llama.cpp's name of the model's chat format, for a file whose own template "
              "llama.cpp does not know.")  # fmt: skip
@click.option("--name", default="", metavar="NAME",
              help="The bundle's name.  [default: the language model's]")  # fmt: skip
@click.option("--copy", is_flag=True, help="Copy the files even if hard links are possible.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle OUT if it exists.")
def mmproj_pair(
    pair: tuple[str, ...],
    out: Path,
    encoder: str,
    vision_quants: tuple[str, ...],
    lm_chat_format: str | None,
    name: str,
    copy: bool,
    overwrite: bool,
) -> None:
    """Make any pair that llama.cpp's mtmd runs a bundle, with a faster encoder where possible.

    The pair is two files, an installed captioner made of such files, or one that another program
    keeps (`models discover`). Both files go into OUT unchanged. For SmolVLM, Idefics3, LLaVA-1.5,
    Gemma 3, InternVL, Qwen2-VL, Qwen2.5-VL, LFM2-VL and MiniCPM-V an ONNX graph is built from
    MMPROJ.gguf, compared with llama.cpp, quantized to int8 behind a parity gate, and kept if it is
    faster. That needs the extra `pairs`, and no torch.
    """
    from edgeprism.convert.options import PairOptions, check_vision_quants

    check_vision_quants(vision_quants, PAIR_QUANTS)  # before a file is written
    if encoder == "onnx":
        _require_packages(_NEEDED_FOR_PAIRS, "pairs")
    written = _write_pair(pair, out, lm_chat_format, name, copy, overwrite)
    if encoder != "mtmd":
        from edgeprism.convert.mmproj.speed_up import speed_up_pair

        options = PairOptions(vision_quants, always=encoder == "onnx")
        with StderrProgress().shown() as progress:
            progress.say(speed_up_pair(out, progress, options, digest=written))
    print_path(out)
    _show_next(out)


def _write_pair(
    pair: tuple[str, ...],
    out: Path,
    lm_chat_format: str | None,
    name: str,
    copy: bool,
    overwrite: bool,
) -> str | None:
    """Write the bundle of a pair; return the digest of its manifest."""
    from edgeprism.bundle.elsewhere.references import naming
    from edgeprism.vision.pair import write_pair

    files, naming_it = _pair_files(pair), contextlib.ExitStack()
    if is_reference(pair[0]):
        naming_it.enter_context(naming(files.name, files.lm, files.mmproj))
        # without the prefix, with which a name is a reference
        name = name or files.name.partition(":")[2]
    with naming_it:
        return write_pair(
            files.lm, files.mmproj, out, lm_chat_format=lm_chat_format or files.chat_format,
            name=name or files.name, copy=copy, overwrite=overwrite, origin=files.origin,
        )  # fmt: skip


def _pair_files(pair: tuple[str, ...]) -> PairFiles:
    """Return the two files that the command line names, or that a model's name or reference has."""
    from edgeprism.vision.open_model import PairFiles, find_pair

    if len(pair) == 1:
        with told_to_pull(pair[0], "captioner"):
            return find_pair(pair[0])
    if len(pair) > 2:
        raise UsageError(
            f"`convert mmproj` takes one pair, and {len(pair)} files or names stand before OUT.",
            "Name MODEL.gguf and MMPROJ.gguf, or one captioner. Of a model in several files name "
            "the first.",
        )
    for path in pair:
        if not os.path.isfile(path):
            raise UsageError(
                f"{path}: no such file.",
                "Name MODEL.gguf, MMPROJ.gguf and OUT; or one captioner and OUT.",
            )
    return PairFiles(Path(pair[0]), Path(pair[1]))


def _convert(
    family: str, out: Path, options: ConvertOptions, settings: Mapping[str, Value]
) -> None:
    _require_packages(_NEEDED, "convert")
    from edgeprism.bundle.open import open_bundle
    from edgeprism.convert.supervise import convert_in_child
    from edgeprism.vision.trial import remember_captioner

    with StderrProgress().shown() as progress:
        convert_in_child(family, out, options, settings, progress)
    # the gate has just run every file of the bundle, so no caption needs to wait for a trial
    remember_captioner(open_bundle(out))
    print_path(out)
    _show_next(out)


def _show_next(out: Path) -> None:
    """Say how to use the bundle `out`, unless --quiet is given."""
    if not is_quiet():
        # a path without a separator would be taken for a name
        shown = out if out.is_absolute() or len(out.parts) > 1 else f"./{out}"
        say(f"To use it: edgeprism caption photo.jpg --model {shlex.quote(str(shown))}")


def _require_packages(names: Sequence[str], extra: str) -> None:
    from edgeprism.install.extras import has_module, install_extra

    if missing := [name for name in names if not has_module(name)]:
        raise UsageError(
            f"Converting needs packages that are not installed: {', '.join(missing)}.",
            install_extra(extra),
        )
