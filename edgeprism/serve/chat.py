"""A chat about pictures, as the APIs of OpenAI and Ollama both put it, and its answer.

A captioner alone writes what it sees, by the last user message; it knows no conversation. With a
reasoner, the captioner describes every picture of the chat, and the reasoner answers the last user
message from the descriptions and the turns before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from edgeprism.perceive.options import CaptionOptions
from edgeprism.reason.shape import Shape
from edgeprism.records import Caption, rounded
from edgeprism.serve.events import Answered, Described, Failed, Piece, Written
from edgeprism.serve.models import ModelName
from edgeprism.serve.reasoning import Turn
from edgeprism.serve.refusals import Refusal
from edgeprism.serve.service import Description, Query, Service
from edgeprism.serve.uploads import Upload
from edgeprism.vision.token_reduction import TokenLimit

_DESCRIBE = "What is in the picture?"  # stands for a turn's question that was only a picture


@dataclass(frozen=True)
class Message:
    """One message of a chat."""

    role: str  # system | user | assistant
    text: str
    pictures: tuple[Upload, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A chat to answer. `tokens` limits the text; None: as the model says."""

    model: ModelName
    messages: tuple[Message, ...]
    tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    visual_tokens: TokenLimit | None = None  # the most of a picture; None: the server's own
    shape: Shape | None = None
    streams: bool = False
    keep_alive_s: float | None = None  # that the models stay afterwards; None: as they would


@dataclass(frozen=True)
class Delta:
    """New text of the answer."""

    text: str


@dataclass(frozen=True)
class Seen:
    """A picture was described, on the way to an answer."""

    caption: Caption


@dataclass(frozen=True)
class Ended:
    """The end of an answer."""

    text: str
    finish_reason: str  # "stop" or "length"
    prompt_tokens: int
    new_tokens: int
    # what EdgePrism adds to other APIs' answers: captions, evidence, notes
    extension: dict[str, Any] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)

    def to_extension(self) -> dict[str, Any]:
        """Return what stands in the field `edgeprism` of other APIs' answers."""
        return {**self.extension, "timings_ms": self.timings_ms}


ChatEvent = Delta | Seen | Ended


async def answer_chat(service: Service, chat: Chat) -> AsyncGenerator[ChatEvent]:
    """Yield the answer's text as it comes, and what was seen on the way to it, then its end.

    Raises Refusal for a chat that cannot be answered, and EdgePrismError as the models do.
    """
    users = [message for message in chat.messages if message.role == "user"]
    if not users:
        raise Refusal(400, "no_user_message", "The chat holds no user message.", "Add one.")
    answered = _reasoned if chat.model.reasoner else _captioned
    try:
        async with aclosing(answered(service, chat, users)) as events:
            async for event in events:
                yield event
    finally:
        if chat.keep_alive_s is not None:  # now the models are in memory
            service.models.keep(chat.model, chat.keep_alive_s)


def _system(chat: Chat) -> str:
    texts = (message.text.strip() for message in chat.messages if message.role == "system")
    return "\n".join(filter(None, texts))


# ---- a captioner alone


async def _captioned(
    service: Service, chat: Chat, users: list[Message]
) -> AsyncGenerator[ChatEvent]:
    turns, last = _to_turns(chat.messages)
    pictures = last.pictures or next((t.pictures for t in reversed(turns) if t.pictures), ())
    if not pictures:
        raise Refusal(
            400, "no_picture", f"{chat.model} describes pictures, and the chat holds none.",
            f"Add a picture as a data URL, or name a reasoner too: {chat.model}+smollm2-135m",
        )  # fmt: skip
    instruction = "\n".join(filter(None, (_system(chat), users[-1].text.strip())))
    together, load_ms = False, 0.0
    if len(pictures) > 1:
        together, load_ms = await service.takes_several(chat.model)
    if chat.shape is not None and len(pictures) > 1 and not together:
        raise Refusal(
            400, "several_pictures", f"{chat.model} takes one picture at a time, so it writes one "
            "JSON text for each.", "Send one picture, or name a reasoner too.",
        )  # fmt: skip
    options = CaptionOptions(
        temperature=chat.temperature, seed=chat.seed, visual_tokens=chat.visual_tokens
    )
    if instruction:
        options["instruction"] = instruction
    if chat.tokens is not None:
        options["caption_tokens"] = chat.tokens
    job = Description(
        chat.model, pictures, options, shape=chat.shape, together=together, streams=chat.streams,
        load_ms=load_ms,
    )  # fmt: skip
    count = 1 if together else len(pictures)
    order = _InOrder(count)
    async with aclosing(service.describe(job)) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Piece):
                order.add(event)
            else:
                order.finish(event)
            if chat.streams and (text := order.new_text()):
                yield Delta(text)
    captions = order.captions()
    await asyncio.to_thread(_check_shape, chat, captions[0])
    yield _end_of_captions(captions)


