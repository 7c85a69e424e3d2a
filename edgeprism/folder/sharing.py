"""Work shared through the caption store: with earlier runs, and with other processes now."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from edgeprism.files.safe_text import counted
from edgeprism.folder.events import Notice
from edgeprism.picture.video import VideoTiles
from edgeprism.store.caption_store import CaptionStore, default_path
from edgeprism.store.claims import LEASE_S, RENEW_S
from edgeprism.store.database import StoreError

if TYPE_CHECKING:
    from edgeprism.folder.events import Job
    from edgeprism.picture.workers import Decoded
    from edgeprism.store.request_key import RequestKey

POLL_S = 0.2  # poll interval while another process captions the same picture


def known_record(
    store: CaptionStore, request: RequestKey, job: Job, decoded: Decoded | VideoTiles
) -> dict[str, Any] | None:
    """Return the stored caption of a decoded picture; None if it is to be made.

    A picture is also known by its tiles, which are all that the model sees: a program that writes
    a rating into a file leaves them as they are. Its caption is then stored for the new file too.
    """
    record = store.get(job.key)
    if record is not None or isinstance(decoded, VideoTiles):
        return record  # a video's record tells of its frames' places, which its tiles do not
    job.tiles_sha256 = tiles_digest(decoded)
    alike = store.get_alike(request, job.tiles_sha256)
    if alike is None:
        return None
    record = {
        **alike,
        "image_sha256": decoded.sha256,
        "image_size": list(decoded.size),
        "notes": list(decoded.notes),
    }
    keep(store, request, job, record)
    return record


def keep(store: CaptionStore, request: RequestKey, job: Job, record: dict[str, Any]) -> None:
    """Store the record of a job's picture."""
    path = None if job.picture.is_stdin else job.picture.path
    store.put(
        request, record["image_sha256"], record, path=path, tiles_sha256=job.tiles_sha256 or None
    )


def tiles_digest(decoded: Decoded) -> str:
    """Return the sha256 of what a model sees of a picture: its size and its tiles' pixels."""
    digest = hashlib.sha256(f"{decoded.size}{decoded.tiles.shape}".encode())
    digest.update(decoded.tiles.tobytes())
    return digest.hexdigest()


class StoreOpener:
    """Opens the user's caption store for each thread of a run.

    With `on_notice`, a store that cannot be written is no error: `on_notice` is told so, once.
    """

    def __init__(self, on_notice: Callable[[str], object] | None) -> None:
        self._tell = on_notice
        self._told: set[str] = set()

    def tell_through(self, notify: Callable[[str], object]) -> None:
        """Tell through `notify` from now on, which any thread may call."""
        self._tell = self._tell and notify

    def open(self) -> CaptionStore:
        """Open it. Raises StoreError as `CaptionStore` does."""
        return CaptionStore(
            default_path(),
            on_unwritable=None if self._tell is None else self._say_unwritable,
            on_damaged=self._say_damaged,
        )

    def _say_unwritable(self, error: StoreError) -> None:
        self._say_once(f"{error.summary} This run's captions are not kept in it.")

    def _say_damaged(self, error: StoreError) -> None:
        self._say_once(f"{error.summary} Damaged captions are made again.")

    def _say_once(self, text: str) -> None:
        if text not in self._told and self._tell is not None:
            self._told.add(text)
            self._tell(text)


class Deferred:
    """Pictures that other processes caption now; each comes back when its claim ends."""

    def __init__(self, store: CaptionStore | None) -> None:
        self._store = store
        self.jobs: list[Job] = []  # waiting
        self._back: set[int] = set()  # free again, and being decoded anew
        self._polled = 0.0
        self._told = False

    @property
    def pending(self) -> bool:
        """Whether some picture has not got its outcome."""
        return bool(self.jobs or self._back)

    def add(self, job: Job) -> None:
        """Let a picture wait."""
        self.jobs.append(job)

    def settle(self, job: Job) -> None:
        """Note that a picture has been decoded anew."""
        self._back.discard(job.index)

    def free(self) -> list[Job]:
        """Return the pictures whose caption is finished or may be made here; ask now and then."""
        if not self.jobs or self._store is None or time.monotonic() - self._polled < POLL_S:
            return []
        self._polled = time.monotonic()
        store = self._store
        free = [job for job in self.jobs if store.get(job.key) or store.claim(job.key)]
        self._back.update(job.index for job in free)
        self.jobs = [job for job in self.jobs if job.index not in self._back]
        return free

    def notice(self) -> Notice | None:
        """Return what the run waits for, once."""
        if self._told or not self.jobs:
            return None
        self._told = True
        return Notice(
            f"Waiting for {counted(len(self.jobs), 'picture')} that another process has begun; "
            f"if it has ended, this one takes over within {LEASE_S:.0f} s."
        )


@contextlib.contextmanager
def renewing(open_store: Callable[[], CaptionStore] | None) -> Iterator[None]:
    """Renew this process's claims while the block runs."""
    if open_store is None:
        yield
        return
    ended = threading.Event()

    def renew() -> None:
        # Where the store fails, the thread that keeps captions meets the same error and tells it.
        with contextlib.suppress(StoreError), open_store() as store:
            while not ended.wait(RENEW_S):
                store.renew()

    thread = threading.Thread(target=renew, name="renew", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
