"""Questions one after another on captions that were made once; what was said is remembered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgeprism.errors import PromptTooLongError
from edgeprism.reason.base import (
    DEFAULT_ANSWER_TOKENS,
    BaseReasoner,
    Completion,
    captions_by_picture,
)
from edgeprism.reason.prompt import Turn, conversation_messages
from edgeprism.reason.question import to_question
from edgeprism.records import Caption


@dataclass
class Conversation:
    """Every question comes behind all that was said, so a warm reasoner only reads what is new.

    Load the reasoner with `warm=True` for that.
    """

    reasoner: BaseReasoner

    def __post_init__(self) -> None:
        self.turns: list[Turn] = []
        self._looks: tuple[list[dict[str, str]], ...] = ()  # not told yet

    def tell(self, captions: Sequence[Caption]) -> None:
        """Captions of all pictures, one look at them; told with the next question."""
        self._looks += (captions_by_picture(captions),)

    def ask(self, question: str, *, answer_tokens: int = DEFAULT_ANSWER_TOKENS) -> Completion:
        """The answer to `question`, at temperature 0.

        Where the conversation outgrows what the model reads, its oldest questions are forgotten,
        never what was told of the pictures. Raises PromptTooLongError when that is not enough.
        """
        turns = [*self.turns, Turn(self._looks, to_question(question))]
        while True:
            try:
                said = self.reasoner.complete(
                    conversation_messages(turns), max_tokens=answer_tokens
                )
                break
            except PromptTooLongError:
                if len(turns) == 1:
                    raise
                oldest, second, *rest = turns
                turns = [replace(second, looks=oldest.looks + second.looks), *rest]
        turns[-1] = replace(turns[-1], answer=said.text)
        self.turns, self._looks = turns, ()
        return said
