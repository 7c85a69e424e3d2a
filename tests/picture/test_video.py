"""Videos: which frames are read, that they are upright, and what is refused."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.errors import ImageError, UsageError
from edgeprism.picture import video, video_container, video_source
from edgeprism.picture.read import read_picture
from edgeprism.picture.sampling import FrameChoice, check_frame_wishes, choose_frames
from edgeprism.picture.video_source import is_video, read_frames
from tests.helpers.videos import decoded, moving_frames, write_video

SIDE = 32
# each frame becomes its tile as it is, so that pixels can be compared
AS_IT_IS = ImagePolicy("stretch", SIDE, [0, 0, 0], "nearest", 1)
# container and codec; a key frame each 12 frames but where every frame is one
KINDS = {
    "clip.mkv": ("ffv1", "bgr0"),
    "clip.mp4": ("libx264", "yuv420p"),  # with frames out of order
    "clip.webm": ("libvpx", "yuv420p"),  # with frames that are not shown
    "clip.avi": ("mpeg4", "yuv420p"),  # whose container keeps no time of display
    "clip.ts": ("libx264", "yuv420p"),  # without an index
    "clip.mov": ("mjpeg", "yuvj420p"),
}


def read(source: Any, frames: int = 8, rate: float | None = None) -> video.VideoTiles:
    return read_frames(source, AS_IT_IS, FrameChoice(frames, rate), isolate=False)


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_those_that_a_player_shows(name: str, tmp_path: Path) -> None:
    codec, pixels = KINDS[name]
    path = write_video(
        tmp_path / name, moving_frames(60, (SIDE, SIDE)), codec=codec, pixel_format=pixels
    )
    stored = decoded(path)
    found = read(path, 7)
    places = np.linspace(0, len(stored) - 1, 7, dtype=int)
    assert found.sampled.frames == tuple(places)
    assert found.sampled.of == len(stored) == 60
    assert found.sampled.rule == "uniform"
    np.testing.assert_array_equal(found.tiles, np.stack([stored[i] for i in places]))
    assert found.size == (SIDE, SIDE)
    assert f"7 of {len(stored)} frames" in found.notes
    if found.sampled.seconds:
        assert found.sampled.seconds == pytest.approx(places / 10, abs=0.051)


def test_a_child_reads_the_same_from_a_path_bytes_and_a_stream(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", moving_frames(20, (SIDE, SIDE)), sound=True)
    choice = FrameChoice(5)
    here = read(path, 5)
    with path.open("rb") as stream:
        for source in (path, path.read_bytes(), stream):
            there = read_frames(source, AS_IT_IS, choice)
            np.testing.assert_array_equal(there.tiles, here.tiles)
            assert (there.sampled, there.sha256, there.size) == (
                here.sampled, here.sha256, here.size,
            )  # fmt: skip


def test_uniform_places_are_numpys_linspace() -> None:
    for n, count in itertools.product((1, 2, 7, 24, 100, 9_999), (1, 2, 3, 8, 32)):
        rule, places = choose_frames(n, FrameChoice(count))
        assert rule == "uniform"
        # rounded before it is cut: 6.999999 in floating point is 7
        exact = np.linspace(0, n - 1, min(count, n))
        assert places == np.floor(np.round(exact, 6)).astype(int).tolist()


def test_frames_of_each_second() -> None:
    at_30 = [i / 30 for i in range(300)]
    assert choose_frames(300, FrameChoice(32, 1.0), at_30) == (
        "per-second",
        list(range(0, 300, 30)),
    )
    assert choose_frames(300, FrameChoice(32, 2.0), at_30)[1] == list(range(0, 300, 15))
    # more than fit: at even distances, as upstream does
    assert choose_frames(300, FrameChoice(4, 1.0), at_30) == ("uniform", [0, 99, 199, 299])
    assert choose_frames(300, FrameChoice(4, 1.0)) == ("uniform", [0, 99, 199, 299])  # no times
    with_gap = [0.0, 0.5, 1.1, 5.0, 5.1, 6.4]
    assert choose_frames(6, FrameChoice(9, 1.0), with_gap) == ("per-second", [0, 2, 3, 5])


def test_a_rate_chooses_frames_of_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", moving_frames(35, (SIDE, SIDE)), codec="libx264",
                       pixel_format="yuv420p")  # fmt: skip
    found = read(path, 8, 1.0)
    assert found.sampled.frames == (0, 10, 20, 30)
    assert found.sampled.seconds == (0.0, 1.0, 2.0, 3.0)
    assert (found.sampled.rule, found.sampled.frames_per_second) == ("per-second", 1.0)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
@pytest.mark.parametrize("flipped", [False, True])
def test_frames_are_upright(rotation: int, flipped: bool, tmp_path: Path) -> None:
    frame = moving_frames(1, (40, 24))[0]
    frame[:6, :6] = [255, 255, 0]  # a corner to tell turns by
    path = write_video(tmp_path / "clip.mp4", [frame] * 3, codec="libx264", pixel_format="yuv444p",
                       rotation=rotation, flipped=flipped)  # fmt: skip
    stored = decoded(path)[0]
    shown = np.rot90(stored, rotation // 90)
    shown = shown[:, ::-1] if flipped else shown
    height, width = shown.shape[:2]
    policy = ImagePolicy("stretch", 40, [0, 0, 0], "nearest", 1)
    found = read_frames(path, policy, FrameChoice(1), isolate=False)
    assert found.size == (width, height)
    expected = Image.fromarray(shown).resize((40, 40), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found.tiles[0], np.asarray(expected))


def test_the_end_of_a_cut_file_is_told(tmp_path: Path) -> None:
    """Its index, at the start, lists frames that are not there."""
    path = write_video(tmp_path / "clip.mkv", moving_frames(40, (SIDE, SIDE)))
    data = path.read_bytes()
    found = read(data[: len(data) // 2], 4)
    assert 10 < found.sampled.of < 30
    assert found.sampled.frames[-1] == found.sampled.of - 1
    assert any("the end may be missing" in note for note in found.notes)


def write_noise(path: Path, count: int = 50) -> bytearray:
    """Write frames that compress badly, with a key frame each 12; an MP4's index is at its end."""
    rng = np.random.default_rng(5)
    frames = [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(count)]
    codec, pixels = KINDS[path.name]
    return bytearray(
        write_video(path, frames, codec=codec, pixel_format=pixels).read_bytes()
    )  # fmt: skip


