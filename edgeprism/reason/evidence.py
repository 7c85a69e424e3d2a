"""Which sentences of the captions an answer rests on, asked for by number."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeprism.language.chat import Message
from edgeprism.records import Caption, Evidence

EVIDENCE_TOKENS = 24  # three numbers of three digits, and the commas
MAX_SENTENCES = 400

# A full stop ends a sentence before a blank, but not behind an abbreviation or what numbers a
# list; CJK full stops need no blank.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Z]|\d{1,2}|Mr|Mrs|Ms|Dr|St|vs|approx|ca|e\.g|i\.e)\.\Z"
)
_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+")


def caption_to_sentences(text: str) -> list[str]:
    """The sentences of a caption in order, without list marks; lines end sentences too."""
    sentences, start = [], 0
    for end in _END.finditer(text):
        said = text[start : end.end()]
        if end[0] == "." and _is_abbreviated(said):
            continue
        sentences.append(said)
        start = end.end()
    sentences.append(text[start:])
    stripped = (_LIST_MARK.sub("", " ".join(said.split())) for said in sentences)
    return [said for said in stripped if any(map(str.isalnum, said))]


def _is_abbreviated(said: str) -> bool:
    """Whether the full stop at the end belongs to the word before it.

    "…the number 4." ends a sentence, "4. A tree" begins a list's; so does a lone letter.
    """
    found = _ABBREVIATION.search(said)
    if not found:
        return False
    word = found[0].strip(" \t\n(\"'.")
    return said.strip() == f"{word}." or not (word.isdigit() or len(word) == 1)


def captions_to_sentences(captions: Sequence[Caption]) -> list[Evidence]:
    """All sentences, in the captions' order; the k-th caption of a captioner is of picture k."""
    seen: dict[str, int] = {}
    found = []
    for caption in captions:
        model = caption.model
        picture = seen[model.digest] = seen.get(model.digest, 0) + 1
        for number, text in enumerate(caption_to_sentences(caption.text), 1):
            found.append(Evidence(picture, model.name, number, text))
    return found[:MAX_SENTENCES]


def evidence_messages(sentences: Sequence[Evidence], question: str, answer: str) -> list[Message]:
    """The numbered sentences, the question and its answer: which sentence says so?"""
    listed = [f"{i}. {sentence.text}" for i, sentence in enumerate(sentences, 1)]
    asked = "Which sentence says so? Reply with its number, or none if no sentence does."
    lines = [*listed, "", f"Question: {question}", f"Answer: {answer}", "", asked]
    return [Message("user", "\n".join(lines))]


def said_to_evidence(said: str, sentences: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """A reply in the shape of `numbers_to_shape(len(sentences))` → the sentences, each once."""
    if said == "none":
        return ()
    numbers = dict.fromkeys(int(number) for number in said.split(", "))
    return tuple(sentences[number - 1] for number in numbers)
