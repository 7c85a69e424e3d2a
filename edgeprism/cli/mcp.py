"""`edgeprism mcp`: pictures in words, for programs that speak the Model Context Protocol."""

from __future__ import annotations

import sys

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.options import engine_options
from edgeprism.cli.serving import (
    check_models,
    collect_as_usual,
    import_extra,
    keep_alive_option,
    log_content_option,
    only_one,
    served_models_options,
)
from edgeprism.cli.terminal import is_quiet, say
from edgeprism.errors import EXIT_DONE


@with_examples(
    "edgeprism mcp ~/Pictures",
    "edgeprism mcp --preload --keep-alive -1 ~/Pictures ~/Scans",
)
@click.command("mcp", cls=Command)
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@served_models_options
@keep_alive_option
@click.option("--preload", is_flag=True,
              help="Load the models at the start, not at the first call.")  # fmt: skip
@log_content_option
@engine_options
def command(
    folders: tuple[str, ...], model: str, reasoner: str, served_models: tuple[str, ...],
    allow_network: bool, keep_alive: str, preload: bool, log_content: bool,
    device: str, threads: int | None, gpu_layers: int | None,
) -> int:  # fmt: skip
    """Let an assistant look at pictures in these folders: an MCP server on stdin and stdout.

    A program that speaks the Model Context Protocol starts it, and finds two tools:
    describe_picture and ask_picture. They read pictures in the folders and nowhere else; nothing
    is fetched, stored or reported. It ends with its client, or by Ctrl-C.
    """
    from edgeprism.machine.cancel import finishing_first
    from edgeprism.machine.device import EngineOptions

    module = import_extra("mcp", "edgeprism.serve.mcp_server")
    from edgeprism.serve.folders import Folders
    from edgeprism.serve.options import ServeOptions, to_seconds

    options = ServeOptions(
        model=model,
        reasoner=reasoner,
        served_model=only_one(served_models),
        allow_network=allow_network,
        keep_alive_s=to_seconds(keep_alive),
        log_content=log_content,
        engines=EngineOptions(device=device, threads=threads, gpu_layers=gpu_layers),
        on_log=(lambda _: None) if is_quiet() else (lambda line: say(line, dim=True)),
    )
    server = module.PictureServer(options, Folders(folders), preload=preload)
    check_models(options)
    collect_as_usual()
    if sys.stdin.isatty() and not is_quiet():
        say("It speaks to a program on standard input and output. Ctrl-C ends it.", dim=True)
    with finishing_first(server.stop):
        server.run()
    return EXIT_DONE
