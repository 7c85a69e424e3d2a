"""The process in which an actor captions: same captions as the folder engine, and what ends it."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.folder.batch import Batch
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.find import PictureFile
from edgeprism.scale.engine import EngineError, EngineProcess, EngineSettings
from tests.helpers import bundles, poison

OF_CAPTIONER: dict[str, Any] = {"kv_type": "f32", "flash_attention": False}


def pictures(count: int, folder: Path) -> list[tuple[str, bytes]]:
    found = []
    for i in range(count):
        rng = np.random.default_rng(i)
        path = folder / f"p{i}.png"
        Image.fromarray(rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)).save(path)
        found.append((path.name, path.read_bytes()))
    return found


def settings(bundle: Path) -> EngineSettings:
    return EngineSettings(
        str(bundle), captioner=OF_CAPTIONER, caption={"caption_tokens": 8}, parallel=2, cores=1
    )


def texts(captioner: Captioner, files: list[tuple[str, bytes]]) -> list[str]:
    """The captions that the folder engine makes."""
    batch = Batch(captioner, captioner.plan(caption_tokens=8), parallel=2)
    held = [PictureFile(Path(name), None, name, data=data) for name, data in files]
    return [o.record["caption"] if o.record else "" for o in batch.run(held)]


def test_callers_get_their_own_captions_in_order(
    captioner: Captioner, random_bundle: Path, tmp_path: Path
) -> None:
    files = pictures(12, tmp_path)
    files[5] = ("broken.png", b"no picture")
    expected = texts(captioner, files)
    engine = EngineProcess(settings(random_bundle))
    try:
        with ThreadPoolExecutor(3) as pool:
            calls = [files[:7], files[7:], files[3:9]]
            answers = list(pool.map(engine.caption, calls))
        for call, of_call in zip(calls, answers, strict=True):
            assert [a.record["caption"] if a.record else "" for a in of_call] == [
                expected[files.index(file)] for file in call
            ]
        broken = answers[0][5]
        assert broken.record is None
        assert "broken.png" in broken.error
        assert broken.hint
        assert not broken.ended
        record = answers[0][0].record
        assert record is not None
        assert (record["settings"]["parallel"], record["settings"]["threads"]) == (2, [1, 1])
    finally:
        engine.close()
    with pytest.raises(EngineError, match="was closed"):
        engine.caption(files[:1])


@pytest.mark.skipif(os.name == "nt", reason="ends its process with a signal")
def test_a_picture_that_ends_the_process_costs_itself_alone(
    captioner: Captioner, random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(poison.plant(tmp_path / "site")))
    files = pictures(9, tmp_path)
    files[4] = ("deadly.png", poison.picture())
    engine = EngineProcess(settings(random_bundle))
    try:
        answers = engine.caption(files)
        again = engine.caption(files[:2])
    finally:
        engine.close()
    expected = texts(captioner, files)
    deadly = answers.pop(4)
    assert expected.pop(4) != ""  # the picture itself is sound
    assert (deadly.record, deadly.ended) == (None, True)
    assert deadly.error == "deadly.png: ended the process that captioned it (signal 11)."
    assert [a.record["caption"] for a in answers if a.record] == expected
    assert [a.record["caption"] for a in again if a.record] == expected[:2]


@pytest.mark.skipif(os.name == "nt", reason="ends its process with a signal")
def test_a_process_that_somebody_else_ends_costs_no_picture(
    captioner: Captioner, random_bundle: Path, tmp_path: Path
) -> None:
    files = pictures(6, tmp_path)
    engine = EngineProcess(settings(random_bundle))
    stop = threading.Event()

    def kill() -> None:
        for _ in range(2):
            time.sleep(0.05)
            os.kill(engine.pid, signal.SIGKILL)
            stop.wait(3)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        answers = engine.caption(files)
    finally:
        stop.set()
        killer.join()
        engine.close()
    assert [a.record["caption"] for a in answers if a.record] == texts(captioner, files)


def test_a_model_that_is_not_there_is_told_with_its_exit_code(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no-such-model") as caught:
        EngineProcess(EngineSettings(str(tmp_path / "no-such-model")))
    assert caught.value.exit_code == 4
    assert caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="ends its process with a signal")
def test_a_process_that_ends_whatever_comes_fails_the_run(
    random_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    code = poison.plant(site) / "sitecustomize.py"
    code.write_text(code.read_text().replace('keywords["image_sha256"] == ', "keywords or "))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr("edgeprism.scale.engine._ENOUGH_ENDS", 1)  # fewer starts of a process
    monkeypatch.setattr("edgeprism.scale.engine._MOST_ENDING", 1)
    engine = EngineProcess(settings(random_bundle))
    try:
        with pytest.raises(EngineError, match="again and again"):
            engine.caption(pictures(4, tmp_path))
    finally:
        engine.close()


def test_the_last_ones_of_a_bundle_are_told(tmp_path: Path) -> None:
    """What the process refuses while it starts comes with the process's own words."""
    bundle = bundles.write_bundle(tmp_path / "bundle", seed=1)
    (bundle / "lm.gguf").write_bytes(b"GGUF")
    with pytest.raises(EngineError, match=r"lm\.gguf"):
        EngineProcess(settings(bundle))
