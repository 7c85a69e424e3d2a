"""A question as people and data sets write it → its stem, lettered options and hint; its focus.

What the captioner is told to attend to comes from the stem alone: an option or an answer in the
instruction would be said back as if it had been seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeprism.errors import UsageError

# "A. red", "(A) red", "A) red", "A: red": at the beginning of a line, or further on in one
_LABEL = re.compile(r"(?:^|(?<=[\s,;:?.]))(?:\(([A-Z])\)|([A-Z])[.):])[ \t]*(?=\S)", re.MULTILINE)
_HEADING = re.compile(r"\s*(?:options|choices|answer choices|candidates)\s*:?\s*\Z", re.IGNORECASE)
_TOLD = re.compile(r"\s*^\s*(?:the )?(?:correct )?answer\s*(?::|is\b).*\Z",
                   re.IGNORECASE | re.MULTILINE | re.DOTALL)  # fmt: skip


def words(text: str) -> list[str]:
    """Lower-case words and numbers, in any script."""
    return re.findall(r"[^\W_]+", text.lower())


@dataclass(frozen=True)
class Question:
    """`options` are lettered: {"A": "red", "B": "blue"}; empty for an open question."""

    stem: str
    options: dict[str, str] = field(default_factory=dict)
    hint: str = ""


def to_question(
    text: str, options: Mapping[str, str] | None = None, hint: str | None = None
) -> Question:
    """`text` with its options apart, whether they are given or written into it.

    Raises UsageError for a question without a stem.
    """
    stem, written = _split_options(text)
    given = {str(k): str(v) for k, v in (options or {}).items() if str(v).strip()}
    if given and not written:
        stem = text.strip()
    stem = _TOLD.sub("", stem).strip()
    if not stem:
        raise UsageError("The question is empty.", 'Write it in quotes: "What is on the left?"')
    return Question(stem, given or written, (hint or "").strip())


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    """The text before the options, and these; letters count from A, and one is none."""
    labels: list[re.Match[str]] = []
    for match in _LABEL.finditer(text):
        if (match[1] or match[2]) == chr(ord("A") + len(labels)):
            labels.append(match)
    if len(labels) < 2 or not text[: labels[0].start()].strip():
        return text.strip(), {}
    ends = [label.start() for label in labels[1:]] + [len(text)]
    options = {}
    for label, end in zip(labels, ends, strict=True):
        said = text[label.end() : end].strip()
        # what stands under the last option is no part of it
        options[label[1] or label[2]] = said.split("\n")[0].rstrip(" ,;")
    return _HEADING.sub("", text[: labels[0].start()]).strip(), options
