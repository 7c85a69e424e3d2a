"""Examples: a chat exactly as the runtime writes it, and the reply to learn.

Three tasks in one: answer from descriptions, name what must be looked at, name the sentences that
support an answer. An example is a function of seed and number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeprism.language.chat import Message
from edgeprism.models.reader.recipe.world import clashes, figures, people, printed, scenes
from edgeprism.models.reader.recipe.world.shape import fits_focus
from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, Passage, marks, unmarked
from edgeprism.models.reader.recipe.world.words import BRANDS, NUMBERS, PEOPLE, THINGS
from edgeprism.reason.evidence import caption_to_sentences, evidence_messages
from edgeprism.reason.prompt import Turn, answer_messages, conversation_messages
from edgeprism.reason.question import Question
from edgeprism.records import Evidence

FOCUS_TASK = "Name what must be looked at to answer; do not answer."
MOST_EVIDENCE = 3  # as many numbers as the runtime's shape allows
_EMPTY = (
    "(no description)", "(no description)", "", "(empty)", "No description available.",
    "The picture could not be read.", "I cannot make out anything.", "(none)", "An empty page.",
    "I recognise nothing in this.", "The image is blank.", "There is no description.",
)  # fmt: skip
_HINTS = (
    "Read carefully.", "The answer is in the description.", "Look at every sentence.",
    "Count only what is said.", "Think of the whole picture.", "One of them is right.",
    "It is about one thing only.", "The order does not matter.", "Do not guess.",
)  # fmt: skip
_CAPTIONERS = tuple(f"{b.lower()}-{n}" for b, n in zip(BRANDS, range(1, 25), strict=True))
_SOURCES: tuple[tuple[float, Callable[[random.Random], Passage]], ...] = (
    (0.36, scenes.sample_scene), (0.2, people.sample_people), (0.18, figures.sample_figures),
    (0.11, printed.sample_print), (0.07, printed.sample_record), (0.08, clashes.sample_clash),
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A chat up to the reasoner's turn, the reply, and the task ("answer", "focus", …)."""

    messages: list[Message]
    reply: str
    task: str


def sample_example(seed: int, number: int) -> Example:
    """Return one example; the same for the same seed and number."""
    rng = random.Random(f"reader/{seed}/{number}")
    kind = rng.random()
    if kind < 0.13:
        return _focus(rng)
    if kind < 0.36:
        return _evidence(rng)
    if kind < 0.40:
        return _undescribed(rng)
    if kind < 0.46:
        return _several_pictures(rng)
    if kind < 0.50:
        return _several_captioners(rng)
    if kind < 0.53:
        return _conversation(rng)
    return _answer(rng)


def sample_passage(rng: random.Random) -> Passage:
    """Return a description of any kind; a quarter combine two kinds."""
    passage = _one(rng)
    if rng.random() < 0.15:
        passage = _combined(rng, passage)
    if rng.random() < 0.1 and '"' not in passage.text and not any(map(str.isdigit, passage.text)):
        kinds = {"colour", "count", "presence", "relation", "activity", "is colour", "material"}
        asks = [ask for ask in passage.asks if ask.kind in kinds]
        if asks:
            passage = Passage(passage.text.lower().rstrip("."), asks, passage.facts)
    return passage


def _one(rng: random.Random) -> Passage:
    sources = [source for _, source in _SOURCES]
    passage = rng.choices(sources, [weight for weight, _ in _SOURCES])[0](rng)
    return passage if passage.asks else _one(rng)


def _combined(rng: random.Random, first: Passage) -> Passage:
    """Return two descriptions as one, if neither speaks of what the other asks about."""
    second = _one(rng)
    texts = [unmarked(p.text).lower() for p in (first, second)]
    named = [{w for w in (*THINGS, *PEOPLE) if w in text} for text in texts]
    if named[0] & named[1] or ('"' in texts[0] and '"' in texts[1]) or "\n" in texts[0]:
        return first
    if second.facts and {a.kind for a in first.asks} & {"value", "field", "no text"}:
        return first
    both = Passage(first.text, [a for a in first.asks if a.facts], first.facts + second.facts)
    shifted = "".join(chr(ord(c) + first.facts) if marks(c) else c for c in second.text)
    both.say(shifted, rng.choice((" ", "\n")))
    both.asks += [
        replace(a, facts=tuple(f + first.facts for f in a.facts)) for a in second.asks if a.facts
    ]
    return both if both.asks else first


def _choose(rng: random.Random, asks: Sequence[Ask]) -> Ask:
    """Return one of the questions: first its kind, so that no kind drowns the others."""
    kind = rng.choice(sorted({ask.kind for ask in asks}))
    return rng.choice([ask for ask in asks if ask.kind == kind])


def _with_options(rng: random.Random, ask: Ask) -> tuple[dict[str, str], str]:
    """Return lettered options and the right letter; ({}, "") where there are no wrong answers."""
    wrong = list(ask.wrong)
    if ask.answer in ("yes", "no"):
        wrong = ["no" if ask.answer == "yes" else "yes"]
    if not wrong or ask.answer == UNKNOWN:
        return {}, ""
    right = ask.answer
    if right in NUMBERS and rng.random() < 0.7:
        right = str(NUMBERS.index(right))
    texts = list(dict.fromkeys([right, *wrong]))
    rng.shuffle(texts)
    letters = dict(zip("ABCD", texts, strict=False))
    return letters, next(letter for letter, text in letters.items() if text == right)


