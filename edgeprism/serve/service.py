"""What the server does, without HTTP: captions and answers as streams of events."""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial

from edgeprism.perceive.options import CaptionOptions, Plan
from edgeprism.prism import NO_FOCUS_NOTE, question_to_focus, repetition_notes, with_times
from edgeprism.reason.base import DEFAULT_ANSWER_TOKENS, BaseReasoner
from edgeprism.reason.shape import Shape
from edgeprism.records import Answer, Caption
from edgeprism.serve.engine import CaptionEngine, Work
from edgeprism.serve.events import (
    Answered,
    CaptionEvent,
    Channel,
    Described,
    Event,
    Failed,
    Focused,
    TextChannel,
    Written,
)
from edgeprism.serve.metrics import Metrics
from edgeprism.serve.models import ModelName, Models
from edgeprism.serve.options import ServeOptions
from edgeprism.serve.places import Held, Places
from edgeprism.serve.reasoning import Turn, answer_in_conversation
from edgeprism.serve.refusals import Refusal, let_go, to_refusal
from edgeprism.serve.uploads import Upload


@dataclass(frozen=True)
class Description:
    """Pictures to caption: each by itself, or `together` in one prompt."""

    model: ModelName
    pictures: tuple[Upload, ...]
    options: CaptionOptions = field(default_factory=lambda: CaptionOptions())
    shape: Shape | None = None
    together: bool = False
    streams: bool = False
    load_ms: float = 0.0  # that the request has waited for the captioner to load


@dataclass(frozen=True)
class Query:
    """A question about pictures."""

    description: Description
    question: str
    options: Mapping[str, str] = field(default_factory=dict)
    hint: str | None = None
    instruction_mode: str = "question"
    answer_tokens: int = DEFAULT_ANSWER_TOKENS
    shape: Shape | None = None
    evidence: bool = True
    turns: tuple[Turn, ...] = ()  # their pictures come first in the description
    streams: bool = False  # the answer is told as it is written, where it has no shape


