"""`edgeprism desktop`: the server's page in the browser, for as long as the command runs."""

from __future__ import annotations

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.options import engine_options
from edgeprism.cli.serving import import_extra, served_models_options
from edgeprism.cli.terminal import is_quiet, print_line, say
from edgeprism.errors import EXIT_DONE


@with_examples(
    "edgeprism desktop",
    "edgeprism desktop --no-browser",
)
@click.command("desktop", cls=Command)
@click.option("--no-browser", is_flag=True, help="Print the page's address, and open nothing.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="PORT",
              help="Where the page is served.  [default: a free port]")  # fmt: skip
@served_models_options
@engine_options
def command(
    no_browser: bool, port: int, model: str, reasoner: str,
    device: str, threads: int | None, gpu_layers: int | None,
) -> int:  # fmt: skip
    """Look at pictures in the browser: captions, questions, whole folders.

    It starts `edgeprism serve` on a free port, with a key of its own that the page's address
    carries, and opens that address. Ctrl-C ends it. Pictures stay in memory and on this machine.
    """
    import secrets

    from edgeprism.machine.cancel import finishing_first
    from edgeprism.machine.device import EngineOptions

    run = import_extra("serve", "edgeprism.serve.run")
    from edgeprism.serve.options import ServeOptions

    options = ServeOptions(
        port=port,
        api_key=secrets.token_urlsafe(32),
        model=model,
        reasoner=reasoner,
        engines=EngineOptions(device=device, threads=threads, gpu_layers=gpu_layers),
    )
    with run.open_socket(options) as listener:
        run.allow_open_files(options)
        server = run.make_server(options)
        # What follows # stays in the browser: no request and no log carries it.
        address = f"{run.address_of(listener)}/#key={options.api_key}"
        print_line(f"EdgePrism is at {address}")
        if not is_quiet():
            say("Ctrl-C ends it.", dim=True)
        if not no_browser:
            _open_browser(address)
        with finishing_first(server.stop):
            run.run_server(server, listener)
    return EXIT_DONE


def _open_browser(address: str) -> None:
    """Open the address beside the server: a browser in a terminal runs until it is closed."""
    import threading
    import webbrowser

    def show() -> None:
        if not webbrowser.open(address):
            say("No browser was found: open the address above in one.")

    threading.Thread(target=show, name="browser", daemon=True).start()
