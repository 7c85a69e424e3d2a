"""What a single picture may cost: usual ones are decoded at once, the others within limits."""

from __future__ import annotations

import io
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from edgeprism.errors import ImageError
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture import child_decoder, cost, source
from edgeprism.picture.read import read_picture
from tests.helpers.colours import chart, png_chunk, png_file
from tests.helpers.tiffs import written


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(chart()).resize((width, height))


def heif(image: Image.Image) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=50)
    return file.getvalue()


def many_scans(size: int, repeats: int) -> bytes:
    """A progressive JPEG whose last scan stands there many times: a small file, slow to decode."""
    whole = saved(Image.new("RGB", (size, size), (90, 120, 30)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * repeats + whole[-2:]


def run_length_bitmap(width: int, height: int) -> bytes:
    """A bitmap of run lengths: nothing but ends of lines, over which Pillow goes in Python."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    body = (b"\x01\x00" * (width % 50 + 1) + b"\0\0") * height + b"\0\1"
    start = 14 + 40 + 1024
    return (
        b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body
    )


USUAL: dict[str, Callable[[], bytes]] = {
    "jpeg of a camera": lambda: saved(photo(6000, 4000), "JPEG"),
    "progressive jpeg": lambda: saved(photo(4000, 3000), "JPEG", progressive=True),
    "mpo": lambda: saved(photo(900, 600), "MPO", save_all=True, append_images=[photo(90, 60)]),
    "png": lambda: saved(photo(3000, 2000), "PNG", compress_level=1),
    "apng": lambda: saved(photo(90, 60), "PNG", save_all=True, append_images=[photo(90, 60)]),
    "16-bit png": lambda: png_file(np.asarray(photo(900, 600), np.uint16) * 257),
    "gif": lambda: saved(photo(800, 600), "GIF", save_all=True, append_images=[photo(800, 600)]),
    "bmp": lambda: saved(photo(3000, 2000), "BMP"),
    "webp": lambda: saved(photo(3000, 2000), "WEBP", method=0),
    "lossless webp": lambda: saved(photo(900, 600), "WEBP", lossless=True),
    "webp with alpha": lambda: saved(photo(900, 600).convert("RGBA"), "WEBP", exif=b"Exif\0\0"),
    "avif": lambda: saved(photo(900, 600), "AVIF", speed=10),
    "heic": lambda: heif(photo(900, 600)),
    "tiff": lambda: saved(photo(3000, 2000), "TIFF"),
    "tiff with tiles": lambda: written(np.asarray(photo(900, 600)), tile=(256, 256),
                                       compression="jpeg", photometric="rgb"),
    "ppm": lambda: saved(photo(3000, 2000), "PPM"),
    "small 16-bit pgm": lambda: b"P5\n#by hand\n9 9\n65535\n" + bytes(162),
}  # fmt: skip


@pytest.mark.parametrize("kind", USUAL)
def test_usual_pictures_start_no_process(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(child_decoder, "ChildDecoder", refuse)
    assert read_picture(USUAL[kind]()).rgb.mode == "RGB"


COSTLY: dict[str, Callable[[], bytes]] = {
    "scans": lambda: many_scans(4000, 40),
    "run lengths": lambda: run_length_bitmap(1500, 1500),
    "pixels": lambda: saved(Image.new("1", (7_000, 7_000)), "TIFF", compression="group4"),
    "numbers as text": lambda: b"P3\n300 400\n255\n" + b"12 130 250\n" * 120_000,
    "chunks": lambda: png_file(chart(), *[png_chunk(b"tIME", bytes(7))] * 30_000),
    "frames": lambda: saved(Image.new("P", (3000, 2000)), "GIF", save_all=True,
                            append_images=[Image.new("P", (3000, 2000), 1)]),
    "segments": lambda: b"\xff\xd8" + b"\xff\xfe\0\3x" * 3000 + saved(photo(90, 60), "JPEG")[2:],
}  # fmt: skip


@pytest.mark.parametrize("kind", COSTLY)
def test_costly_pictures_are_read_in_a_process_of_their_own(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    decoder = child_decoder.ChildDecoder

    def counted(settings: dict[str, Any]) -> Any:
        started.append(settings)
        return decoder(settings)

    monkeypatch.setattr(child_decoder, "ChildDecoder", counted)
    data = COSTLY[kind]()
    apart = read_picture(data)
    assert len(started) == 1
    here = read_picture(data, isolate=False)
    assert len(started) == 1
    assert apart.rgb.tobytes() == here.rgb.tobytes()
    assert (apart.size, apart.notes, apart.sha256) == (here.size, here.notes, here.sha256)


def test_a_picture_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "_FIXED_S", 1.0)
    monkeypatch.setattr(cost, "_S_PER_PIXEL", 0.0)
    start = time.perf_counter()
    with pytest.raises(ImageError, match="image in memory: reading it took longer than 1 s"):
        read_picture(many_scans(6000, 2500))
    assert time.perf_counter() - start < 15


def test_no_limit_is_longer_than_a_minute() -> None:
    assert cost.Cost(False, 0).time_limit_s == 60
    assert cost.Cost(False, 10**12).time_limit_s == 60
    assert 10 < cost.decoding_cost(many_scans(4000, 40)).time_limit_s < 20


def test_a_picture_that_takes_too_much_memory_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_decoder, "MEMORY_BYTES", 700 << 20)
    data = saved(Image.new("1", (13_000, 13_000)), "TIFF", compression="group4")
    with pytest.raises(ImageError, match=r"needs more memory than there is|broke its decoder"):
        read_picture(data)


def test_too_little_memory_is_no_damage() -> None:
    """In a process whose own limit is below what the picture needs."""
    code = """
import resource, sys
from edgeprism.picture.read import read_picture
import PIL.PngImagePlugin
data = sys.stdin.buffer.read()
resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20))
try:
    read_picture(data, isolate=False)
