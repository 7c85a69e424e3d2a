"""The process in which an actor's captioner runs: pictures come in, records go out, in order.

The actor is a process of its cluster, and a picture that ends it would be tried again on the next
actor, and end that too. In a process of its own it ends only this one, and the actor knows which
pictures were in it. `engine.py` is the other side of the pipe.

A request is a JSON line with the picture's name and the number of its bytes, which follow. An
answer is a JSON line. Nothing is pickled, because this process reads strangers' files.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import IO, Any

from edgeprism.errors import EdgePrismError
from edgeprism.folder.batch import WINDOW, Batch
from edgeprism.folder.tuning import batch_shape
from edgeprism.machine.child import end_with_parent
from edgeprism.machine.facts import grant_cores
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.find import PictureFile
from edgeprism.store.stored_captioner import request_key

_POLL_S = 0.2  # poll interval for the end of a batch while no picture comes


def main() -> None:
    """Read settings from the first line, say what they come to, then caption what comes."""
    end_with_parent()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # so that text that a library prints does not get into the answers
    settings = json.loads(requests.readline())
    try:
        _caption(settings, requests, answers)
    except EdgePrismError as error:
        _answer(answers, fatal=error.message, hint=error.hint, exit_code=error.exit_code)


def _caption(settings: dict[str, Any], requests: IO[bytes], answers: IO[bytes]) -> None:
    if settings["cores"] is not None:
        grant_cores(settings["cores"])
    with Captioner.load(
        settings["model"], lm_chat_format=settings["lm_chat_format"], **settings["captioner"]
    ) as captioner:
        plan = captioner.plan(**settings["caption"])
        shape = batch_shape(captioner, settings["parallel"])
        batch = Batch(captioner, plan, parallel=shape.width, lanes=shape.lanes)
        _answer(
            answers,
            request=request_key(captioner, plan).id(),
            model=captioner.model.name,
            device=captioner.device,
            # as many as the batch works on, and some that wait for its decoder
            window=WINDOW * shape.width * shape.lanes + 8,
        )
        for outcome in batch.run(_pictures(requests, batch)):
            if outcome.record is not None:
                _answer(answers, record=outcome.record)
            else:
                assert outcome.error is not None
                _answer(answers, error=outcome.error.message, hint=outcome.error.hint)


def _pictures(requests: IO[bytes], batch: Batch) -> Iterator[PictureFile]:
    """Yield the pictures that come, until an error ends the batch.

    A thread reads them, and ends this process with its parent.
    """
    arrived: Queue[PictureFile] = Queue(maxsize=2)
    threading.Thread(target=_read, args=(requests, arrived), daemon=True).start()
    while not batch.stopped:
        try:
            picture = arrived.get(timeout=_POLL_S)
        except Empty:
            continue
        yield picture


def _read(requests: IO[bytes], arrived: Queue[PictureFile]) -> None:
    for line in requests:
        fields = json.loads(line)
        data = requests.read(fields["bytes"])
        if len(data) < fields["bytes"]:
            break
        arrived.put(PictureFile(Path(fields["name"]), None, fields["name"], data=data))
    os._exit(0)  # the actor has ended, or wants no more


def _answer(answers: IO[bytes], **fields: Any) -> None:
    answers.write(json.dumps(fields).encode() + b"\n")
    answers.flush()
