"""`edgeprism.json`: a captioner's own texts and limits, which replace the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.convert.read.checkpoint import read_json
from edgeprism.errors import CheckpointError

FILE_NAME = "edgeprism.json"
# The default instruction, in EdgePrism's own wording
INSTRUCTION = (
    "Describe this picture in fine detail. Name the scene and every object in it, with its "
    "colour, shape, number and condition. Say where each one is and how the objects relate to "
    "one another. Copy any text, numbers and symbols exactly as they are written."
)
FOCUS = " Pay special attention to the following: {focus}"
MAX_TOKENS = 512
MOST_TOKENS = 1 << 16  # that a manifest may say


@dataclass(frozen=True)
class CaptionerCard:
    """A captioner's texts and limits; "" stands for a default of the family or the converter."""

    default_instruction: str = ""
    focus_instruction: str = ""
    max_tokens: int = MAX_TOKENS
    name: str = ""
    notice: str = ""
    license: str = ""
    unknown: tuple[str, ...] = ()  # captions that say that nothing was recognised
    photographs: bool = True  # the captioner describes photographs
    parity_texts: tuple[str, ...] = ()  # gate texts for a captioner with a small vocabulary


def card_from_folder(folder: Path) -> CaptionerCard:
    """Read `folder`/edgeprism.json if it exists.

    Raises CheckpointError, which lists every fault, for fields that are unknown or mistyped, and
    for values that the bundle's manifest could not hold.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return CaptionerCard()
    data = read_json(path)
    kinds: dict[str, type] = {
        "default_instruction": str, "focus_instruction": str, "max_tokens": int, "name": str,
        "notice": str, "license": str, "parity_texts": list, "unknown": list, "photographs": bool,
    }  # fmt: skip
    faults = [f"{name}: unknown field" for name in data if name not in kinds]
    faults += [
        f"{name}: {kinds[name].__name__} is expected"
        for name, value in data.items()
        if name in kinds
        and (not isinstance(value, kinds[name]) or isinstance(value, bool) != (kinds[name] is bool))
    ]
    lists = {name: data.get(name, []) for name in ("parity_texts", "unknown")}
    faults += [
        f"{name}: a list of texts that are not empty is expected"
        for name, texts in lists.items()
        if isinstance(texts, list) and not all(isinstance(text, str) and text for text in texts)
    ]
    faults = faults or _value_faults(data)
    if faults:
        raise CheckpointError(
            f"{path} is refused: {'; '.join(faults)}.", f"Known fields: {', '.join(kinds)}."
        )
    return CaptionerCard(**{**data, **{name: tuple(texts) for name, texts in lists.items()}})


def _value_faults(data: dict[str, Any]) -> list[str]:
    """Return the faults of values that have the right type."""
    faults = []
    if data.get("focus_instruction", FOCUS).count("{focus}") != 1:
        faults.append('focus_instruction: must hold "{focus}" exactly once')
    if not 1 <= data.get("max_tokens", MAX_TOKENS) <= MOST_TOKENS:
        faults.append(f"max_tokens: must lie in 1…{MOST_TOKENS}")
    faults += [
        f"{name}: is empty"
        for name in ("name", "default_instruction")
        if name in data and not data[name].strip()
    ]
    return faults
