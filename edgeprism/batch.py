"""Many pictures: decoding, encoding and the language model's work overlap.

Three stages run side by side: worker processes decode, a thread encodes, and the caller's thread
runs the generator, in which several captions decode together. Only a window of pictures is under
way at a time, so memory does not grow with the folder. Results come in the order of the pictures;
each is in the store as soon as it exists.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgeprism.captioner import Captioner, Plan
from edgeprism.decode import Decoded, DecodePool
from edgeprism.device import available_cores
from edgeprism.errors import EdgePrismError, ImageError
from edgeprism.generate import Finished, Generator
from edgeprism.image import READER_VERSION
from edgeprism.records import EncodedImage, Timings
from edgeprism.store import CaptionStore, RequestKey

if TYPE_CHECKING:
    from edgeprism.inputs import PictureFile

WINDOW = 3  # pictures under way for each caption that decodes at a time
_POLL_S = 0.2  # how often a picture that another process is at is looked for


@dataclass(frozen=True)
class Outcome:
    """One picture's record, or why there is none; `cached` when the store knew it."""

    picture: PictureFile
    record: dict[str, Any] | None = None
    error: EdgePrismError | None = None
    cached: bool = False


@dataclass
class _Job:
    """One picture under way."""

    index: int
    picture: PictureFile
    status: os.stat_result | None = None  # as it was before it was read
    key: str = ""
    encoded: EncodedImage | None = None


