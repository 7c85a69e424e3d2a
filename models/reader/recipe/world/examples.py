"""Examples: a chat exactly as the runtime writes it, and the reply to learn.

Three tasks in one: answer from descriptions, name what must be looked at, name the sentences that
support an answer. An example is a function of seed and number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeprism.language.chat import Message
from edgeprism.models.reader.recipe.world import (
    clashes,
    figures,
    people,
    printed,
    ranks,
    scenes,
    stories,
    tables,
    tallies,
)
from edgeprism.models.reader.recipe.world.corpora import Corpora
from edgeprism.models.reader.recipe.world.shape import fits_focus
from edgeprism.models.reader.recipe.world.text import UNKNOWN, Ask, Passage, marks, unmarked
from edgeprism.models.reader.recipe.world.words import BRANDS, PEOPLE, THINGS
from edgeprism.reason.evidence import caption_to_sentences, evidence_messages
from edgeprism.reason.prompt import Turn, answer_messages, conversation_messages
from edgeprism.reason.question import Question
from edgeprism.records import Evidence

FOCUS_TASK = "Name what must be looked at to answer; do not answer."
GROUP = 5  # examples that begin alike
CORPORA_SHARE = 0.5
MOST_EVIDENCE = 3  # as many numbers as the runtime's shape allows
_EMPTY = (
    "(no description)", "(no description)", "", "(empty)", "No description available.",
    "The picture could not be read.", "I cannot make out anything.", "(none)", "An empty page.",
    "I recognise nothing in this.", "The image is blank.", "Nothing was described.",
)  # fmt: skip
_HINTS = (
    "Read carefully.", "The answer is in the description.", "Look at every sentence.",
    "Count only what is said.", "Think of the whole picture.", "One of them is right.",
    "It is about one thing only.", "The order does not matter.", "Do not guess.",
)  # fmt: skip
_ABOUT = ("It is about {f}.", "Look for {f}.", "What matters is {f}.", "Find {f}.")
_WEIGHTS = {"colour": 2, "count": 2, "presence": 2, "relation": 5, "value": 2, "text": 2,
            "story": 4, "sum": 2}  # fmt: skip
# kinds of questions whose answer is unknown when what states it is left out
_UNSAID = {"colour", "activity", "text", "value", "who", "object", "field", "clothing", "story"}
_NTH = ("first", "second", "third")
_WHICH_PICTURE = ("Which picture shows the {t}?", "In which picture is the {t}?",
                  "On which of the pictures can one see the {t}?")  # fmt: skip
Sample = Callable[[random.Random], Passage]
_CAPTIONERS = tuple(f"{b.lower()}-{n}" for b, n in zip(BRANDS, range(1, 25), strict=True))
_SOURCES: tuple[tuple[float, Sample], ...] = (
    (0.5, scenes.sample_scene), (0.14, people.sample_people), (0.16, figures.sample_figures),
    (0.1, printed.sample_print), (0.06, printed.sample_record), (0.08, clashes.sample_clash),
    (1.0, stories.sample_story), (0.12, ranks.sample_ranks), (0.1, tallies.sample_tally),
    (0.2, tables.sample_table),
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A chat up to the reasoner's turn, the reply, and the task ("answer", "focus", …)."""

    messages: list[Message]
    reply: str
    task: str


def sample_group(seed: int, number: int, corpora: Corpora | None = None) -> list[Example]:
    """Return examples of one task that begin alike; the same for the same seed and number.

    What they have in common, mostly a description, is read once when they are learnt. With
    ``corpora``, `CORPORA_SHARE` of the groups are about texts of theirs.
    """
    rng = random.Random(f"reader/{seed}/{number}")
    if corpora is not None and rng.random() < CORPORA_SHARE:
        of_texts = _evidences if rng.random() < 0.15 else _answers
        return of_texts(rng, corpora.sample)
    kind = rng.random()
    for share, make in _TASKS:
        if kind < share:
            return make(rng)
        kind -= share
    return _answers(rng)


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


