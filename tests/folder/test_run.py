"""Captioning a folder from Python: resume, sidecars, failures, stop and continue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism import Captioner, caption_folder
from edgeprism.errors import ImageError, OutputError, UsageError
from edgeprism.files import atomic
from edgeprism.folder.estimate import estimate_folder
from edgeprism.folder.events import Outcome
from edgeprism.folder.run import FolderOptions, FolderRun
from edgeprism.perceive.options import Plan
from edgeprism.picture.find import find_pictures
from tests.helpers import bundles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures, two of them in a folder below."""
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for i in range(8):
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        place = pictures if i < 6 else pictures / "sub"
        Image.fromarray(pixels).save(place / f"p{i}.png")
    return pictures


@pytest.fixture
def plan(captioner: Captioner) -> Plan:
    return captioner.plan(caption_tokens=12)


def test_every_picture_gets_its_own_caption_in_order(
    captioner: Captioner, folder: Path, plan: Plan
) -> None:
    outcomes: list[Outcome] = []
    result = caption_folder(folder, captioner, plan=plan, on_outcome=outcomes.append)
    paths = [*sorted(folder.glob("*.png")), *sorted(folder.glob("sub/*.png"))]
    assert [outcome.picture.path for outcome in outcomes] == paths
    captions = [outcome.record["caption"] for outcome in outcomes if outcome.record is not None]
    assert captions == [captioner.caption(path, caption_tokens=12).text for path in paths]
    assert (result.total, result.captioned, result.known, result.failures) == (8, 8, 0, [])
    assert not result.stopped
    assert result.seconds > 0


def test_a_second_call_makes_none(captioner: Captioner, folder: Path, plan: Plan) -> None:
    first = caption_folder(folder, captioner, plan=plan, parallel=2)
    again = caption_folder(folder, captioner, plan=plan, parallel=2)
    assert (first.captioned, first.known) == (8, 0)
    assert (again.captioned, again.known) == (0, 8)
    without = caption_folder(folder, captioner, plan=plan, parallel=2, use_store=False)
    assert (without.captioned, without.known) == (8, 0)


def test_a_bad_picture_is_a_failure_that_names_it(
    captioner: Captioner, folder: Path, plan: Plan
) -> None:
    bad = folder / "bad.jpg"
    bad.write_text("no picture")
    (folder / "notes.md").touch()
    result = caption_folder(folder, captioner, plan=plan, parallel=2)
    (failure,) = result.failures
    assert failure.path == bad
    assert isinstance(failure.error, ImageError)
    assert "bad.jpg" in failure.error.message
    assert (result.total, result.captioned, result.done, result.skipped) == (9, 8, 9, 1)


def test_on_error_stop_begins_no_more(captioner: Captioner, folder: Path, plan: Plan) -> None:
    (folder / "a-bad.jpg").write_text("no picture")
    result = caption_folder(folder, captioner, plan=plan, parallel=1, on_error="stop")
    assert len(result.failures) == 1
    assert result.done < result.total == 9
    assert not result.stopped, "nobody called stop()"


def test_sidecars_beside_the_pictures_and_mirrored(
    scripted_captioner: Captioner, folder: Path, tmp_path: Path
) -> None:
    result = caption_folder(folder, scripted_captioner, sidecars=("txt", "xmp"), parallel=1)
    assert result.failures == []
    for picture in folder.rglob("*.png"):
        assert picture.with_suffix(".txt").read_text("utf-8").strip() == bundles.SAID_TEXT
        assert bundles.SAID_TEXT in picture.with_suffix(".xmp").read_text("utf-8")
    out = tmp_path / "out"
    pictures = find_pictures([folder])
    caption_folder(pictures, scripted_captioner, sidecars=("txt",), out_dir=out, parallel=1)
    assert sorted(p.relative_to(out) for p in out.rglob("*.txt")) == sorted(
        p.relative_to(folder) for p in folder.rglob("*.txt")
    )


