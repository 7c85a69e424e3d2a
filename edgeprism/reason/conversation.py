"""A conversation: questions about captions, where each prompt holds the earlier turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edgeprism.errors import PromptTooLongError
from edgeprism.language.chat import Message
from edgeprism.reason.base import (
    DEFAULT_ANSWER_TOKENS,
    BaseReasoner,
    Completion,
    captions_by_picture,
)
from edgeprism.reason.prompt import Turn, conversation_messages
from edgeprism.reason.question import Question, to_question
from edgeprism.reason.shape import Shape
from edgeprism.records import Caption


def _with_last(turns: Sequence[Turn], question: Question) -> list[Message]:
    """Write the conversation with `question` in the place of its last one."""
    return conversation_messages([*turns[:-1], replace(turns[-1], question=question)])


@dataclass
class Conversation:
    """Asks a reasoner one question after another.

    Each prompt begins with the whole prompt before it, but that a reasoner which is bound to
    lettered options sees them in later prompts alone. A reasoner loaded with `warm=True` keeps
    that beginning in its KV cache, and only reads what is new.
    """

    reasoner: BaseReasoner

    def __post_init__(self) -> None:
        self.turns: list[Turn] = []
        self._looks: tuple[list[dict[str, str]], ...] = ()  # for the next question's turn

    def tell(self, captions: Sequence[Caption]) -> None:
        """Add captions of all pictures; the next question's turn begins with them."""
        self._looks += (captions_by_picture(captions),)

    def ask(
        self,
        question: str,
        *,
        answer_tokens: int = DEFAULT_ANSWER_TOKENS,
        shape: Shape | None = None,
        on_text: Callable[[str], object] | None = None,
    ) -> Completion:
        """Answer `question` at temperature 0, in `shape` if there is one.

        `on_text` gets parts of the answer as it is written, as for `BaseReasoner.answer`.

        If the prompt exceeds the model's context, the conversation drops its oldest questions,
        but never a caption. Raises PromptTooLongError when that is not enough, and NoAnswerError
        for a reply without text; the conversation then stays as it was. So it does after an answer
        in a shape that was cut off, whose text is "".
        """
        turns = [*self.turns, Turn(self._looks, to_question(question))]
        while True:
            try:
                reply = self.reasoner.reply_to(
                    turns[-1].question,
                    partial(_with_last, turns),
                    max_tokens=answer_tokens,
                    shape=shape,
                    on_text=on_text,
                )
                break
            except PromptTooLongError:
                if len(turns) == 1:
                    raise
                oldest, second, *rest = turns
                turns = [replace(second, looks=oldest.looks + second.looks), *rest]
        if not reply.text:
            return reply
        turns[-1] = replace(turns[-1], answer=reply.text)
        self.turns, self._looks = turns, ()
        return reply
