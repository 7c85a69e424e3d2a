"""`edgeprism convert FAMILY … OUT`: a published checkpoint becomes a bundle."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgeprism.bundle.manifest import VISION_QUANTS
from edgeprism.errors import UsageError

_NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "optimum", "gguf", "safetensors",
           "sentencepiece", "google.protobuf")  # fmt: skip
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


_CONVERSATION = click.option(
    "--conversation", default="", metavar="NAME",
    help="What stands around picture and question.  [default: as the published models]",
)  # fmt: skip


def _list_families(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from edgeprism.convert.families import FAMILIES

    for name, family in FAMILIES.items():
        click.echo(f"{name}\t{family.summary}")
    context.exit()


class Families(click.Group):
    """A family that is not there is answered with those that are."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise UsageError(
                f"{error.format_message()} A family of checkpoints comes first: "
                f"{', '.join(self.list_commands(ctx))}.",
                "`edgeprism convert --list` says what each family is.",
            ) from error


@click.group("convert", cls=Families)
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_families,
              help="List the families of checkpoints that can be converted.")  # fmt: skip
def command() -> None:
    """Make a bundle from a published checkpoint.

    Every conversion ends in a parity gate: the bundle is compared with what the checkpoint
    computes, and refused if it differs by more than its quantization explains.
    """


def _family(name: str) -> Callable[[Callable[..., dict[str, Any]]], click.Command]:
    """A family's command: its own options and those that every family has.

    The decorated function turns its own options into the family's settings.
    """

    def decorate(own: Callable[..., dict[str, Any]]) -> click.Command:
        @click.argument("out", type=click.Path(path_type=Path))
        @click.option("--vision-quant", "vision_quants", multiple=True,
                      type=click.Choice(VISION_QUANTS), default=("int8",), show_default=True,
                      help="Variant of the vision graph; repeatable.")  # fmt: skip
        @click.option("--lm-quant", default="Q4_K_M", show_default=True, metavar="QUANT",
                      help="F32, F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, …")  # fmt: skip
        @click.option("--name", default="", metavar="NAME",
                      help="The bundle's name.  [default: the captioner's]")  # fmt: skip
        @click.option("--overwrite", is_flag=True, help="Replace the bundle OUT if it exists.")
        @click.option("--force", is_flag=True,
                      help="Write the bundle even if the gate fails, and say so.")  # fmt: skip
        @functools.wraps(own)
        def run(out: Path, **given: Any) -> None:
            common = ("vision_quants", "lm_quant", "name", "overwrite", "force")
            options = {option: given.pop(option) for option in common}
            _run(name, out, options, **own(**given))

        return command.command(name)(run)

    return decorate


@_family("prismcaptioner")
@click.option("--captioner", type=_FOLDER, required=True,
              help="Folder with llm_adapter/ and projector/.")  # fmt: skip
@click.option("--llm", type=_FOLDER, required=True, help="Folder of the InternLM2 base model.")
@click.option("--vision", type=_FOLDER, required=True, help="Folder of the SigLIP model.")
@click.option("--keep-first-patch", is_flag=True,
              help="Keep the first visual token; the published model drops it.")  # fmt: skip
def prismcaptioner(**settings: Any) -> dict[str, Any]:
    """PrismCaptioner: SigLIP, projector, and InternLM2 with its adapter, into OUT."""
    return settings


@_family("llava")
@click.option("--captioner", type=_FOLDER, required=True, help="Folder of the LLaVA checkpoint.")
@click.option("--vision", type=_FOLDER,
              help="Folder of the vision model that an original checkpoint names.")  # fmt: skip
@_CONVERSATION
def llava(**settings: Any) -> dict[str, Any]:
    """LLaVA v1, LLaVA-1.5, LLaVA-NeXT-Interleave and their like, into OUT.

    Both the original layout (with --vision) and that of the llava-hf repositories.
    """
    return settings


