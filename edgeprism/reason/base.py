"""The base class of reasoners: it draws a focus and answers. A reasoner never sees a picture.

`BaseReasoner` writes the prompts and checks the replies; a subclass completes a chat.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgeprism.errors import EdgePrismError, Interrupted, ModelError, NoAnswerError
from edgeprism.language.chat import Message
from edgeprism.reason.evidence import (
    EVIDENCE_TOKENS,
    captions_to_sentences,
    evidence_messages,
    reply_to_evidence,
)
from edgeprism.reason.focus import FOCUS_LINKS, FOCUS_OPENINGS, checked_focus, focus_phrases, topics
from edgeprism.reason.options import texts_to_letters
from edgeprism.reason.prompt import answer_messages, focus_messages
from edgeprism.reason.question import Question, to_question
from edgeprism.reason.shape import (
    Shape,
    choices_to_shape,
    numbers_to_shape,
    phrases_to_shape,
)
from edgeprism.records import Answer, Caption, Evidence, ModelInfo, Timings, TokenCounts
from edgeprism.version import __version__

if TYPE_CHECKING:
    from edgeprism.memory.parts import ModelParts

DEFAULT_ANSWER_TOKENS = 256
FOCUS_TOKENS = 48
FOCUS_PHRASES = 12
_CORRECTIONS = 2  # times that an answer which is not valid against its schema is asked for again


@dataclass(frozen=True)
class Completion:
    """A reasoner's whole reply to a chat; `text` is without `thinking`."""

    text: str
    finish_reason: str  # "stop", "length" or "repetition"
    tokens: TokenCounts
    timings: Timings
    thinking: str = ""
    notes: tuple[str, ...] = ()  # what a reader of the reply should know


def no_answer(name: str, reply: Completion) -> NoAnswerError:
    """Return the error for a reply without text: it says where the reply's tokens went."""
    counted = reply.tokens.generated
    spent = f"all {counted} tokens" if counted else "all of its tokens"
    if reply.thinking and reply.finish_reason == "repetition":
        return NoAnswerError(
            f"{name} thought in circles for {spent.removeprefix('all ')} and came to no answer.",
            "Turn the model's thinking off, or use another reasoner.",
        )
    if reply.thinking and reply.finish_reason == "length":
        return NoAnswerError(
            f"{name} spent {spent} on thinking and came to no answer.",
            "Raise `answer_tokens`, or turn the model's thinking off.",
        )
    if reply.thinking:
        return NoAnswerError(
            f"{name} ended after {spent.removeprefix('all ')} of thinking, without an answer.",
            "Turn the model's thinking off, raise `answer_tokens`, or use another reasoner.",
        )
    return NoAnswerError(
        f"{name} answered with nothing.", "Ask in other words, or use another reasoner."
    )


