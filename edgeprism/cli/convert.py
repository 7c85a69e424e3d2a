"""`edgeprism convert FAMILY … OUT`: a published checkpoint becomes a bundle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from edgeprism.errors import UsageError
from edgeprism.manifest import VISION_QUANTS

_NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "optimum", "gguf", "safetensors",
           "sentencepiece", "google.protobuf")  # fmt: skip
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group("convert")
def command() -> None:
    """Make a bundle from a published checkpoint.

    Every conversion ends in a parity gate: the bundle is compared with what the checkpoint
    computes, and refused if it differs by more than its quantization explains.
    """


@command.command("prismcaptioner")
@click.option("--captioner", type=_FOLDER, required=True,
              help="Folder with llm_adapter/ and projector/.")  # fmt: skip
@click.option("--llm", type=_FOLDER, required=True, help="Folder of the InternLM2 base model.")
@click.option("--vision", type=_FOLDER, required=True, help="Folder of the SigLIP model.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--vision-quant", "vision_quants", multiple=True, type=click.Choice(VISION_QUANTS),
              default=("int8",), show_default=True,
              help="Variant of the vision graph; repeatable.")  # fmt: skip
@click.option("--lm-quant", default="Q4_K_M", show_default=True, metavar="QUANT",
              help="F32, F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, …")  # fmt: skip
@click.option("--keep-first-patch", is_flag=True,
              help="Keep the first visual token; the published model drops it.")  # fmt: skip
@click.option("--name", default="", metavar="NAME",
              help="The bundle's name.  [default: the captioner's]")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the bundle OUT if it exists.")
@click.option("--force", is_flag=True, help="Write the bundle even if the gate fails, and say so.")
def prismcaptioner(
    captioner: Path,
    llm: Path,
    vision: Path,
    out: Path,
    vision_quants: tuple[str, ...],
    lm_quant: str,
    keep_first_patch: bool,
    name: str,
    overwrite: bool,
    force: bool,
) -> None:
    """PrismCaptioner: SigLIP, projector, and InternLM2 with its adapter, into OUT."""
    _run(
        "prismcaptioner",
        out,
        {
            "vision_quants": vision_quants,
            "lm_quant": lm_quant,
            "overwrite": overwrite,
            "force": force,
            "name": name,
        },
        captioner=captioner,
        llm=llm,
        vision=vision,
        keep_first_patch=keep_first_patch,
    )


def _run(family: str, out: Path, options: dict[str, Any], **settings: Any) -> None:
    missing = [name for name in _NEEDED if not _is_installed(name)]
    if missing:
        raise UsageError(
            f"Converting needs packages that are not installed: {', '.join(missing)}.",
            'pip install "edgeprism[convert,cpu]"',
        )
    from edgeprism.convert.options import ConvertOptions
    from edgeprism.convert.progress import StderrProgress
    from edgeprism.convert.supervise import convert_in_child

    with StderrProgress().shown() as progress:
        convert_in_child(family, out, ConvertOptions(**options), progress, **settings)
    click.echo(str(out))


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
