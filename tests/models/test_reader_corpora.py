"""Texts of others in the reader's training: read as published, nothing of nano's or of the measure.

The two clones are made here, in the layout that the collections have.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgeprism.models.reader.recipe import train
from edgeprism.models.reader.recipe.measure.elsewhere import read_set
from edgeprism.models.reader.recipe.world.corpora import MOST_ANSWER, Corpora, read_corpora
from edgeprism.models.reader.recipe.world.examples import Example, sample_group
from edgeprism.models.reader.recipe.world.nanos import (
    find_names,
    is_nanos_question,
    is_nanos_sentence,
)
from edgeprism.models.reader.recipe.world.text import UNKNOWN, Passage, marks, unmarked
from edgeprism.reason.evidence import caption_to_sentences

QUESTION_FIELDS = ("question_id", "cor_section", "question", "ex-or-im1", "answer1")
MEASURED = next(text for text in read_set()[0].values() if len(text.text.split()) > 12).text

# tale → [section's text], [(section, question, explicit?, answer)]
TALES: dict[str, tuple[list[str], list[tuple[str, str, str, str]]]] = {
    "miller": (
        [
            'A miller had two sons. The elder was lazy.\n"Work!" said the miller. So he left home.',
            "The younger ground the flour. He slept in the\nloft. One night a tree fell on the "
            "roof. The mayor came to look at the damage.",
            "Nobody was hurt.",
        ],
        [
            ("1", "How many sons had the miller?", "explicit", "two."),
            ("1", "what was the elder like?", "explicit", "lazy"),
            ("1", "Why did he leave?", "implicit", "he was told to work"),
            ("1", "What happened?", "explicit", "he left home because of what was said to him"),
            ("2", "Where did the younger sleep?", "explicit", "in the loft"),
            ("2", "Who came to look at the damage?", "explicit", "the mayor"),
            ("2", "What fell on the roof?", "explicit", "a tree"),
            ("2", "Why was the mayor there?", "explicit", "because of the damage done"),
            ("2", "Where is the loft?", "explicit", "upstairs"),
        ],
    ),
    "sisters": (
        ["Three sisters kept geese. The geese were grey.", "Winter came early.", MEASURED],
        [
            ("1", "Who kept geese?", "explicit", "three sisters"),
            ("2", "When did winter come?", "explicit", "early"),
            ("3", "What is shown?", "explicit", "something"),
        ],
    ),
    "ferry": (
        ["The ferryman asked for a coin. The widow paid him with bread."],
        [("1", "Who asked for a coin?", "explicit", "the ferryman")],
    ),
    "well": (
        ["A potter dug a cellar. It filled with water."],
        [("1", "What filled with water?", "explicit", "the cellar")],
    ),
}  # fmt: skip
BLOCKS = f"""\
#Wiki1k:wikipedia:1:0:0
The bridge over the Ouse was opened in 1863.
When was the bridge opened?                       1863	1863	in 1863
What was opened over the Ouse?                    The bridge	the river	over
What was opened by the mayor in a ceremony that ho1863	1863
Where is the bridge?                              over the Ouse	over the Ouse

#Wiki1k:wikinews:2:0:0
The minister resigned on Monday.
Who resigned?                                     The minister	The minister

#Wiki1k:wikinews:3:0:0
The apple harvest failed.
What failed?                                      The apple harvest	The apple harvest

#Wiki1k:wikipedia:4:0:0
{MEASURED}
What is it?                                       it	it

#Wiki1k:wikipedia:5:0:0
Copper melts at 1085 degrees.
What melts at 1085 degrees?                       Copper	Copper

#Wiki1k:wikipedia:6:0:0
The council sold the hall in 1990.
Who sold the hall?                                The council	The council

"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "FairytaleQAData" / "data-by-train-split"
    for kind in ("questions", "section-stories"):
        (root / kind / "train").mkdir(parents=True)
    for name, (sections, questions) in TALES.items():
        story = root / "section-stories" / "train" / f"{name}-story.csv"
        _write(story, ("section", "text"), [(str(i), t) for i, t in enumerate(sections, 1)])
        rows = [(str(i), s, q, kind, a) for i, (s, q, kind, a) in enumerate(questions, 1)]
        _write(root / "questions" / "train" / f"{name}-questions.csv", QUESTION_FIELDS, rows)
    sentences = tmp_path / "qamr" / "data" / "readable"
    sentences.mkdir(parents=True)
    (sentences / "test.tsv").write_text(BLOCKS, encoding="utf-8")
    # Only these collected several answers to each question.
    (sentences / "train.tsv").write_text(BLOCKS.replace("Ouse", "Severn"), encoding="utf-8")
    return tmp_path


