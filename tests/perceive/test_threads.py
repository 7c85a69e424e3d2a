"""A captioner that threads, streams and processes share."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeprism import Captioner, EdgePrismError, UsageError
from edgeprism.folder.run import FolderRun
from edgeprism.machine.facts import available_cores
from edgeprism.models import nano

EXAMPLES = sorted((Path(nano.__file__).parent / "examples").glob("*.png"))
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def real() -> Iterator[Captioner]:
    with Captioner.load("nano", device="cpu") as captioner:
        yield captioner


def test_fifty_threads_get_their_own_captions(real: Captioner) -> None:
    """Half of them by streams, one of ten gives its stream up, some close the captioner."""
    expected = [real.caption(path).text for path in EXAMPLES]
    results: queue.Queue[tuple[int, str] | BaseException] = queue.Queue()

    def work(number: int) -> None:
        index = number % len(EXAMPLES)
        try:
            if number % 10 == 3:
                next(real.stream(EXAMPLES[index]))  # and no more
                return
            if number % 10 == 7:
                real.close()
            if number % 2:
                results.put((index, "".join(real.stream(EXAMPLES[index]))))
            else:
                results.put((index, real.caption(EXAMPLES[index]).text))
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    texts = list(results.queue)
    assert len(texts) == 45
    assert [item for item in texts if isinstance(item, BaseException)] == []
    assert all(text == expected[index] for index, text in texts)


def test_a_stream_holds_the_captioner_until_its_end(captioner: Captioner) -> None:
    expected = captioner.caption(picture(2)).text
    stream = captioner.stream(picture(1), caption_tokens=8)
    texts: list[str] = []
    thread = in_thread(lambda: texts.append(captioner.caption(picture(2)).text))
    first = next(stream)
    time.sleep(0.2)
    assert texts == [], "the other thread waits"
    rest = "".join(stream)
    thread.join(30)
    assert texts == [expected]
    assert stream.caption.text == first + rest == stream.text


@pytest.mark.parametrize("how", ["closed here", "closed there", "dropped", "its thread ended"])
def test_a_stream_that_is_given_up(how: str, captioner: Captioner) -> None:
    """It frees the captioner for other threads."""
    kept: list[object] = []

    def begin() -> None:
        stream = captioner.stream(picture(1), caption_tokens=50)
        next(stream)
        if how == "closed here":
            stream.close()
        if how != "dropped":
            kept.append(stream)

    if how == "its thread ended":
        in_thread(begin).join()
    else:
        begin()
    if how == "dropped":
        gc.collect()
    if how == "closed there":
        in_thread(kept[0].close).join()  # type: ignore[attr-defined]
    texts: list[str] = []
    thread = in_thread(lambda: texts.append(captioner.caption(picture(2)).text))
    thread.join(20)
    assert len(texts) == 1


def test_a_stream_may_move_to_another_thread(captioner: Captioner) -> None:
    expected = captioner.caption(picture(1), caption_tokens=12).text
    stream = captioner.stream(picture(1), caption_tokens=12)
    pieces = [next(stream)]
    in_thread(lambda: pieces.extend(stream)).join(20)
    assert "".join(pieces) == expected
    # and the thread that read it last may use the captioner meanwhile
    moved = captioner.stream(picture(1), caption_tokens=12)
    texts: list[str] = []

    def read_and_caption() -> None:
        next(moved)
        texts.append(captioner.caption(picture(1), caption_tokens=12).text)

    in_thread(read_and_caption).join(20)
    assert texts == [expected]


def test_two_threads_read_one_stream(captioner: Captioner) -> None:
    expected = captioner.caption(picture(3), caption_tokens=60).text
    stream = captioner.stream(picture(3), caption_tokens=60)
    pieces: list[str] = []
    threads = [in_thread(lambda: pieces.extend(stream)) for _ in range(2)]
    for thread in threads:
        thread.join(30)
    assert stream.text == expected
    assert sorted(pieces) == sorted(p for p in pieces if p in expected)
    assert sum(map(len, pieces)) == len(expected)


def test_a_caption_inside_a_stream_of_the_same_thread(captioner: Captioner) -> None:
    """It is no deadlock: it ends the stream, which says so."""
    expected = captioner.caption(picture(2)).text
    stream = captioner.stream(picture(1), caption_tokens=50)
    next(stream)
    assert captioner.caption(picture(2)).text == expected
    with pytest.raises(UsageError, match="later request has ended this one"):
        list(stream)
    assert list(stream) == []


def test_closing_while_a_stream_runs(captioner: Captioner) -> None:
    expected = captioner.caption(picture(1), caption_tokens=40).text
    stream = captioner.stream(picture(1), caption_tokens=40)
    next(stream)
    captioner.close()
    with pytest.raises(UsageError, match="has ended this one"):
        next(stream)
    # another thread's `close` waits
    stream = captioner.stream(picture(1), caption_tokens=40)
    pieces = [next(stream)]
    thread = in_thread(captioner.close)
    time.sleep(0.2)
    pieces += list(stream)
    thread.join(20)
    assert not thread.is_alive()
    assert "".join(pieces) == expected
    assert captioner.caption(picture(1), caption_tokens=40).text == expected


def test_before_its_end_a_stream_has_no_caption(captioner: Captioner) -> None:
    stream = captioner.stream(picture(1), caption_tokens=5)
    next(stream)
    for name in ("caption", "text", "ids"):
        with pytest.raises(UsageError, match="not read to the end"):
            getattr(stream, name)
    assert stream.finished().text == stream.caption.text


def test_cancel_stops_a_caption_of_another_thread(captioner: Captioner) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10_000):
                captioner.caption(picture(1))
        except EdgePrismError as error:
            caught.append(error)

    thread = in_thread(work)
    while thread.is_alive():
        captioner.cancel()
        time.sleep(0.05)
    assert [type(error).__name__ for error in caught] == ["Interrupted"]


def test_a_folder_and_single_pictures(
    scripted_captioner: Captioner, photo: Path, tmp_path: Path
) -> None:
    """Other threads wait for a folder's run; closing the captioner within it is refused."""
    (tmp_path / "many").mkdir()
    for name in "abcd":
        (tmp_path / "many" / f"{name}.png").write_bytes(photo.read_bytes() + name.encode())
    texts: list[str] = []
    with FolderRun(tmp_path / "many", scripted_captioner) as run:
        outcomes = iter(run)
        first = next(outcomes)
        thread = in_thread(lambda: texts.append(scripted_captioner.caption(photo).text))
        with pytest.raises(UsageError, match="at work on a folder"):
            scripted_captioner.close()
        assert first.error is None
        assert texts == []
        assert len(list(outcomes)) == 3
    thread.join(20)
    assert len(texts) == 1
    scripted_captioner.close()