def _to_question(rng: random.Random, ask: Ask, options: float = 0.1) -> tuple[Question, str]:
    """Return the question as the runtime holds it, and the reply."""
    hint = rng.choice(_HINTS) if rng.random() < 0.05 else ""
    stem = ask.question
    if rng.random() < 0.05:
        stem = stem[0].lower() + stem[1:]
    stem = stem.rstrip("?.") if rng.random() < 0.04 else stem
    if rng.random() < options:
        letters, right = _with_options(rng, ask)
        if letters:
            return Question(stem, letters, hint), right
    return Question(stem, {}, hint), ask.answer


def _name(rng: random.Random) -> str:
    return rng.choice(_CAPTIONERS)


def _answer(rng: random.Random) -> Example:
    passage = sample_passage(rng)
    ask = _choose(rng, passage.asks)
    question, reply = _to_question(rng, ask)
    text = passage.text
    unsaid = {"colour", "activity", "text", "value", "who", "object", "field", "clothing"}
    if ask.facts and ask.kind in unsaid and not question.options and rng.random() < 0.07:
        text, reply = _without(text, set(ask.facts)) or "(no description)", UNKNOWN
    return Example(answer_messages([{_name(rng): unmarked(text)}], question), reply, "answer")


def _without(text: str, facts: set[int]) -> str:
    """Return the sentences that state none of the facts."""
    return " ".join(s for s in caption_to_sentences(text) if not marks(s) & facts)


def _undescribed(rng: random.Random) -> Example:
    ask = _choose(rng, sample_passage(rng).asks)
    question = Question(ask.question)
    return Example(answer_messages([{_name(rng): rng.choice(_EMPTY)}], question), UNKNOWN, "answer")


def _focus(rng: random.Random) -> Example:
    while True:
        asks = [a for a in sample_passage(rng).asks if a.focus]
        ask = _choose(rng, asks) if asks else Ask("", "")
        if ask.focus and fits_focus(ask.focus, Question(ask.question)):
            content = f"{FOCUS_TASK}\n\n{ask.question}"
            return Example([Message("user", content)], ask.focus, "focus")


def _evidence(rng: random.Random) -> Example:
    if rng.random() < 0.12:
        passages, asks = clashes.sample_disagreement(rng)
    else:
        passages = [sample_passage(rng)]
        asks = passages[0].asks
    ask = _choose(rng, asks)
    answer, facts = ask.answer, set(ask.facts)
    way = rng.random()
    texts = [passage.text for passage in passages]
    if facts and way < 0.3:  # what states the fact is left out
        texts, facts = [_without(text, facts) for text in texts], set()
    elif way < 0.36 and ask.wrong:
        answer, facts = ask.wrong[0], set()
    names = rng.sample(_CAPTIONERS, len(texts))
    marked = [
        Evidence(1, name, number, sentence)
        for name, text in zip(names, texts, strict=True)
        for number, sentence in enumerate(caption_to_sentences(text), 1)
    ]
    if not marked:
        return _evidence(rng)
    numbers = [str(i) for i, e in enumerate(marked, 1) if marks(e.text) & facts][:MOST_EVIDENCE]
    plain = [replace(e, text=unmarked(e.text)) for e in marked]
    messages = evidence_messages(plain, ask.question, answer)
    return Example(messages, ", ".join(numbers) or "none", "evidence")


def _several_pictures(rng: random.Random) -> Example:
    """Two or three pictures; the question names one, or asks which of them shows a thing."""
    passages = [sample_passage(rng) for _ in range(rng.choice((2, 2, 3)))]
    index, name = rng.randrange(len(passages)), _name(rng)
    looks = [{name: unmarked(p.text)} for p in passages]
    elsewhere = " ".join(unmarked(p.text) for i, p in enumerate(passages) if i != index).lower()
    things = [t for t in THINGS if t in unmarked(passages[index].text).lower()]
    once = [t for t in things if t not in elsewhere]
    nth = ("first", "second", "third")[index]
    if once and rng.random() < 0.35:
        stem = rng.choice(("Which picture shows the {t}?", "In which picture is the {t}?",
                           "On which of the pictures can one see the {t}?")).format(t=rng.choice(once))  # fmt: skip
        reply = f"picture {index + 1}"
    else:
        ask = _choose(rng, passages[index].asks)
        stem, reply = ask.question, ask.answer
        where = rng.choice((f"picture {index + 1}", f"the {nth} picture"))
        if stem.endswith("?") and rng.random() < 0.6:
            stem = f"{stem[:-1]} in {where}?"
        else:
            stem = f"In {where}: {stem}"
    return Example(answer_messages(looks, Question(stem)), reply, "answer")


def _several_captioners(rng: random.Random) -> Example:
    passages, asks = clashes.sample_disagreement(rng)
    names = rng.sample(_CAPTIONERS, len(passages))
    look = {n: unmarked(p.text) for n, p in zip(names, passages, strict=True)}
    ask = rng.choice(asks)
    return Example(answer_messages([look], Question(ask.question)), ask.answer, "answer")


def _conversation(rng: random.Random) -> Example:
    passage = sample_passage(rng)
    asks = rng.sample(passage.asks, min(len(passage.asks), rng.randint(2, 3)))
    look = ({_name(rng): unmarked(passage.text)},)
    turns = [
        Turn((look,) if i == 0 else (), Question(ask.question), ask.answer)
        for i, ask in enumerate(asks)
    ]
    return Example(conversation_messages(turns), asks[-1].answer, "answer")