except Exception as error:
    print(error)
"""
    data = saved(Image.new("1", (12_000, 12_000)), "PNG")
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True,
                          env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, check=True)  # fmt: skip
    assert b"image in memory: reading it needs more memory than there is" in done.stdout


def test_deep_grey_is_scaled_in_little_memory() -> None:
    """It took 28 bytes a pixel: three copies as 64-bit floats."""
    code = """
import resource, sys
from edgeprism.picture.read import read_picture
read_picture(b"P5\\n4 4\\n65535\\n" + bytes(32))  # loads what is loaded at the first picture
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_picture(sys.stdin.buffer.read(), isolate=False)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    data = png_file(np.zeros((5000, 5000), np.uint16))
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert int(done.stdout) < 12 * 25  # megabytes, at 12 bytes a pixel


def test_width_and_height_are_looked_at_first() -> None:
    """This bitmap of 20 lines took 19 s before its width was found to be too large."""
    data = run_length_bitmap(70_000, 20)
    start = time.perf_counter()
    with pytest.raises(ImageError, match="at most 65535 across"):
        read_picture(data, isolate=False)
    assert time.perf_counter() - start < 0.5


def test_the_captioner_may_be_told_to_start_no_process(random_bundle: Path) -> None:
    data = COSTLY["numbers as text"]()
    with (
        Captioner.load(random_bundle, device="cpu", isolate_decoding=False) as captioner,
        pytest.MonkeyPatch.context() as refused,
    ):
        refused.setattr(child_decoder, "ChildDecoder", None)
        assert captioner.encode(data).size == (300, 400)


# ---- files that change while they are read