def _choose(rng: random.Random, asks: Sequence[Ask], most: int = GROUP) -> list[Ask]:
    """Return several questions, of each kind as likely, so that no kind drowns the others."""
    chosen: list[Ask] = []
    left = list(dict.fromkeys(asks))
    while left and len(chosen) < most:
        kinds = sorted({ask.kind for ask in left})
        kind = rng.choices(kinds, [_WEIGHTS.get(kind, 1) for kind in kinds])[0]
        ask = rng.choice([ask for ask in left if ask.kind == kind])
        left.remove(ask)
        chosen.append(ask)
    return chosen


def _to_question(rng: random.Random, ask: Ask) -> Question:
    """Return the question as the runtime holds it.

    It never has options: the runtime asks without them and binds the reply to their texts.
    """
    hint = rng.choice(_HINTS) if rng.random() < 0.1 else ""
    if hint and ask.focus and rng.random() < 0.5:
        hint = rng.choice(_ABOUT).format(f=ask.focus)
    stem = ask.question
    if rng.random() < 0.05:
        stem = stem[0].lower() + stem[1:]
    stem = stem.rstrip("?.") if rng.random() < 0.04 else stem
    return Question(stem, {}, hint)


def _name(rng: random.Random) -> str:
    return rng.choice(_CAPTIONERS)


def _answers(rng: random.Random, sample: Sample = sample_passage) -> list[Example]:
    passage, look = sample(rng), _name(rng)
    asks = _choose(rng, passage.asks)
    text, said = passage.text, set(range(passage.facts))
    # what states an answer is left out, and what stands in its sentence
    if rng.random() < (0.08 if sample is sample_passage else 0.2):
        text = _without(text, set(asks[0].facts))
        said = marks(text)
        asks = [ask for ask in asks if _is_traced(ask)]
    examples = []
    for ask in asks:
        question, reply = _to_question(rng, ask), ask.answer
        if not set(ask.facts) <= said:
            if ask.kind not in _UNSAID:
                continue
            question, reply = Question(ask.question), UNKNOWN
        messages = answer_messages([{look: unmarked(text) or "(no description)"}], question)
        examples.append(Example(messages, reply, "answer"))
    return examples or _answers(rng, sample)


def _is_traced(ask: Ask) -> bool:
    """Return whether it is known what states the answer: a story's part may state it unmarked."""
    return bool(ask.facts) or ask.kind != "story"


def _relations(rng: random.Random) -> list[Example]:
    """Ask only how things stand to each other."""
    while True:
        passage = scenes.sample_scene(rng)
        asks = [ask for ask in passage.asks if ask.kind == "relation"]
        if asks:
            break
    look = {_name(rng): unmarked(passage.text)}
    return [
        Example(answer_messages([look], _to_question(rng, ask)), ask.answer, "answer")
        for ask in _choose(rng, asks)
    ]


def _without(text: str, facts: set[int]) -> str:
    """Return the sentences that state none of the facts."""
    return " ".join(s for s in caption_to_sentences(text) if not marks(s) & facts)


def _undescribed(rng: random.Random) -> list[Example]:
    look = {_name(rng): rng.choice(_EMPTY)}
    return [
        Example(answer_messages([look], Question(ask.question)), UNKNOWN, "answer")
        for ask in _choose(rng, sample_passage(rng).asks)
    ]


def _focuses(rng: random.Random) -> list[Example]:
    asks = [a for a in sample_passage(rng).asks if a.focus]
    return [
        Example([Message("user", f"{FOCUS_TASK}\n\n{ask.question}")], ask.focus, "focus")
        for ask in _choose(rng, asks, 2 * GROUP)
        if fits_focus(ask.focus, Question(ask.question))
    ] or _focuses(rng)


