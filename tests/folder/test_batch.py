"""Many pictures: order, resume, twins, failures, stopping, two processes, kill -9."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.folder.batch import Batch
from edgeprism.folder.events import Outcome
from edgeprism.machine.facts import available_cores
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.find import PictureFile, find_pictures
from edgeprism.picture.workers import DecodePool
from edgeprism.store.caption_store import CaptionStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures; the last two are the same as the first two under other names."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(3)
    for i in range(10):
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"p{i}.png")
    for i in range(2):
        shutil.copy(pictures / f"p{i}.png", pictures / f"q{i}.png")
    return pictures


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "captions.sqlite3"


def run(captioner: Captioner, folder: Path, store_path: Path | None = None,
        **options: Any) -> list[Outcome]:  # fmt: skip
    plan = captioner.plan(caption_tokens=options.pop("caption_tokens", 12))
    open_store = None if store_path is None else lambda: CaptionStore(store_path)
    batch = Batch(captioner, plan, open_store=open_store, **options)
    return list(batch.run(find_pictures([folder])))


def test_bytes_give_the_records_that_files_give(captioner: Captioner, folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "empty.png").touch()
    plan, files = captioner.plan(caption_tokens=12), list(find_pictures([folder]))
    held = [PictureFile(f.path, None, str(f.path), data=f.path.read_bytes()) for f in files]
    for path in folder.iterdir():
        path.write_bytes(b"nothing reads the file")
    in_memory = list(Batch(captioner, plan).run(held))
    for file, picture in zip(files, held, strict=True):
        file.path.write_bytes(picture.data or b"")
    from_files = list(Batch(captioner, plan).run(files))
    assert len(in_memory) == 14
    for ours, theirs in zip(in_memory, from_files, strict=True):
        assert (ours.error is None) == (ours.record is not None)
        assert str(ours.error) == str(theirs.error)
        if ours.record is not None and theirs.record is not None:
            for record in (ours.record, theirs.record):
                del record["timings_ms"]
            assert ours.record == theirs.record


def texts(outcomes: list[Outcome]) -> list[str]:
    return [outcome.record["caption"] for outcome in outcomes if outcome.record is not None]


@pytest.mark.parametrize(("parallel", "lanes"), [(1, 1), (3, 1), (16, 1), (1, 3), (2, 2)])
def test_the_batch_says_what_single_captions_say(
    captioner: Captioner, folder: Path, parallel: int, lanes: int
) -> None:
    outcomes = run(captioner, folder, parallel=parallel, lanes=lanes)
    paths = sorted(folder.iterdir())
    assert [outcome.picture.path for outcome in outcomes] == paths
    singles = [captioner.caption(path, caption_tokens=12).text for path in paths]
    assert texts(outcomes) == singles
    assert len(set(singles)) > 5, "captions that are all alike would prove nothing"


def test_engines_that_take_turns_say_the_same(
    captioner: Captioner, random_bundle: Path, folder: Path
) -> None:
    """Both engines use all cores, so they run one at a time instead of blocking each other."""
    wide = Captioner.load(random_bundle, threads=available_cores(), kv_type="f32",
                          flash_attention=False, device="cpu")  # fmt: skip
    with wide:
        assert texts(run(wide, folder, parallel=3)) == texts(run(captioner, folder))


def test_a_second_run_reads_nothing_and_another_instruction_everything(
    captioner: Captioner, folder: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(captioner, folder, store_path, parallel=4, lanes=2)
    assert [o.cached for o in first] == [False] * 10 + [True] * 2, "the same picture twice"
    assert run(captioner, folder, store_path, caption_tokens=11)[0].cached is False

    def refuse(*_: object) -> None:
        raise AssertionError("a picture was read again")

    monkeypatch.setattr(DecodePool, "submit", refuse)
    again = run(captioner, folder, store_path, parallel=2)
    assert all(outcome.cached for outcome in again)
    assert texts(again) == texts(first)


def test_a_moved_picture_is_known_and_named_where_it_is(
    captioner: Captioner, folder: Path, store_path: Path
) -> None:
    first = run(captioner, folder, store_path)
    (folder / "sub").mkdir()
    (folder / "p3.png").rename(folder / "sub" / "renamed.png")
    again = {o.picture.path.name: o for o in run(captioner, folder, store_path)}
    moved = again["renamed.png"]
    assert moved.cached
    assert moved.record is not None
    assert moved.record["image"] == str(folder / "sub" / "renamed.png")
    assert moved.record["caption"] == texts(first)[3]


def test_a_changed_picture_is_captioned_anew(
    captioner: Captioner, folder: Path, store_path: Path
) -> None:
    run(captioner, folder, store_path)
    Image.new("RGB", (30, 30), (1, 2, 3)).save(folder / "p3.png")
    outcomes = run(captioner, folder, store_path)
    assert [o.picture.path.name for o in outcomes if not o.cached] == ["p3.png"]


def test_failures_name_their_pictures_and_leave_the_rest(
    captioner: Captioner, folder: Path, store_path: Path
) -> None:
    whole = (folder / "p0.png").read_bytes()
    (folder / "a-cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "b-text.jpg").write_text("no picture")
    (folder / "c-empty.gif").touch()
    (folder / "d-gone.png").symlink_to(folder / "nowhere.png")
    outcomes = run(captioner, folder, store_path, parallel=4)
    failed = {o.picture.path.name: o.error for o in outcomes if o.error is not None}
    assert set(failed) == {"a-cut.png", "b-text.jpg", "c-empty.gif", "d-gone.png"}
    for name, error in failed.items():
        assert isinstance(error, ImageError)
        assert name in error.message
    assert len(texts(outcomes)) == 12


def test_stop_finishes_what_is_in_flight_and_a_resume_the_rest(
    captioner: Captioner, folder: Path, store_path: Path
) -> None:
    plan = captioner.plan(caption_tokens=12)
    batch = Batch(captioner, plan, open_store=lambda: CaptionStore(store_path), parallel=2)
    outcomes = []
    for outcome in batch.run(find_pictures([folder])):
        outcomes.append(outcome)
        batch.stop()
    assert 1 <= len(outcomes) < 12
    assert batch.stopped
    with CaptionStore(store_path) as store:
        assert store.info()["captions"] >= len({o.picture.path for o in outcomes})
    rest = run(captioner, folder, store_path)
    assert len(rest) == 12
    assert sum(o.cached for o in rest) >= len(outcomes)


def test_closing_the_iterator_ends_threads_and_workers(captioner: Captioner, folder: Path) -> None:
    batch = Batch(captioner, captioner.plan(caption_tokens=12), parallel=2, lanes=2)
    outcomes = batch.run(find_pictures([folder]))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert len(texts(run(captioner, folder))) == 12, "the captioner is usable afterwards"


def test_an_engines_failure_ends_the_run_with_its_reason(
    captioner: Captioner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = captioner.engines.vision()

    def fail(_: object) -> None:
        raise RuntimeError("the engine broke")

    monkeypatch.setattr(vision, "encode", fail)
    with pytest.raises(RuntimeError, match="the engine broke"):
        run(captioner, folder)


# ---- decoding in worker processes


def test_a_decoder_that_dies_costs_one_picture(captioner: Captioner, folder: Path) -> None:
    """The test stops the worker first, so that it dies while it holds the picture."""
    with DecodePool(captioner.bundle.manifest.image, 1) as pool:
        good = pool.submit(str(folder / "p0.png")).result()
        os.kill(pool._workers[0]._child.pid, signal.SIGSTOP)
        stuck = pool.submit(str(folder / "p1.png"))
        while not stuck.running():
            time.sleep(0.01)
        time.sleep(0.3)  # the request is in the worker's pipe
        os.kill(pool._workers[0]._child.pid, signal.SIGKILL)
        with pytest.raises(ImageError, match=r"p1\.png: reading it broke its decoder"):
            stuck.result()
        assert np.array_equal(pool.submit(str(folder / "p0.png")).result().tiles, good.tiles)


def test_time_and_memory_of_a_decoder_are_bounded(
    captioner: Captioner, folder: Path, tmp_path: Path
) -> None:
    policy = captioner.bundle.manifest.image
    pipe = tmp_path / "p.png"
    big = tmp_path / "big.png"
    Image.new("1", (12000, 12000)).save(big)  # 18 KB of file, 432 MB as RGB
    with DecodePool(policy, 1, memory_bytes=600 << 20) as pool:
        with pytest.raises(ImageError, match=r"big\.png"):
            pool.submit(str(big)).result()
        assert pool.submit(str(folder / "p0.png")).result().size == (30, 20)
    with DecodePool(policy, 1, timeout_s=0.0) as pool, pytest.raises(ImageError, match="longer"):
        pool.submit(str(pipe)).result()


# ---- the command line


def edgeprism(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeprism", *map(str, arguments)],
        capture_output=True, text=True, timeout=120, check=False, **options,
    )  # fmt: skip


@pytest.fixture
def command(scripted_bundle: Path, folder: Path) -> list[str]:
    return ["caption", str(folder), "--model", str(scripted_bundle), "--threads", "1"]


def test_a_folder_to_json_lines_and_again(command: list[str], folder: Path) -> None:
    first = edgeprism(*command, "--jsonl")
    assert first.returncode == 0, first.stderr
    records = [json.loads(line) for line in first.stdout.splitlines()]
    assert [r["image"] for r in records] == [str(p) for p in sorted(folder.iterdir())]
    assert "12 pictures: 10 captioned, 2 known already, 0 failed" in first.stderr
    again = edgeprism(*command, "--jsonl")
    assert "0 captioned, 12 known already" in again.stderr
    strip = [{**r, "cached": True} for r in records]
    assert [json.loads(line) for line in again.stdout.splitlines()] == strip


def test_some_failed_is_exit_3_with_a_report(
    command: list[str], folder: Path, tmp_path: Path
) -> None:
    (folder / "bad.jpg").write_text("no picture")
    report = tmp_path / "errors.jsonl"
    done = edgeprism(*command, "--errors", report)
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 12
    assert "bad.jpg" in done.stderr
    (line,) = report.read_text().splitlines()
    assert json.loads(line)["image"] == str(folder / "bad.jpg")


def test_on_error_stop_ends_early(command: list[str], folder: Path) -> None:
    (folder / "a-bad.jpg").write_text("no picture")
    done = edgeprism(*command, "--on-error", "stop", "--batch", "1")
    assert done.returncode in (1, 3)
    assert len(done.stdout.splitlines()) < 12


def test_sidecars_and_output_file(command: list[str], folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "all.csv"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    done = edgeprism(*command, "--txt", "--xmp", "--csv", "--output", out)
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == 13
    quietly = edgeprism(*command, "--txt").stderr
    assert "p0.png" not in quietly, "without a terminal there is a summary, no line a picture"
    assert "12 pictures: 0 captioned, 12 known already, 0 failed" in quietly
    assert (folder / "p0.txt").read_text().strip() == "a red dogé on the sea"
    assert "a red dogé on the sea" in (folder / "p0.xmp").read_text()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_dry_run_does_nothing(command: list[str], folder: Path) -> None:
    listed = sorted(folder.iterdir())
    done = edgeprism(*command, "--dry-run")
    assert done.returncode == 0
    assert "12 pictures, 0 captioned already, 12 to caption" in done.stdout
    assert sorted(folder.iterdir()) == listed


def test_a_broken_store_stops_unless_told_to_go_on(command: list[str]) -> None:
    store = Path(os.environ["EDGEPRISM_HOME"]) / "captions.sqlite3"
    store.write_bytes(b"no database" * 1000)
    refused = edgeprism(*command)
    assert refused.returncode == 1
    assert "--no-cache" in refused.stderr
    assert edgeprism(*command, "--no-cache").returncode == 0


def test_cache_commands(command: list[str], folder: Path) -> None:
    edgeprism(*command)
    assert "10 captions, 12 files" in edgeprism("cache", "info").stdout
    exported = edgeprism("cache", "export").stdout.splitlines()
    assert len(exported) == 10
    assert all(json.loads(line)["caption"] for line in exported)
    (folder / "q0.png").unlink()
    assert "1 file and 0 captions" in edgeprism("cache", "prune").stdout
    assert edgeprism("cache", "clear", input="n\n").returncode == 2
    assert "10 captions deleted" in edgeprism("cache", "clear", "--yes").stdout


# ---- signals and kills: a slow enough model


@pytest.fixture
def slow_command(random_bundle: Path, folder: Path) -> list[str]:
    return ["caption", str(folder), "--model", str(random_bundle), "--threads", "1", "--jsonl",
            "--batch", "2", "--max-tokens", "400"]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_interrupt_finishes_what_is_in_flight(
    slow_command: list[str], number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprism", *slow_command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    lines = [first, *rest.splitlines()]
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "goes on from here" in errors
    assert 1 <= len(lines) < 12
    assert all(json.loads(line)["finish_reason"] for line in lines)
    resumed = edgeprism(*slow_command)
    assert resumed.returncode == 0
    records = [json.loads(line) for line in resumed.stdout.splitlines()]
    assert len(records) == 12
    assert sum(record["cached"] for record in records) >= len(lines)


def test_an_interrupt_is_one_also_where_errors_stop(slow_command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprism", *slow_command, "--on-error", "stop"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "goes on from here" in errors


def test_two_interrupts_stop_now(slow_command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeprism", *slow_command[:-1], "1500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_two_processes_share_a_folder(slow_command: list[str]) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "edgeprism", *slow_command],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in processes]
    records = [[json.loads(line) for line in out.splitlines()] for out, _ in outputs]
    assert [len(r) for r in records] == [12, 12], outputs
    captioned = [r["image_sha256"] for run in records for r in run if not r["cached"]]
    assert len(captioned) == len(set(captioned)) == 10, "a picture was repeated or left out"


def test_kill_9_loses_nothing(slow_command: list[str], folder: Path, tmp_path: Path) -> None:
    rng = random.Random(11)
    out = tmp_path / "all.jsonl"
    command = [sys.executable, "-m", "edgeprism", *slow_command, "--txt", "--output", str(out)]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=rng.uniform(0.3, 3.0) if kills < 6 else 60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            if out.exists():  # the file has its final name, so it must be complete
                assert len(out.read_text().splitlines()) == 12
            for text in folder.glob("*.txt"):
                assert text.read_text().endswith("\n")
            continue
        break
    assert process.returncode == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["image"] for r in records] == [str(p) for p in sorted(folder.glob("*.png"))]
    with CaptionStore(Path(os.environ["EDGEPRISM_HOME"]) / "captions.sqlite3") as store:
        assert store.info()["captions"] == 10
        assert len({record["image_sha256"] for record in store.records()}) == 10
    assert not leftovers(folder), "the last run swept what the killed ones left"


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if ".partial-" in path.name]
