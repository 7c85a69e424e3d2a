"""Records as text, JSON and CSV: valid, harmless, and written atomically."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeprism.errors import OutputError
from edgeprism.files.atomic import AtomicFile, write_atomically
from edgeprism.output.streams import (
    CSV_COLUMNS,
    CsvOutput,
    JsonLinesOutput,
    JsonOutput,
    RecordOutput,
    TextOutput,
)
from edgeprism.records import Caption, ModelInfo, Timings, TokenCounts
from tests.helpers import ordinary_user

KINDS: list[Callable[[Any], RecordOutput]] = [TextOutput, JsonLinesOutput, JsonOutput, CsvOutput]


def record(text: str = "a red dog", image: str = "in/photo.jpg", **changes: Any) -> Caption:
    fields: dict[str, Any] = {
        "text": text,
        "image": image,
        "image_sha256": "ab" * 32,
        "finish_reason": "stop",
        "tokens": TokenCounts(visual=64, prompt=12, generated=5),
        "timings": Timings(encode=2.0, total=12.25),
        "model": ModelInfo("nano", "cd" * 32, "int8", "q8_0"),
        "device": "cpu",
        "instruction": "Describe.",
        "version": "0.1.0",
    }
    return Caption(**{**fields, **changes})


def written(kind: Callable[[Any], RecordOutput], *records: Caption) -> bytes:
    stream = io.BytesIO()
    with kind(stream) as output:
        for one in records:
            output.write(one)
    return stream.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def break_off(output: RecordOutput, *records: Caption) -> None:
    """Write records, then fail as if the user pressed Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), output:
        for one in records:
            output.write(one)
        raise KeyboardInterrupt


# ---- forms


def test_text_is_a_line_a_picture_or_the_caption_alone() -> None:
    assert written(TextOutput, record(), record("two\nlines", "b.jpg")) == (
        b"in/photo.jpg: a red dog\nb.jpg: two lines\n"
    )
    stream = io.BytesIO()
    with TextOutput(stream, several=False) as output:
        output.write(record("two\r\nlines"))
    assert stream.getvalue() == b"two\nlines\n"


def test_text_commands_no_terminal_and_keeps_to_its_line() -> None:
    hostile = record("\x1b]0;owned\x07 \x9b31m", "a\nb\x1b[2J.jpg")
    assert written(TextOutput, hostile).decode() == (
        "a\\nb\\x1b[2J.jpg: \\x1b]0;owned\\x07 \\x9b31m\n"
    )


def test_json_lines_read_back_as_the_records() -> None:
    records = [record('ü\u2028 "quoted"\n'), record("ja 日本語", "名前.jpg")]
    lines = written(JsonLinesOutput, *records).decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [one.to_dict() for one in records]
    assert lines[-1] == ""


def test_a_json_array_of_none_one_and_many() -> None:
    for count in (0, 1, 3):
        records = [record(f"number\n{n}") for n in range(count)]
        assert json.loads(written(JsonOutput, *records)) == [one.to_dict() for one in records]


def test_json_for_a_single_picture_is_the_object() -> None:
    stream = io.BytesIO()
    with JsonOutput(stream, several=False) as output:
        output.write(record())
    assert json.loads(stream.getvalue()) == record().to_dict()


def test_csv_is_rfc_4180_with_a_header() -> None:
    nasty = record('He said "hi",\r\nthen\nleft; ü', "a,b.jpg")
    data = written(CsvOutput, nasty, record())
    assert data.startswith(b"image,caption,finish_reason,image_sha256,")
    assert data.endswith(b"\r\n")
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert (rows[0]["image"], rows[0]["caption"]) == (nasty.image, nasty.text)
    assert rows[1] == {
        "image": "in/photo.jpg", "caption": "a red dog", "finish_reason": "stop",
        "image_sha256": "ab" * 32, "instruction": "Describe.", "model": "nano",
        "model_digest": "cd" * 32, "vision_quant": "int8", "lm_quant": "q8_0", "device": "cpu",
        "tokens_visual": "64", "tokens_prompt": "12", "tokens_generated": "5",
        "total_ms": "12.25", "version": "0.1.0",
    }  # fmt: skip


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(start: str) -> None:
    text = f'{start}HYPERLINK("http://x")'
    (row,) = csv.DictReader(
        io.StringIO(written(CsvOutput, record(text, text)).decode(), newline="")
    )
    assert row["caption"] == row["image"] == "'" + text


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_is_no_utf_8_leaves_the_output_valid(kind: Any) -> None:
    text = written(kind, record(image="caf\udce9.jpg")).decode("utf-8")
    assert "caf\\udce9.jpg" in text


