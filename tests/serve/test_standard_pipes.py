"""Lines of a pipe, whatever their length."""

from __future__ import annotations

import asyncio
import os
import threading

from edgeprism.serve import standard_pipes
from edgeprism.serve.standard_pipes import Lines


def lines_of(data: bytes) -> list[str]:
    source, target = os.pipe()

    def feed() -> None:
        with open(target, "wb") as file:
            file.write(data)

    async def read() -> list[str]:
        lines = Lines(source)
        lines.start()
        return [line async for line in lines]

    feeder = threading.Thread(target=feed)
    feeder.start()
    found = asyncio.run(read())
    feeder.join()
    os.close(source)
    return found


def test_lines_come_whole_and_in_order() -> None:
    texts = [f"{number} é " * number for number in range(300)]
    assert lines_of("".join(f"{text}\n" for text in texts).encode()) == texts
    assert lines_of(b"\n\na\nno end") == ["", "", "a"]


def test_of_a_line_without_end_only_the_beginning_is_kept() -> None:
    long, limit = b"x" * (3 << 20) + b"y", standard_pipes.LONGEST_LINE
    first, second = lines_of(long + b"\nshort\n")
    assert first == "x" * limit
    assert second == "short"
