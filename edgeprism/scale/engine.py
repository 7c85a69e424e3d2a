"""An actor's captioner in a process of its own, and what is done when a picture ends that process.

Every picture that was in the process when it ended is tried again alone, one after another. One
that ends it alone, twice, gets an error for its row, and costs no other picture anything but time.
A process that ends for other reasons (a machine without memory, an administrator) costs none.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any

from edgeprism.errors import EXIT_FAILED, EdgePrismError
from edgeprism.machine.child import Child, Ended, edgeprism_command
from edgeprism.scale.names import last_part

_LINE_BYTES = 1 << 24
_ENOUGH_ENDS = 2  # of a process with one picture alone: that is the picture's doing
# pictures that ended it, one after another without any caption between: the fault is not theirs
_MOST_ENDING = 8


class EngineError(EdgePrismError):
    """The process of a captioner cannot do its work, whatever the picture."""

    def __init__(self, summary: str, hint: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(summary, hint)
        self.exit_code = exit_code


@dataclass(frozen=True)
class EngineSettings:
    """What the process is started with; everything must be JSON.

    Parameters:
        model, lm_chat_format, captioner: as of `Captioner.load`, `captioner` its other keywords.
        caption: keywords of `Captioner.plan`.
        parallel: captions to decode at a time; None: measured.
        cores: how many cores the cluster gave to the actor; None: all of the machine.
    """

    model: str
    lm_chat_format: str | None = None
    captioner: Mapping[str, Any] = field(default_factory=dict)
    caption: Mapping[str, Any] = field(default_factory=dict)
    parallel: int | None = None
    cores: int | None = None


@dataclass(frozen=True)
class EngineFacts:
    """What the process said about itself when it had started."""

    request: str  # the digest of everything but the picture that decides a caption's words
    model: str
    device: str
    window: int  # pictures that it takes before it answers the first of them


@dataclass
class Answer:
    """What became of one picture: its record, or an error."""

    record: dict[str, Any] | None = None
    error: str = ""
    hint: str = ""
    ended: bool = False  # the picture ended the process, alone in it


@dataclass
class _Task:
    name: str
    data: bytes
    ends: int = 0  # how often it ended the process, alone in it
    answer: Future[Answer] = field(default_factory=Future)


class EngineProcess:
    """The process of a captioner. Any thread may call `caption`, also several at a time.

    One thread starts the process and sends pictures, because the system ends a child when the
    thread that started it ends. Another one reads the answers.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Start the process; it loads its model with the first picture.

        Raises EngineError, in the words of the process, if it cannot start.
        """
        self._settings = settings
        self._changed = threading.Condition()
        self._waiting: deque[_Task] = deque()
        self._alone: deque[_Task] = deque()  # were in the process when it ended
        self._sent: deque[_Task] = deque()  # in the order of the answers
        self._child_ended = self._closed = False
        self._last_words: EngineError | None = None  # of the process that has just ended
        self._broken: EngineError | None = None  # for every picture
        self._ending = 0  # pictures that ended the process since the last answer
        self._ready: Future[EngineFacts] = Future()
        self.pid = 0
        self._manager = threading.Thread(target=self._manage, name="engine", daemon=True)
        self._manager.start()
        self.facts = self._ready.result()

    def caption(self, pictures: Sequence[tuple[str, bytes]]) -> list[Answer]:
        """Caption pictures, each given by its name and its file's bytes; return their answers.

        Raises EngineError if the process cannot caption any picture, or was closed.
        """
        tasks = [_Task(name, data) for name, data in pictures]
        with self._changed:
            if self._broken is not None:
                raise self._broken
            self._waiting.extend(tasks)
            self._changed.notify_all()
        return [task.answer.result() for task in tasks]

    def close(self) -> None:
        """End the process; captions in it are lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._manager.join()

    # ---- the thread that starts and feeds the process

    def _manage(self) -> None:
        try:
            while not self._closed:
                self._run_child()
        except EngineError as error:
            self._fail(error)
        except OSError as error:
            self._fail(EngineError(f"The captioner's process does not start: {error}."))
        else:
            self._fail(EngineError("The captioner was closed."))

    def _run_child(self) -> None:
        with Child(edgeprism_command("edgeprism.scale.worker")) as child:
            self.pid = child.pid
            child.send(json.dumps(asdict(self._settings)).encode() + b"\n")
            facts = self._first_words(child)
            if facts is None:
                return
            self._child_ended, self._last_words = False, None
            reader = threading.Thread(target=self._read, args=(child,), name="answers", daemon=True)
            reader.start()
            if not self._ready.done():
                self._ready.set_result(facts)
            self._feed(child, facts.window)
            ended_by_itself = self._child_ended
            child.end()
            reader.join()
            if not self._closed and ended_by_itself:
                self._sort_out(child.wait())

    def _first_words(self, child: Child) -> EngineFacts | None:
        """Return what the process says about itself; None if it ended first, but once did not."""
        words = _answer(child)
        if words is None:
            ended = child.wait()
            if self._ready.done():
                self._count_ending(ended, None)
                return None
            raise EngineError(
                f"The captioner's process ended before its first picture: {ended.how}.",
                "Its own words are in the log of the worker. Where a machine has too little memory "
                "for its actors, give each more CPUs, so that there are fewer.",
            )
        if "fatal" in words:
            raise _error(words)
        return EngineFacts(**words)

    def _feed(self, child: Child, window: int) -> None:
        """Send pictures until the process has ended, or is to end."""
        while True:
            with self._changed:
                while (task := self._next(window)) is None:
                    if self._child_ended or self._closed:
                        return
                    self._changed.wait()
                self._sent.append(task)
            head = json.dumps({"name": last_part(task.name), "bytes": len(task.data)})
            try:
                child.send(head.encode() + b"\n")
                child.send(task.data)
            except OSError:
                with self._changed:  # the reader sees the end, too, once the answers are read
                    self._changed.wait_for(lambda: self._child_ended or self._closed)
                return

    def _next(self, window: int) -> _Task | None:
        """Return the picture to send now; a suspect only when nothing else is in the process."""
        if self._child_ended or self._closed:
            return None
        if self._alone:
            return self._alone[0] if not self._sent else None
        if self._waiting and len(self._sent) < window:
            return self._waiting.popleft()
        return None

    def _sort_out(self, ended: Ended) -> None:
        """Find out what the end of the process means for the pictures that were in it."""
        said = self._last_words
        with self._changed:
            lost = list(self._sent)
            self._sent.clear()
        if not lost:
            self._count_ending(ended, said)  # nothing was in it
        elif not self._alone:
            self._alone.extend(lost)
        else:
            suspect = self._alone[0]
            suspect.ends += 1
            if suspect.ends < _ENOUGH_ENDS:
                return
            self._alone.popleft()
            suspect.answer.set_result(_blame(suspect, ended, said))  # before an error ends all
            self._count_ending(ended, said)

    def _count_ending(self, ended: Ended, said: EngineError | None) -> None:
        """Raise EngineError if the process has ended too often to be the pictures' doing."""
        self._ending += 1
        if self._ending >= _MOST_ENDING:
            raise said or EngineError(
                f"The captioner's process ended again and again without a caption between, the "
                f"last time with {ended.how}.",
                "Its own words are in the log of the worker; its memory may be too small.",
            )

    # ---- the thread that reads answers

    def _read(self, child: Child) -> None:
        while (words := _answer(child)) is not None:
            if "fatal" in words:
                self._last_words = _error(words)
                break
            with self._changed:
                task = self._sent.popleft()
                if self._alone and self._alone[0] is task:
                    self._alone.popleft()
                self._ending = 0
                self._changed.notify_all()
            task.answer.set_result(Answer(**words))
        with self._changed:
            self._child_ended = True
            self._changed.notify_all()

    def _fail(self, error: EngineError) -> None:
        """Give `error` to every picture that waits, and to those that will come."""
        with self._changed:
            self._broken = error
            tasks = {id(task): task for task in (*self._sent, *self._alone, *self._waiting)}
            for tasks_of in (self._sent, self._alone, self._waiting):
                tasks_of.clear()
        if not self._ready.done():
            self._ready.set_exception(error)
        for task in tasks.values():
            task.answer.set_exception(error)


def _answer(child: Child) -> dict[str, Any] | None:
    """Return the next line of the process; None if it ended without a whole one."""
    line = child.output.readline(_LINE_BYTES)
    if not line.endswith(b"\n"):
        return None
    words: dict[str, Any] = json.loads(line)
    return words


def _error(words: Mapping[str, Any]) -> EngineError:
    return EngineError(words["fatal"], words["hint"], words["exit_code"])


def _blame(task: _Task, ended: Ended, said: EngineError | None) -> Answer:
    """Return the answer for a picture that ended its process alone."""
    if said is not None:
        return Answer(error=said.message, hint=said.hint, ended=True)
    return Answer(
        error=f"{last_part(task.name)}: ended the process that captioned it ({ended.how}).",
        hint="Export a smaller or repaired copy; or its machine has too little memory.",
        ended=True,
    )