def test_json_gives_a_name_that_is_no_utf_8_back() -> None:
    line = written(JsonLinesOutput, record(image="caf\udce9.jpg"))
    assert os.fsencode(json.loads(line)["image"]) == b"caf\xe9.jpg"


@pytest.mark.parametrize("kind", KINDS)
def test_a_records_dictionary_is_as_good_as_the_record(kind: Any) -> None:
    assert written(kind, record()) == written(kind, record().to_dict())  # type: ignore[arg-type]


# ---- streams


def test_streams_of_text_take_text_and_utf_8_goes_below_their_encoding() -> None:
    text = io.StringIO()
    with TextOutput(text, several=False) as output:
        output.write(record("é"))
    assert text.getvalue() == "é\n"
    raw = io.BytesIO()
    latin = io.TextIOWrapper(raw, encoding="latin-1")
    latin.write("before ")
    with TextOutput(latin, several=False) as output:
        output.write(record("日本"))
        assert raw.getvalue() == "before 日本\n".encode()  # flushed, and in order


def test_a_broken_run_leaves_a_stream_with_a_valid_array() -> None:
    stream = io.BytesIO()
    break_off(JsonOutput(stream), record())
    assert json.loads(stream.getvalue()) == [record().to_dict()]


def test_a_full_device_is_an_output_error() -> None:
    with open("/dev/full", "wb", 0) as full, pytest.raises(OutputError, match="no space"):
        TextOutput(full).write(record())


def test_a_reader_that_left_is_a_broken_pipe_for_the_caller() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "wb", buffering=0)
    with stream, pytest.raises(BrokenPipeError):
        TextOutput(stream).write(record())


