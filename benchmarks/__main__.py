"""Run a comparison that has several parts: `python -m benchmarks peers --help`."""

from __future__ import annotations

import sys

from benchmarks.decoders import table as decoders_table
from benchmarks.peers import compare, table

COMMANDS = {
    "peers": compare.main,
    "peers-table": table.main,
    "decoders-table": decoders_table.main,
}


def main() -> None:
    name, *arguments = sys.argv[1:] or [""]
    if name not in COMMANDS:
        raise SystemExit(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} …")
    COMMANDS[name](arguments)


if __name__ == "__main__":
    main()
