"""Both stages together: the captioner perceives, the reasoner answers from its captions."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, cast

from edgeprism.arguments import check_can, check_integer, check_text
from edgeprism.choices import INSTRUCTION_MODES
from edgeprism.errors import UsageError
from edgeprism.language.repetition import REPETITION_NOTE
from edgeprism.machine.turns import Turns
from edgeprism.perceive.options import CaptionOptions, check_caption_options
from edgeprism.picture.read import MAX_FILE_BYTES, ImageSource
from edgeprism.picture.source import check_source
from edgeprism.reason.base import DEFAULT_ANSWER_TOKENS, BaseReasoner
from edgeprism.reason.merge import merge_captions
from edgeprism.reason.shape import Shape
from edgeprism.records import Answer, Caption, EncodedImage, Timings

if TYPE_CHECKING:
    from edgeprism.perceive.looking import Perceiver


Picture = ImageSource | EncodedImage
NO_FOCUS_NOTE = "no focus: the captioner takes none; it captioned as it does without a question"


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _in_turn(
    method: Callable[Concatenate[Prism, Arguments], Result],
) -> Callable[Concatenate[Prism, Arguments], Result]:
    """Let threads run a method of Prism one after another."""

    @functools.wraps(method)
    def in_turn(prism: Prism, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with prism.turns.turn():
            return method(prism, *arguments, **options)

    return in_turn


class Prism:
    """One or several captioners and a reasoner; each loads its engine when first used.

    Threads may share a Prism: it answers them one after another.

    Examples:
        >>> from edgeprism import Captioner, Prism, Reasoner
        >>> prism = Prism(Captioner.load("nano"), Reasoner.load("smollm2-135m"))
        >>> print(prism.ask("photo.jpg", "What is on the left?").text)
    """

    def __init__(
        self,
        captioner: Perceiver | Sequence[Perceiver],
        reasoner: BaseReasoner,
        *,
        apart: bool = False,
    ) -> None:
        """Combine captioners and a reasoner.

        Args:
            captioner: A captioner, or several; the reasoner then gets the captions of all.
            reasoner: Answers from the captions.
            apart: Keep only one model in memory at a time: the reasoner is freed once it has
                drawn a focus, and each captioner once it has described all pictures.

        Raises:
            UsageError: `captioner` is an empty sequence, or one of the two is no such thing.
        """
        given: object = captioner
        if isinstance(given, str):  # a sequence too, whose letters are no captioners
            check_can("captioner", given, "caption", 'Captioner.load("nano")')
        self.captioners = tuple(captioner) if isinstance(captioner, Sequence) else (captioner,)
        for each in self.captioners:
            check_can("captioner", each, "caption", 'Captioner.load("nano")')
        check_can("reasoner", reasoner, "answer", 'Reasoner.load("smollm2-135m")')
        if not self.captioners:
            raise UsageError("No captioner.", "Name at least one.")
        self.reasoner, self.apart = reasoner, apart
        self.turns = Turns()
        # what the last `ask` got from the captioners, before the reasoner merged any of it
        self.described: tuple[Caption, ...] = ()

    def __repr__(self) -> str:
        return f"<Prism {list(self.captioners)!r} and {self.reasoner!r}, apart={self.apart}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _combine_again, (self.captioners, self.reasoner, self.apart)

    @_in_turn
    def ask(
        self,
        images: Picture | Sequence[Picture],
        question: str,
        *,
        options: Mapping[str, str] | None = None,
        hint: str | None = None,
        instruction_mode: str = "question",
        instruction: str | None = None,
        focus: str | None = None,
        caption_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        answer_tokens: int = DEFAULT_ANSWER_TOKENS,
        shape: Shape | None = None,
        merge: bool = False,
        evidence: bool = False,
    ) -> Answer:
        """Caption each picture, then answer from the captions alone.

        Args:
            images: A picture or several, as for `Captioner.caption`; each is described by itself.
            question: The question; it may contain lettered options.
            options: Lettered options, {"A": "red", …}. They never reach the captioner.
            hint: What the reasoner should know besides the captions.
            instruction_mode: "question": the reasoner first turns the question into a focus; if it
                cannot, or no captioner takes one, the answer's notes say so. "generic": the
                captioner never sees the question.
            instruction: Replaces the captioner's generic instruction.
            focus: What the captions should attend to, instead of a focus that the reasoner draws.
            caption_tokens: The most tokens of a caption; None: as the captioner's bundle says.
            temperature: Randomness of the captions; 0 gives the same text for the same picture.
            seed: Random seed; it has an effect only at a temperature above 0.
            answer_tokens: The most tokens of the answer.
            shape: The form that the answer must have (`choices_to_shape`, `schema_to_shape`).
            merge: First let the reasoner merge the captions of several captioners into one.
            evidence: Ask, in a second completion, which sentences support the answer.

        Returns:
            The answer, with the captions that the reasoner saw. Its `timings.total` covers the
            focus, the captions and what had to load.

        Raises:
            ImageError: A picture cannot be read; the message names it.
            UsageError: No picture, an unknown mode, an empty question, or a captioner named twice.
            EdgePrismError: What `Captioner.caption` and `BaseReasoner.answer` raise.
        """
        started = time.perf_counter()
        caption_options = CaptionOptions(instruction=instruction, focus=focus, seed=seed,
            caption_tokens=caption_tokens, temperature=temperature)  # fmt: skip
        pictures = _checked(images, question, answer_tokens, caption_options)
        focus, notes = self.focus_for(question, instruction_mode, focus, options)
        caption_options["focus"] = focus
        captions, more = self._describe(pictures, merge, **caption_options)
        loaded = self.reasoner.focus_timings.load
        answer = self.reasoner.answer(
            captions, question, options=options, hint=hint, focus=focus, notes=notes + more,
            answer_tokens=answer_tokens, shape=shape, evidence=evidence,
        )  # fmt: skip
        return with_times(answer, loaded, started)

    def _describe(
        self, pictures: Sequence[Picture], merge: bool, **caption_options: Unpack[CaptionOptions]
    ) -> tuple[tuple[Caption, ...], tuple[str, ...]]:
        """Return the captions that the reasoner sees, and notes on them."""
        if self.apart:
            self.reasoner.close()
        captions = self.described = self._captions(pictures, **caption_options)
        notes = repetition_notes(captions)
        if merge:
            captions, merge_notes = merge_captions(self.reasoner, captions)
            notes += merge_notes
        return captions, notes

    def _captions(
        self,
        pictures: Sequence[Picture],
        **caption_options: Unpack[CaptionOptions],
    ) -> tuple[Caption, ...]:
        """Return every captioner's captions of all pictures, one captioner after another."""
        if len(self.captioners) > 1:  # a file object can be read only once
            pictures = [
                picture.read(MAX_FILE_BYTES + 1) if hasattr(picture, "read") else picture
                for picture in pictures
            ]
        captions: list[Caption] = []
        for captioner in self.captioners:
            own = [captioner.caption(picture, **caption_options) for picture in pictures]
            if self.apart:
                captioner.close()
            if own[0].model.digest in {caption.model.digest for caption in captions}:
                raise UsageError(
                    f"{own[0].model.name} is named twice among the captioners.", "Name each once."
                )
            captions += own
        return tuple(captions)

    def focus_for(
        self,
        question: str,
        instruction_mode: str = "question",
        focus: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> tuple[str, tuple[str, ...]]:
        """Return the focus for the captioner ("" for the generic instruction) and notes on it."""
        # a captioner of the caller's own class need not say whether it takes one
        takes_focus = any(getattr(each, "takes_focus", True) for each in self.captioners)
        return question_to_focus(
            self.reasoner, question, instruction_mode, focus, options, takes_focus=takes_focus
        )

    def answer(
        self,
        captions: Sequence[Caption],
        question: str,
        *,
        options: Mapping[str, str] | None = None,
        hint: str | None = None,
        answer_tokens: int = DEFAULT_ANSWER_TOKENS,
        shape: Shape | None = None,
        evidence: bool = False,
    ) -> Answer:
        """Answer from captions that exist already; arguments and errors as for `ask`."""
        return self.reasoner.answer(
            captions, question, options=options, hint=hint, answer_tokens=answer_tokens,
            shape=shape, evidence=evidence,
        )  # fmt: skip

    @_in_turn
    def close(self) -> None:
        """Free all models; they load again when needed. Waits for answers of other threads."""
        for captioner in self.captioners:
            captioner.close()
        self.reasoner.close()


def question_to_focus(
    reasoner: BaseReasoner,
    question: str,
    instruction_mode: str = "question",
    focus: str | None = None,
    options: Mapping[str, str] | None = None,
    *,
    takes_focus: bool = True,
) -> tuple[str, tuple[str, ...]]:
    """Return what the captioner should observe for a question, and notes: `Prism.focus_for`.

    The reasoner is not asked for what no captioner takes.
    """
    if instruction_mode not in INSTRUCTION_MODES:
        raise UsageError(
            f"Instruction mode {instruction_mode!r} is not known.",
            f"Known: {', '.join(INSTRUCTION_MODES)}.",
        )
    reasoner.focus_timings = Timings()
    if focus is not None and focus.strip():
        return focus.strip(), ()
    if instruction_mode == "generic":
        return "", ()
    if not takes_focus:
        return "", (NO_FOCUS_NOTE,)
    drawn, why_not = reasoner.draw_focus(question, options=options)
    notes = tuple(f"focus: {note}" for note in reasoner.focus_notes)
    if not drawn:
        notes += (f"no focus: {why_not}; the generic instruction was used",)
    return drawn, notes


def repetition_notes(captions: Sequence[Caption]) -> tuple[str, ...]:
    """Return a note for each caption that only repeats itself."""
    return tuple(
        f"{caption.image}: {REPETITION_NOTE}"
        for caption in captions
        if caption.finish_reason == "repetition"
    )


def with_times(answer: Answer, load_ms: float, started: float) -> Answer:
    """Add what was loaded before the answer, and the time since `started`."""
    total = (time.perf_counter() - started) * 1000
    timings = replace(answer.timings, load=answer.timings.load + load_ms, total=total)
    return replace(answer, timings=timings)


def _checked(
    images: Picture | Sequence[Picture],
    question: str,
    answer_tokens: int,
    caption_options: CaptionOptions,
) -> list[Picture]:
    """Return the pictures as a list, after refusing what no model need be loaded for."""
    check_text("question", question)
    check_integer("answer_tokens", answer_tokens, least=1)
    check_caption_options(**caption_options)
    pictures = _to_list(images)
    for picture in pictures:
        check_source(picture)
    return pictures


def _combine_again(captioners: tuple[Perceiver, ...], reasoner: BaseReasoner, apart: bool) -> Prism:
    """Combine captioners and a reasoner that were pickled."""
    return Prism(captioners, reasoner, apart=apart)


def _to_list(images: Picture | Sequence[Picture]) -> list[Picture]:
    """Return one picture or several as a list. Raises UsageError for an empty sequence."""
    if not isinstance(images, (list, tuple)):
        return [cast("Picture", images)]  # a str is a sequence too, so mypy cannot tell
    if not images:
        raise UsageError("No picture to ask about.", "Name at least one.")
    return list(images)
