"""`edgeprism serve`: captions and answers over HTTP, for programs on this machine."""

from __future__ import annotations

import os
from typing import Any

import click

from edgeprism.cli.command import Command, with_examples
from edgeprism.cli.options import engine_options, visual_tokens_option
from edgeprism.cli.serving import (
    check_models,
    collect_as_usual,
    import_extra,
    keep_alive_option,
    log_content_option,
    only_one,
    served_models_options,
)
from edgeprism.cli.terminal import is_quiet, print_line, say
from edgeprism.errors import EXIT_DONE

_KEY_VARIABLE = "EDGEPRISM_SERVE_API_KEY"


@with_examples(
    "edgeprism serve",
    "edgeprism serve --port 0 --keep-alive 1h",
    "edgeprism serve --host 0.0.0.0 --api-key-file ~/.edgeprism-key",
)
@click.command("serve", cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
              help="Where to listen. Others than this machine's own need a key.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=11435, show_default=True,
              help="0: a free one; its address is printed.")  # fmt: skip
@click.option("--fd", type=click.IntRange(min=0), metavar="N",
              help="Listen on a socket that is open already: systemd's first is 3.")  # fmt: skip
@click.option("--api-key-file", type=click.Path(), metavar="FILE",
              help="Answer only clients that send this key.  "
              f"[default: ${_KEY_VARIABLE}]")  # fmt: skip
@click.option("--allow-host", "allow_hosts", multiple=True, metavar="NAME",
              help="A name by which clients may call the server, besides its address.")  # fmt: skip
@click.option("--allow-origin", "allow_origins", multiple=True, metavar="ORIGIN",
              help="A web page's origin that may use the server: https://photos.lan")  # fmt: skip
@served_models_options
@keep_alive_option
@click.option("--queue", "waiting", type=click.IntRange(min=1), default=128, show_default=True,
              metavar="N", help="Pictures and questions that may wait.")  # fmt: skip
@click.option("--max-body", type=click.IntRange(1, 1024), default=32, show_default=True,
              metavar="MIB", help="Largest request.")  # fmt: skip
@click.option("--max-pictures", type=click.IntRange(1, 1000), default=16, show_default=True,
              metavar="N", help="Most pictures in one request.")  # fmt: skip
@click.option("--max-pixels", type=click.IntRange(min=1), default=100, show_default=True,
              metavar="MEGAPIXELS", help="Largest picture.")  # fmt: skip
@click.option("--max-text", "max_tokens", type=click.IntRange(min=1), default=1024,
              show_default=True, metavar="TOKENS", help="Longest caption or answer.")  # fmt: skip
@click.option("--timeout", "answer_seconds", type=click.FloatRange(min=1), default=600,
              show_default=True, metavar="SECONDS", help="Longest wait for an answer.")  # fmt: skip
@click.option("--stop-timeout", "stop_seconds", type=click.IntRange(min=0), default=20,
              show_default=True, metavar="SECONDS",
              help="What is running may take so long after SIGTERM or Ctrl-C.")  # fmt: skip
@visual_tokens_option
@log_content_option
@engine_options
def command(**options: Any) -> int:
    """Serve captions and answers over HTTP, on this machine alone.

    Programs for OpenAI's API (/v1/chat/completions, /v1/responses) and for Ollama's (/api/chat,
    /api/generate) can use it; /v1/captions and /v1/ask are EdgePrism's own, and /openapi.json
    describes them all. A model such as nano+smollm2-135m perceives, then reasons. Models load when
    they are first asked for. Pictures stay in memory; nothing is fetched, stored or reported.
    """
    import math

    from edgeprism.machine.cancel import finishing_first

    run = import_extra("serve", "edgeprism.serve.run")
    server_options = _to_options(**options)
    check_models(server_options)
    collect_as_usual()
    with run.open_socket(server_options) as listener:
        run.allow_open_files(server_options)
        server = run.make_server(server_options)
        print_line(f"EdgePrism listens on {run.address_of(listener)}")
        if not is_quiet() and math.isinf(server_options.keep_alive_s):
            say("Models stay in memory until the server ends.", dim=True)
        with finishing_first(server.stop):
            run.run_server(server, listener)
    return EXIT_DONE


def _to_options(api_key_file: str | None, keep_alive: str, **options: Any) -> Any:
    from edgeprism.machine.device import EngineOptions
    from edgeprism.serve.options import (
        MIB,
        Limits,
        ServeOptions,
        is_open_to_others,
        read_key,
        to_seconds,
    )

    limits = Limits(
        body_bytes=options.pop("max_body") * MIB,
        pictures=options.pop("max_pictures"),
        pixels=options.pop("max_pixels") * 1_000_000,
        tokens=options.pop("max_tokens"),
        waiting=options.pop("waiting"),
        answer_seconds=options.pop("answer_seconds"),
    )
    engines = EngineOptions(
        device=options.pop("device"),
        threads=options.pop("threads"),
        gpu_layers=options.pop("gpu_layers"),
    )
    options["served_model"] = only_one(options.pop("served_models"))
    key = read_key(api_key_file) if api_key_file else os.environ.get(_KEY_VARIABLE) or None
    if api_key_file and is_open_to_others(api_key_file):
        say(f"note: other users can read {api_key_file}: chmod 600 keeps them out.")
    return ServeOptions(
        api_key=key,
        keep_alive_s=to_seconds(keep_alive),
        engines=engines,
        limits=limits,
        on_log=(lambda _: None) if is_quiet() else (lambda line: say(line, dim=True)),
        **options,
    )