# ---- files


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_appears_when_finished_and_nothing_else_remains(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "captions.out"
    path.write_text("old")
    output = kind(path)
    output.write(record())
    assert path.read_text() == "old"
    output.finish()
    output.finish()  # a second call does nothing
    assert path.read_bytes() == written(kind, record())
    assert names(tmp_path) == ["captions.out"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_run_leaves_the_old_file(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / "captions.out"
    path.write_text("old")
    break_off(kind(path), record())
    assert path.read_text() == "old"
    assert names(tmp_path) == ["captions.out"]


def test_a_finished_output_takes_no_more(tmp_path: Path) -> None:
    output = JsonLinesOutput(tmp_path / "x.jsonl")
    output.finish()
    with pytest.raises(OutputError):
        output.write(record())


def test_what_is_no_place_for_results_is_told_before_any_work(tmp_path: Path) -> None:
    picture = tmp_path / "photo.JPG"
    picture.write_bytes(b"precious")
    for path in (picture, tmp_path / "new.png", tmp_path, tmp_path / "none/x.csv"):
        with pytest.raises(OutputError) as error:
            CsvOutput(path)
        assert str(tmp_path) in error.value.message
        assert error.value.hint
    assert picture.read_bytes() == b"precious"
    assert names(tmp_path) == ["photo.JPG"]


def test_a_link_stays_a_link_and_a_files_mode_stays(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far/real.jsonl", tmp_path / "link.jsonl"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    with JsonLinesOutput(link) as output:
        output.write(record())
    assert link.is_symlink()
    assert real.read_bytes() == written(JsonLinesOutput, record())
    assert real.stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    with JsonLinesOutput(pipe) as output:
        output.write(record())
    reader.join(10)
    assert got == [written(JsonLinesOutput, record())]
    assert pipe.is_fifo()


def test_a_read_only_folder_is_named() -> None:
    with ordinary_user.folder() as folder:
        folder.chmod(0o555)
        with ordinary_user.rights(), pytest.raises(OutputError) as error:
            CsvOutput(folder / "x.csv")
        assert str(folder) in error.value.message
        assert "`out_dir`" in error.value.hint


def test_a_folder_that_may_be_written_but_not_listed() -> None:
    with ordinary_user.folder() as folder:
        folder.chmod(0o333)
        with ordinary_user.rights(), CsvOutput(folder / "x.csv") as output:
            output.write(record())
        assert (folder / "x.csv").read_bytes() == written(CsvOutput, record())


def test_long_names_have_room_for_their_partial_file(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".json")
    assert len(os.fsencode(path.name)) == 255
    with JsonOutput(path) as output:
        output.write(record())
        assert len(names(tmp_path)) == 1
    assert json.loads(path.read_bytes())
    with pytest.raises(OutputError, match="too long"):
        JsonOutput(tmp_path / ("x" * 256))


# ---- leftovers and kills


def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftovers_of_the_dead_go_and_of_the_living_stay(tmp_path: Path) -> None:
    gone = dead_pid()
    staying = [
        f".a.csv.edgeprism.partial-{os.getppid()}", f".b.csv.edgeprism.partial-{gone}",
        ".a.csv.edgeprism.partial-x", f"a.csv.edgeprism.partial-{gone}",
    ]  # fmt: skip
    for name in (*staying, f".a.csv.edgeprism.partial-{gone}"):
        (tmp_path / name).write_text("half")
    with CsvOutput(tmp_path / "a.csv"):
        assert f".a.csv.edgeprism.partial-{os.getpid()}" in names(tmp_path)
    assert names(tmp_path) == sorted([*staying, "a.csv"])


def test_a_leftover_with_our_own_process_id_is_no_obstacle_nor_a_trap(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / f".a.csv.edgeprism.partial-{os.getpid()}").symlink_to(precious)
    write_atomically(tmp_path / "a.csv", b"new")
    assert (tmp_path / "a.csv").read_bytes() == b"new"
    assert precious.read_text() == "precious"


def without_rename_over(old: Any, new: Any) -> None:
    if os.path.lexists(new):
        raise PermissionError(13, "Permission denied", str(new))
    os.rename(old, new)


def test_a_file_system_that_does_not_rename_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprism.files.atomic.os.replace", without_rename_over)
    path = tmp_path / "a.csv"
    path.write_text("old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.csv"]


def test_the_old_file_comes_back_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("old")
    rename = os.rename

    def refuse_the_new(old: Any, new: Any) -> None:
        if ".partial-" in str(old):
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr("edgeprism.files.atomic.os.replace", without_rename_over)
    monkeypatch.setattr("edgeprism.files.atomic.os.rename", refuse_the_new)
    with pytest.raises(OutputError, match="Input/output"):
        write_atomically(path, b"new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_an_old_file_that_stepped_aside_in_a_killed_run_comes_back(tmp_path: Path) -> None:
    (tmp_path / f".a.csv.edgeprism.old-{dead_pid()}").write_text("old")
    break_off(CsvOutput(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_an_atomic_file_fails_cleanly_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeprism.files.atomic.os.fsync", full)
    file = AtomicFile(path)
    file.write(b"new")
    with pytest.raises(OutputError, match="no space"):
        file.commit()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


WRITES_FOR_EVER = """
import sys, itertools
from pathlib import Path
from edgeprism.output.streams import JsonLinesOutput
from edgeprism.output.sidecar import TxtSidecar
from edgeprism.picture.find import PictureFile
folder = Path(sys.argv[1])
picture = PictureFile(folder / "photo.jpg", None, "photo.jpg")
print("ready", flush=True)
for n in itertools.count():
    record = {"caption": f"{n % 10}" * 100_000, "image": "photo.jpg"}
    with JsonLinesOutput(folder / "all.jsonl") as output:
        output.write(record)
        output.write(record)
    TxtSidecar(overwrite=True).write(record, picture)
"""


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_and_never_half(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"picture")
    seen_leftover = False
    for number in range(200):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITES_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.01 + 0.013 * (number % 12))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        seen_leftover |= any(".partial-" in name for name in names(tmp_path))
        if (tmp_path / "all.jsonl").exists():
            lines = (tmp_path / "all.jsonl").read_text().splitlines()
            captions = [json.loads(line)["caption"] for line in lines]
            assert len(captions) == 2
            assert captions[0] == captions[1] == captions[0][0] * 100_000
        if (tmp_path / "photo.txt").exists():
            caption = (tmp_path / "photo.txt").read_text()
            assert caption == caption[0] * 100_000 + "\n"
        if number >= 11 and seen_leftover:
            break  # some kill came during a write
    assert seen_leftover, "no kill came during a write"
    from edgeprism.output.sidecar import TxtSidecar
    from edgeprism.picture.find import PictureFile

    picture = PictureFile(tmp_path / "photo.jpg", None, "photo.jpg")
    with JsonLinesOutput(tmp_path / "all.jsonl") as output:
        output.write(record())
    TxtSidecar(overwrite=True).write(record(), picture)
    assert names(tmp_path) == ["all.jsonl", "photo.jpg", "photo.txt"]
