"""`edgeprism.json`: what a captioner's folder may say about itself, over the family's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeprism.convert.read.checkpoint import read_json
from edgeprism.errors import CheckpointError

FILE_NAME = "edgeprism.json"


@dataclass(frozen=True)
class CaptionerCard:
    """Texts and limits that are the captioner's own; empty where the family's rule holds."""

    default_instruction: str
    focus_instruction: str
    max_tokens: int
    name: str = ""
    notice: str = ""
    license: str = ""
    parity_texts: tuple[str, ...] = ()  # for a captioner that knows few words


def card_from_folder(
    folder: Path, default_instruction: str, focus_instruction: str, max_tokens: int
) -> CaptionerCard:
    """Read `folder`/edgeprism.json if it is there; unknown or ill-typed fields are an error."""
    given = {
        "default_instruction": default_instruction,
        "focus_instruction": focus_instruction,
        "max_tokens": max_tokens,
    }
    path = folder / FILE_NAME
    if not path.is_file():
        return CaptionerCard(**given)  # type: ignore[arg-type]
    data = read_json(path)
    kinds: dict[str, type] = {
        "default_instruction": str, "focus_instruction": str, "max_tokens": int, "name": str,
        "notice": str, "license": str, "parity_texts": list,
    }  # fmt: skip
    faults = [f"{name}: unknown field" for name in data if name not in kinds]
    faults += [
        f"{name}: {kinds[name].__name__} is expected"
        for name, value in data.items()
        if name in kinds and (not isinstance(value, kinds[name]) or isinstance(value, bool))
    ]
    texts = data.get("parity_texts", [])
    if isinstance(texts, list) and not all(isinstance(text, str) and text for text in texts):
        faults.append("parity_texts: texts are expected")
    if faults:
        raise CheckpointError(
            f"{path} is refused: {'; '.join(faults)}.", f"Known fields: {', '.join(kinds)}."
        )
    return CaptionerCard(**{**given, **data, "parity_texts": tuple(texts)})