class Service:
    """Captions and answers for many clients; all of it runs in one event loop."""

    def __init__(self, options: ServeOptions) -> None:
        self.options, self.limits = options, options.limits
        self.models = Models(options)
        self.places = Places(options.limits.waiting)
        self.metrics = Metrics()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Free idle models inside the block, and all models at its end."""
        reaper = asyncio.create_task(self._reap())
        try:
            yield
        finally:
            reaper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reaper
            await self.models.close()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(self.options.idle_look_s)
            await self.models.free_idle()

    async def takes_several(self, model: ModelName) -> tuple[bool, float]:
        """Return whether a captioner sees several pictures in one prompt.

        It loads for that; the second value is how many milliseconds that took.
        """
        async with self.models.captioner(model.captioner) as used:
            manifest = used.engine.captioner.bundle.manifest
            return manifest.prompts.several is not None, used.load_ms

    async def describe(self, job: Description) -> AsyncGenerator[CaptionEvent]:
        """Yield the captions of pictures as they come; close it to give them up.

        Raises Refusal if the queue is full, EdgePrismError if the model cannot be used.
        """
        with self.places.take(1 if job.together else len(job.pictures)) as held:
            async with aclosing(self._describe(job, held)) as events:
                async for event in events:
                    yield event

    async def _describe(self, job: Description, held: Held) -> AsyncGenerator[CaptionEvent]:
        for name in ("instruction", "focus"):
            if given := job.options.get(name):
                self._log(name, str(given))
        groups = [job.pictures] if job.together else [(picture,) for picture in job.pictures]
        works: list[Work] = []
        async with self.models.captioner(job.model.captioner) as used:
            plan, channel = self._plan(used.engine, job), Channel(held.leave)
            try:
                for index, pictures in enumerate(groups):
                    works.append(Work(index, pictures, plan, channel.put, job.streams))
                    if index == 0:  # the request waited once
                        works[0].load_ms = job.load_ms + used.load_ms
                    used.engine.submit(works[-1])
                left = len(works)
                while left:
                    event = await channel.get()
                    left -= isinstance(event, (Described, Failed))
                    self.metrics.count(job.model.captioner, event)
                    if isinstance(event, Described):
                        self._log(f"caption of {event.caption.image}", event.caption.text)
                    yield event
            finally:
                for work in works:
                    work.cancel()

    def _plan(self, engine: CaptionEngine, job: Description) -> Plan:
        options = CaptionOptions(**job.options)
        if options.get("visual_tokens") is None:
            options["visual_tokens"] = self.options.visual_tokens
        plan = engine.captioner.plan(**options)
        sampling = plan.sampling
        tokens = min(sampling.max_tokens, self.limits.tokens)
        grammar = job.shape.gbnf if job.shape else ""
        return replace(plan, sampling=replace(sampling, max_tokens=tokens, grammar=grammar))

    async def ask(self, query: Query) -> AsyncGenerator[Event]:
        """Yield the focus, then captions as they come, then the answer: its text, then the whole.

        Raises Refusal and EdgePrismError, of a picture that cannot be read too.
        """
        started = time.perf_counter()
        description, reasoner = query.description, query.description.model.reasoner or ""
        captions: dict[int, Caption] = {}  # in the pictures' order, whichever is finished first
        with self.places.take(1 + len(description.pictures)) as held:
            if query.hint:
                self._log("hint", query.hint)
            focus, notes, load_ms = await self._focus(query, reasoner)
            yield Focused(focus)
            options = CaptionOptions(**{**description.options, "focus": focus})
            job = replace(description, options=options)
            if job.pictures:
                async with aclosing(self._describe(job, held)) as events:
                    async for event in events:
                        if isinstance(event, Failed):
                            raise event.error
                        if isinstance(event, Described):
                            captions[event.index] = event.caption
                        yield event
            in_order = [captions[index] for index in sorted(captions)]
            answer = self._answer(query, reasoner, in_order, focus, notes)
            async with aclosing(answer) as written:
                async for part in written:
                    if isinstance(part, Answered):
                        part = Answered(with_times(part.answer, load_ms, started))
                    yield part

    async def _focus(self, query: Query, name: str) -> tuple[str, tuple[str, ...], float]:
        """Return the focus, notes, and how many milliseconds the reasoner took to load for it."""
        given = query.description.options.get("focus")
        if query.instruction_mode == "generic" and not given:
            return "", (), 0.0
        if not given and not await self.models.takes_focus(query.description.model.captioner):
            return "", (NO_FOCUS_NOTE,), 0.0

        def draw(reasoner: BaseReasoner) -> tuple[str, tuple[str, ...], float]:
            mode, options = query.instruction_mode, query.options
            focus, notes = question_to_focus(reasoner, query.question, mode, given, options)
            return focus, notes, reasoner.focus_timings.load

        async with self.models.reasoner(name) as thread:
            return await thread.run(draw)

    async def _answer(
        self, query: Query, name: str, captions: Sequence[Caption], focus: str,
        notes: tuple[str, ...],
    ) -> AsyncGenerator[Written | Answered]:  # fmt: skip
        tokens = min(query.answer_tokens, self.limits.tokens)
        notes += repetition_notes(captions)
        channel = TextChannel()
        on_text = channel.put if query.streams else None

        def answer(reasoner: BaseReasoner) -> Answer:
            if query.turns:
                return answer_in_conversation(
                    reasoner, query.turns, captions, query.question, hint=query.hint, focus=focus,
                    notes=notes, answer_tokens=tokens, shape=query.shape, on_text=on_text,
                )  # fmt: skip
            return reasoner.answer(
                captions, query.question, options=query.options, hint=query.hint, focus=focus,
                notes=notes, shape=query.shape, answer_tokens=tokens, evidence=query.evidence,
                on_text=on_text,
            )  # fmt: skip

        async with self.models.reasoner(name) as thread:
            task = asyncio.create_task(thread.run(answer))
            task.add_done_callback(partial(_end, channel))
            try:
                async for text in channel.texts():
                    yield Written(text)
                answered = await task
            finally:  # a request that is given up stops the reasoner
                task.cancel()
        if query.shape is not None and not answered.text:
            raise Refusal(
                502, "answer_too_long",
                f"The answer did not end within {tokens} tokens.",
                "Allow more tokens.",
            )  # fmt: skip
        self.metrics.answers += 1
        self._log(f"answer to {query.question}", answered.text)
        yield Answered(answered)

    def _log(self, what: str, text: str) -> None:
        """Log content, if that was asked for at the start."""
        if self.options.log_content:
            self.options.on_log(f"{what}: {text}")

    def log_failure(self, error: Exception) -> None:
        """Log where an unforeseen error happened, without its message: that may hold content.

        What the frames of any error hold is given back.
        """
        let_go(error)
        if to_refusal(error).code != "internal_error":
            return
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.name} {frame.filename}:{frame.lineno}" for frame in frames[-6:]]
        told = f": {error}" if self.options.log_content else ""
        self.options.on_log(f"{type(error).__name__}{told} in {' < '.join(reversed(places))}")


def _end(channel: TextChannel, ended: asyncio.Task[Answer]) -> None:
    channel.end()
    if not ended.cancelled():
        ended.exception()  # else asyncio complains where the client has left
