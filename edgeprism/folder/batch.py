"""Captions many pictures, with decoding, encoding and the language model's work overlapping.

Worker processes decode pictures, a thread encodes them, lanes (threads) run generators in which
several captions decode together, and the caller's thread stores the results. Only a window of
pictures is in progress at a time, so memory does not grow with the folder. Results come in the
order of the pictures; each is in the store as soon as it exists.

The encoder takes one picture per call: an int8 graph computes its scales over the whole call, so a
picture's tokens would depend on its neighbours.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from edgeprism.errors import ImageError
from edgeprism.files.stamps import status_to_stamp
from edgeprism.folder.events import (
    Event,
    Failed,
    Generated,
    Job,
    LaneEnded,
    Notice,
    Outcome,
    Settled,
    Twin,
    repetition,
    without_frames,
)
from edgeprism.folder.lanes import Lane, Turns
from edgeprism.folder.sharing import POLL_S, Deferred, keep, known_record, renewing
from edgeprism.folder.videos import Videos
from edgeprism.language.generator import Finished
from edgeprism.machine.facts import available_cores
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import Plan
from edgeprism.picture.layout import picture_to_layout
from edgeprism.picture.video import VideoTiles
from edgeprism.picture.workers import Decoded, DecodePool
from edgeprism.records import EncodedImage, Timings
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.stored_captioner import decoding_settings

if TYPE_CHECKING:
    from edgeprism.picture.find import PictureFile

Tiles = Decoded | VideoTiles
Decoding = tuple[Job, Future[Decoded] | Future[VideoTiles]]
Store = CaptionStore | None
Outcomes = dict[int, Outcome]  # by the index of the picture
Twins = dict[str, list[Job]]
WINDOW = 3  # pictures in progress for each caption that decodes at a time
_READ_AHEAD = 2  # more pictures, which wait for their decoder


class Batch:
    """Captions many pictures with one captioner and, if given, a caption store."""

    def __init__(
        self,
        captioner: Captioner,
        plan: Plan,
        *,
        open_store: Callable[[], CaptionStore] | None = None,
        on_notice: Callable[[str], object] | None = None,
        parallel: int = 1,
        lanes: int = 1,
        limit: int | None = None,
    ) -> None:
        """`parallel` captions decode together in each of `lanes` generators.

        Each thread that needs the store calls `open_store`; the caller's calls `on_notice` with
        sentences for a person. The batch ends when `limit` pictures have their caption, known ones
        included, and begins no more than it needs for that.
        """
        self.captioner, self.plan = captioner, plan
        self.parallel, self.lanes = parallel, lanes
        self._open_store, self._on_notice = open_store, on_notice or (lambda _: None)
        self._outside: set[int] = set()  # pictures that wait outside the window, by index
        self._window = threading.Semaphore(WINDOW * parallel * lanes + _READ_AHEAD)
        # one for each picture that may begin; a picture that fails gives its own back
        self._quota = None if limit is None else threading.Semaphore(limit)
        self._missing = limit  # captions until the limit; None if there is none
        self._stopping = threading.Event()
        self._repetitive: set[str] = set()  # keys whose text only repeated itself
        self._ended = False  # every picture had its outcome before any call of `stop`
        # (job, its decoding) for the encoder; None ends the encoder
        self._decoding: queue.Queue[Decoding | None] = queue.Queue()
        self._ready: queue.Queue[Job | None] = queue.Queue()  # for the lanes; None ends them
        self._events: queue.Queue[Event] = queue.Queue()
        self._videos = Videos(captioner, plan)
        threads = captioner.engines.vision_threads() + captioner.engines.lm_threads()
        crowded = captioner.device == "cpu" and threads > available_cores()
        self._cores: AbstractContextManager[object] = Turns() if crowded else nullcontext()
        self.settings = decoding_settings(captioner, plan, parallel=parallel, lanes=lanes)

    def stop(self) -> None:
        """Begin no more pictures; finish those in flight. Safe from any thread."""
        self._stopping.set()
        self._wake_feeder()

    def notify(self, text: str) -> None:
        """Call `on_notice` in the caller's thread. Safe from any thread."""
        self._events.put(Notice(text))

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called before the pictures ended."""
        return self._stopping.is_set() and not self._ended

    def is_known(self, picture: PictureFile, store: CaptionStore) -> bool:
        """Return whether the store has this picture's caption, by its path, size and mtime."""
        return self._known_file(self._job(0, picture), store) is not None

    def run(self, pictures: Iterable[PictureFile]) -> Iterator[Outcome]:
        """Yield outcomes in the order of `pictures`. Raises errors that concern every picture.

        Other threads wait for the captioner until the outcomes end.
        """
        with self.captioner.in_use(), renewing(self._open_store):
            yield from self._run(pictures)

    def _run(self, pictures: Iterable[PictureFile]) -> Iterator[Outcome]:
        pool = self._pool = DecodePool(self.captioner.bundle.manifest.image, 1)
        self.captioner.engines.vision()
        lanes = [self._new_lane() for _ in range(self.lanes)]
        end_encoding, end_lanes = partial(self._decoding.put, None), partial(self._ready.put, None)
        feed = partial(self._feed, pictures)
        stages = [
            threading.Thread(target=self._guarded, args=(feed, end_encoding), name="feed"),
            threading.Thread(target=self._guarded, args=(self._encode, end_lanes), name="encode"),
        ]
        for thread in (*stages, *lanes):
            thread.start()
        try:
            yield from self._collect()
        finally:
            self.stop()
            for lane in lanes:
                lane.abandon()
            pool.close()
            for thread in (*stages, *lanes):
                thread.join()

    # ---- first thread: looks pictures up in the store, and sends the others to decoders

    def _feed(self, pictures: Iterable[PictureFile]) -> None:
        store = self._open_store() if self._open_store else None
        try:
            for index, picture in enumerate(pictures):
                self._window.acquire()
                if self._quota is not None:
                    self._quota.acquire()
                if self._stopping.is_set() or self._missing == 0:
                    break
                job = self._job(index, picture)
                known = self._known_file(job, store)
                if known is not None:
                    self._events.put(Settled(index, known))
                else:
                    self._decode(job)
        finally:
            if isinstance(pictures, Generator):
                pictures.close()  # in the thread that began it: it may hold a store
            if store is not None:
                store.close()

    def _decode(self, job: Job) -> None:
        if job.is_video:
            self._decoding.put((job, self._videos.submit(self._pool, job.picture)))
        else:
            self._decoding.put((job, self._pool.submit(str(job.picture.path), job.picture.data)))

    def _job(self, index: int, picture: PictureFile) -> Job:
        return Job(index, picture, picture.data is None and self._videos.has(picture))

    def _known_file(self, job: Job, store: Store) -> Outcome | None:
        """Return the stored caption of a file that is unchanged since it was last read."""
        if store is None:
            return None
        try:
            status = os.stat(job.picture.path)
        except (OSError, ValueError):
            return None  # the decoder reads the file again and reports the error
        job.stamp = status_to_stamp(status)
        digest = store.digest_of(job.picture.path, status)
        record = store.get(self._videos.request_of(job).key(digest)) if digest else None
        return self._from_store(job, record) if record else None

    def _from_store(self, job: Job, record: dict[str, Any], *, duplicate: bool = False) -> Outcome:
        record = {**record, "image": job.picture.name}
        return Outcome(job.picture, record, cached=True, duplicate=duplicate)

    def _wake_feeder(self) -> None:
        self._window.release()
        if self._quota is not None:
            self._quota.release()

    # ---- second thread: pixels to visual tokens

    def _encode(self) -> None:
        store = self._open_store() if self._open_store else None
        begun: set[str] = set()  # keys of captions that this run makes
        later = Deferred(store)  # pictures that another process captions now
        more = True
        try:
            while more or (later.pending and not self._stopping.is_set()):
                for job in later.free():
                    self._decode(job)
                try:
                    item = self._decoding.get(timeout=POLL_S if later.jobs else None)
                except queue.Empty:
                    if not more and (notice := later.notice()):
                        self._events.put(notice)
                    continue
                if item is None:
                    more = False
                elif not self._stopping.is_set():
                    later.settle(item[0])
                    if not self._encode_one(item, store, begun):
                        self._defer(item[0], later)
        finally:
            if store is not None:
                store.close()

    def _encode_one(self, item: Decoding, store: Store, begun: set[str]) -> bool:
        """Encode or settle a picture; return False if another process captions it now."""
        job, decoding = item
        try:
            decoded = decoding.result()
        except ImageError as error:
            self._fail(job, error)
            return True
        return self._settled(job, decoded, store, begun)

    def _defer(self, job: Job, later: Deferred) -> None:
        """Let other pictures go first: this one waits outside the window, without its tiles."""
        later.add(job)
        if job.index not in self._outside:
            self._outside.add(job.index)
            self._window.release()

    def _settled(self, job: Job, decoded: Tiles, store: Store, begun: set[str]) -> bool:
        """Encode a picture or find its caption; return False if another process captions it."""
        job.key = self._videos.request_of(job).key(decoded.sha256)
        if store is not None:
            if job.stamp is not None:
                store.remember_file(job.picture.path, job.stamp, decoded.sha256)
            record = known_record(store, self._videos.request_of(job), job, decoded)
            if record is not None:
                known = self._from_store(job, record, duplicate=job.key in begun)
                self._events.put(Settled(job.index, known))
                return True
        if store is not None and job.key in begun:
            self._events.put(Twin(job))
            return True
        if store is not None and not store.claim(job.key):
            return False
        begun.add(job.key)
        try:
            job.encoded = self._to_tokens(job, decoded)
        except ImageError as error:  # the engine cannot take the picture's shape
            begun.discard(job.key)
            if store is not None:
                store.release(job.key)
            self._fail(job, error)
            return True
        self._ready.put(job)
        return True

    def _fail(self, job: Job, error: ImageError) -> None:
        self._events.put(Settled(job.index, Outcome(job.picture, error=without_frames(error))))

    def _to_tokens(self, job: Job, decoded: Tiles) -> EncodedImage:
        with self._cores:
            if isinstance(decoded, VideoTiles):
                return self._videos.encode(decoded, job.picture.name)
            return self.captioner.tiles_to_encoded(
                decoded.tiles,
                picture_to_layout(decoded.size, self.captioner.bundle.manifest),
                image=job.picture.name, image_sha256=decoded.sha256, size=decoded.size,
                notes=decoded.notes, plan=self.plan,
                timings=Timings(decode_image=decoded.decode_ms, preprocess=decoded.preprocess_ms),
            )  # fmt: skip

    def _guarded(self, work: Callable[[], None], end_next: Callable[[], None]) -> None:
        """Do a thread's work, then end the thread after it.

        An error in the work ends the run: the caller's thread raises it.
        """
        try:
            work()
        except BaseException as error:
            self._events.put(Failed(error))
        finally:
            end_next()

    # ---- lanes: visual tokens to text

    def _new_lane(self) -> Lane:
        return Lane(
            self.captioner.engines.new_generator(self.parallel),
            lambda job: self.captioner.request(job.tokens(), self.plan),
            self._ready,
            self._events.put,
            self._cores,
            self._stopping,
        )

    # ---- the caller's thread: stores the captions and puts the outcomes in order

    def _collect(self) -> Iterator[Outcome]:
        store = self._open_store() if self._open_store else None
        outcomes: Outcomes = {}
        twins: Twins = {}  # key → jobs that wait for another job's caption
        due, running = 0, self.lanes
        try:
            while running:
                match self._events.get():
                    case LaneEnded():
                        running -= 1
                    case Failed(error):
                        raise error
                    case Settled(index, outcome):
                        outcomes[index] = outcome
                    case Twin(job):
                        self._share(job, twins, store, outcomes)
                    case Generated(job, finished):
                        self._finish(job, finished, twins.pop(job.key, []), store, outcomes)
                    case Notice(text):
                        self._on_notice(text)
                while due in outcomes:
                    if due not in self._outside:
                        self._window.release()
                    outcome = outcomes.pop(due)
                    self._count(outcome)
                    yield outcome
                    due += 1
            for index in sorted(outcomes):  # after a stop, some pictures have no outcome
                yield outcomes[index]
            self._ended = not self._stopping.is_set()
        finally:
            if store is not None:
                store.close()

    def _count(self, outcome: Outcome) -> None:
        """Let another picture begin in place of one that failed; end the batch at its limit."""
        if self._quota is None or self._missing is None:
            return
        if outcome.record is None:
            self._quota.release()
            return
        self._missing -= 1
        if self._missing == 0:
            self._wake_feeder()

    def _share(self, twin: Job, twins: Twins, store: Store, outcomes: Outcomes) -> None:
        """Give a twin the caption of its first picture, now or once that one is finished."""
        record = store.get(twin.key) if store is not None else None
        if record is not None:
            outcomes[twin.index] = self._from_store(twin, record, duplicate=True)
        elif twin.key in self._repetitive:
            outcomes[twin.index] = repetition(twin)
        else:
            twins.setdefault(twin.key, []).append(twin)

    def _finish(
        self,
        job: Job,
        done: Finished,
        twins: list[Job],
        store: Store,
        outcomes: Outcomes,
    ) -> None:
        encoded = job.tokens()
        spent = encoded.timings
        total = spent.decode_image + spent.preprocess + spent.encode
        timings = replace(spent, total=total + done.prefill_ms + done.decode_ms)
        caption = self.captioner.record(encoded, self.plan, done, timings)
        if caption.finish_reason == "repetition":
            self._repetitive.add(job.key)
            if store is not None:
                store.release(job.key)
            outcomes.update({each.index: repetition(each) for each in (job, *twins)})
            return
        record = {**caption.to_dict(), "settings": self.settings}
        if store is not None:
            keep(store, self._videos.request_of(job), job, record)
        outcomes[job.index] = Outcome(job.picture, record)
        for twin in twins:
            outcomes[twin.index] = self._from_store(twin, record, duplicate=True)