def _evidences(rng: random.Random, sample: Sample = sample_passage) -> list[Example]:
    if sample is sample_passage and rng.random() < 0.12:
        passages, asks = clashes.sample_disagreement(rng)
    else:
        passages = [sample(rng)]
        asks = passages[0].asks
    asks = _choose(rng, [ask for ask in asks if _is_traced(ask)])
    gone = set(asks[0].facts) if asks and rng.random() < 0.35 else set[int]()
    texts = [_without(p.text, gone) if gone else p.text for p in passages]
    names = rng.sample(_CAPTIONERS, len(texts))
    marked = [
        Evidence(1, name, number, sentence)
        for name, text in zip(names, texts, strict=True)
        for number, sentence in enumerate(caption_to_sentences(text), 1)
    ]
    if not marked or not asks:
        return _evidences(rng, sample)
    plain = [replace(e, text=unmarked(e.text)) for e in marked]
    examples = []
    for ask in asks:
        answer, facts = ask.answer, set(ask.facts)
        if ask.wrong and rng.random() < 0.07:
            answer, facts = ask.wrong[0], set()
        numbers = [str(i) for i, e in enumerate(marked, 1) if marks(e.text) & facts]
        reply = ", ".join(numbers[:MOST_EVIDENCE]) or "none"
        examples.append(Example(evidence_messages(plain, ask.question, answer), reply, "evidence"))
    return examples


def _several_pictures(rng: random.Random) -> list[Example]:
    """Two or three pictures; a question names one, or asks which of them shows a thing."""
    passages, name = [sample_passage(rng) for _ in range(rng.choice((2, 2, 3)))], _name(rng)
    texts = [unmarked(p.text) for p in passages]
    looks = [{name: text} for text in texts]
    examples = []
    for index in rng.sample(range(len(passages)), len(passages)):
        elsewhere = " ".join(t for i, t in enumerate(texts) if i != index).lower()
        once = [t for t in THINGS if t in texts[index].lower() and t not in elsewhere]
        where = rng.choice((f"picture {index + 1}", f"the {_NTH[index]} picture"))
        (ask,) = _choose(rng, passages[index].asks, 1)
        stem, reply = f"In {where}: {ask.question}", ask.answer
        if once and rng.random() < 0.35:
            stem = rng.choice(_WHICH_PICTURE).format(t=rng.choice(once))
            reply = f"picture {index + 1}"
        elif ask.question.endswith("?") and rng.random() < 0.6:
            stem = f"{ask.question[:-1]} in {where}?"
        examples.append(Example(answer_messages(looks, Question(stem)), reply, "answer"))
    return examples


def _several_captioners(rng: random.Random) -> list[Example]:
    passages, asks = clashes.sample_disagreement(rng)
    names = rng.sample(_CAPTIONERS, len(passages))
    look = {n: unmarked(p.text) for n, p in zip(names, passages, strict=True)}
    return [
        Example(answer_messages([look], Question(ask.question)), ask.answer, "answer")
        for ask in _choose(rng, asks)
    ]


def _conversation(rng: random.Random) -> list[Example]:
    passage = sample_passage(rng)
    asks = rng.sample(passage.asks, min(len(passage.asks), rng.randint(2, 3)))
    look = ({_name(rng): unmarked(passage.text)},)
    turns = [
        Turn((look,) if i == 0 else (), Question(ask.question), ask.answer)
        for i, ask in enumerate(asks)
    ]
    return [
        Example(conversation_messages(turns[: i + 1]), ask.answer, "answer")
        for i, ask in enumerate(asks)
    ]


# shares of groups; the rest are answers about one picture by one captioner
_TASKS: tuple[tuple[float, Callable[[random.Random], list[Example]]], ...] = (
    (0.1, _focuses), (0.18, _evidences), (0.04, _undescribed), (0.05, _several_pictures),
    (0.03, _several_captioners), (0.02, _conversation), (0.07, _relations),
)  # fmt: skip
