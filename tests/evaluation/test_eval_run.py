"""The matrix on tiny models: shared records, a killed run, the reports."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from edgeprism.cli.main import run
from edgeprism.errors import ModelError, PromptTooLongError, UsageError
from edgeprism.evaluation.analysis import CHANCE
from edgeprism.evaluation.evaluate import CSV, JSON, PAGE, evaluate, own_questions
from edgeprism.evaluation.matrix import Matrix, Settings
from edgeprism.evaluation.questions import QuestionFile
from edgeprism.evaluation.report import cell_to_texts, print_report
from edgeprism.evaluation.results import Results
from edgeprism.install.verify_published import Report
from edgeprism.perceive.captioner import Captioner
from edgeprism.reason.local import Reasoner
from tests.helpers import bundles
from tests.helpers.calls import count_calls
from tests.helpers.eval_files import WriteTsv, lettered, picture

SHORT = Settings(caption_tokens=6, answer_tokens=6)
TIMES = ("seconds_focus", "seconds_perceive", "seconds_reason")


@pytest.fixture(scope="module")
def other_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second reasoner, with other weights."""
    return bundles.write_lm(tmp_path_factory.mktemp("other") / "other.gguf", seed=5)


@pytest.fixture
def matrix(random_bundle: Path, other_gguf: Path) -> Matrix:
    reasoners = [Reasoner.load(p, threads=1) for p in (random_bundle / "lm.gguf", other_gguf)]
    return Matrix([Captioner.load(random_bundle, threads=1)], reasoners, settings=SHORT)


def four(write_tsv: WriteTsv) -> Path:
    rows = [lettered(0), lettered(1, image="0"), lettered(2), lettered(3, A="", B="", answer="7")]
    rows[3]["image"] = repr([picture(3), picture(4)])
    return write_tsv(rows)


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """A report without its times and memory figures, which differ from run to run."""
    cells = [{k: v for k, v in cell.items() if k not in ("seconds", "memory_bytes")}
             for cell in report["cells"]]  # fmt: skip
    return report | {"cells": cells}