def _write(path: Path, fields: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(fields)
        writer.writerows(rows)


@pytest.fixture
def corpora(folder: Path) -> Corpora:
    return read_corpora(folder)


def _asked(passage: Passage) -> dict[str, str]:
    return {ask.question: ask.answer for ask in passage.asks}


def test_a_section_has_the_questions_that_a_few_of_its_words_answer(corpora: Corpora) -> None:
    miller = next(tale for tale in corpora.tales if "miller" in tale[0].text)
    assert unmarked(miller[0].text) == (
        'A miller had two sons. The elder was lazy. "Work!" said the miller. So he left home.'
    )
    assert _asked(miller[0]) == {
        "How many sons had the miller?": "two", "What was the elder like?": "lazy",
    }  # fmt: skip
    assert [ask.facts for ask in miller[0].asks] == [(0,), (1,)]
    for sentence in caption_to_sentences(miller[0].text):
        assert len(marks(sentence)) == 1, "the runtime splits where the marks stand"


def test_a_section_is_cut_where_it_names_a_thing_of_nanos(corpora: Corpora) -> None:
    miller = next(tale for tale in corpora.tales if "miller" in tale[0].text)
    before, after = miller[1:]
    assert unmarked(before.text) == "The younger ground the flour. He slept in the loft."
    assert _asked(before) == {"Where did the younger sleep?": "in the loft"}
    assert before.asks[0].facts == (1,)
    # "because of the damage done" stands nowhere: without the cut sentence it may be unsaid
    assert unmarked(after.text) == "The mayor came to look at the damage."
    assert _asked(after) == {"Who came to look at the damage?": "the mayor"}
    assert after.asks[0].facts == (0,)


def test_a_sentence_has_the_questions_that_people_answered_alike(corpora: Corpora) -> None:
    found = {passage.text: _asked(passage) for passage in corpora.sentences}
    assert found == {
        "The bridge over the Ouse was opened in 1863.": {"When was the bridge opened?": "1863"},
        "The minister resigned on Monday.": {"Who resigned?": "The minister"},
        "Copper melts at 1085 degrees.": {"What melts at 1085 degrees?": "Copper"},
        "The council sold the hall in 1990.": {"Who sold the hall?": "The council"},
    }


def test_nothing_of_nanos_and_no_text_that_measures_is_left(corpora: Corpora) -> None:
    passages = [*corpora.sentences, *(part for tale in corpora.tales for part in tale)]
    for passage in passages:
        assert MEASURED[:60] not in passage.text
        assert passage.asks
        assert not any(map(is_nanos_sentence, caption_to_sentences(unmarked(passage.text))))
        for ask in passage.asks:
            assert not find_names(f"{passage.text} {ask.question} {ask.answer}")
            assert not is_nanos_question(ask.question)
            assert len(ask.answer.split()) <= MOST_ANSWER


def test_a_question_of_another_text_is_not_answered(corpora: Corpora) -> None:
    passages = [corpora.sample(random.Random(seed)) for seed in range(300)]
    assert passages[7].text == corpora.sample(random.Random(7)).text
    strange = Counter(ask.answer == UNKNOWN for passage in passages for ask in passage.asks)
    assert 0.2 < strange[True] / strange.total() < 0.5
    own = {ask.question: part for tale in corpora.tales for part in tale for ask in part.asks}
    for passage in passages:
        assert marks(passage.text) == set(range(passage.facts))
        for ask in passage.asks:
            if ask.answer == UNKNOWN and ask.question in own:
                assert unmarked(own[ask.question].text) != unmarked(passage.text)


def test_half_of_the_examples_are_about_these_texts(corpora: Corpora) -> None:
    groups = [sample_group(0, number, corpora) for number in range(300)]
    assert groups[:20] == [sample_group(0, number, corpora) for number in range(20)]
    words = {unmarked(p.text)[:20] for p in _all(corpora)}
    about = [group for group in groups if any(w in group[0].messages[-1].content for w in words)]
    assert 0.4 < len(about) / len(groups) < 0.6
    assert {example.task for group in about for example in group} == {"answer", "evidence"}
    for example in (e for group in about for e in group if e.task == "evidence"):
        _check_evidence(example)


def _all(corpora: Corpora) -> list[Passage]:
    return [*corpora.sentences, *(part for tale in corpora.tales for part in tale)]


def _check_evidence(example: Example) -> None:
    """A cited sentence has the answer's words."""
    content = example.messages[-1].content
    answer = content.partition("Answer: ")[2].partition("\n")[0]
    lines = dict(line.split(". ", 1) for line in content.split("\n") if line[:1].isdigit())
    if example.reply != "none":
        assert answer.lower() in lines[example.reply].lower()


def test_a_folder_without_the_clones_is_refused(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="FairytaleQAData and qamr"):
        read_corpora(empty)
    (folder / "qamr" / "data" / "readable" / "test.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the clones"):
        read_corpora(folder)
    with pytest.raises(SystemExit):
        train.main(["base.gguf", "--out", str(tmp_path / "run"), "--corpora", str(empty)])
    assert "lacks the clones" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "question"),
    [("The apple is red.", False), ("How many kettles are there?", True),
     ("Where is the mill?", True), ("Who lit the lantern?", False)],
)  # fmt: skip
def test_nanos_wordings_are_recognised(text: str, question: bool) -> None:
    assert is_nanos_question(text) is question
