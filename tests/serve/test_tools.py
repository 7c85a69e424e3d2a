"""The tools' own limits: what all calls together may hold, and what one may name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, cast

import pytest

from edgeprism.serve.events import Failed
from edgeprism.serve.folders import Folders
from edgeprism.serve.options import Limits
from edgeprism.serve.refusals import Refusal
from edgeprism.serve.service import Description, Service
from edgeprism.serve.tools import Tools

ROOM = 1000  # bytes


class BusyService:
    """A service whose every picture fails after a while; it counts the bytes that are held."""

    limits = Limits(bodies_bytes=ROOM)

    def __init__(self) -> None:
        self.models, self.held, self.most = self, 0, 0

    async def resolve(self, _: None) -> str:
        return "nano"

    async def describe(self, job: Description) -> AsyncGenerator[Failed]:
        size = sum(len(picture.data) for picture in job.pictures)
        self.held += size
        self.most = max(self.most, self.held)
        await asyncio.sleep(0.01)
        self.held -= size
        yield Failed(0, Refusal(400, "unreadable_picture", "It is broken."))


@pytest.fixture
def service(tmp_path: Path) -> BusyService:
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"x" * 400)
    (tmp_path / "large.png").write_bytes(b"x" * (ROOM + 1))
    return BusyService()


def call(service: BusyService, folder: Path, *calls: tuple[str, dict[str, Any]]) -> list[Refusal]:
    """Make calls at the same time; return why each failed."""
    tools = Tools(cast("Service", service), Folders([str(folder)]))

    async def one(name: str, arguments: dict[str, Any]) -> Refusal:
        with pytest.raises(Refusal) as refused:
            await tools.call(tools.by_name[name], arguments)
        return refused.value

    async def together() -> list[Refusal]:
        return await asyncio.gather(*(one(*each) for each in calls))

    return asyncio.run(together())


def test_calls_wait_for_room_for_their_pictures(service: BusyService, tmp_path: Path) -> None:
    calls = [("describe_picture", {"path": f"{number}.png"}) for number in range(8)]
    refusals = call(service, tmp_path, *calls)
    assert {refusal.code for refusal in refusals} == {"unreadable_picture"}
    assert service.most == 800  # two at a time
    assert service.held == 0


def test_what_never_fits_is_refused_before_it_is_read(service: BusyService, tmp_path: Path) -> None:
    many = {"paths": ["0.png", "1.png", "2.png"], "question": "How many?"}
    long = {"path": "x/" * 100_000}
    one, several, path = call(
        service, tmp_path, ("describe_picture", {"path": "large.png"}), ("ask_picture", many),
        ("describe_picture", long),
    )  # fmt: skip
    assert (one.code, several.code, path.code) == ("too_large", "too_large", "invalid_arguments")
    assert one.summary.startswith("large.png: ")
    assert several.summary.startswith("Together the pictures: ")
    assert service.most == 0