def answers(out: Path) -> list[dict[str, str]]:
    with open(out / CSV, encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def test_cells_scores_and_reports(write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = evaluate(QuestionFile(four(write_tsv)), matrix, out)
    assert json.loads((out / JSON).read_text(encoding="utf-8")) == report
    names = [cell["name"] for cell in report["cells"]]
    assert names == [
        CHANCE,
        "no caption → lm", "tiny, generic → lm", "tiny, question → lm",
        "no caption → other", "tiny, generic → other", "tiny, question → other",
    ]  # fmt: skip
    chance = report["cells"][0]
    assert chance["accuracy"] == pytest.approx((0.5 + 0.5 + 0.5 + 0) / 4)
    assert all(cell["scored"] == 4 and cell["failed"] == 0 for cell in report["cells"])
    assert len(report["pairs"]) == 6 * 5 / 2 + 6
    rows = answers(out)
    assert len(rows) == 4 * 6
    for cell in report["cells"][1:]:
        right = [int(row["right"]) for row in rows if row["cell"] == cell["name"]]
        assert cell["accuracy"] == pytest.approx(sum(right) / 4)
        by_category = {c["name"]: c for c in cell["categories"] if c["level"] == "category"}
        assert {name: c["scored"] for name, c in by_category.items()} == {"land": 2, "sea": 2}
    captions = {(row["index"], row["cell"]): row["captions"] for row in rows}
    # Questions 0 and 1 share a picture, so they share its generic caption.
    assert captions["0", names[2]] == captions["1", names[2]] != ""
    assert captions["0", names[2]] == captions["0", names[5]]  # shared between the reasoners
    assert captions["3", names[2]].count("\n") >= 1  # a caption of each picture
    assert {row["captions"] for row in rows if row["mode"] == "no caption"} == {""}
    models = report["models"]
    assert models["captioners"]["tiny"]["digest"] == matrix.captioners["tiny"].bundle.digest
    assert {len(model["digest"]) for model in models["reasoners"].values()} == {64}


def test_each_picture_is_encoded_once_for_all_that_miss_it(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, Captioner, "encode", "caption")
    file, out = QuestionFile(four(write_tsv)), tmp_path / "out"
    evaluate(file, matrix, out)
    first = calls.count("encode")
    # 4 pictures; the one that two questions share may be encoded again for the second's focus.
    assert first in (4, 5)
    assert calls.count("caption") <= 4 + 5 * 2
    calls.clear()
    evaluate(file, matrix, out)
    assert calls == []


def test_a_larger_matrix_takes_over_what_is_there(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path, random_bundle: Path
) -> None:
    file, out = QuestionFile(four(write_tsv)), tmp_path / "out"
    small = Matrix(
        [Captioner.load(random_bundle, threads=1)],
        [Reasoner.load(random_bundle / "lm.gguf", threads=1)],
        ["generic"],
        SHORT,
    )
    evaluate(file, small, out, limit=2)
    grown = evaluate(file, matrix, out)
    assert without_times(grown) == without_times(evaluate(file, matrix, tmp_path / "fresh"))
    assert answers(out) == answers(tmp_path / "fresh")


def test_results_of_other_data_are_not_mixed(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path
) -> None:
    evaluate(QuestionFile(four(write_tsv)), matrix, tmp_path / "out", limit=1)
    other = QuestionFile(write_tsv([lettered(0, question="Another?")]))
    with pytest.raises(UsageError, match="other data"):
        evaluate(other, matrix, tmp_path / "out")


def test_no_option_reaches_the_captioner(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path
) -> None:
    rows = [lettered(i, A="one small bird", B="no tree") for i in range(4)]
    file = QuestionFile(write_tsv(rows))
    evaluate(file, matrix, tmp_path / "out")
    with Results(tmp_path / "out", file.tsv.md5()) as results:
        stored = results._db.execute("SELECT record FROM records WHERE kind = 'caption'").fetchall()
    instructions = [json.loads(text)["caption"]["instruction"] for (text,) in stored]
    assert instructions
    assert not any("small bird" in text or "no tree" in text for text in instructions)


def test_without_a_focus_the_generic_caption_serves(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> tuple[str, str]:
        raise PromptTooLongError("too long for it")

    monkeypatch.setattr(Reasoner, "draw_focus", refuse)
    report = evaluate(QuestionFile(four(write_tsv)), matrix, tmp_path / "out")
    cells = {cell["name"]: cell for cell in report["cells"]}
    assert cells["tiny, question → lm"]["scored"] == 4
    assert cells["tiny, question → lm"]["without_focus"] == 4
    assert "too long for it" in (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    captions = {(row["index"], row["mode"]): row["captions"] for row in answers(tmp_path / "out")}
    assert all(captions[str(i), "question"] == captions[str(i), "generic"] for i in range(4))

    def vanish(*_: Any, **__: Any) -> tuple[str, str]:
        raise ModelError("gone")

    monkeypatch.setattr(Reasoner, "draw_focus", vanish)
    with pytest.raises(ModelError):
        evaluate(QuestionFile(four(write_tsv)), matrix, tmp_path / "other")


@pytest.mark.parametrize("way", ["letters", "free", "bound"])
def test_how_reasoners_meet_options(
    write_tsv: WriteTsv, random_bundle: Path, tmp_path: Path, way: str
) -> None:
    reasoner = Reasoner.load(random_bundle / "lm.gguf", threads=1)
    settings = replace(SHORT, answer_tokens=12, options=way)
    matrix = Matrix([Captioner.load(random_bundle, threads=1)], [reasoner], ["generic"], settings)
    file, out = QuestionFile(four(write_tsv)), tmp_path / "out"
    report = evaluate(file, matrix, out)
    assert report["settings"]["options"] == way
    with Results(out, file.tsv.md5()) as results:
        stored = results._db.execute("SELECT record FROM records WHERE kind = 'answer'").fetchall()
    shown = [json.loads(text)["answer"]["options"] for (text,) in stored]
    assert sum(bool(options) for options in shown) == (6 if way == "letters" else 0)
    lettered_rows = [row for row in answers(out) if row["index"] != "3"]
    if way == "bound":
        assert {row["answer"] for row in lettered_rows} <= {"red boat", "blue dog"}
        assert {row["matched_by"] for row in lettered_rows} == {"text"}
    else:
        assert not {row["answer"] for row in lettered_rows} & {"red boat", "blue dog"}
    with pytest.raises(UsageError, match="not a way to show"):
        Matrix([], [], settings=replace(SHORT, options="sung"))


# ---- the command: killed, continued, given broken rows

KILLED_AT = """
import os, signal, sys
from edgeprism.evaluation.report import cell_to_texts, print_report
from edgeprism.evaluation.results import Results
put, left = Results.put, [int(sys.argv[1])]
def counted(self, *record):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, *record)
Results.put = counted
from edgeprism.cli.main import run
sys.exit(run(sys.argv[2:]))
"""


@pytest.fixture
def command(random_bundle: Path, other_gguf: Path) -> Callable[[Path, Path], list[str]]:
    def arguments(data: Path, out: Path) -> list[str]:
        return ["eval", "--data", str(data), "--captioner", str(random_bundle),
                "--reasoner", str(random_bundle / "lm.gguf"), "--reasoner", str(other_gguf),
                "--threads", "1", "--max-tokens", "6", "--answer-tokens", "6",
                "--out", str(out)]  # fmt: skip

    return arguments


def records(out: Path, data: Path) -> int:
    with Results(out, QuestionFile(data).tsv.md5()) as results:
        return int(results._db.execute("SELECT count(*) FROM records").fetchone()[0])


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_kill_9_loses_only_what_was_in_flight(
    write_tsv: WriteTsv, command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run killed in each stage continues, and ends with the same report."""
    data, whole, out = four(write_tsv), tmp_path / "whole", tmp_path / "killed"
    assert run(command(data, whole)) == 0
    all_records = records(whole, data)
    before = 0
    for further in (3, 8, 9, 12):  # kills in the focuses, the captions, each reasoner's answers
        child = [sys.executable, "-c", KILLED_AT, str(further), *command(data, out)]
        done = subprocess.run(child, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (out / JSON).exists()
        stages = records(out, data) - before
        assert stages == further - 1 or stages == further - 2  # a peak may be stored again
        before = records(out, data)
    assert 0 < before < all_records
    assert run(command(data, out)) == 0
    reports = [json.loads((place / JSON).read_text(encoding="utf-8")) for place in (whole, out)]
    assert without_times(reports[0]) == without_times(reports[1])
    assert answers(whole) == answers(out)
    # The comparison notices a single different word.
    with Results(out, QuestionFile(data).tsv.md5()) as results:
        row = results._db.execute("SELECT key, item, record FROM records "
                                  "WHERE kind = 'answer' LIMIT 1").fetchone()  # fmt: skip
        record = json.loads(row[2])
        record["answer"]["answer"] += " x"
        results.put("answer", row[0], row[1], record)
    assert run(command(data, out)) == 0
    assert answers(whole) != answers(out)
    assert "→ other" in capfd.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a process there")
def test_ctrl_c_says_how_to_go_on(write_tsv: WriteTsv, command: Any, tmp_path: Path) -> None:
    data, out = four(write_tsv), tmp_path / "out"
    program = KILLED_AT.replace("signal.SIGKILL", "signal.SIGINT")
    child = [sys.executable, "-c", program, "12", *command(data, out)]
    done = subprocess.run(child, capture_output=True, text=True, timeout=120)
    assert done.returncode == 130
    assert "the same command goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    assert records(out, data) >= 11
    assert not (out / JSON).exists()


def test_broken_rows_are_named_and_exit_3(
    write_tsv: WriteTsv, command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    no_picture = "QUJD" * 30  # valid base64, but not a picture
    rows = [lettered(0), lettered(1, answer="Z"), lettered(2, image="99"), lettered(3),
            lettered(4, image=no_picture), lettered(5, image="A" * 101)]  # fmt: skip
    data, out = write_tsv(rows), tmp_path / "out"
    assert run(command(data, out)) == 3
    output = capfd.readouterr()
    for line in ("line 3 (index 1): wrong answer", "line 4 (index 2): image refers to row '99'",
                 "line 7 (index 5): bad base64", "question 4, tiny, generic"):  # fmt: skip
        assert line in output.err
    assert "3 rows of the file were skipped; no score counts them." in output.out
    assert "1 question failed somewhere; those cells do not count it." in output.out
    report = json.loads((out / JSON).read_text(encoding="utf-8"))
    cells = {cell["name"]: cell for cell in report["cells"]}
    assert (cells["no caption → lm"]["scored"], cells["no caption → lm"]["failed"]) == (3, 0)
    assert (cells["tiny, generic → lm"]["scored"], cells["tiny, generic → lm"]["failed"]) == (2, 1)
    assert [skip["index"] for skip in report["data"]["skipped"]] == ["1", "2", "5"]
    pair = next(p for p in report["pairs"] if p["b"] == "tiny, generic → lm")
    assert pair["both"] == 2


def test_a_judge_decides_what_no_rule_can(
    write_tsv: WriteTsv, command: Any, tmp_path: Path, other_gguf: Path
) -> None:
    data, out = four(write_tsv), tmp_path / "out"
    assert run([*command(data, out), "--judge", str(other_gguf)]) == 0
    judged = json.loads((out / JSON).read_text(encoding="utf-8"))
    assert judged["models"]["judge"]["name"] == "other"
    rules = {rule for cell in judged["cells"] for rule in cell["matched_by"]}
    assert "judge" in rules
    for row in answers(out):
        if row["matched_by"] == "judge":
            assert row["choice"] in ("A", "B", row["expected"], "something else")
            assert bool(int(row["right"])) == (row["choice"] == row["expected"])
    assert run(command(data, out)) == 0  # without a judge, its verdicts do not count
    plain = json.loads((out / JSON).read_text(encoding="utf-8"))
    assert "judge" not in {rule for cell in plain["cells"] for rule in cell["matched_by"]}


def test_json_and_faults_of_the_user(
    write_tsv: WriteTsv, command: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = four(write_tsv)
    arguments = [*command(data, tmp_path / "out"), "--limit", "1", "--instruction-mode", "generic"]
    assert run([*arguments, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["data"]["asked"] == 1
    assert len(report["cells"]) == 5
    assert run([*arguments, "--split", "nowhere"]) == 2
    assert "nowhere" in capfd.readouterr().err
    assert run(["eval", "--data", str(tmp_path / "no.tsv")]) in (2, 4)
    file = tmp_path / "a-file"
    file.write_text("x")
    assert run([*arguments[:-5], "--out", str(file)]) != 0
    assert "Traceback" not in capfd.readouterr().err


# ---- the page


def test_the_page_holds_everything_and_loads_nothing(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path
) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)> @DATA@"
    rows = [lettered(0, question=evil, A=evil, category=evil), lettered(1, category="<b>")]
    evaluate(QuestionFile(write_tsv(rows, name="<i>.tsv")), matrix, tmp_path / "out")
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    assert page.count("</script>") == 2
    assert page.count("<script") == 2
    assert "alert" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL).replace(
        "&lt;script&gt;alert", ""
    ).replace("onerror=alert(2)&gt;", "")
    assert "<b>" not in page
    assert "<i>" not in page
    assert not re.search(r"(?:src|href)=\"?(?!data:)http", page)
    assert "default-src 'none'" in page
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 5  # perception, seconds, memory, both levels of categories
    for plot in plots:
        root = ElementTree.fromstring(plot)
        marks = [node for node in root.iter() if node.get("class", "").startswith("mark")]
        assert marks
        for circle in root.iter("{http://www.w3.org/2000/svg}circle"):
            assert 0 <= float(circle.get("cx", "-1")) <= 760
    data = json.loads(re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)[0])
    assert data["questions"][0]["text"] == evil
    assert len(data["questions"][0]["outcomes"]) == len(data["cells"]) == 6
    assert data["pictures"]["0"].startswith("data:image/jpeg;base64,")
    assert str(tmp_path) not in page


def boxes_of_texts(plot: ElementTree.Element) -> list[tuple[str, float, float, float, float]]:
    """The texts of a plot with (left, right, top, bottom); the font has 12 pixels."""
    found = []
    for node in plot.iter("{http://www.w3.org/2000/svg}text"):
        text = "".join(part for part in node.itertext()).removeprefix(
            "".join(t.text or "" for t in node.iter("{http://www.w3.org/2000/svg}title"))
        )
        x, y, width = float(node.get("x", "")), float(node.get("y", "")), 6.6 * len(text)
        left = {"start": x, "middle": x - width / 2, "end": x - width}[node.get("text-anchor", "")]
        found.append((text, left, left + width, y - 9, y + 3))
    return found


def test_long_names_are_readable_on_the_page(
    random_bundle: Path, other_gguf: Path, write_tsv: WriteTsv, tmp_path: Path
) -> None:
    name = "prismcaptioner-2b-with-a-long-name-and-siglip-so400m-patch14-384-int8-full"
    reasoners = []
    for number in range(4):
        path = tmp_path / f"qwen3-30b-a3b-instruct-2507-some-finetune-of-it-q4_k_m-{number}.gguf"
        shutil.copy(other_gguf, path)
        reasoners.append(Reasoner.load(path, threads=1))
    bundle = json.loads((random_bundle / "manifest.json").read_text(encoding="utf-8"))
    folder = shutil.copytree(random_bundle, tmp_path / "bundle")
    (folder / "manifest.json").write_text(json.dumps(bundle | {"name": name}), encoding="utf-8")
    matrix = Matrix([Captioner.load(folder, threads=1)], reasoners, settings=SHORT)
    report = evaluate(QuestionFile(four(write_tsv)), matrix, tmp_path / "out", limit=1)
    page = (tmp_path / "out" / PAGE).read_text(encoding="utf-8")
    plots = [ElementTree.fromstring(p) for p in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]
    for plot in plots:
        width, height = map(float, plot.get("viewBox", "").split()[2:])
        texts = boxes_of_texts(plot)
        circles = [(float(c.get("cx", "")), float(c.get("cy", "")))
                   for c in plot.iter("{http://www.w3.org/2000/svg}circle")]  # fmt: skip
        for number, (text, left, right, top, bottom) in enumerate(texts):
            assert left >= 0, text
            assert right <= width, text
            assert bottom <= height, text
            for other, left_2, right_2, top_2, bottom_2 in texts[number + 1 :]:
                apart = right <= left_2 or right_2 <= left or bottom <= top_2 or bottom_2 <= top
                assert apart, (text, other)
            for x, y in circles:
                assert not (left - 4 < x < right + 4 and top - 4 < y < bottom + 4), text
    perception = "".join(text for text, *_ in boxes_of_texts(plots[0]))
    assert f"{name},question" in perception.replace(" ", "")
    for cell in report["cells"]:
        assert page.count(html.escape(cell["name"])) >= 3, "the table and both legends name it"
    terminal = Console(width=80, file=io.StringIO())
    print_report(report, terminal)
    lines = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]
    for number, cell in enumerate(report["cells"], 1):
        (row,) = [line for line in lines if line.startswith(f"{number} ") and " to " in line]
        assert row.split("  ")[0] == str(number)
        assert cell_to_texts(cell)[2] in row
        assert cell["name"].replace(" ", "") in "".join(lines).replace(" ", "")
    style = re.findall(r"td:first-child {(.*?)}", page)
    assert any("white-space: normal" in rules for rules in style), "a long name is wrapped"


# ---- the question set that ships


def test_own_questions() -> None:
    path = own_questions()
    assert path.stat().st_size < 3_000_000
    file = QuestionFile(path)
    assert file.skipped == []
    kinds = [question.category for question in file.questions]
    assert set(kinds) == {"colour", "count", "relation", "text", "presence", "chart"}
    assert {kinds.count(kind) for kind in kinds} == {len(kinds) // 6}
    assert sum(bool(q.options) for q in file.questions) > 0.8 * len(kinds)
    for question in file.questions:
        texts = [text for _, text in question.options]
        assert len(set(texts)) == len(texts)
        assert bytes(file.picture_bytes(question.pictures[0]))[:2] in (b"\x89P", b"\xff\xd8")
    letters = [q.answer for q in file.questions if len(q.options) == 4]
    assert all(0.15 < letters.count(letter) / len(letters) < 0.35 for letter in "ABCD")


def test_the_report_says_where_and_when(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path
) -> None:
    report = evaluate(QuestionFile(four(write_tsv)), matrix, tmp_path / "out")
    assert re.fullmatch(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", report["date"])
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["threads"] == {"tiny": 1}


def test_edited_reports_are_kept(write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path) -> None:
    out, file = tmp_path / "out", QuestionFile(four(write_tsv))
    evaluate(file, matrix, out, limit=1)
    page = (out / "report.html").read_text(encoding="utf-8") + "<p>My own remark.</p>"
    (out / "report.html").write_text(page, encoding="utf-8")
    evaluate(file, matrix, out, limit=1)
    assert (out / "report-1.html").read_text(encoding="utf-8") == page
    assert (out / "answers-1.csv").exists()
    assert "My own remark" not in (out / "report.html").read_text(encoding="utf-8")
    evaluate(file, matrix, out, limit=1)
    assert not (out / "report-2.html").exists()


def test_edited_reports_of_published_weights_are_kept(tmp_path: Path) -> None:
    first, second = Report("a"), Report("b")
    first.write(tmp_path)
    second.write(tmp_path)
    assert not (tmp_path / "report-1.txt").exists()
    (tmp_path / "report.txt").write_text("My own remark.\n", encoding="utf-8")
    first.write(tmp_path)
    assert (tmp_path / "report-1.txt").read_text(encoding="utf-8") == "My own remark.\n"
    assert json.loads((tmp_path / "report-1.json").read_text(encoding="utf-8"))["name"] == "b"
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["name"] == "a"


def test_other_settings_leave_the_earlier_page(
    write_tsv: WriteTsv, matrix: Matrix, tmp_path: Path
) -> None:
    out, file = tmp_path / "out", QuestionFile(four(write_tsv))
    evaluate(file, matrix, out, limit=1)
    first = {name: (out / name).read_bytes() for name in ("report.html", "report.json")}
    evaluate(file, matrix, out, limit=1)
    assert not (out / "report-1.html").exists()
    evaluate(file, matrix, out, limit=2)
    assert (out / "report-1.html").exists()
    assert json.loads((out / "report-1.json").read_text())["data"]["limit"] == 1
    assert json.loads((out / "report.json").read_text())["data"]["limit"] == 2
    assert json.loads(first["report.json"])["data"]["limit"] == 1
