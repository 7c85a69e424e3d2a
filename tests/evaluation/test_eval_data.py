"""TSV files → questions: every form of VLMEvalKit's data, and every kind of broken row."""

from __future__ import annotations

import base64
import csv
import hashlib
import time
import tracemalloc
from pathlib import Path

import pytest

from edgeprism.errors import ImageError, UsageError
from edgeprism.evaluation.published_data import PUBLISHED, identify
from edgeprism.evaluation.questions import QuestionFile, choose_questions
from edgeprism.evaluation.report import left_out
from edgeprism.evaluation.tsv import BadRow, TsvFile
from tests.helpers.eval_files import WriteTsv, lettered, picture


def reasons(file: QuestionFile) -> dict[str, str]:
    return {skip.index or f"line {skip.line}": skip.reason for skip in file.skipped}


def test_a_lettered_question(write_tsv: WriteTsv) -> None:
    row = lettered(3, hint='look\tleft\n"there"', split="val", C="a cat")
    file = QuestionFile(write_tsv([row]))
    (question,) = file.questions
    assert question.index == "3"
    assert question.options == (("A", "red boat"), ("B", "blue dog"), ("C", "a cat"))
    assert (question.answer, question.hint, question.split) == ("B", row["hint"], "val")
    assert (question.category, question.l2_category) == ("land", "kind 0")
    data = file.picture_bytes(question.pictures[0])
    assert data == base64.b64decode(row["image"])
    assert file.skipped == []


@pytest.mark.parametrize(
    "answer", ["B", "b", "B.", "(B)", "b)", "[B]", "B:", "B. blue dog", "blue dog"]
)
def test_answers_as_people_write_them(write_tsv: WriteTsv, answer: str) -> None:
    file = QuestionFile(write_tsv([lettered(3, answer=answer)]))
    assert [question.answer for question in file.questions] == ["B"]


@pytest.mark.parametrize("answer", ["Z", "z.", "B. red boat", "bee", "AB", "1", "(", "A B"])
def test_answers_that_are_no_option(write_tsv: WriteTsv, answer: str) -> None:
    file = QuestionFile(write_tsv([lettered(3, answer=answer)]))
    assert list(reasons(file)) == ["3"]
    assert "is none of the options" in reasons(file)["3"]


def test_pictures_in_data_uris(write_tsv: WriteTsv) -> None:
    one = picture(1)
    heads = ("data:image/png;base64,", "data:;base64,", "DATA:image/jpeg;charset=x;base64,")
    rows = [lettered(n, image=head + one) for n, head in enumerate(heads)]
    rows.append(lettered(3, image=repr([heads[0] + one, one])))
    rows.append(lettered(4, image=heads[0] + one.replace("+", "%2B").replace("=", "%3D")))
    rows.append(lettered(5, image="data:image/svg+xml,<svg/>" + " " * 80))
    rows.append(lettered(6, image="data:image/png;base64,"))
    file = QuestionFile(write_tsv(rows))
    assert set(reasons(file)) == {"5", "6"}
    for question in file.questions:
        for ref in question.pictures:
            assert file.picture_bytes(ref) == base64.b64decode(one)


def test_pictures_of_every_form(write_tsv: WriteTsv, photo: Path) -> None:
    one, two = picture(1), picture(2)
    rows = [
        lettered(0, image="2"),  # refers forward
        lettered(1, image=repr([one, two])),  # as Python writes a list
        lettered(2, image=f'["{two}"]'),  # as JSON writes it
        lettered(3, image="2"),  # refers back
        lettered(4, image="", image_path=photo.name),
        lettered(5, image="['2', '1']"),  # a list of references
        lettered(6, image="\n".join([one[:70], one[70:]])),  # base64 in lines
    ]
    file = QuestionFile(write_tsv(rows))
    assert reasons(file) == {}
    content = {
        q.index: [
            Path(data).read_bytes() if isinstance(data := file.picture_bytes(ref), Path) else data
            for ref in q.pictures
        ]
        for q in file.questions
    }
    first, second = base64.b64decode(one), base64.b64decode(two)
    assert content["0"] == content["2"] == content["3"] == [second]
    assert content["1"] == [first, second]
    assert content["4"] == [photo.read_bytes()]
    assert content["5"] == [second, first, second]
    assert content["6"] == [first]


