"""Splits a question, as people and data sets write it, into stem, lettered options and hint.

The focus of a captioner comes from the stem alone: a captioner repeats an option or an answer in
its instruction as if it had seen it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeprism.errors import UsageError

# "A. red", "(A) red", "A) red", "A: red": at the beginning of a line, or within one
_LABEL = re.compile(r"(?:^|(?<=[\s,;:?.]))(?:\(([A-Z])\)|([A-Z])[.):])[ \t]*(?=\S)", re.MULTILINE)
_HEADING = re.compile(r"\s*(?:options|choices|answer choices|candidates)\s*:?\s*\Z", re.IGNORECASE)
_ANSWER = re.compile(r"\s*^\s*(?:the )?(?:correct )?answer\s*(?::|is\b).*\Z",
                     re.IGNORECASE | re.MULTILINE | re.DOTALL)  # fmt: skip


def words(text: str) -> list[str]:
    """Return the words and numbers of `text` in lower case, in any script."""
    return re.findall(r"[^\W_]+", text.lower())


@dataclass(frozen=True)
class Question:
    """A question whose options are lettered: {"A": "red", "B": "blue"}; empty if it is open."""

    stem: str
    options: dict[str, str] = field(default_factory=dict)
    hint: str = ""


def to_question(
    text: str, options: Mapping[str, str] | None = None, hint: str | None = None
) -> Question:
    """Separate the options from `text`; `options` take precedence over those written in it.

    Raises UsageError for a question without a stem.
    """
    stem, written = _split_options(text)
    given = {str(k): str(v) for k, v in (options or {}).items() if str(v).strip()}
    if given and not written:
        stem = text.strip()
    stem = _ANSWER.sub("", stem).strip()
    if not stem:
        raise UsageError("The question is empty.", 'Write it in quotes: "What is on the left?"')
    return Question(stem, given or written, (hint or "").strip())


def _split_options(text: str) -> tuple[str, dict[str, str]]:
    """Return the text before the options, and at least two options lettered from A on."""
    labels: list[re.Match[str]] = []
    for match in _LABEL.finditer(text):
        if (match[1] or match[2]) == chr(ord("A") + len(labels)):
            labels.append(match)
    if len(labels) < 2 or not text[: labels[0].start()].strip():
        return text.strip(), {}
    ends = [label.start() for label in labels[1:]] + [len(text)]
    options = {}
    for label, end in zip(labels, ends, strict=True):
        option = text[label.end() : end].strip()
        # Lines below the last option do not belong to it.
        options[label[1] or label[2]] = option.split("\n")[0].rstrip(" ,;")
    return _HEADING.sub("", text[: labels[0].start()]).strip(), options