class _Turns:
    """A fair lock: who asked first goes first.

    Where both engines want all cores they take turns: side by side each would wait at its
    barriers for threads that the other keeps from running.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._next = self._serving = 0

    def __enter__(self) -> None:
        with self._changed:
            ticket, self._next = self._next, self._next + 1
            while ticket != self._serving:
                self._changed.wait()

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._serving += 1
            self._changed.notify_all()


class Batch:
    """Captions many pictures with one captioner and, if given, a caption store."""

    def __init__(
        self,
        captioner: Captioner,
        plan: Plan,
        *,
        open_store: Callable[[], CaptionStore] | None = None,
        parallel: int = 1,
        decoders: int = 1,
    ) -> None:
        """`open_store` is called in each thread that needs the store."""
        self.captioner, self.plan, self.parallel = captioner, plan, parallel
        self._open_store, self._decoders = open_store, decoders
        self._window = threading.Semaphore(WINDOW * parallel + 2 * decoders)
        self._stopping = threading.Event()
        self._ended = False  # every picture has its outcome, before any stop
        # (job, decoding) for the encoder; None ends it
        self._decoding: queue.Queue[tuple[_Job, Future[Decoded]] | None] = queue.Queue()
        # jobs to generate, settled outcomes with their index, or an error that ends the run
        self._ready: queue.Queue[_Job | tuple[int, Outcome] | BaseException | None] = queue.Queue()
        self.request_key = RequestKey(
            bundle_digest=captioner.bundle.digest,
            vision_quant=captioner.model.vision_quant,
            kv_type=captioner.kv_type,
            instruction=plan.instruction,
            max_tokens=plan.sampling.max_tokens,
            temperature=plan.sampling.temperature,
            seed=plan.sampling.seed,
            reader=READER_VERSION,
        )

        threads = captioner.vision_threads() + captioner.lm_threads()
        crowded = captioner.device == "cpu" and threads > available_cores()
        self._cores: AbstractContextManager[Any] = _Turns() if crowded else nullcontext()
        self.settings = {
            "max_tokens": plan.sampling.max_tokens,
            "temperature": plan.sampling.temperature,
            "seed": plan.sampling.seed,
            "kv_type": captioner.kv_type,
            "parallel": parallel,
            "threads": [captioner.vision_threads(), captioner.lm_threads()],
        }

    def stop(self) -> None:
        """Begin no more pictures; what is in flight is finished. Safe from any thread."""
        self._stopping.set()
        self._window.release()  # a feeder that waits for room sees it

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called before the pictures ended."""
        return self._stopping.is_set() and not self._ended

    def is_known(self, picture: PictureFile, store: CaptionStore) -> bool:
        """Whether the store has this picture's caption, going by its path, size and mtime."""
        return self._known_file(_Job(0, picture), store) is not None

    def run(self, pictures: Iterable[PictureFile]) -> Iterator[Outcome]:
        """Outcomes in the order of `pictures`. Raises what would fail every picture alike."""
        self.captioner.load_vision()
        generator = self.captioner.new_generator(self.parallel)
        pool = DecodePool(self.captioner.bundle.manifest.image, self._decoders)
        threads = [
            threading.Thread(
                target=self._guarded, args=(self._decoding, self._feed, pictures, pool), name="feed"
            ),
            threading.Thread(target=self._guarded, args=(self._ready, self._encode), name="encode"),
        ]
        for thread in threads:
            thread.start()
        try:
            yield from self._generate(generator)
        finally:
            self.stop()
            pool.close()
            for thread in threads:
                thread.join()
            generator.close()

    # ---- first thread: which pictures, what is known of them

    def _feed(self, pictures: Iterable[PictureFile], pool: DecodePool) -> None:
        store = self._open_store() if self._open_store else None
        try:
            for index, picture in enumerate(pictures):
                self._window.acquire()
                if self._stopping.is_set():
                    break
                job = _Job(index, picture)
                known = self._known_file(job, store)
                if known is not None:
                    self._ready.put((index, known))
                else:
                    self._decoding.put((job, pool.submit(str(picture.path))))
        finally:
            if store is not None:
                store.close()

    def _known_file(self, job: _Job, store: CaptionStore | None) -> Outcome | None:
        """The stored caption of a file that is as it was when it was last read."""
        if store is None:
            return None
        try:
            job.status = os.stat(job.picture.path)
        except OSError:
            return None  # the reader will say what is wrong with it
        digest = store.digest_of(job.picture.path, job.status)
        record = store.get(self.request_key.key(digest)) if digest else None
        return self._from_store(job, record) if record else None

    def _from_store(self, job: _Job, record: dict[str, Any]) -> Outcome:
        return Outcome(job.picture, {**record, "image": str(job.picture.path)}, cached=True)

    # ---- second thread: pixels to visual tokens

    def _encode(self) -> None:
        store = self._open_store() if self._open_store else None
        begun: set[str] = set()  # keys that this run makes or waits for
        later: list[tuple[_Job, Decoded]] = []  # another process is at them
        more = True
        try:
            while more or (later and not self._stopping.is_set()):
                try:
                    item = self._decoding.get(timeout=_POLL_S if later else None)
                except queue.Empty:
                    later = [it for it in later if not self._settled(*it, store, begun)]
                    continue
                if item is None:
                    more = False
                elif not self._stopping.is_set():
                    later += self._encode_one(*item, store, begun)
        finally:
            if store is not None:
                store.close()

    def _encode_one(
        self,
        job: _Job,
        decoding: Future[Decoded],
        store: CaptionStore | None,
        begun: set[str],
    ) -> list[tuple[_Job, Decoded]]:
        """Encode a picture or settle it otherwise; what another process is at comes back."""
        try:
            decoded = decoding.result()
        except ImageError as error:
            self._ready.put((job.index, Outcome(job.picture, error=error)))
            return []
        return [] if self._settled(job, decoded, store, begun) else [(job, decoded)]

    def _settled(
        self, job: _Job, decoded: Decoded, store: CaptionStore | None, begun: set[str]
    ) -> bool:
        """Encode one picture, or find its caption; False while another process is at it."""
        job.key = self.request_key.key(decoded.sha256)
        if store is not None:
            if job.status is not None:
                status = job.status
                store.remember_file(
                    job.picture.path, status.st_size, status.st_mtime_ns, decoded.sha256
                )
            record = store.get(job.key)
            if record is not None:
                self._ready.put((job.index, self._from_store(job, record)))
                return True
        if store is None or job.key not in begun:
            if store is not None and not store.claim(job.key):
                return False
            begun.add(job.key)
            job.encoded = self._to_tokens(job, decoded)
        self._ready.put(job)  # without tokens: the same picture was begun, share its words
        return True

    def _to_tokens(self, job: _Job, decoded: Decoded) -> EncodedImage:
        with self._cores:
            return self.captioner.tiles_to_encoded(
                decoded.tiles,
                image=str(job.picture.path),
                image_sha256=decoded.sha256,
                size=decoded.size,
                notes=decoded.notes,
                timings=Timings(decode_image=decoded.decode_ms, preprocess=decoded.preprocess_ms),
            )

    def _guarded(self, end: queue.Queue[Any], work: Callable[..., None], *arguments: Any) -> None:
        """Do a thread's work; an error in it ends the run, in the caller's thread."""
        try:
            work(*arguments)
        except BaseException as error:
            self._ready.put(error)
        finally:
            end.put(None)

    # ---- the caller's thread: generate, keep, put in order

    def _generate(self, generator: Generator) -> Iterator[Outcome]:
        store = self._open_store() if self._open_store else None
        in_flight: dict[int, list[_Job]] = {}  # by index: a job and those of the same picture
        outcomes: dict[int, Outcome] = {}
        due, more = 0, True
        held: _Job | None = None  # needs a longer context, which waits for those in flight
        try:
            while more or held or generator.busy:
                while (more or held) and len(in_flight) < self.parallel and due not in outcomes:
                    item = held or self._next(wait=not generator.busy)
                    if item is _NOTHING:
                        break
                    held, more = None, more and item is not None
                    if isinstance(item, tuple):
                        outcomes[item[0]] = item[1]
                    elif (
                        isinstance(item, _Job)
                        and not self._stopping.is_set()
                        and not self._begun(item, generator, in_flight, store, outcomes)
                    ):
                        held = item
                        break
                with self._cores:
                    events = generator.step()
                for event in events:
                    if isinstance(event, Finished):
                        self._finish(in_flight.pop(event.index), event, store, outcomes)
                while due in outcomes:
                    self._window.release()
                    yield outcomes.pop(due)
                    due += 1
            for index in sorted(outcomes):  # after a stop some in between were never begun
                yield outcomes[index]
            self._ended = not self._stopping.is_set()
        finally:
            if store is not None:
                store.close()

    def _next(self, *, wait: bool) -> Any:
        """What is ready: a job, an outcome, None at the end, or _NOTHING (unless `wait`)."""
        try:
            item = self._ready.get(block=wait)
        except queue.Empty:
            return _NOTHING
        if isinstance(item, BaseException):
            raise item
        return item

    def _begun(
        self,
        job: _Job,
        generator: Generator,
        in_flight: dict[int, list[_Job]],
        store: CaptionStore | None,
        outcomes: dict[int, Outcome],
    ) -> bool:
        """Begin one picture's caption, unless there is no room for it yet."""
        if job.encoded is not None:
            request = self.captioner.request(job.encoded, self.plan)
            if not generator.has_room(request):
                return False
            with self._cores:
                generator.add(job.index, request)
            in_flight[job.index] = [job]
            return True
        # the same picture was begun before: it is in flight still, or in the store by now
        for jobs in in_flight.values():
            if jobs[0].key == job.key:
                jobs.append(job)
                return True
        record = store.get(job.key) if store is not None else None
        if record is not None:
            outcomes[job.index] = self._from_store(job, record)
        return True

    def _finish(
        self,
        jobs: list[_Job],
        done: Finished,
        store: CaptionStore | None,
        outcomes: dict[int, Outcome],
    ) -> None:
        first, *twins = jobs
        if first.encoded is None:
            return  # _begun adds none without tokens
        spent = first.encoded.timings
        total = spent.decode_image + spent.preprocess + spent.encode
        timings = replace(spent, total=total + done.prefill_ms + done.decode_ms)
        caption = self.captioner.record(first.encoded, self.plan, done, timings)
        record = {**caption.to_dict(), "settings": self.settings}
        if store is not None:
            store.put(self.request_key, caption.image_sha256, record)
        outcomes[first.index] = Outcome(first.picture, record)
        for twin in twins:
            outcomes[twin.index] = self._from_store(twin, record)


_NOTHING = object()