class BaseReasoner(ABC):
    """Turns a question into a focus, and captions with a question into an answer."""

    name: str
    focus_notes: tuple[str, ...] = ()  # of the latest `draw_focus`
    focus_timings = Timings()  # of the latest `draw_focus`

    @property
    @abstractmethod
    def model(self) -> ModelInfo:
        """The model that answers, as records hold it."""

    @property
    def knows_prompts(self) -> bool:
        """Whether the model was taught EdgePrism's prompts, so that they need no examples."""
        return False

    @abstractmethod
    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        """Complete a chat at temperature 0, without thinking blocks; with `shape`, in that shape.

        A reply that ended at `max_tokens` may lack its shape.
        """

    def stream(
        self, messages: Sequence[Message], *, max_tokens: int, on_text: Callable[[str], object]
    ) -> Completion:
        """Complete a chat as `complete` does; `on_text` gets parts of the text as it is written.

        They are the beginning of the text; what follows them, or all of it where a reasoner hands
        on no parts, is in the result alone. A reply whose thoughts could not be told from its
        answer while it was written may begin otherwise than the parts.
        """
        return self.complete(messages, max_tokens=max_tokens)

    def model_bytes(self) -> int:
        """Return the bytes of weights in this machine's memory; 0 for a reasoner on a server."""
        return 0

    def memory_parts(self) -> ModelParts | None:
        """Return what the reasoner takes in this machine's memory; None if it is on a server."""
        return None

    @abstractmethod
    def cancel(self) -> None:
        """Stop a call that runs in another thread; that call raises Interrupted."""

    @abstractmethod
    def close(self) -> None:
        """Free the weights; they load again when needed."""

    def draw_focus(
        self, question: str, *, options: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        """Return (what a captioner should observe for `question`, ""), or ("", why there is none).

        The reasoner does not see the options here, and a focus that names one is refused.
        `focus_notes` and `focus_timings` then hold those of the reply.
        """
        self.focus_notes, self.focus_timings = (), Timings()
        parsed = to_question(question, options)
        phrases = focus_phrases(parsed)
        if not topics(parsed) or not phrases:
            return "", "the question names nothing to look for"
        shape = phrases_to_shape(
            phrases, openings=FOCUS_OPENINGS, links=FOCUS_LINKS, limit=FOCUS_PHRASES
        )
        try:
            messages = focus_messages(parsed, examples=not self.knows_prompts)
            reply = self.complete(messages, max_tokens=FOCUS_TOKENS, shape=shape)
        except NoAnswerError as error:  # the generic instruction serves any question
            return "", error.message.rstrip(".")
        self.focus_notes, self.focus_timings = reply.notes, reply.timings
        if not reply.text and reply.thinking:
            return "", no_answer(self.name, reply).message.rstrip(".")
        return checked_focus(reply.text, parsed)

    def answer(
        self,
        captions: Sequence[Caption],
        question: str,
        *,
        options: Mapping[str, str] | None = None,
        hint: str | None = None,
        focus: str = "",
        instruction_mode: str = "",
        notes: Sequence[str] = (),
        answer_tokens: int = DEFAULT_ANSWER_TOKENS,
        shape: Shape | None = None,
        evidence: bool = False,
        on_text: Callable[[str], object] | None = None,
    ) -> Answer:
        """Answer `question` from the captions' text alone, at temperature 0.

        `options` are lettered ({"A": "red", …}); the question may also contain them. A reasoner
        that knows EdgePrism's prompts is bound to them (see `reply_to`), others see them and may
        answer with a letter. Captions may come from several captioners, each one's in the order of
        the pictures. Without captions the reasoner sees the question alone. `shape`
        (choices_to_shape, schema_to_shape) binds the answer; one that exceeds `answer_tokens` then
        has an empty `text` and the `finish_reason` "length". The record holds `focus`,
        `instruction_mode` and `notes`. `evidence` asks, in a second completion, which sentences
        support the answer. `on_text` gets parts of the answer as it is written, as `stream` hands
        them on, unless it is bound: that is checked first.
        Raises NoAnswerError where the reasoner only thought, declined or wrote nothing.
        """
        parsed = to_question(question, options, hint)
        start = time.perf_counter()
        reply = self.reply_to(
            parsed,
            lambda asked: answer_messages(captions_by_picture(captions), asked),
            max_tokens=answer_tokens,
            shape=shape,
            on_text=on_text,
        )
        text = reply.text
        sentences: tuple[Evidence, ...] | None = None
        evidence_notes: tuple[str, ...] = ()
        if evidence and text:
            answer = parsed.options.get(text, text)
            sentences, evidence_notes = self.find_evidence(captions, parsed.stem, answer)
        return Answer(
            text=text,
            question=question,
            options=parsed.options,
            hint=parsed.hint,
            focus=focus,
            instruction_mode=instruction_mode or ("question" if focus else "generic"),
            captions=tuple(captions),
            finish_reason=reply.finish_reason,
            tokens=reply.tokens,
            timings=replace(reply.timings, total=(time.perf_counter() - start) * 1000),
            model=self.model,
            version=__version__,
            notes=(*notes, *reply.notes, *evidence_notes),
            thinking=reply.thinking,
            evidence=sentences,
        )

    def reply_to(
        self,
        question: Question,
        to_messages: Callable[[Question], Sequence[Message]],
        *,
        max_tokens: int,
        shape: Shape | None,
        on_text: Callable[[str], object] | None,
    ) -> Completion:
        """Complete the chat that `to_messages` makes of a question, as `complete_in_shape` does.

        A model that knows EdgePrism's prompts is asked without lettered options and chooses among
        their texts; its reply is the letter.
        """
        bound = question.options and shape is None and self.knows_prompts
        letters = texts_to_letters(question.options) if bound else {}
        if not letters:
            messages = to_messages(question)
            return self.complete_in_shape(
                messages, max_tokens=max_tokens, shape=shape, on_text=on_text
            )
        reply = self.choose(
            to_messages(replace(question, options={})), list(letters), max_tokens=max_tokens
        )
        return replace(reply, text=letters.get(reply.text, ""))

    def choose(
        self, messages: Sequence[Message], texts: Sequence[str], *, max_tokens: int
    ) -> Completion:
        """Complete a chat with one of `texts`; the reply's text is "" if it was cut off.

        A subclass that knows how likely each text is takes the likeliest.
        """
        # a token has a character at least, so no text is cut off
        longest = max(max_tokens, *map(len, texts))
        return self.complete_in_shape(
            messages, max_tokens=longest, shape=choices_to_shape(list(texts))
        )

    def complete_in_shape(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        shape: Shape | None,
        on_text: Callable[[str], object] | None = None,
    ) -> Completion:
        """Complete a chat; the reply's text is valid against `shape`, or "" if it was cut off.

        `on_text` is as for `answer`. Raises NoAnswerError for a reply without text, and for one
        that is not valid.
        """
        if shape is None and on_text is not None:
            reply = self.stream(messages, max_tokens=max_tokens, on_text=on_text)
        else:
            reply = self._shaped_completion(messages, max_tokens, shape)
        if not reply.text and (shape is None or reply.thinking):
            raise no_answer(self.name, reply)
        return reply if shape is None else replace(reply, text=self._shaped_text(reply, shape))

    def _shaped_completion(
        self, messages: Sequence[Message], max_tokens: int, shape: Shape | None
    ) -> Completion:
        """Complete a chat; where a grammar cannot bind all of `shape`, ask again what it lacks."""
        reply = self.complete(messages, max_tokens=max_tokens, shape=shape)
        for _ in range(_CORRECTIONS):
            finished = reply.finish_reason == "stop" and reply.text
            if shape is None or shape.fault is None or not finished:
                break
            fault = shape.fault(reply.text)
            if not fault:
                break
            correction = f"That is not valid, {fault}. Write the whole answer again."
            messages = [
                *messages,
                Message("assistant", reply.text),
                Message("user", correction),
            ]
            reply = self.complete(messages, max_tokens=max_tokens, shape=shape)
        return reply

    def _shaped_text(self, reply: Completion, shape: Shape) -> str:
        """Return the reply's text; "" if it was cut off.

        Raises NoAnswerError for a text that is not valid against its schema, ModelError for one
        that lacks a shape which its grammar binds.
        """
        if reply.finish_reason != "stop":
            return ""  # even if it has the shape: 12 may be half of 123
        if shape.fault is not None and (fault := shape.fault(reply.text)):
            raise NoAnswerError(
                f"{self.name}: the answer {reply.text[:80]!r} is not valid against the schema, "
                f"{fault} ({_CORRECTIONS + 1} tries).",
                "Simplify `schema`, say in the question what it asks for, or use another reasoner.",
            )
        if not shape.accepts(reply.text):
            raise ModelError(
                f"{self.name}: the answer {reply.text[:80]!r} does not have the requested shape.",
                "Try another reasoner.",
            )
        return reply.text

    def find_evidence(
        self, captions: Sequence[Caption], question: str, answer: str
    ) -> tuple[tuple[Evidence, ...] | None, tuple[str, ...]]:
        """Return up to three sentences of the captions that support `answer`, and notes.

        The reasoner's reply is bound to the sentences' numbers or "none"; () means that no
        sentence supports the answer. If the reasoner fails, None replaces the sentences, and a
        note says why.
        """
        sentences = captions_to_sentences(captions)
        if not sentences:
            return (), ()
        shape = numbers_to_shape(len(sentences))
        messages = evidence_messages(sentences, question, answer)
        try:
            reply = self.complete(messages, max_tokens=EVIDENCE_TOKENS, shape=shape)
        except Interrupted:
            raise
        except EdgePrismError as error:  # a failure here does not take back the answer
            return None, (f"no evidence: {error.message}",)
        if reply.finish_reason != "stop" or not shape.accepts(reply.text):
            return None, ("no evidence: the reasoner named no sentence",)
        return reply_to_evidence(reply.text, sentences), ()


def captions_by_picture(captions: Sequence[Caption]) -> list[dict[str, str]]:
    """Return each picture's descriptions as {captioner's name: text}, in order."""
    names: dict[str, str] = {}  # digest → distinct name
    pictures: list[dict[str, str]] = []
    last: dict[str, int] = {}  # digest → index of the captioner's last picture
    for caption in captions:
        model = caption.model
        if model.digest not in names:
            same = sum(name.split(" (")[0] == model.name for name in names.values())
            names[model.digest] = f"{model.name} ({same + 1})" if same else model.name
        index = last[model.digest] = last.get(model.digest, -1) + 1
        while len(pictures) <= index:
            pictures.append({})
        pictures[index][names[model.digest]] = caption.text
    return pictures
