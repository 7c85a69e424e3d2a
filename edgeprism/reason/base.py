"""What a reasoner is asked, whoever it is: focus, answer. A reasoner never sees a picture.

`BaseReasoner` holds the questions; how a chat becomes text is its subclasses' matter.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgeprism.errors import EdgePrismError, Interrupted, ModelError
from edgeprism.language.chat import Message
from edgeprism.reason.evidence import (
    EVIDENCE_TOKENS,
    captions_to_sentences,
    evidence_messages,
    said_to_evidence,
)
from edgeprism.reason.focus import FOCUS_LINKS, FOCUS_OPENINGS, checked_focus, focus_phrases, topics
from edgeprism.reason.prompt import answer_messages, focus_messages
from edgeprism.reason.question import to_question
from edgeprism.reason.shape import Shape, numbers_to_shape, phrases_to_shape
from edgeprism.records import Answer, Caption, Evidence, ModelInfo, Timings, TokenCounts
from edgeprism.version import __version__

DEFAULT_ANSWER_TOKENS = 256
FOCUS_TOKENS = 48
FOCUS_PHRASES = 12


@dataclass(frozen=True)
class Completion:
    """A reasoner's whole reply to a chat. `thinking` was cut from `text`."""

    text: str
    finish_reason: str  # "stop" or "length"
    tokens: TokenCounts
    timings: Timings
    thinking: str = ""


class BaseReasoner(ABC):
    """Turns questions into focuses, and captions with a question into answers."""

    name: str

    @property
    @abstractmethod
    def model(self) -> ModelInfo:
        """Who answers, as records carry it."""

    @abstractmethod
    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        """The reply to a chat at temperature 0, thinking blocks cut; with `shape`, in that shape.

        A reply that ended at `max_tokens` may not have its shape.
        """

    def model_bytes(self) -> int:
        """Bytes of what is loaded into this machine's memory; 0 for a reasoner elsewhere."""
        return 0

    @abstractmethod
    def cancel(self) -> None:
        """Stop what is under way, from another thread; it raises Interrupted there."""

    @abstractmethod
    def close(self) -> None:
        """Free what was loaded; it loads again when needed."""

    def draw_focus(
        self, question: str, *, options: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        """What a captioner should attend to for `question`, and "" ; or "", and why there is none.

        Options are kept from the reasoner here, and a focus that names one is refused.
        """
        asked = to_question(question, options)
        phrases = focus_phrases(asked)
        if not topics(asked) or not phrases:
            return "", "the question names nothing to look for"
        shape = phrases_to_shape(
            phrases, openings=FOCUS_OPENINGS, links=FOCUS_LINKS, most=FOCUS_PHRASES
        )
        said = self.complete(focus_messages(asked), max_tokens=FOCUS_TOKENS, shape=shape)
        return checked_focus(said.text, asked)

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
    ) -> Answer:
        """Answer `question` from the captions' text alone, at temperature 0.

        `options` are lettered ({"A": "red", …}); they may also stand in the question. Captions of
        several captioners stand side by side: the first of each is of the first picture, and so
        on. Without captions the question alone is answered. `shape` (choices_to_shape,
        schema_to_shape) binds the answer; where it does not fit into `answer_tokens`, `text` is
        empty and `finish_reason` "length". `focus`, `instruction_mode` and `notes` are recorded.
        `evidence` asks, in a second completion, which sentences support the answer.
        """
        asked = to_question(question, options, hint)
        start = time.perf_counter()
        said = self.complete(
            answer_messages(captions_by_picture(captions), asked),
            max_tokens=answer_tokens,
            shape=shape,
        )
        text = said.text
        if shape is not None:
            if said.finish_reason == "length":
                text = ""  # even where it has the shape: 12 may be half of 123
            elif not shape.accepts(text):
                raise ModelError(
                    f"{self.name}: answered {text[:80]!r}, which has not the shape asked for.",
                    "Try another reasoner.",
                )
        found: tuple[Evidence, ...] | None = None
        missed: tuple[str, ...] = ()
        if evidence and text:
            found, missed = self.find_evidence(captions, asked.stem, asked.options.get(text, text))
        return Answer(
            text=text,
            question=question,
            options=asked.options,
            hint=asked.hint,
            focus=focus,
            instruction_mode=instruction_mode or ("question" if focus else "generic"),
            captions=tuple(captions),
            finish_reason=said.finish_reason,
            tokens=said.tokens,
            timings=replace(said.timings, total=(time.perf_counter() - start) * 1000),
            model=self.model,
            version=__version__,
            notes=(*notes, *missed),
            thinking=said.thinking,
            evidence=found,
        )

    def find_evidence(
        self, captions: Sequence[Caption], question: str, answer: str
    ) -> tuple[tuple[Evidence, ...] | None, tuple[str, ...]]:
        """The captions' sentences that say `answer`, at most three, and notes on it.

        The reasoner names them by number and can name no other, or none: then the description
        does not say. None instead of sentences, with a note, where it could not be asked.
        """
        sentences = captions_to_sentences(captions)
        if not sentences:
            return (), ()
        shape = numbers_to_shape(len(sentences))
        asked = evidence_messages(sentences, question, answer)
        try:
            said = self.complete(asked, max_tokens=EVIDENCE_TOKENS, shape=shape)
        except Interrupted:
            raise
        except EdgePrismError as error:  # too long a prompt, a server's fault: the answer stands
            return None, (f"no evidence: {error.message}",)
        if said.finish_reason == "length" or not shape.accepts(said.text):
            return None, ("no evidence: the reasoner named no sentence",)
        return said_to_evidence(said.text, sentences), ()


def captions_by_picture(captions: Sequence[Caption]) -> list[dict[str, str]]:
    """For each picture its descriptions by captioner's name, in order."""
    names: dict[str, str] = {}  # digest → name, made distinct
    pictures: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    for caption in captions:
        model = caption.model
        if model.digest not in names:
            taken = list(names.values())
            same = sum(name.split(" (")[0] == model.name for name in taken)
            names[model.digest] = f"{model.name} ({same + 1})" if same else model.name
        at = seen[model.digest] = seen.get(model.digest, -1) + 1
        while len(pictures) <= at:
            pictures.append({})
        pictures[at][names[model.digest]] = caption.text
    return pictures
