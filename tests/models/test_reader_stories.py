"""The reader's stories: templates whose answers are stated, and nothing of nano's."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator

from edgeprism.models.reader.recipe.measure.elsewhere import read_set
from edgeprism.models.reader.recipe.measure.elsewhere_scoring import plain_words
from edgeprism.models.reader.recipe.world import stories
from edgeprism.models.reader.recipe.world.nanos import find_names
from edgeprism.models.reader.recipe.world.text import UNKNOWN, Passage, marks, unmarked

LONGEST = 160  # words of a description: a group of examples holds 400 tokens
_LIKE = 7  # words in a row that no story shares with a text that measures
_FREE = ("yes", "no", UNKNOWN)


def _passages() -> Iterator[tuple[stories.Story, Passage]]:
    for number, story in enumerate(stories.read_stories()):
        for seed in range(3):
            yield story, stories.tell_story(random.Random(f"{number}/{seed}"), story)


def test_a_story_has_questions_and_no_words_of_nanos() -> None:
    assert len(stories.read_stories()) >= 30
    for story in stories.read_stories():
        assert len(story.asks) >= 3, story.text
        for text in [story.text, *(f"{a.question} {a.answer} {a.wrong}" for a in story.asks)]:
            assert not find_names(text), (find_names(text), text)


def test_no_slot_is_left_open_and_each_is_told() -> None:
    for story, passage in _passages():
        text = unmarked(passage.text)
        assert len(text.split()) <= LONGEST, text
        for ask in passage.asks:
            whole = " ".join((text, ask.question, ask.answer, ask.focus, *ask.wrong))
            assert not re.search(r"[{}~]|=>|\n\n", whole), (story.text, ask)
        told = {slot + digits for _, slot, digits, _ in stories.SLOT.findall(story.text)}
        for question in story.asks:
            assert set(question.slots) <= told, (question, "a slot that the description lacks")


def test_an_answer_is_stated_or_names_the_slots_that_state_it() -> None:
    for story, passage in _passages():
        for ask in passage.asks:
            assert ask.answer not in ask.wrong
            if ask.answer in _FREE:
                continue
            stated = " ".join(plain_words(unmarked(passage.text)))
            inside = " ".join(plain_words(ask.answer)) in stated
            assert inside or ask.facts, (story.text, ask, "not a phrase of the text, and no @slot")


def test_evidence_is_marked_where_the_answer_stands() -> None:
    found = Counter(
        bool(ask.facts) and set(ask.facts) <= marks(passage.text)
        for _, passage in _passages()
        for ask in passage.asks
        if ask.answer not in _FREE
    )
    assert found[True] > 0.9 * found.total()


def test_no_story_is_taken_from_a_text_that_measures() -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        plain = plain_words(text)
        return {tuple(plain[i : i + _LIKE]) for i in range(len(plain) - _LIKE + 1)}

    measured = {run for text in read_set()[0].values() for run in runs(text.text)}
    assert len(measured) > 1000
    for story in stories.read_stories():
        assert not runs(stories.SLOT.sub(" ", story.text)) & measured, story.text
