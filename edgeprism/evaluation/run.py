"""Runs the matrix with one model in memory at a time; every record is stored at once.

Each stage takes one model after another: reasoners draw a focus from each question, captioners
describe each picture with each instruction that a cell needs, reasoners answer from the captions.
So one caption serves all reasoners, and a stage's peak memory is that of one model.

Data flows from file to file: tsv → questions → run (matrix lists its cells) → scoring →
statistics and analysis → report and page.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from edgeprism.errors import (
    DeviceError,
    EdgePrismError,
    Interrupted,
    ModelError,
    NoAnswerError,
)
from edgeprism.evaluation.analysis import AnswerOutcome, CellResult
from edgeprism.evaluation.judge import NONE, judge_answer, reply_to_verdict
from edgeprism.evaluation.matrix import Cell, Matrix, model_id
from edgeprism.evaluation.questions import EvalQuestion, PictureRef, QuestionFile
from edgeprism.evaluation.results import Results, key_of
from edgeprism.evaluation.scoring import Verdict, score
from edgeprism.machine import peak_memory
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import CaptionOptions
from edgeprism.reason.base import BaseReasoner
from edgeprism.reason.prompt_cut import PROMPT_CUT
from edgeprism.reason.shape import choices_to_shape
from edgeprism.records import Answer
from edgeprism.store.stored_record import record_to_caption

Progress = Callable[[str, int, int], None]  # stage, items done, items in total


class Run:
    """A matrix applied to questions; `results` holds the records."""

    def __init__(
        self,
        matrix: Matrix,
        file: QuestionFile,
        questions: Sequence[EvalQuestion],
        results: Results,
        *,
        judge: BaseReasoner | None = None,
        progress: Progress = lambda *_: None,
    ) -> None:
        self.judge = judge
        self.matrix, self.file, self.questions = matrix, file, questions
        self.results, self.progress = results, progress
        self._worked = False  # whether the current model made a record

    def complete(self) -> None:
        """Make every missing record. Raises Interrupted; records made by then stay.

        A failing question gets a record of its error and does not stop the run.
        """
        captioners, reasoners = self.matrix.captioners, self.matrix.reasoners
        if "question" in self.matrix.modes and captioners:
            for name, reasoner in reasoners.items():
                with self._turn("reasoner", name, reasoner):
                    self._draw_focuses(name, reasoner)
        for name, captioner in captioners.items():
            with self._turn("captioner", name, captioner):
                self._caption(name, captioner)
        for name, reasoner in reasoners.items():
            with self._turn("reasoner", name, reasoner):
                self._answer(name, reasoner)
        if self.judge is not None:
            with self._turn("judge", self.judge.name, self.judge):
                self._judge(self.judge)

    def outcomes(self) -> list[CellResult]:
        """Return every cell's outcomes from the records, without running a model."""
        return [
            CellResult(
                cell,
                {question.index: self._outcome(cell, question) for question in self.questions},
                self._memory(cell),
            )
            for cell in self.matrix.cells()
        ]

    # ---- focus

    def _draw_focuses(self, name: str, reasoner: BaseReasoner) -> None:
        key = self.matrix.focus_key(name)
        for question in self._each(f"{name}: focus"):
            if self.results.has("focus", key, question.index):
                continue
            with self._recorded("focus", key, question.index) as record:
                began = time.perf_counter()
                try:
                    text, why_not = reasoner.draw_focus(
                        question.text, options=dict(question.options)
                    )
                except EdgePrismError as error:
                    if _ends_all(error):
                        raise
                    # Unlike other failures this one is final: from here on the answers rest on
                    # the generic caption.
                    text, why_not = "", error.message
                record |= {"text": text, "note": why_not, "seconds": time.perf_counter() - began}

    def _focus(self, reasoner: str, question: EvalQuestion) -> dict[str, Any]:
        """Return the record of the drawn focus; without one, an empty focus with a note."""
        record = self.results.get("focus", self.matrix.focus_key(reasoner), question.index)
        return record or {"text": "", "note": "none was drawn", "seconds": 0.0}

    # ---- captions

    def _caption(self, name: str, captioner: Captioner) -> None:
        """Make all missing captions; a picture is encoded once for all its instructions."""
        for question in self._each(f"{name}: captions"):
            for ref in question.pictures:
                missing = [
                    (key, options)
                    for key, options in self._instructions(name, question)
                    if not self.results.has("caption", key, _item(ref))
                ]
                if missing:
                    self._describe(captioner, ref, missing)

    def _describe(
        self, captioner: Captioner, ref: PictureRef, missing: list[tuple[str, CaptionOptions]]
    ) -> None:
        item = _item(ref)
        try:
            encoded = captioner.encode(self.file.picture_bytes(ref))
        except EdgePrismError as error:
            if _ends_all(error):
                raise
            for key, _ in missing:
                self.results.put("caption", key, item, {"error": error.message})
            return
        for key, options in missing:
            with self._recorded("caption", key, item) as record:
                caption = captioner.caption(encoded, **options)
                spent = encoded.timings.total - encoded.timings.load
                spent += caption.timings.total - caption.timings.load
                record |= {"caption": caption.to_dict(), "seconds": spent / 1000}

    def _instructions(
        self, captioner: str, question: EvalQuestion
    ) -> list[tuple[str, CaptionOptions]]:
        """Return the distinct (key of the caption, options of the captioner) of all cells."""
        modes, focuses = self.matrix.modes, [""] if "generic" in self.matrix.modes else []
        if "question" in modes:
            focuses += [self._focus(r, question)["text"] for r in self.matrix.reasoners]
        return [self._caption_options(captioner, focus) for focus in dict.fromkeys(focuses)]

    def _caption_options(self, captioner: str, focus: str) -> tuple[str, CaptionOptions]:
        settings = self.matrix.settings
        options: CaptionOptions = {
            "instruction": settings.instruction,
            "focus": focus or None,
            "caption_tokens": settings.caption_tokens,
        }
        plan = self.matrix.captioners[captioner].plan(**options)
        return self.matrix.caption_key(captioner, plan.instruction), options

    def _captions(self, cell: Cell, question: EvalQuestion) -> list[dict[str, Any]]:
        """Return the records of the captions from which the cell answers; [] if it has none."""
        if not cell.captioner:
            return []
        focus = self._focus(cell.reasoner, question)["text"] if cell.mode == "question" else ""
        key, _ = self._caption_options(cell.captioner, focus)
        records = [self.results.get("caption", key, _item(ref)) for ref in question.pictures]
        return [record or {"error": "no caption was made"} for record in records]

    # ---- answers

    def _answer(self, name: str, reasoner: BaseReasoner) -> None:
        cells = [cell for cell in self.matrix.cells() if cell.reasoner == name]
        keys = {cell: self.matrix.answer_key(cell) for cell in cells}
        for question in self._each(f"{name}: answers"):
            for cell, key in keys.items():
                if not self.results.has("answer", key, question.index):
                    self._answer_one(reasoner, cell, key, question)

    def _answer_one(
        self, reasoner: BaseReasoner, cell: Cell, key: str, question: EvalQuestion
    ) -> None:
        captions = self._captions(cell, question)
        failed = [record["error"] for record in captions if "error" in record]
        if failed:
            self.results.put("answer", key, question.index, {"error": failed[0]})
            return
        form, texts = self.matrix.settings.options, [text for _, text in question.options]
        with self._recorded("answer", key, question.index) as record:
            answer = reasoner.answer(
                [record_to_caption(record["caption"]) for record in captions],
                question.text,
                options=dict(question.options) if form == "letters" else {},
                hint=question.hint,
                shape=choices_to_shape(texts) if form == "bound" and texts else None,
                answer_tokens=self.matrix.settings.answer_tokens,
            )
            if fault := _no_answer(answer):
                raise NoAnswerError(fault)
            spent = answer.timings.total - answer.timings.load
            record |= {"answer": answer.to_dict(), "seconds": spent / 1000}

    # ---- answers that no rule can match

    def _judge(self, judge: BaseReasoner) -> None:
        for question in self._each(f"{judge.name}: judging"):
            for cell in self.matrix.cells():
                answer = self.results.get("answer", self.matrix.answer_key(cell), question.index)
                text = answer["answer"]["answer"].strip() if answer and "answer" in answer else ""
                key = self._verdict_key(cell)
                if not text or self.results.has("verdict", key, question.index):
                    continue
                if not score(question, text).by:
                    with self._recorded("verdict", key, question.index) as record:
                        record["said"] = judge_answer(judge, question, text)

    def _verdict_key(self, cell: Cell) -> str:
        judge = self.judge.model if self.judge else None
        return key_of("verdict", self.matrix.answer_key(cell), judge and model_id(judge))

    def _verdict(self, cell: Cell, question: EvalQuestion, text: str) -> tuple[Verdict, str]:
        """Return the verdict on an answer, and why there is none if the judge failed."""
        verdict = score(question, text)
        if verdict.by or self.judge is None:
            return verdict, ""
        record = self.results.get("verdict", self._verdict_key(cell), question.index) or {}
        error = f"the judge failed: {record['error']}" if "error" in record else ""
        return reply_to_verdict(question, record.get("said", NONE)), error

    # ---- records → outcomes

    def _outcome(self, cell: Cell, question: EvalQuestion) -> AnswerOutcome:
        answer = self.results.get("answer", self.matrix.answer_key(cell), question.index)
        captions = self._captions(cell, question)
        texts = tuple(r["caption"]["caption"] for r in captions if "caption" in r)
        focus = self._focus(cell.reasoner, question) if cell.mode == "question" else {}
        common: dict[str, Any] = {
            "captions": texts,
            "focus": focus.get("text", ""),
            "focus_note": focus.get("note", ""),
        }
        if answer is None or "error" in answer:
            return AnswerOutcome(error=(answer or {}).get("error", "not answered"), **common)
        text = answer["answer"]["answer"]
        if not text.strip():  # of a run by an earlier version, which stored such answers
            return AnswerOutcome(error="the reasoner answered with nothing", **common)
        verdict, error = self._verdict(cell, question, text)
        if error:
            return AnswerOutcome(text, error=error, **common)
        seconds = {
            "focus": focus.get("seconds", 0.0),
            "perceive": sum(record["seconds"] for record in captions),
            "reason": answer["seconds"],
        }
        return AnswerOutcome(text, verdict, seconds=seconds, **common)

    def _memory(self, cell: Cell) -> int | None:
        """Return the larger of the two models' peaks, because they run one after the other."""
        names = [("captioner", cell.captioner)] * bool(cell.captioner)
        peaks = [
            self.results.get("memory", self._memory_key(role, name), "peak")
            for role, name in [*names, ("reasoner", cell.reasoner)]
        ]
        known = [peak["bytes"] for peak in peaks if peak]
        return max(known) if len(known) == len(peaks) else None

    # ---- stages

    def _memory_key(self, role: str, name: str) -> str:
        matrix = self.matrix
        find = matrix.captioner_id if role == "captioner" else matrix.reasoner_id
        return key_of("memory", role, find(name))

    @contextlib.contextmanager
    def _turn(self, role: str, name: str, model: Captioner | BaseReasoner) -> Iterator[None]:
        """Run one model's stage; then free the model and store its peak memory."""
        peak_memory.reset_peak()
        self._worked = False
        try:
            yield
        finally:
            peak = peak_memory.peak_bytes()
            if self._worked and peak is not None and role != "judge":
                key = self._memory_key(role, name)
                before = self.results.get("memory", key, "peak") or {"bytes": 0}
                record = {"bytes": max(peak, before["bytes"])}
                self.results.put("memory", key, "peak", record)
            model.close()

    def _each(self, stage: str) -> Iterator[EvalQuestion]:
        for number, question in enumerate(self.questions):
            self.progress(stage, number, len(self.questions))
            yield question
        self.progress(stage, len(self.questions), len(self.questions))

    @contextlib.contextmanager
    def _recorded(self, kind: str, key: str, item: str) -> Iterator[dict[str, Any]]:
        """Store the yielded dictionary as a record, or the error that ended the block."""
        record: dict[str, Any] = {}
        self._worked = True
        try:
            yield record
        except EdgePrismError as error:
            if _ends_all(error):
                raise
            record = {"error": error.message}
        self.results.put(kind, key, item, record)


def _ends_all(error: EdgePrismError) -> bool:
    """Return whether the error concerns every item: a stop, no model or no device."""
    return isinstance(error, (Interrupted, ModelError, DeviceError))


def _no_answer(answer: Answer) -> str:
    """Return why an answer is no answer of the model's, so that it is not counted as wrong."""
    cut = next((note for note in answer.notes if PROMPT_CUT in note), "")
    if cut:
        return f"{cut}."
    return (
        "" if answer.text.strip() else "the reasoner finished no answer within its limit of tokens."
    )


def _item(ref: PictureRef) -> str:
    """Return a picture's key within the data."""
    return ref.path or f"{ref.offset}/{ref.number}"
