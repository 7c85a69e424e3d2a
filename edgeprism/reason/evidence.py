"""Evidence: the numbers of the captions' sentences that support an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeprism.language.chat import Message
from edgeprism.records import Caption, Evidence

EVIDENCE_TOKENS = 24  # enough for three numbers of three digits with commas
MAX_SENTENCES = 400

# A full stop before a blank ends a sentence, unless it belongs to an abbreviation or to the number
# of a list item. A CJK full stop needs no blank.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』）]*|\n+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'])(?:[A-Z]|\d{1,2}|Mr|Mrs|Ms|Dr|St|vs|approx|ca|e\.g|i\.e)\.\Z"
)
_LIST_MARK = re.compile(r"^(?:[-*•]|\d{1,2}[.)])\s+")


def caption_to_sentences(text: str) -> list[str]:
    """Split a caption into sentences without list marks; the end of a line ends a sentence."""
    sentences, start = [], 0
    for end in _END.finditer(text):
        sentence = text[start : end.end()]
        if end[0] == "." and _is_abbreviated(sentence):
            continue
        sentences.append(sentence)
        start = end.end()
    sentences.append(text[start:])
    stripped = (_LIST_MARK.sub("", " ".join(sentence.split())) for sentence in sentences)
    return [sentence for sentence in stripped if any(map(str.isalnum, sentence))]


def _is_abbreviated(sentence: str) -> bool:
    """Return whether the full stop at the end belongs to the word before it.

    "…the number 4." is a sentence, but the "4." of "4. A tree" numbers a list item. The same
    holds for a single letter.
    """
    match = _ABBREVIATION.search(sentence)
    if not match:
        return False
    word = match[0].strip(" \t\n(\"'.")
    return sentence.strip() == f"{word}." or not (word.isdigit() or len(word) == 1)


def captions_to_sentences(captions: Sequence[Caption]) -> list[Evidence]:
    """List all sentences in the captions' order; a captioner's k-th caption is of picture k."""
    pictures: dict[str, int] = {}  # captioner's digest → number of its last picture
    sentences = []
    for caption in captions:
        model = caption.model
        picture = pictures[model.digest] = pictures.get(model.digest, 0) + 1
        for number, text in enumerate(caption_to_sentences(caption.text), 1):
            sentences.append(Evidence(picture, model.name, number, text))
    return sentences[:MAX_SENTENCES]


def evidence_messages(sentences: Sequence[Evidence], question: str, answer: str) -> list[Message]:
    """Ask which of the numbered sentences supports the answer to the question."""
    numbered = [f"{i}. {sentence.text}" for i, sentence in enumerate(sentences, 1)]
    task = "Which sentence says so? Reply with its number, or none if no sentence does."
    lines = [*numbered, "", f"Question: {question}", f"Answer: {answer}", "", task]
    return [Message("user", "\n".join(lines))]


def reply_to_evidence(reply: str, sentences: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Turn a reply in the shape `numbers_to_shape(len(sentences))` into sentences, each once."""
    if reply == "none":
        return ()
    numbers = dict.fromkeys(int(number) for number in reply.split(", "))
    return tuple(sentences[number - 1] for number in numbers)
