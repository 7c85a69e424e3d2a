"""The questions about others' descriptions: the set, its scoring, and a run of the command."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from edgeprism.models.reader.recipe.measure import elsewhere
from edgeprism.models.reader.recipe.measure.elsewhere import (
    LONG_TEXT,
    NOT_SAID,
    main,
    read_set,
    replies_to_rows,
    rows_to_table,
    wilson,
)
from edgeprism.models.reader.recipe.measure.elsewhere_scoring import (
    COLOURS,
    Question,
    Text,
    chosen_option,
    holds,
    is_right,
    longest_reply,
    plain_words,
)

TEXTS, QUESTIONS = read_set()
ANSWERABLE = [q for q in QUESTIONS if not q.unanswerable]
OPEN = [q for q in ANSWERABLE if not q.options and q.accepted not in (["yes"], ["no"])]
LICENCES = {"CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "public domain"}
NO_REPLY = ("", " ", "\n", "…", "???", "\0")
DOES_NOT_SAY = ("The description does not say.", "Not stated", "It doesn't mention it", "Unknown.")


# ---- the set


def test_its_size() -> None:
    kinds = Counter(q.kind for q in QUESTIONS)
    assert len(QUESTIONS) >= 160
    assert len(TEXTS) >= 40
    assert 0.14 <= kinds[NOT_SAID] / len(QUESTIONS) <= 0.2
    assert 0.15 <= sum(bool(q.options) for q in QUESTIONS) / len(QUESTIONS) <= 0.25
    assert sum(bool(q.hint) for q in QUESTIONS) >= 10
    assert sum(len(t.text.split()) >= LONG_TEXT for t in TEXTS.values()) >= 6
    assert set(kinds) == {
        "colour", "comparison", "count", "fact", "negation", NOT_SAID, "number", "place", "series",
        "sum", "text", "who", "yes/no",
    }  # fmt: skip


def test_ids_are_unique_and_every_text_is_asked_about() -> None:
    assert len({q.id for q in QUESTIONS}) == len(QUESTIONS)
    assert len({(q.text, q.question) for q in QUESTIONS}) == len(QUESTIONS)
    assert {q.text for q in QUESTIONS} == TEXTS.keys()
    lines = elsewhere.TEXTS.read_text(encoding="utf-8").splitlines()
    assert len(TEXTS) == len(lines)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_has_its_source_and_licence(text: Text) -> None:
    assert text.licence in LICENCES
    assert text.source.startswith("https://")
    assert all((text.author.strip(), text.title.strip(), text.text.strip(), text.form.strip()))


def test_the_notice_names_every_author_whose_licence_asks_for_it() -> None:
    notice = " ".join((Path(elsewhere.TEXTS).parents[2] / "NOTICE").read_text("utf-8").split())
    for text in TEXTS.values():
        if text.licence.startswith("CC-BY"):
            assert re.search(rf"{re.escape(text.author)}, {text.licence}\b", notice), text.id


@pytest.mark.parametrize("question", QUESTIONS, ids=[q.id for q in QUESTIONS])
def test_a_question_is_well_formed(question: Question) -> None:
    assert question.question.endswith("?")
    assert question.unanswerable == (question.kind == NOT_SAID)
    assert list(question.options) == list("ABCDE"[: len(question.options)])
    if question.options:
        assert len(question.accepted) == 1
        assert set(question.accepted) <= question.options.keys()
        assert len({tuple(plain_words(o)) for o in question.options.values()}) > 1
    else:
        assert question.unanswerable or question.accepted
    assert not question.unanswerable or (question.lacks and not question.evidence)
    assert not {*question.accepted} & {*question.wrong}


@pytest.mark.parametrize("question", ANSWERABLE, ids=[q.id for q in ANSWERABLE])
def test_the_text_supports_the_answer(question: Question) -> None:
    assert question.evidence
    for passage in question.evidence:
        assert passage in TEXTS[question.text].text
    words = [word for passage in question.evidence for word in plain_words(passage)]
    if question.kind == "sum":
        numbers = {abs(term) for term in question.terms}
        assert question.accepted == [f"{sum(question.terms):g}"]
        assert {f"{n:g}" for n in numbers} <= {*words, *(["1"] if "one" in words else [])}
    elif question.kind == "count" and len(question.evidence) > 1:  # a passage for each thing
        assert question.accepted == [str(len(question.evidence))]
    elif not question.options and question.accepted not in (["yes"], ["no"]):
        assert holds(words, question.accepted[0].removeprefix("="))


@pytest.mark.parametrize(
    "question", [q for q in QUESTIONS if q.unanswerable], ids=lambda q: str(q.id)
)
def test_the_text_lacks_what_is_not_said(question: Question) -> None:
    words = plain_words(TEXTS[question.text].text)
    assert [word for word in question.lacks if holds(words, word)] == []
    if question.options:
        assert question.options[question.accepted[0]] == "the description does not say"
    else:
        assert question.accepted == []


# ---- the scoring, over the whole set


@pytest.mark.parametrize("question", QUESTIONS, ids=[q.id for q in QUESTIONS])
def test_right_replies_are_right(question: Question) -> None:
    text = TEXTS[question.text]
    if question.options:
        letter = question.accepted[0]
        option = question.options[letter]
        replies = [letter, f"{letter}.", f"({letter})", f"{letter}. {option}", option.capitalize()]
    elif question.unanswerable:
        replies = list(DOES_NOT_SAY)
    else:
        replies = [a.removeprefix("=").replace("+", "and") for a in question.accepted]
        replies += [f"{reply.capitalize()}." for reply in replies]
    assert [reply for reply in replies if not is_right(question, text, reply)] == []


@pytest.mark.parametrize("question", QUESTIONS, ids=[q.id for q in QUESTIONS])
def test_a_reply_that_names_everything_is_wrong(question: Question) -> None:
    text = TEXTS[question.text]
    replies = [*NO_REPLY, text.text, text.text * 50, f"{text.text} The description does not say."]
    replies += [" ".join(question.options.values()), " ".join(question.options)]
    replies += ["yes and no", "Yes. No.", "yes no not said unknown", " ".join(sorted(COLOURS))]
    replies += [" ".join(map(str, range(30)))]
    if not question.options:
        replies += [" or ".join([*question.accepted, *question.wrong, "?"])]
    assert [reply for reply in replies if is_right(question, text, reply)] == []


@pytest.mark.parametrize("question", OPEN, ids=[q.id for q in OPEN])
def test_a_right_phrase_beside_a_wrong_one_is_wrong(question: Question) -> None:
    text, phrase = TEXTS[question.text], question.accepted[0].replace("+", "and").lstrip("=")
    replies = [f"{phrase} and {wrong}" for wrong in question.wrong]
    replies += [f"not {phrase}", f"{phrase}. The description does not say.", f"{phrase} or not"]
    words = set(plain_words(phrase))
    if any(word[0].isdigit() for word in words):
        replies += [f"{phrase} or 97", f"{phrase}, ninety-six"]
    if words & COLOURS:
        replies += [f"{phrase} and turquoise"]
    assert [reply for reply in replies if is_right(question, text, reply)] == []


@pytest.mark.parametrize("question", ANSWERABLE, ids=[q.id for q in ANSWERABLE])
def test_what_is_said_is_not_unsaid(question: Question) -> None:
    text = TEXTS[question.text]
    assert [reply for reply in DOES_NOT_SAY if is_right(question, text, reply)] == []


def test_guessing_earns_little() -> None:
    """One reply to everything is no reader: neither "no" nor a letter nor "does not say"."""
    for reply in ("yes", "no", "A", "B", "C", "D", "2", "red", "The description does not say."):
        right = sum(is_right(q, TEXTS[q.text], reply) for q in QUESTIONS)
        assert right / len(QUESTIONS) < 0.17, reply


# ---- the scoring, rule by rule

HALL = Text("t", "book", "There are two red doors, a blue door and no window. " * 4, "", "", "", "")


def made(accepted: list[str], question: str = "What is it?", **more: object) -> Question:
    return Question("q", "t", "fact", question, accepted, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Twenty-one doors", ["21", "doors"]),
        ("1,450 km, 0.50 and 007", ["1450", "km", "0.5", "and", "7"]),
        ("doesn't; can’t; cannot", ["does", "not", "can", "not", "can", "not"]),
        ("Crème-brûlée's  ½", ["creme", "brulees", "1", "2"]),
        ("3.5mm ON/off", ["3.5", "mm", "on", "off"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert plain_words(text) == words


@pytest.mark.parametrize(
    ("accepted", "reply", "right"),
    [
        (["door"], "A door", True),
        (["door"], "Doors", False),
        (["door"], "outdoor", False),
        (["door"], "It is the door, not the window.", False),
        (["door"], "door or window", False),
        (["2"], "There are two.", True),
        (["2"], "Two of the 3", False),
        (["2"], "12", False),
        (["red"], "It is red.", True),
        (["red"], "red and blue", False),
        (["red + blue"], "Blue and red.", True),
        (["red + blue"], "Red.", False),
        (["=a"], "A", True),
        (["=a"], "a door", False),
        (["yes"], "Yes, it is.", True),
        (["yes"], "It is, yes.", False),
        (["yes"], "Yes, it is not.", False),
        (["yes"], "Yesterday", False),
        (["no"], "No, there is no window.", True),
        (["no"], "No. Yes.", False),
        (["no"], "None", False),
        (["no"], "Not stated.", False),
    ],
)
def test_open_replies(accepted: list[str], reply: str, right: bool) -> None:
    assert is_right(made(accepted), HALL, reply) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("The text does not explicitly mention it.", True),
        ("There is no information about that.", True),
        ("I do not know.", True),
        ("It cannot be determined.", True),
        ("It does not say, but it is probably red.", False),
        ("The description does not say; it is red.", False),
        ("It does not say: 4.", False),
        ("Not red.", False),
        ("No.", False),
        ("It says nothing about doors that are red or blue or green " * 4, False),
    ],
)
def test_what_is_not_said(reply: str, right: bool) -> None:
    assert is_right(made([], unanswerable=True), HALL, reply) is right


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B: a lamp", "B"),
        ("The answer is B.", "B"),
        ("a lamp", "B"),
        ("It shows a lamp.", "B"),
        ("The text does not mention it.", "D"),
        ("A lamp.", "B"),
        ("A. a lamp", ""),
        ("A or B", ""),
        ("a door and a lamp", ""),
        ("It is not a lamp.", ""),
        ("E", ""),
        ("", ""),
    ],
)
def test_options(reply: str, letter: str) -> None:
    options = {"A": "a door", "B": "a lamp", "C": "nothing", "D": "the description does not say"}
    assert chosen_option(reply, options) == letter
    assert is_right(made(["B"], options=options), HALL, reply) is (letter == "B")


def test_a_reply_is_shorter_than_its_text() -> None:
    short = Text("t", "caption", "A red door in a white wall.", "", "", "", "")
    assert (longest_reply(short), longest_reply(HALL)) == (6, 20)
    assert is_right(made(["red"]), short, "The door is red.")
    assert not is_right(made(["door"]), short, short.text)


@pytest.mark.parametrize("reply", ["9" * 5000, "\u0664" * 9, "𝟗" * 99, "a" * 10**6, "((((", "\0"])
def test_hostile_replies(reply: str) -> None:
    for question in (made(["2"]), made([], unanswerable=True), made(["A"], options={"A": "a"})):
        assert not is_right(question, HALL, reply)


# ---- the table and the command


@pytest.mark.parametrize(("right", "of"), [(1, 2), (3, 10), (240, 299), (298, 299)])
def test_wilson_solves_the_score_equation(right: int, of: int) -> None:
    """The bounds are those shares that lie 1.96 of their own standard errors from what was seen."""
    low, high = wilson(right, of)
    assert low < right / of < high
    for bound in (low, high):
        error = (bound * (1 - bound) / of) ** 0.5
        assert abs(right / of - bound) / error == pytest.approx(1.959964)


def test_wilson_of_nothing_none_and_all() -> None:
    square = 1.959964**2
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 10) == pytest.approx((0.0, square / (10 + square)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + square), 1.0))


def test_the_table_counts_what_was_asked() -> None:
    first, second = QUESTIONS[0], QUESTIONS[1]
    replies = {first.id: first.accepted[0], second.id: "turquoise"}
    rows = {row.name: row for row in replies_to_rows(TEXTS, QUESTIONS, replies)}
    assert (rows["all"].right, rows["all"].of) == (1, 2)
    assert (rows[first.kind].right, rows[second.kind].right) == (1, 0)
    assert "50.0%" in rows_to_table(list(rows.values())).splitlines()[1]
    assert rows_to_table(replies_to_rows(TEXTS, QUESTIONS, {})).splitlines()[1].endswith("100%")


def test_the_command_goes_on_where_it_was_stopped(
    scripted_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    replies, figures = tmp_path / "replies.json", tmp_path / "figures.json"
    run = ["--reasoner", str(scripted_bundle / "lm.gguf"), "--replies", str(replies)]
    run += ["--part", f"1/{len(TEXTS)}"]
    asked = [q for q in QUESTIONS if q.text == next(iter(TEXTS))]
    assert main(run) == 0
    assert f": {len(asked)} of {len(QUESTIONS)} questions asked" in capfd.readouterr().out
    kept = json.loads(replies.read_text("utf-8"))
    assert list(kept["replies"]) == [q.id for q in asked]
    kept["replies"] = {asked[0].id: asked[0].accepted[0]}
    replies.write_text(json.dumps(kept), "utf-8")
    assert main([*run, "--json", str(figures)]) == 0
    written = json.loads(figures.read_text("utf-8"))
    assert written["replies"].keys() == {q.id for q in asked}
    assert written["replies"][asked[0].id] == asked[0].accepted[0]  # it was not asked anew
    assert {"name": "all", "of": len(asked)}.items() <= written["rows"][0].items()
    assert written["rows"][0]["right"] >= 1


@pytest.mark.parametrize("change", ["questions", "digest", "torn", "list"])
def test_replies_of_another_set_or_reasoner_are_refused(
    scripted_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], change: str
) -> None:
    replies = tmp_path / "replies.json"
    run = ["--reasoner", str(scripted_bundle / "lm.gguf"), "--replies", str(replies)]
    run += ["--part", f"{len(TEXTS)}/{len(TEXTS)}"]
    assert main(run) == 0
    kept = json.loads(replies.read_text("utf-8"))
    content = json.dumps({**kept, change: "0"} if change in kept else [kept])
    replies.write_text(content[:-9] if change == "torn" else content, "utf-8")
    before = replies.read_bytes()
    assert main(run) != 0
    told = capfd.readouterr().err
    assert "replies.json: " in told
    assert "Name another file with --replies" in told
    assert replies.read_bytes() == before


@pytest.mark.parametrize("part", ["0/3", "4/3", "1/999", "1", "a/b", "-1/2", "1/0", "²/3"])
def test_a_part_that_is_none_is_refused(
    scripted_bundle: Path, capfd: pytest.CaptureFixture[str], part: str
) -> None:
    assert main(["--reasoner", str(scripted_bundle / "lm.gguf"), f"--part={part}"]) == 2
    assert f"--part {part}: no such part" in capfd.readouterr().err
