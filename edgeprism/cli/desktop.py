"""`edgeprism desktop`: the server's page in the browser, for as long as the command runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.options import engine_options
from edgeprism.cli.serving import (
    check_models,
    collect_as_usual,
    import_extra,
    only_one,
    served_models_options,
)
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
    no_browser: bool, port: int, model: str, reasoner: str, served_models: tuple[str, ...],
    allow_network: bool, device: str, threads: int | None, gpu_layers: int | None,
) -> int:  # fmt: skip
    """Look at pictures in the browser: captions, questions, whole folders.

    It starts `edgeprism serve` on a free port, with a key of its own that the page's address
    carries, and opens that address. Ctrl-C ends it. Pictures stay in memory and on this machine.
    If the browser shows no page (one from a snap may not read the file that leads there), open the
    printed address in it.
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
        served_model=only_one(served_models),
        allow_network=allow_network,
        engines=EngineOptions(device=device, threads=threads, gpu_layers=gpu_layers),
    )
    check_models(options)
    collect_as_usual()
    with run.open_socket(options) as listener:
        run.allow_open_files(options)
        server = run.make_server(options)
        # What follows # stays in the browser: no request and no log carries it.
        address = f"{run.address_of(listener)}/#key={options.api_key}"
        print_line(f"EdgePrism is at {address}")
        if not is_quiet():
            say("Ctrl-C ends it.", dim=True)
        opened: AbstractContextManager[None]
        opened = contextlib.nullcontext() if no_browser else _browser_at(address)
        with opened, finishing_first(server.stop):
            run.run_server(server, listener)
    return EXIT_DONE


@contextlib.contextmanager
def _browser_at(address: str) -> Iterator[None]:
    """Open the address in the browser, beside the block.

    Other users can read the command line that a browser is started with. So it names a file that
    only this user can read, and that leads to the address.
    """
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="edgeprism-") as folder:  # for this user alone
        page = Path(folder, "open.html")
        page.write_text(_LEADS_TO.format(address=address), encoding="utf-8")
        # beside the server, because a browser in a terminal runs until it is closed
        threading.Thread(target=_show, args=(page.as_uri(),), name="browser", daemon=True).start()
        yield


_LEADS_TO = """<!doctype html>
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>EdgePrism</title>
<p><a href="{address}">EdgePrism</a></p>
"""


def _show(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        say("No browser was found: open the address above in one.")