@_family("llava-next")
@click.option("--captioner", type=_FOLDER, required=True, help="Folder of the checkpoint.")
@click.option("--vision", type=_FOLDER,
              help="Folder of the vision model that an original checkpoint names.")  # fmt: skip
@_CONVERSATION
def llava_next(**settings: Any) -> dict[str, Any]:
    """LLaVA-NeXT (LLaVA-1.6), in its original layout or that of llava-hf, into OUT."""
    return settings


@_family("vila")
@click.option("--captioner", type=_FOLDER, required=True,
              help="Folder with llm/, vision_tower/, mm_projector/; or of VILA 1.0.")  # fmt: skip
@click.option("--vision", type=_FOLDER,
              help="Folder of the vision model that VILA 1.0 names.")  # fmt: skip
@_CONVERSATION
def vila(**settings: Any) -> dict[str, Any]:
    """VILA-1.5, or VILA 1.0 with --vision: tower, projector and language model, into OUT."""
    return settings


@_family("prismatic")
@click.option("--captioner", type=_FOLDER, required=True,
              help="Folder with config.json and checkpoints/latest-checkpoint.pt.")  # fmt: skip
@click.option("--llm", type=_FOLDER, required=True,
              help="Folder of the language model it names, for its tokenizer.")  # fmt: skip
@click.option("--vision", type=_FOLDER, required=True, help="Folder of its timm vision model.")
@click.option("--second-vision", type=_FOLDER,
              help="Folder of the second one, where it names two (DINOv2 first).")  # fmt: skip
@_CONVERSATION
def prismatic(**settings: Any) -> dict[str, Any]:
    """Prismatic VLMs: one or two vision models, projector and language model, into OUT."""
    return settings


@command.command("mmproj")
@click.argument("lm", metavar="MODEL.gguf", type=_FILE)
@click.argument("mmproj", metavar="MMPROJ.gguf", type=_FILE)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--chat-format", metavar="NAME",
              help="llama.cpp's name of the model's chat format, where the file's own is not one "
              "that it knows.")  # fmt: skip
@click.option("--name", default="", metavar="NAME",
              help="The bundle's name.  [default: the language model's]")  # fmt: skip
@click.option("--copy", is_flag=True, help="Copy the files even where hard links would do.")
@click.option("--overwrite", is_flag=True, help="Replace the bundle OUT if it exists.")
def mmproj_pair(
    lm: Path,
    mmproj: Path,
    out: Path,
    chat_format: str | None,
    name: str,
    copy: bool,
    overwrite: bool,
) -> None:
    """Any pair that llama.cpp's mtmd runs, into OUT, as it is; needs nothing but the runtime."""
    from edgeprism.vision.pair import write_pair

    write_pair(lm, mmproj, out, chat_format=chat_format, name=name, copy=copy, overwrite=overwrite)
    click.echo(str(out))


@_family("smolvlm")
@click.option("--captioner", type=_FOLDER, required=True, help="Folder of the checkpoint.")
def smolvlm(**settings: Any) -> dict[str, Any]:
    """SmolVLM, SmolVLM2 and Idefics3, into OUT."""
    return settings


@_family("internvl")
@click.option("--captioner", type=_FOLDER, required=True, help="Folder of the checkpoint.")
def internvl(**settings: Any) -> dict[str, Any]:
    """InternVL 1.5 with InternLM2, in its original layout, into OUT."""
    return settings


def _run(family: str, out: Path, options: dict[str, Any], **settings: Any) -> None:
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        raise UsageError(
            f"Converting needs packages that are not installed: {', '.join(missing)}.",
            'pip install "edgeprism[convert,cpu]"',
        )
    from edgeprism.convert.options import ConvertOptions
    from edgeprism.convert.supervise import convert_in_child
    from edgeprism.progress import StderrProgress

    with StderrProgress().shown() as progress:
        convert_in_child(family, out, ConvertOptions(**options), progress, **settings)
    click.echo(str(out))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