@pytest.mark.parametrize("name", ["clip.avi", "clip.mkv"])
def test_a_file_that_lacks_its_end_is_told_from_a_whole_one(name: str, tmp_path: Path) -> None:
    data = write_noise(tmp_path / name)
    assert read(bytes(data), 4).notes == ("4 of 50 frames",)
    for share in (0.4, 0.8):
        notes = read(bytes(data[: int(len(data) * share)]), 4).notes
        assert any("cut off: of 50" in note or "may be missing" in note for note in notes), notes


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_a_damaged_end_is_told_and_what_precedes_it_is_shown(share: float, tmp_path: Path) -> None:
    data = write_noise(tmp_path / "clip.mp4")
    whole = read(bytes(data), 8)
    end = data.rindex(b"moov") - 4
    data[end - int(share * end) : end] = bytes(int(share * end))
    found = read(bytes(data), 8)
    assert len(found.tiles) == 8
    assert any("cannot be decoded" in note for note in found.notes), found.notes
    kept = int(8 * (1 - share)) - 1
    np.testing.assert_array_equal(found.tiles[:kept], whole.tiles[:kept])
    assert found.sampled.frames[:kept] == whole.sampled.frames[:kept]


def test_the_record_names_the_frame_that_stands_for_lost_ones(tmp_path: Path) -> None:
    data = write_noise(tmp_path / "clip.mp4")
    end = data.rindex(b"moov") - 4
    data[end // 2 : end] = bytes(end - end // 2)
    found = read(bytes(data), 8)
    places, seconds = found.sampled.frames, found.sampled.seconds
    assert len(places) == len(seconds) == 8
    assert places[-1] == places[-2] < 49
    assert seconds[-1] == pytest.approx(places[-1] / 10, abs=0.01)
    note = next(note for note in found.notes if note.startswith("its end cannot"))
    assert f"frame {places[-1]} stands for {places.count(places[-1]) - 1} more" in note
    for earlier, later in itertools.pairwise(zip(places, found.tiles, strict=True)):
        assert (earlier[0] == later[0]) == np.array_equal(earlier[1], later[1])


def test_damage_in_the_middle_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    data = write_noise(tmp_path / "clip.mp4")
    whole = read(bytes(data), 8)
    end = data.rindex(b"moov") - 4
    data[int(0.4 * end) : int(0.5 * end)] = bytes(int(0.5 * end) - int(0.4 * end))
    found = read(bytes(data), 8)
    assert any(note.startswith("damaged") for note in found.notes), found.notes
    for i in (0, 1, 7):
        np.testing.assert_array_equal(found.tiles[i], whole.tiles[i])
    assert list(found.sampled.frames) == sorted(found.sampled.frames)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_aborted_download_shows_what_has_arrived(share: float, tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", moving_frames(60, (SIDE, SIDE)), codec="libx264",
                       pixel_format="yuv420p", index_first=True)  # fmt: skip
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    body = data.index(b"mdat")
    found = read(data[: body + int((len(data) - body) * share)], 4)
    assert len(found.tiles) == 4
    assert len(found.notes) > 1, found.notes


# ---- refusals


def refused(source: Any, words: str, **more: Any) -> ImageError:
    with pytest.raises(ImageError, match=words) as caught:
        read_frames(source, AS_IT_IS, FrameChoice(4), **{"isolate": False, **more})
    assert caught.value.hint
    return caught.value


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    for name, data, words in (
        ("empty.mp4", b"", "the file is empty"),
        ("junk.mp4", np.random.default_rng(0).bytes(5000), "not a video that can be read"),
        ("head.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "damaged or cut off|no moving picture"),
        ("text.mp4", b"no video at all\n" * 100, "not a video that can be read"),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        error = refused(path, words)
        assert str(path) in error.message
        refused(path, words, isolate=True)
    refused(tmp_path / "absent.mp4", "no such file")
    refused(tmp_path, "is a directory")
    sound = tmp_path / "sound.mp4"
    import av

    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        heard = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        heard.sample_rate, heard.pts = 8000, 0
        container.mux(stream.encode(heard))
        container.mux(stream.encode())
    refused(sound, "has no moving picture: it holds sound alone")
    song = tmp_path / "song.m4a"
    song.write_bytes(sound.read_bytes()[:4] + b"ftypM4A " + bytes(500))
    with pytest.raises(ImageError, match=r"song\.m4a: by its name a sound file, which has no pict"):
        read_picture(song)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.mp4'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video {port} RTP/AVP 96\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>'
        "http://127.0.0.1:{port}/</BaseURL></Period></MPD>",
    ],
)
def test_a_playlist_reaches_no_network_and_no_other_file(text: str, tmp_path: Path) -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.1)
        path = tmp_path / "list.mp4"
        path.write_text(text.format(port=server.getsockname()[1]))
        refused(path, "not a video that can be read|cannot be read")
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_film_that_refers_to_another_file_does_not_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever FFmpeg wants to open beside the video goes through this one function."""
    opened: list[str] = []
    monkeypatch.setattr(video_container, "_CONTAINERS", f"{video_container._CONTAINERS},concat,hls")
    right = video_container._refuse

    def refuse(url: str, *more: Any) -> Any:
        opened.append(url)
        return right(url, *more)

    monkeypatch.setattr(video_container, "_refuse", refuse)
    other = write_video(tmp_path / "other.mkv", moving_frames(3, (SIDE, SIDE)))
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{other.name}'\n")
    refused(path, "other.mkv|not a video that can be read|damaged")
    assert all("other.mkv" in url for url in opened)


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mkv", moving_frames(20, (SIDE, SIDE)))
    with monkeypatch.context() as patch:
        patch.setattr(video_container, "_MAX_PIXELS", SIDE * SIDE - 1)
        refused(path, "frames of 32 × 32 pixels|damaged")
    with monkeypatch.context() as patch:
        patch.setattr(video_container, "_MAX_PACKETS", 19)
        refused(path, "more than 19 frames")
    with monkeypatch.context() as patch:
        patch.setattr(video, "MAX_VIDEO_BYTES", 1000)
        refused(path, "larger than")
    with monkeypatch.context() as patch:
        patch.setattr(video_source, "_TIMEOUT_S", 0.001)
        refused(path, "took longer than", isolate=True)
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:  # sparse
        file.write(path.read_bytes())
        file.truncate((8 << 30) + 1)
    assert "ffmpeg" in refused(large, "larger than 8 GiB").hint


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mkv", moving_frames(2, (SIDE, SIDE)))
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    assert 'pip install "edgeprism[video]"' in refused(path, "needs PyAV").hint
    assert sys.executable in refused(path, "needs PyAV").hint


@pytest.mark.parametrize("seed", range(12))
def test_damaged_files_are_read_or_refused(seed: int, tmp_path: Path) -> None:
    names = ("clip.mp4", "clip.webm", "clip.avi", "clip.ts")
    name = names[seed % len(names)]
    codec, pixels = KINDS[name]
    path = write_video(tmp_path / name, moving_frames(16, (SIDE, SIDE)), codec=codec,
                       pixel_format=pixels)  # fmt: skip
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for place in rng.integers(0, len(data), 30):
        data[place] = rng.integers(256)
    path.write_bytes(bytes(data))
    try:
        found = read(path, 4)
    except ImageError:
        assert name in refused(path, "damaged|not a video|no frame|has no moving picture").message
    else:
        assert found.tiles.shape[1:] == (SIDE, SIDE, 3)
        assert len(found.tiles) == len(found.sampled.frames)


@pytest.mark.parametrize("name", KINDS)
def test_a_video_is_told_from_a_picture(name: str, tmp_path: Path) -> None:
    codec, pixels = KINDS[name]
    path = write_video(tmp_path / name, moving_frames(4, (SIDE, SIDE)), codec=codec,
                       pixel_format=pixels)  # fmt: skip
    data = path.read_bytes()
    for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data)):
        assert is_video(source)
    path.rename(tmp_path / "clip.dat")
    assert is_video(tmp_path / "clip.dat")
    for given in (tmp_path / "clip.dat", data):
        with pytest.raises(ImageError, match="a video, where a picture is expected") as caught:
            read_picture(given)
        assert "ffmpeg" in caught.value.hint


def test_what_is_no_video_is_not_taken_for_one(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10), "red")
    forms: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {}),
        ("PPM", {}), ("AVIF", {}),
    ]  # fmt: skip
    for form, options in forms:
        data = io.BytesIO()
        picture.save(data, form, **options)
        assert not is_video(data.getvalue()), form
        assert not is_video(io.BytesIO(data.getvalue()))
    (tmp_path / "photo.mp4").write_bytes(data.getvalue())
    assert not is_video(tmp_path / "photo.mp4")
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    assert is_video(tmp_path / "junk.mp4")  # by its name; the reader says that it is damaged
    for source in (picture, np.zeros((4, 4, 3), np.uint8), tmp_path, tmp_path / "absent.mp4", b"",
                   io.StringIO("text"), None, 3):  # fmt: skip
        assert not is_video(source)


@pytest.mark.parametrize(
    ("frames", "rate", "words"),
    [
        (0, None, "frames must be at least 1"),
        (257, None, "frames must be at most 256"),
        (True, None, "frames must be an integer"),
        (2.5, None, "frames must be an integer"),
        (None, 0, "frames_per_second must be a number of at least"),
        (None, float("nan"), "frames_per_second must be"),
        (None, 1e9, "frames_per_second must be at most 1000"),
        (None, "1", "frames_per_second must be a number"),
    ],
)
def test_wishes_out_of_range_are_refused(frames: Any, rate: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_frame_wishes(frames, rate)
