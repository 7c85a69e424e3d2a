"""What is measured: captioners × reasoners × instruction modes, and the floor without a caption."""

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

NO_CAPTION = "no caption"

_Model = TypeVar("_Model", Captioner, BaseReasoner)


@dataclass(frozen=True)
class Settings:
    """What decides the words beside models and questions."""

    caption_tokens: int | None = None
    answer_tokens: int = 64
    instruction: str | None = None  # replaces the captioner's generic one
    options: str = "letters"  # how reasoners meet them, of OPTION_FORMS
    version: str = __version__


@dataclass(frozen=True)
class Cell:
    """One combination; without a captioner, what the reasoner makes of the question alone."""

    captioner: str  # a name of the matrix, "" for none
    mode: str  # of INSTRUCTION_MODES, or NO_CAPTION
    reasoner: str

    @property
    def name(self) -> str:
        """The cell as reports call it."""
        seen = f"{self.captioner}, {self.mode}" if self.captioner else self.mode
        return f"{seen} → {self.reasoner}"


class Matrix:
    """The models by their names in reports, and the address of every record they make."""

    def __init__(
        self,
        captioners: Sequence[Captioner],
        reasoners: Sequence[BaseReasoner],
        modes: Sequence[str] = INSTRUCTION_MODES,
        settings: Settings | None = None,
    ) -> None:
        """Models load when their turn comes. Raises UsageError for a mode that is none."""
        for mode in modes:
            if mode not in INSTRUCTION_MODES:
                raise UsageError(
                    f"{mode!r} is no instruction mode.", f"Take {' or '.join(INSTRUCTION_MODES)}."
                )
        self.settings = settings or Settings()
        if self.settings.options not in OPTION_FORMS:
            raise UsageError(
                f"{self.settings.options!r} is no way to show options.",
                f"Take {', '.join(OPTION_FORMS)}.",
            )
        self.captioners = _named(captioners)
        self.reasoners = _named(reasoners)
        self.modes = tuple(dict.fromkeys(modes))

    def cells(self) -> list[Cell]:
        """The floor first, then each way of perceiving, for one reasoner after another."""
        return [
            cell
            for reasoner in self.reasoners
            for cell in (
                Cell("", NO_CAPTION, reasoner),
                *(Cell(c, mode, reasoner) for c in self.captioners for mode in self.modes),
            )
        ]

    # ---- addresses: equal models and settings give equal words

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
        seen = self.captioner_id(cell.captioner) if cell.captioner else None
        if seen is None:
            settings |= {"caption_tokens": None, "instruction": None}
        return key_of("answer", seen, cell.mode, self.reasoner_id(cell.reasoner), settings)

    def captioner_id(self, name: str) -> list[str]:
        """What tells two captioners apart: their files and how they run."""
        captioner = self.captioners[name]
        return [captioner.model.digest, captioner.model.vision_quant, captioner.engines.kv_type]

    def reasoner_id(self, name: str) -> list[str]:
        """As `model_id`, by the reasoner's name in the matrix."""
        return model_id(self.reasoners[name].model)


def model_id(model: ModelInfo) -> list[str]:
    """What tells two reasoners apart: their file, or the name of one elsewhere."""
    return [model.digest or model.name]


def _named(models: Sequence[_Model]) -> dict[str, _Model]:
    """By name; models that share one get their digest's beginning."""
    names = [model.model.name for model in models]
    named: dict[str, _Model] = {}
    for name, model in zip(names, models, strict=True):
        unique = name if names.count(name) == 1 else f"{name}@{model.model.digest[:8]}"
        if unique in named:
            raise UsageError(f"{unique} is named twice.", "Name each model once.")
        named[unique] = model
    return named
