"""The matrix: captioners × reasoners × instruction modes, and each reasoner without captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgeprism.choices import INSTRUCTION_MODES, OPTION_FORMS
from edgeprism.errors import UsageError
from edgeprism.evaluation.results import key_of
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.base import BaseReasoner
from edgeprism.records import ModelInfo
from edgeprism.version import __version__
from edgeprism.vision.token_reduction import METHOD

NO_CAPTION = "no caption"

_Model = TypeVar("_Model", Captioner, BaseReasoner)


@dataclass(frozen=True)
class Settings:
    """Everything except models and questions that decides the records of a run."""

    caption_tokens: int | None = None
    answer_tokens: int = 64
    instruction: str | None = None  # replaces the captioner's generic one
    options: str = "letters"  # how the prompt shows options, one of OPTION_FORMS
    version: str = __version__


@dataclass(frozen=True)
class Cell:
    """One combination; without a captioner, the reasoner answers from the question alone."""

    captioner: str  # a name in the matrix, "" for none
    mode: str  # one of INSTRUCTION_MODES, or NO_CAPTION
    reasoner: str

    @property
    def name(self) -> str:
        """The cell as reports call it."""
        perception = f"{self.captioner}, {self.mode}" if self.captioner else self.mode
        return f"{perception} → {self.reasoner}"


class Matrix:
    """The models by their names in reports, and the keys of their records."""

    def __init__(
        self,
        captioners: Sequence[Captioner],
        reasoners: Sequence[BaseReasoner],
        modes: Sequence[str] = INSTRUCTION_MODES,
        settings: Settings | None = None,
    ) -> None:
        """Name the models, without loading them.

        Raises UsageError for an unknown mode or option form, and for a model named twice.
        """
        for mode in modes:
            if mode not in INSTRUCTION_MODES:
                raise UsageError(
                    f"{mode!r} is not an instruction mode.",
                    f"Give {' or '.join(INSTRUCTION_MODES)}.",
                )
        self.settings = settings or Settings()
        if self.settings.options not in OPTION_FORMS:
            raise UsageError(
                f"{self.settings.options!r} is not a way to show options.",
                f"Give {', '.join(OPTION_FORMS)}.",
            )
        self.captioners = _named(captioners)
        self.reasoners = _named(reasoners)
        self.modes = tuple(dict.fromkeys(modes))

    def cells(self) -> list[Cell]:
        """List the cells reasoner by reasoner: without captions first, then each captioner's."""
        return [
            cell
            for reasoner in self.reasoners
            for cell in (
                Cell("", NO_CAPTION, reasoner),
                *(Cell(c, mode, reasoner) for c in self.captioners for mode in self.modes),
            )
        ]

    # ---- keys of records: equal models and settings give equal records

    def focus_key(self, reasoner: str) -> str:
        """The address of the focuses that this reasoner draws."""
        return key_of("focus", self.reasoner_id(reasoner), self.settings.version)

    def caption_key(self, captioner: str, instruction: str) -> str:
        """The address of the captions that this captioner makes for the instruction."""
        s = self.settings
        return key_of(
            "caption", self.captioner_id(captioner), instruction, s.caption_tokens, s.version
        )

    def answer_key(self, cell: Cell) -> str:
        """The address of a cell's answers."""
        settings = dataclasses.asdict(self.settings)
        captioner = self.captioner_id(cell.captioner) if cell.captioner else None
        if captioner is None:
            settings |= {"caption_tokens": None, "instruction": None}
        return key_of("answer", captioner, cell.mode, self.reasoner_id(cell.reasoner), settings)

    def captioner_id(self, name: str) -> list[str]:
        """What tells two captioners apart: their files and how they run."""
        captioner = self.captioners[name]
        limit = captioner.engines.visual_tokens
        fewer = [] if limit is None else [f"{limit} visual tokens, {METHOD}"]
        engines = captioner.engines
        return [captioner.model.digest, captioner.model.vision_quant, engines.kv_type, *fewer]

    def reasoner_id(self, name: str) -> list[str]:
        """As `model_id`, by the reasoner's name in the matrix."""
        return model_id(self.reasoners[name].model)


def model_id(model: ModelInfo) -> list[str]:
    """Identify a reasoner by its file's digest, or by its name if a server runs it."""
    return [model.digest or model.name]


def _named(models: Sequence[_Model]) -> dict[str, _Model]:
    """Return the models by name; models with the same name also get part of their digest."""
    names = [model.model.name for model in models]
    named: dict[str, _Model] = {}
    for name, model in zip(names, models, strict=True):
        unique = name if names.count(name) == 1 else f"{name}@{model.model.digest[:8]}"
        if unique in named:
            raise UsageError(f"{unique} is named twice.", "Name each model once.")
        named[unique] = model
    return named
