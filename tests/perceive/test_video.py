"""A captioner that takes videos: rows, record, options, and refusals."""

from __future__ import annotations

import json
import pickle
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from edgeprism import Captioner
from edgeprism.bundle.manifest import ImagePolicy, Several
from edgeprism.bundle.read_manifest import manifest_from_bundle, manifest_from_json
from edgeprism.cli.main import run
from edgeprism.errors import ImageError, ManifestError, PromptTooLongError, UsageError
from edgeprism.picture.read import read_picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.segments import ImageRows, Text
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.stored_captioner import StoredCaptioner
from edgeprism.store.stored_record import record_to_caption
from tests.helpers import bundles
from tests.helpers.videos import (
    decoded,
    frames_reference,
    moving_frames,
    write_video,
    write_video_bundle,
)
from tests.test_silence import silently

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_bundle(tmp_path_factory.mktemp("video-bundle") / "b", seed=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    return write_video(folder / "clip.mkv", moving_frames(21, (50, 34)), sound=True)


def tiles_of(path: Path, places: list[int]) -> np.ndarray:
    stored = decoded(path)
    pictures = [read_picture(Image.fromarray(stored[i])) for i in places]
    policy = ImagePolicy("crop", bundles.SIZE, [0, 0, 0], "bicubic", 1)
    return np.concatenate([picture_to_tiles(p, policy, None) for p in pictures])


def test_rows_are_those_of_the_frames_in_one_block(bundle: Path, clip: Path) -> None:
    places = [0, 6, 13, 20]
    with Captioner.load(bundle) as captioner:
        encoded = captioner.encode(clip)
        expected = frames_reference(tiles_of(clip, places), seed=1)
        np.testing.assert_allclose(
            encoded.visual_tokens, expected.reshape(-1, bundles.N_EMBD), atol=1e-4
        )
        assert encoded.layout == (ImageRows(0, 16, True),)
        assert encoded.size == (50, 34)
        assert encoded.video is not None
        assert encoded.video.frames == tuple(places)
        assert encoded.video.seconds == pytest.approx([0, 0.6, 1.3, 2.0])
        assert encoded.video.of == 21
        caption = captioner.caption(clip)
        assert captioner.caption(encoded).text == caption.text
        assert caption.video == encoded.video
        assert caption.tokens.visual == 16
        assert caption.timings.decode_image > 0
        # a picture is seen as before
        picture = Image.fromarray(decoded(clip)[0])
        assert captioner.encode(picture).visual_tokens.shape == (bundles.N_TOKENS, bundles.N_EMBD)
        assert captioner.caption(picture).video is None


def test_the_text_depends_on_every_frame(bundle: Path, tmp_path: Path) -> None:
    frames = moving_frames(4, (28, 28))
    texts = set()
    with Captioner.load(bundle, isolate_decoding=False) as captioner:
        for changed in (None, 0, 1, 2, 3):
            shown = [f if i != changed else 255 - f for i, f in enumerate(frames)]
            path = write_video(tmp_path / f"{changed}.mkv", shown)
            texts.add(captioner.caption(path, caption_tokens=30).text)
    assert len(texts) == 5


def test_text_around_frames(tmp_path: Path, clip: Path) -> None:
    text = {"before": "Frame {number}: ", "between": "\n"}
    bundle = write_video_bundle(tmp_path / "b", seed=1, frames=2, **text)
    with Captioner.load(bundle, isolate_decoding=False) as captioner:
        encoded = captioner.encode(clip)
    assert encoded.layout == (
        Text("Frame 1: ", template=True), ImageRows(0, 4), Text("\nFrame 2: ", template=True),
        ImageRows(4, 8),
    )  # fmt: skip


def test_options_choose_frames(bundle: Path, clip: Path) -> None:
    with Captioner.load(bundle, isolate_decoding=False) as captioner:
        for options, rule, frames in (
            ({"frames": 3}, "uniform", (0, 10, 20)),
            ({"frames_per_second": 1.0}, "per-second", (0, 10, 20)),
            ({"frames_per_second": 5.0, "frames": 5}, "uniform", (0, 5, 10, 15, 20)),
            ({"frames": np.int64(1)}, "uniform", (0,)),
        ):
            caption = captioner.caption(clip, **options)
            assert caption.video is not None
            assert (caption.video.rule, caption.video.frames) == (rule, frames)
            unfit = "frames_per_second" in options and rule == "uniform"
            assert unfit == any("5 a second would be more than 5" in n for n in caption.notes)
        fewer = captioner.caption(clip, visual_tokens=8)
        assert fewer.tokens.visual == 8
        assert fewer.reduction is not None
        assert fewer.reduction.encoded == 16


def test_what_makes_no_sense_is_refused(
    bundle: Path, random_bundle: Path, clip: Path, photo: Path
) -> None:
    with Captioner.load(bundle, isolate_decoding=False) as captioner:
        with pytest.raises(UsageError, match="not a video whose frames can be chosen"):
            captioner.caption(photo, frames=3)
        with pytest.raises(UsageError, match="not a video whose frames can be chosen"):
            captioner.caption(captioner.encode(clip), frames_per_second=1.0)
        small = Captioner.load(bundle)
        object.__setattr__(small.bundle.manifest.lm, "context_length", 600)
        with pytest.raises(PromptTooLongError, match="256 frames of 4") as caught:
            small.caption(clip, frames=256)
        assert "at most 134" in caught.value.hint
        object.__setattr__(captioner.bundle.manifest.prompts, "several", Several("", ""))
        with pytest.raises(UsageError, match=r"clip\.mkv: a video is described by itself"):
            captioner.caption([photo, clip])
    with Captioner.load(random_bundle) as captioner:
        with pytest.raises(ImageError, match="tiny describes pictures") as error:
            captioner.caption(clip)
        assert "model made for video" in error.value.hint
        assert not captioner.engines.is_loaded()


def test_the_store_keeps_the_captions_of_other_frames_apart(
    bundle: Path, clip: Path, tmp_path: Path
) -> None:
    store = CaptionStore(tmp_path / "store.sqlite")
    with Captioner.load(bundle, isolate_decoding=False) as captioner:
        stored = StoredCaptioner(captioner, store)
        first, other = stored.caption(clip), stored.caption(clip, frames=2)
        assert other.video != first.video
        captioner.engines.close()
        assert stored.caption(clip).video == first.video
        assert stored.caption(clip, frames=2).video == other.video
        assert not captioner.engines.is_loaded()
    assert record_to_caption(json.loads(json.dumps(first.to_dict()))).video == first.video
    assert pickle.loads(pickle.dumps(first)) == first


def test_the_command(bundle: Path, clip: Path, photo: Path, capfd: Captured) -> None:
    assert run(["caption", str(clip), "-m", str(bundle), "--json", "--frames", "3"]) == 0
    out, err = capfd.readouterr()
    record = json.loads(out)
    schema = json.loads(files("edgeprism").joinpath("record.schema.json").read_text("utf-8"))
    jsonschema.validate(record, schema)
    assert record["video"] == {
        "rule": "uniform", "frames": [0, 10, 20], "seconds": [0.0, 1.0, 2.0], "of": 21,
        "frames_per_second": None,
    }  # fmt: skip
    assert "3 of 21 frames" in err
    # with the record's options the caption is the same
    again = ["--frames", str(len(record["video"]["frames"])), "--json"]
    assert run(["caption", str(clip), "-m", str(bundle), *again]) == 0
    assert json.loads(capfd.readouterr().out)["caption"] == record["caption"]
    assert run(["caption", str(clip)]) == 1  # nano
    err = capfd.readouterr().err
    assert "nano describes pictures" in err
    assert "ffmpeg" in err
    assert run(["caption", str(photo), "-m", str(bundle), "--frames", "3"]) == 2
    assert "--frames" in capfd.readouterr().err
    assert run(["caption", str(photo), str(clip), "-m", str(bundle), "--frames", "3"]) == 2
    assert "photo.png: not a video whose frames can be chosen" in capfd.readouterr().err


def test_a_video_goes_where_a_picture_goes(
    bundle: Path, clip: Path, photo: Path, tmp_path: Path, capfd: Captured
) -> None:
    own = tmp_path / "clip.mkv"
    own.write_bytes(clip.read_bytes())
    command = ["caption", str(own), "-m", str(bundle), "--frames", "3", "--batch", "1"]
    assert run(["caption", str(own), "-m", str(bundle), "--frames", "3"]) == 0
    alone = capfd.readouterr().out.strip()
    for name in ("out.json", "out.jsonl", "out.csv", "out.txt"):
        assert run([*command, "-o", str(tmp_path / name)]) == 0
    for name in ("out.json", "out.jsonl"):
        record = json.loads((tmp_path / name).read_text("utf-8").strip().strip("[]"))
        assert record["caption"] == alone
        assert record["video"]["frames"] == [0, 10, 20]
        assert record["cached"] is (name != "out.json")
    assert alone in (tmp_path / "out.txt").read_text("utf-8")
    assert run([*command, "--txt", "--xmp", "--no-cache"]) == 0
    assert own.with_suffix(".txt").read_text("utf-8").strip() == alone
    assert own.with_suffix(".xmp").exists()
    # beside a picture, each by itself; without --frames they are the model's own
    assert run(["caption", str(photo), str(own), "-m", str(bundle), "--jsonl", "--batch", "1"]) == 0
    picture, video = map(json.loads, capfd.readouterr().out.splitlines())
    assert "video" not in picture
    assert video["video"]["frames"] == [0, 6, 13, 20]
    assert not video["cached"]
    # its time is estimated, too
    assert run([*command, "--dry-run", "--no-cache"]) == 0
    out = capfd.readouterr().out
    assert "could be read" not in out
    # what cannot be read is a failure of the run, by name
    own.write_bytes(clip.read_bytes()[:300])
    assert run([*command, "-o", str(tmp_path / "none.json")]) == 1
    assert "clip.mkv" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_no_network_socket_is_opened(bundle: Path, clip: Path) -> None:
    done = silently(
        sys.executable, "-m", "edgeprism", "caption", clip, "-m", bundle, "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert "4 of 21 frames" in done.stderr


def test_a_video_has_an_instruction_of_its_own(
    clip: Path, photo: Path, tmp_path: Path, capfd: Captured
) -> None:
    bundle = write_video_bundle(tmp_path / "b", seed=1, instruction="Tell what moves.")
    usual = manifest_from_bundle(bundle).prompts.default_instruction
    store = CaptionStore(tmp_path / "store.sqlite")
    with Captioner.load(bundle, isolate_decoding=False) as captioner:
        asked = captioner.caption(clip)
        assert asked.instruction == "Tell what moves."
        assert asked.text == captioner.caption(clip, instruction="Tell what moves.").text
        assert asked.text != captioner.caption(clip, instruction=usual).text
        assert captioner.caption(captioner.encode(clip)).instruction == "Tell what moves."
        assert "boats" in captioner.caption(clip, focus="boats").instruction
        assert captioner.caption(clip, instruction="Why?").instruction == "Why?"
        assert captioner.caption(photo).instruction == usual
        stored = StoredCaptioner(captioner, store)
        for _ in "ab":
            assert stored.caption(clip).instruction == "Tell what moves."
        assert stored.caption(clip, instruction=usual).instruction == usual
    files = [str(photo), str(clip)]
    for cached in (False, True):
        assert run(["caption", *files, "-m", str(bundle), "--jsonl", "--batch", "1"]) == 0
        records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
        assert [r["instruction"] for r in records] == [usual, "Tell what moves."]
        assert [r["cached"] for r in records] == [cached, cached]
        assert records[1]["caption"] == asked.text


def test_models_show_says_that_videos_are_taken(
    bundle: Path, random_bundle: Path, capfd: Captured
) -> None:
    assert run(["models", "show", str(bundle), "--json"]) == 0
    video = json.loads(capfd.readouterr().out)["video"]
    assert (video["frames"], video["visual_tokens_per_frame"]) == (4, 4)
    assert run(["models", "show", str(bundle)]) == 0
    assert "visual_tokens_per_frame: 4" in capfd.readouterr().out
    assert run(["models", "show", str(random_bundle), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["video"] is None
    assert run(["models", "show", str(random_bundle)]) == 0
    assert "video: not taken" in capfd.readouterr().out


def test_a_video_in_a_folder_is_passed_over(
    bundle: Path, clip: Path, photo: Path, tmp_path: Path, capfd: Captured
) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    (folder / "a.mkv").write_bytes(clip.read_bytes())
    (folder / "b.png").write_bytes(photo.read_bytes())
    assert run(["caption", str(folder), "-m", str(bundle), "--jsonl"]) == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 1
    assert "1 video (MKV)" in err
    assert "name it with a model made for video" in err


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("output", "visual_tokens", "video.output: needs a name of its own"),
        ("output", "", "video.output: needs a name of its own"),
        ("grid", [2], "video.grid: must be two numbers"),
        ("grid", [0, 2], "video.grid: must be two numbers"),
        ("frames", 0, "video.frames: must lie in 1…256"),
        ("sampling", "random", "video.sampling: 'random'; known: uniform"),
        ("mode", "free", "video.mode: 'free'; known: pad"),
        ("resample", "sinc", "video.resample: 'sinc'; known"),
        ("fill", [0, 0, 256], "video.fill: must be three numbers"),
        ("before", "x" * 1001, "video.before: longer than 1000"),
        ("instruction", "x" * 1001, "video.instruction: longer than 1000"),
        ("between", "x" * 1001, "video.between: longer than 1000"),
        ("speed", 3, "video.speed: unknown field"),
    ],
)
def test_faults_of_the_manifest(bundle: Path, field: str, value: object, fault: str) -> None:
    data = json.loads((bundle / "manifest.json").read_text())
    data["video"][field] = value
    with pytest.raises(ManifestError) as caught:
        manifest_from_json(json.dumps(data), "manifest.json")
    assert any(fault in text for text in caught.value.faults)


def test_a_manifest_without_video_is_as_before(random_bundle: Path, bundle: Path) -> None:
    assert "video" not in json.loads((random_bundle / "manifest.json").read_text())
    manifest = manifest_from_bundle(bundle)
    assert manifest_from_json(manifest.to_json(), "again") == manifest
