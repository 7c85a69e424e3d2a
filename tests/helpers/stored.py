"""Records as a caption store holds them."""

from __future__ import annotations

from typing import Any

from edgeprism.records import Caption, ModelInfo, Timings, TokenCounts


def stored_record(words: str = "a boat", **changed: Any) -> dict[str, Any]:
    """Return the whole record of a caption; `changed` fields stand in it as they are given."""
    caption = Caption(
        words, "a.png", "aa", "stop", TokenCounts(4, 5, 2), Timings(total=20.0),
        ModelInfo("m", "digest", "int8", "Q8_0"), "cpu", "Describe.", "0", (4, 3), ("a note",),
    )  # fmt: skip
    return {**caption.to_dict(), **changed}