# ---- processes


def caption_in(captioner: Captioner, results: multiprocessing.Queue[str]) -> None:
    results.put(captioner.caption(picture(1), caption_tokens=20).text)


def test_a_pickled_captioner_opens_again(captioner: Captioner) -> None:
    expected = captioner.caption(picture(1), caption_tokens=20).text
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    process = context.Process(target=caption_in, args=(captioner, results))
    process.start()
    assert results.get(timeout=60) == expected
    process.join(30)
    assert process.exitcode == 0
    copy = pickle.loads(pickle.dumps(captioner))
    assert repr(copy).startswith(f"<Captioner {captioner.bundle.name!r}")
    assert "threads=1" in repr(copy)
    assert "not loaded" in repr(copy)
    assert "not loaded" not in repr(captioner)


def test_a_stream_cannot_be_pickled(captioner: Captioner) -> None:
    with pytest.raises(UsageError, match="cannot be pickled"):
        pickle.dumps(captioner.stream(picture(1), caption_tokens=4))


FORK = """
import os, signal, sys
from pathlib import Path
from edgeprism import Captioner, EdgePrismError
from edgeprism.models import nano
photo = sorted((Path(nano.__file__).parent / "examples").glob("*.png"))[0]
before, threads, then = sys.argv[1:]
captioner = Captioner.load("nano", threads=int(threads), device="cpu")
stream = None
if before == "captioned":
    captioner.caption(photo)
if before == "streaming":
    stream = captioner.stream(photo)
    next(stream)
child = os.fork()
if child == 0:
    signal.alarm(60)  # a deadlock
    try:
        if then == "caption":
            print(captioner.caption(photo).text)
        elif then == "another":
            print(Captioner.load("nano", threads=int(threads), device="cpu").caption(photo).text)
        elif then == "close":
            captioner.close()
        elif then == "stream":
            list(stream)
    except EdgePrismError as error:
        print("told:", error)
    sys.exit(0)
_, status = os.waitpid(child, 0)
print("ended:", os.waitstatus_to_exitcode(status))
print(captioner.caption(photo).text)
"""


@needs_fork
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("before", "then"),
    [("fresh", "caption"), ("captioned", "caption"), ("captioned", "another"),
     ("captioned", "close"), ("captioned", "nothing"), ("streaming", "stream"),
     ("streaming", "caption")],
)  # fmt: skip
def test_after_a_fork(before: str, then: str, threads: int) -> None:
    """Usable, or told how to be; never a deadlock: the child has none of the engines' threads."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, before, str(threads), then],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, caption = done.stdout.splitlines()
    assert "ended: 0" in lines
    said = [line for line in lines if line != "ended: 0"]
    if then in ("close", "nothing"):
        assert said == []
    elif then == "stream":
        assert "later request has ended" in said[0]
    elif threads > 1 and before != "fresh" and available_cores() > 1:
        assert 'get_context("spawn")' in said[0]
    else:
        assert said == [caption]


@needs_fork
def test_a_fork_while_another_thread_captions(captioner: Captioner) -> None:
    """The child waits for no thread that it does not have."""
    expected = captioner.caption(picture(1), caption_tokens=5).text
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            captioner.caption(picture(2), caption_tokens=40)

    thread = in_thread(work)
    time.sleep(0.1)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        same = captioner.caption(picture(1), caption_tokens=5).text == expected
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    stop.set()
    thread.join(30)
    assert os.waitstatus_to_exitcode(status) == 0


# ---- many pictures from Python


def test_captioning_many(captioner: Captioner) -> None:
    pictures = [picture(seed) for seed in range(3)]
    expected = [captioner.caption(each, caption_tokens=6).text for each in pictures]
    many = captioner.caption_many((each for each in pictures), caption_tokens=6)
    assert [caption.text for caption in many] == expected
    with pytest.raises(UsageError, match="several pictures"):
        captioner.caption_many("photo.png")
    with pytest.raises(UsageError, match="temperature"):
        captioner.caption_many(pictures, temperature=-1)


def test_a_list_of_one(captioner: Captioner) -> None:
    """Also for a model that takes one picture at a time."""
    one = captioner.caption([picture(1)], caption_tokens=6)
    assert one.text == captioner.caption(picture(1), caption_tokens=6).text
    with pytest.raises(UsageError, match="one picture at a time"):
        captioner.caption([picture(1), picture(2)])