def test_open_questions_and_mathvista(write_tsv: WriteTsv) -> None:
    blank = {"A": "", "B": ""}
    rows = [
        lettered(0, **blank, answer="1,234", answer_type="integer"),
        lettered(1, **blank, answer="0.50", answer_type="float", precision="2.0"),
        lettered(2, **blank, answer="blue dog", choices="['red boat', 'blue dog']"),
        lettered(3, **blank, answer="red", choices="['red', 'red']", answer_option="B"),
        lettered(4, **blank, answer="STOP", choices="[]", task="reading", question="<image 1>?"),
    ]
    rows = [{k: v for k, v in row.items() if k != "l2-category"} for row in rows]
    file = QuestionFile(write_tsv(rows))
    assert reasons(file) == {}
    a, b, c, d, e = file.questions
    assert (a.answer, a.answer_type, a.options) == ("1,234", "integer", ())
    assert (b.answer_type, b.precision) == ("float", 2)
    assert (c.answer, c.options) == ("B", (("A", "red boat"), ("B", "blue dog")))
    assert d.answer == "B"
    assert (e.l2_category, e.text) == ("reading", "picture 1?")


BROKEN = {
    "bad base64": ({"image": "?" * 100}, "bad base64"),
    "cut base64": ({"image": picture(1)[:-3]}, "bad base64"),
    "no picture": ({"image": ""}, "no picture"),
    "unknown reference": ({"image": "77"}, "refers to row '77'"),
    "reference to itself": ({"image": "9"}, "refers to row '9'"),
    "reference to a reference": ({"image": "1"}, "refers to row '1'"),
    "mixed list": ({"image": f"['0', '{picture(1)}']"}, "mixes pictures and references"),
    "no list": ({"image": f"[{picture(1)}]"}, "not a readable list"),
    "code in a list": ({"image": f"[__import__('os').getcwd(), '{'A' * 80}']"}, "not a readable"),
    "no question": ({"question": "  "}, "no question"),
    "no answer": ({"answer": ""}, "no answer"),
    "no index": ({"index": ""}, "no index"),
    "index twice": ({"index": "0"}, "the same index"),
    "wrong letter": ({"answer": "D"}, "wrong answer: 'D'"),
    "option left out": ({"answer": "C"}, "wrong answer: 'C'"),
    "one option": ({"B": ""}, "missing options"),
    "no options": ({"A": "", "B": "", "answer": "B"}, "missing options"),
    "answer type": ({"A": "", "B": "", "answer": "3", "answer_type": "roman"}, "answer_type"),
    "precision": ({"precision": "many"}, "precision"),
    "path outside": ({"image": "", "image_path": "../../etc/passwd"}, "leads out of"),
    "absolute path": ({"image": "", "image_path": "/etc/passwd"}, "leads out of"),
    "path to nothing": ({"image": "", "image_path": "gone.png"}, "no such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_and_the_rest_is_read(write_tsv: WriteTsv, name: str) -> None:
    changes, reason = BROKEN[name]
    rows = [lettered(0), lettered(1, image="0"), lettered(9, **changes), lettered(10)]
    file = QuestionFile(write_tsv(rows))
    assert [q.index for q in file.questions] == ["0", "1", "10"]
    (skip,) = file.skipped
    assert reason in skip.reason
    assert skip.line == 4
    assert str(skip).startswith("line 4")


def test_a_picture_serves_others_though_its_own_question_is_broken(write_tsv: WriteTsv) -> None:
    file = QuestionFile(write_tsv([lettered(0, answer="Z"), lettered(1, image="0")]))
    assert [q.index for q in file.questions] == ["1"]
    assert file.picture_bytes(file.questions[0].pictures[0]) == base64.b64decode(picture(0))


# ---- the file itself


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_byte_order_mark(write_tsv: WriteTsv, line_end: str, bom: bytes) -> None:
    path = write_tsv([lettered(0, hint="two\nlines"), lettered(1)], line_end=line_end)
    path.write_bytes(bom + path.read_bytes())
    file = QuestionFile(path)
    assert [q.index for q in file.questions] == ["0", "1"]
    assert file.questions[0].hint == "two\nlines"
    for question in file.questions:
        seed = int(question.index)
        assert file.picture_bytes(question.pictures[0]) == base64.b64decode(picture(seed))


def test_rows_that_are_no_rows(write_tsv: WriteTsv) -> None:
    path = write_tsv([lettered(i) for i in range(3)])
    head, *rows = path.read_bytes().splitlines(keepends=True)
    broken = [b"\n", b"just one cell\n", rows[1].replace(b"red boat", b"r\xffd"),
              rows[1].replace(b"red boat", b"r\0d")]  # fmt: skip
    path.write_bytes(b"".join([head, rows[0], *broken, rows[1], rows[2].rstrip(b"\n")]))
    file = QuestionFile(path)
    assert file.questions[0].index == "0"
    assert file.questions[-1].index == "2"
    skipped = [(s.line, s.reason) for s in file.skipped]
    assert skipped[0] == (4, "1 cells, the header has 9")
    assert skipped[1] == (5, "not UTF-8 text")


def test_a_quote_that_nothing_closes_costs_one_row(write_tsv: WriteTsv) -> None:
    path = write_tsv([lettered(i) for i in range(5)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"Which is", b'"Which is')
    path.write_bytes(b"".join(lines))
    file = QuestionFile(path)
    assert [q.index for q in file.questions] == ["0", "2", "3", "4"]
    assert reasons(file) == {"line 3": "a quote is opened and never closed"}


def test_a_cell_past_the_limit(write_tsv: WriteTsv) -> None:
    path = write_tsv([lettered(0), lettered(1, question="x" * 5_000_000), lettered(2)])
    file = QuestionFile(path, max_row_bytes=1 << 20)
    assert [q.index for q in file.questions] == ["0", "2"]
    assert reasons(file) == {"line 3": "holds more than 1 MiB"}
    before = csv.field_size_limit()
    assert len(QuestionFile(path).questions) == 3  # within the usual limit
    assert csv.field_size_limit() == before


def test_a_100_mb_cell_is_skipped_in_little_memory(write_tsv: WriteTsv, tmp_path: Path) -> None:
    small = write_tsv([lettered(0), lettered(1)])
    head, first, second = small.read_bytes().splitlines(keepends=True)
    path = tmp_path / "large.tsv"
    with open(path, "wb") as out:
        out.write(head + b"7\t")
        for _ in range(100):
            out.write(b"A" * 1_000_000)
        out.write(b"\n" + first + second)
    tracemalloc.start()
    file = QuestionFile(path, max_row_bytes=8 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [q.index for q in file.questions] == ["0", "1"]
    assert list(reasons(file)) == ["line 2"]
    assert peak < 24 << 20
    assert file.picture_bytes(file.questions[1].pictures[0]) == base64.b64decode(picture(1))


def test_memory_does_not_grow_with_the_pictures(write_tsv: WriteTsv) -> None:
    cell = base64.b64encode(bytes(750_000)).decode()
    path = write_tsv([lettered(i, image=cell) for i in range(40)])
    assert path.stat().st_size > 40_000_000
    tracemalloc.start()
    file = QuestionFile(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(file.questions) == 40
    assert peak < 8_000_000  # a row as bytes, text and cells
    assert held < 200_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"a\tb\n1\t2\n", "it needs index, question, answer"),
        (b"index\tquestion\tanswer\timage\timage\n", "two columns"),
        (b"index\tquestion\tanswer\n", "image or image_path"),
        (b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_no_such_table(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "no.tsv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        QuestionFile(path)
    assert str(path) in error.value.message
    with pytest.raises(UsageError, match="cannot be read"):
        QuestionFile(tmp_path / "gone.tsv")


def test_a_file_that_changes_under_the_run(write_tsv: WriteTsv) -> None:
    path = write_tsv([lettered(0), lettered(1)])
    file = QuestionFile(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ImageError, match="changed"):
        file.picture_bytes(file.questions[1].pictures[0])


def test_rows_are_found_again_where_they_began(write_tsv: WriteTsv) -> None:
    tsv = TsvFile(write_tsv([lettered(i, hint="é\n" * i) for i in range(4)]))
    for row in tsv.rows():
        assert not isinstance(row, BadRow)
        again = tsv.row_at(row.offset)
        assert not isinstance(again, BadRow)
        assert (again.cells, again.offset) == (row.cells, row.offset)


# ---- identifying the file, choosing questions


def test_md5_of_known_files(write_tsv: WriteTsv) -> None:
    path = write_tsv([lettered(0)], name="MMStar.tsv")
    md5 = TsvFile(path).md5()
    assert md5 == hashlib.md5(path.read_bytes()).hexdigest()
    assert identify(path, md5).startswith("not MMStar as published")
    assert identify(path, PUBLISHED["AI2D_TEST"]).startswith("AI2D_TEST as published")
    assert identify(Path("mine.tsv"), md5).startswith("not a published file")
    assert {"MMStar", "AI2D_TEST", "MMMU_DEV_VAL", "MathVista_MINI"} <= set(PUBLISHED)
    assert all(len(bytes.fromhex(value)) == 16 for value in PUBLISHED.values())


def test_choosing_questions(write_tsv: WriteTsv) -> None:
    rows = [lettered(i, split="dev" if i < 20 else "val") for i in range(60)]
    questions = QuestionFile(write_tsv(rows)).questions
    assert [q.index for q in choose_questions(questions, limit=3)] == ["0", "1", "2"]
    val = choose_questions(questions, splits=["val"], sample=10, seed=4)
    assert len(val) == 10
    assert {q.split for q in val} == {"val"}
    assert [int(q.index) for q in val] == sorted(int(q.index) for q in val)
    again = choose_questions(questions[::-1], splits=["val"], sample=10, seed=4)
    assert {q.index for q in again} == {q.index for q in val}
    assert choose_questions(questions, splits=["val"], sample=10, seed=5) != val
    with pytest.raises(UsageError, match="'test' is not in the data"):
        choose_questions(questions, splits=["test"])
    with pytest.raises(UsageError, match="No question is left"):
        choose_questions([])


def test_a_header_of_many_columns_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "wide.tsv"
    path.write_text("\t".join(f"column{i}" for i in range(60_000)) + "\tcolumn7\n")
    began = time.monotonic()
    with pytest.raises(UsageError, match="two columns are called 'column7'"):
        TsvFile(path)
    assert time.monotonic() - began < 10


def test_a_file_of_another_kind_does_not_print_its_first_line(tmp_path: Path) -> None:
    for line in ("word " * 5000, "\t".join(f"column {n}" for n in range(500))):
        path = tmp_path / "other.txt"
        path.write_text(f"{line}\nmore\n")
        with pytest.raises(UsageError, match="it needs index, question, answer") as caught:
            QuestionFile(path)
        assert len(caught.value.message) < 250 + len(str(path))


def test_a_single_row_and_question_are_told_as_one() -> None:
    data = {"asked": 3, "questions": 3, "skipped": ["line 2: no question"]}
    report = {"data": data, "failures": [{"index": "1"}]}
    assert left_out(report) == [
        "1 row of the file was skipped; no score counts it.",
        "1 question failed somewhere; those cells do not count it.",
    ]