def test_a_file_that_becomes_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a regular file when it was looked at; opening the pipe would wait for ever."""
    path, regular = tmp_path / "a.png", tmp_path / "b.png"
    regular.write_bytes(saved(photo(9, 9), "PNG"))
    status = regular.stat()
    os.mkfifo(path)
    real = os.stat

    def before(name: Any, **options: Any) -> os.stat_result:
        return status if name == str(path) else real(name, **options)

    monkeypatch.setattr("edgeprism.picture.source.os.stat", before)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            read_picture(path)
        except ImageError as error:
            errors.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert "is not a regular file" in str(errors[0])


@pytest.mark.parametrize("growth", [0, 1, 100_000])
def test_a_file_that_grows(tmp_path: Path, growth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor is read to its end, or to the limit; its size may have been another."""
    path = tmp_path / "a.png"
    data = saved(photo(90, 60), "PNG")
    path.write_bytes(data + bytes(growth))
    real = os.fstat

    def smaller(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        return os.stat_result((*status[:6], min(len(data), status.st_size), *status[7:]))

    monkeypatch.setattr("edgeprism.picture.source.os.fstat", smaller)
    assert read_picture(path).rgb.size == (90, 60)
    monkeypatch.setattr(source, "MAX_FILE_BYTES", len(data))
    if growth:
        with pytest.raises(ImageError, match="larger than"):
            read_picture(path)
    else:
        assert read_picture(path).rgb.size == (90, 60)


def test_a_file_that_calls_itself_regular_and_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc/kmsg does: reading it waits for the kernel's next message."""
    path = tmp_path / "kmsg.png"
    path.touch()
    ends = os.pipe()
    real = os.open
    monkeypatch.setattr(
        "edgeprism.picture.source.os.open",
        lambda name, flags, *more: os.dup(ends[0]) if "kmsg" in name else real(name, flags, *more),
    )
    os.set_blocking(ends[0], False)
    monkeypatch.setattr("edgeprism.picture.source.os.fstat", lambda _: path.stat())
    with pytest.raises(ImageError, match=r"kmsg\.png: is not a regular file"):
        read_picture(path)
    for end in ends:
        os.close(end)
    assert stat.S_ISREG(path.stat().st_mode)


# ---- decoders and their parent


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("how", ["pool", "single"])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGHUP])
def test_a_decoder_ends_with_its_parent(tmp_path: Path, how: str, ending: signal.Signals) -> None:
    """A killed parent used to leave its decoders running, without any limit of time."""
    path = tmp_path / "slow.jpg"
    path.write_bytes(many_scans(6000, 2500))
    code = f"""
from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.picture.read import read_picture
from edgeprism.picture.workers import DecodePool
if {how == "pool"}:
    with DecodePool(ImagePolicy("pad", 28, [9, 9, 9], "bicubic", 1), 1) as pool:
        pool.submit({str(path)!r}).result()
else:
    read_picture({str(path)!r})
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    decoders = wait_for(lambda: [pid for pid in children(parent.pid) if cpu_seconds(pid) > 0.7])
    parent.send_signal(ending)
    parent.wait()
    try:
        assert wait_for(lambda: not any(runs(pid) for pid in decoders)), "a decoder still runs"
    finally:
        for pid in decoders:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = stat_fields(int(folder.name))
        if fields and int(fields[1]) == parent:
            found.append(int(folder.name))
    return found


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; [] if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def runs(pid: int) -> bool:
    fields = stat_fields(pid)
    return bool(fields) and fields[0] != "Z"


def cpu_seconds(pid: int) -> float:
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def test_a_decoder_without_a_parent_runs_out_of_cpu_time() -> None:
    """The last resort: the system ends a decoder that uses far more time than it may."""
    code = """
import resource
from edgeprism.picture.workers import _limit_cpu_time
_limit_cpu_time(60.0)
print(resource.getrlimit(resource.RLIMIT_CPU)[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 100 <= int(done.stdout) <= 60 * (os.cpu_count() or 1) + 60
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] == resource.RLIM_INFINITY


def test_bombs_in_chunks_are_not_unpacked() -> None:
    """A profile and texts of many megabytes are not unpacked to see that they are too large."""
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(80)) + packer.flush()
    start = time.perf_counter()
    picture = read_picture(png_file(chart(), png_chunk(b"iCCP", b"x\0\0" + bomb),
                                    png_chunk(b"zTXt", b"k\0\0" + bomb)))  # fmt: skip
    assert picture.rgb.size == (96, 64)
    assert time.perf_counter() - start < 3
