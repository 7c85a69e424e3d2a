"""A reasoner that requests use one after another, and answers within a conversation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from edgeprism.errors import Interrupted
from edgeprism.reason.base import BaseReasoner, captions_by_picture
from edgeprism.reason.conversation import Conversation
from edgeprism.reason.prompt import Turn as PromptTurn
from edgeprism.reason.question import to_question
from edgeprism.reason.shape import Shape
from edgeprism.records import Answer, Caption
from edgeprism.version import __version__

if TYPE_CHECKING:
    from edgeprism.serve.uploads import Upload

Result = TypeVar("Result")


class ReasonerThread:
    """Runs a reasoner's work in a thread of its own; a request that is given up stops it."""

    def __init__(self, reasoner: BaseReasoner) -> None:
        self.reasoner = reasoner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reasoner")
        self._lock = threading.Lock()
        self._current: object = None

    async def run(self, work: Callable[[BaseReasoner], Result]) -> Result:
        """Return what `work` returns, once earlier works have ended.

        If the awaiting task is cancelled, the work is dropped, or stopped if it has begun.
        """
        key, dropped = object(), threading.Event()

        def run() -> Result:
            with self._lock:
                if dropped.is_set():
                    raise Interrupted
                self._current = key
            try:
                return work(self.reasoner)
            finally:
                with self._lock:
                    self._current = None

        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        except asyncio.CancelledError:
            with self._lock:
                dropped.set()
                if self._current is key:
                    self.reasoner.cancel()
            raise

    def close(self) -> None:
        """Free the reasoner; waits for the work in progress."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.reasoner.close()


@dataclass(frozen=True)
class Turn:
    """A question that was answered before, with the pictures that came with it."""

    question: str
    answer: str
    pictures: tuple[Upload, ...] = ()


def answer_in_conversation(
    reasoner: BaseReasoner,
    turns: Sequence[Turn],
    captions: Sequence[Caption],
    question: str,
    *,
    hint: str | None,
    focus: str,
    notes: tuple[str, ...],
    answer_tokens: int,
    shape: Shape | None,
    on_text: Callable[[str], object] | None = None,
) -> Answer:
    """Answer a question after earlier turns; `captions` are of all pictures in their order."""
    conversation, rest = Conversation(reasoner), list(captions)
    for turn in turns:
        own, rest = rest[: len(turn.pictures)], rest[len(turn.pictures) :]
        looks = (captions_by_picture(own),) if own else ()
        conversation.turns.append(PromptTurn(looks, to_question(turn.question), turn.answer))
    if rest:
        conversation.tell(rest)
    asked = f"{hint}\n\n{question}" if hint else question
    reply = conversation.ask(asked, answer_tokens=answer_tokens, shape=shape, on_text=on_text)
    return Answer(
        text=reply.text,
        question=question,
        focus=focus,
        captions=tuple(captions),
        finish_reason=reply.finish_reason,
        tokens=reply.tokens,
        timings=reply.timings,
        model=reasoner.model,
        version=__version__,
        notes=(*notes, *reply.notes),
        instruction_mode="question" if focus else "generic",
        hint=hint or "",
        thinking=reply.thinking,
    )