def test_a_text_of_the_users_stays_unless_overwritten(
    scripted_captioner: Captioner, folder: Path
) -> None:
    mine = folder / "p0.txt"
    mine.write_text("my own words")
    outcomes: list[Outcome] = []
    first = caption_folder(folder, scripted_captioner, sidecars=("txt",), parallel=1,
                          on_outcome=outcomes.append)  # fmt: skip
    assert (first.captioned, first.failures) == (8, [])
    assert (first.left_alone, first.passed_over) == (1, 0)
    assert outcomes[0].left_alone
    assert outcomes[0].record is not None, "the picture has its caption although its text stays"
    assert mine.read_text() == "my own words"
    again = caption_folder(folder, scripted_captioner, sidecars=("txt",), parallel=1,
                           overwrite=True)  # fmt: skip
    assert (again.captioned, again.known, again.failures) == (0, 8, [])
    assert mine.read_text("utf-8").strip() == bundles.SAID_TEXT


def test_a_full_disk_ends_the_call(
    scripted_captioner: Captioner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_fsync", full)
    outcomes: list[Outcome] = []
    with pytest.raises(OutputError, match="no space"):
        caption_folder(folder, scripted_captioner, sidecars=("txt",), parallel=1,
                       on_outcome=outcomes.append)  # fmt: skip
    assert [outcome.picture.path.name for outcome in outcomes] == ["p0.png"]
    assert not list(folder.rglob("*.txt"))


def test_stop_in_the_middle_and_go_on(captioner: Captioner, folder: Path, plan: Plan) -> None:
    options = FolderOptions(parallel=1)
    with FolderRun(folder, captioner, plan, options) as run:
        first = []
        for outcome in run:
            first.append(outcome)
            run.stop()
    assert run.result.stopped
    assert 1 <= len(first) == run.result.done < 8
    with FolderRun(folder, captioner, plan, options) as run:
        rest = list(run)
    assert not run.result.stopped
    assert len(rest) == 8
    assert run.result.known >= len(first)
    assert run.result.captioned == 8 - run.result.known


def test_an_exception_of_the_caller_ends_the_call_and_loses_nothing(
    captioner: Captioner, folder: Path, plan: Plan
) -> None:
    """Raise in the same thread, as Ctrl-C does."""

    def interrupt(_: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, captioner, plan=plan, parallel=1, on_outcome=interrupt)
    result = caption_folder(folder, captioner, plan=plan, parallel=1)
    assert result.known >= 1
    assert result.done == 8


def test_stopped_before_it_began_captions_nothing(
    captioner: Captioner, folder: Path, plan: Plan
) -> None:
    with FolderRun(folder, captioner, plan, FolderOptions(parallel=1)) as run:
        run.stop()
        assert list(run) == []
        assert run.result.stopped
        with pytest.raises(UsageError, match="only once"):
            next(iter(run))


def test_an_estimate_captions_nothing(captioner: Captioner, folder: Path, plan: Plan) -> None:
    before = estimate_folder(folder, captioner, plan=plan)
    assert (before.total, before.known, before.left) == (8, 0, 8)
    assert before.seconds_per_picture is None
    caption_folder(folder / "sub", captioner, plan=plan, parallel=1)
    after = estimate_folder([folder], captioner, plan=plan)
    assert (after.total, after.known, after.left) == (8, 2, 6)
    assert after.seconds_per_picture is not None
    assert after.seconds_per_picture > 0
    assert estimate_folder(folder, captioner, plan=plan, use_store=False).known == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sidecars": "txt"}, "'txt' names no sidecars"),
        ({"sidecars": ("pdf",)}, "names no sidecars"),
        ({"on_error": "go"}, "on_error is 'go'"),
        ({"parallel": 0}, "at least 1, got 0"),
    ],
)
def test_options_that_cannot_be_meant(
    captioner: Captioner, folder: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        caption_folder(folder, captioner, **options)  # type: ignore[arg-type]


def test_a_pattern_without_a_picture_is_refused(captioner: Captioner, folder: Path) -> None:
    with pytest.raises(UsageError, match="no picture matches"):
        caption_folder(f"{folder}/*.bmp", captioner)