def _check_shape(chat: Chat, caption: Caption) -> None:
    """Refuse a finished text that a grammar could not bind to the whole of its schema.

    A text that was cut off is told as that, by its `finish_reason`.
    """
    if chat.shape is None or caption.finish_reason != "stop" or chat.shape.accepts(caption.text):
        return
    fault = chat.shape.fault(caption.text) if chat.shape.fault else "it has another shape"
    raise Refusal(
        502, "no_answer", f"{chat.model} wrote JSON that is not valid against the schema: {fault}.",
        "Simplify the schema, or name a reasoner too.",
    )  # fmt: skip


class _InOrder:
    """Joins the captions of several pictures into one text, in the pictures' order."""

    def __init__(self, count: int) -> None:
        self._texts = [""] * count
        self._captions: list[Caption | None] = [None] * count
        self._sent, self._current = 0, 0  # characters of the current text, and which it is

    def add(self, piece: Piece) -> None:
        """Take new text of one caption."""
        self._texts[piece.index] += piece.text

    def finish(self, event: Described) -> None:
        """Take a finished caption."""
        self._texts[event.index] = event.caption.text
        self._captions[event.index] = event.caption

    def new_text(self) -> str:
        """Return what can be sent now and was not yet."""
        parts = []
        while self._current < len(self._texts):
            text = self._texts[self._current]
            parts.append(text[self._sent :])
            self._sent = len(text)
            if self._captions[self._current] is None:
                break
            self._current, self._sent = self._current + 1, 0
            if self._current < len(self._texts):
                parts.append("\n\n")
        return "".join(parts)

    def captions(self) -> list[Caption]:
        """Return all captions, which are finished."""
        return [caption for caption in self._captions if caption is not None]


def _end_of_captions(captions: list[Caption]) -> Ended:
    cut = any(caption.finish_reason == "length" for caption in captions)
    times = [rounded(caption.timings) for caption in captions]
    notes = [note for caption in captions for note in caption.notes]
    return Ended(
        "\n\n".join(caption.text for caption in captions),
        "length" if cut else "stop",
        _prompt_tokens(captions),
        sum(caption.tokens.generated for caption in captions),
        {"captions": [caption.to_dict() for caption in captions], "notes": notes},
        {stage: round(sum(each[stage] for each in times), 2) for stage in times[0]},
    )


def _prompt_tokens(captions: list[Caption] | tuple[Caption, ...]) -> int:
    return sum(caption.tokens.visual + caption.tokens.prompt for caption in captions)


# ---- a captioner and a reasoner


async def _reasoned(
    service: Service, chat: Chat, _users: list[Message]
) -> AsyncGenerator[ChatEvent]:
    turns, last = _to_turns(chat.messages)
    if not last.text:
        raise Refusal(
            400, "no_question", "The last user message holds no question.",
            "Ask something in it; a captioner alone describes pictures without a question.",
        )  # fmt: skip
    pictures = tuple(p for turn in turns for p in turn.pictures) + last.pictures
    query = Query(
        Description(chat.model, pictures, CaptionOptions(visual_tokens=chat.visual_tokens)),
        last.text,
        hint=_system(chat) or None,
        turns=turns,
        shape=chat.shape,
        evidence=not turns,
        streams=chat.streams,
    )
    if chat.tokens is not None:
        query = replace(query, answer_tokens=chat.tokens)
    sent = ""
    async with aclosing(service.ask(query)) as events:
        async for event in events:
            if isinstance(event, Described) and chat.streams:
                yield Seen(event.caption)
            elif isinstance(event, Written):
                sent += event.text
                yield Delta(event.text)
            elif isinstance(event, Answered):
                answer = event.answer
                record = answer.to_dict()
                if chat.streams and (rest := _unsent(answer.text, sent)):
                    yield Delta(rest)
                extension = {
                    name: record[name]
                    for name in ("captions", "focus", "evidence", "thinking", "notes")
                }
                yield Ended(
                    answer.text,
                    "length" if answer.finish_reason == "length" else "stop",
                    _prompt_tokens(answer.captions) + answer.tokens.prompt,
                    sum(c.tokens.generated for c in answer.captions) + answer.tokens.generated,
                    extension,
                    record["timings_ms"],
                )


def _unsent(text: str, sent: str) -> str:
    """Return what is to be sent after `sent`, so that a client has read the whole answer.

    Where thoughts were sent, because nothing told them from an answer until they ended, that is the
    answer, in a paragraph of its own.
    """
    return text[len(sent) :] if text.startswith(sent) else f"\n\n{text}"


def _to_turns(messages: tuple[Message, ...]) -> tuple[tuple[Turn, ...], Message]:
    """Return the questions that were answered before, and what is asked now."""
    turns: list[Turn] = []
    asked = Message("user", "")
    for message in messages:
        if message.role == "user":
            text = f"{asked.text}\n{message.text}".strip()
            asked = Message("user", text, asked.pictures + message.pictures)
        elif message.role == "assistant" and (asked.text or asked.pictures):
            turns.append(Turn(asked.text or _DESCRIBE, message.text, asked.pictures))
            asked = Message("user", "")
    return tuple(turns), asked
