"""A captioner whose engines many clients share.

A work is one caption for one client. Threads hand it on: worker processes decode its pictures, one
thread encodes them, lanes decode the captions of several works together. This is the folder
engine's arrangement (`folder/batch.py`), for works that arrive one by one.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgeprism.errors import ImageError, Interrupted
from edgeprism.folder.lanes import Turns
from edgeprism.folder.tuning import batch_shape
from edgeprism.language.generator import Finished
from edgeprism.machine.facts import available_cores
from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import Plan
from edgeprism.perceive.several import pictures_together, several_of
from edgeprism.picture import signatures
from edgeprism.picture.layout import picture_to_layout
from edgeprism.picture.workers import Decoded, DecodePool
from edgeprism.records import EncodedImage, Timings
from edgeprism.serve.events import CaptionEvent, Described, Failed, Piece
from edgeprism.serve.lane import Lane
from edgeprism.serve.refusals import let_go

if TYPE_CHECKING:
    from edgeprism.language.request import Request
    from edgeprism.serve.uploads import Upload

Named = tuple[str, Decoded]  # a picture's name, and its tiles
_CLOSE_S = 10.0  # that threads may take to end


@dataclass(eq=False)
class Work:
    """One caption for one client: of a picture, or of several in one prompt.

    `tell` is called from engine threads and must not wait. A work whose client has left is
    `cancelled`: it is dropped wherever it is.
    """

    index: int  # of the picture in its request
    pictures: tuple[Upload, ...]
    plan: Plan
    tell: Callable[[CaptionEvent], object]
    streams: bool
    cancelled: bool = False
    encoded: EncodedImage | None = None
    load_ms: float = 0.0  # that its request has waited for the captioner to load

    def cancel(self) -> None:
        """Give the work up; from any thread."""
        self.cancelled = True
        self.pictures = ()

    def piece(self, text: str) -> None:
        """Hand new text on."""
        if self.streams:
            self.tell(Piece(self.index, text))


class _Decoder(threading.Thread):
    """Decodes the pictures of works in a worker process of its own, one after another."""

    def __init__(
        self, pool: DecodePool, hand_on: Callable[[Work, list[Named]], object],
        fail: Callable[[Work, Exception], object],
    ) -> None:  # fmt: skip
        super().__init__(name="serving decoder", daemon=True)
        self._pool, self._hand_on, self._fail = pool, hand_on, fail
        self.queue: queue.Queue[Work | None] = queue.Queue()

    def run(self) -> None:
        while (work := self.queue.get()) is not None:
            try:
                for picture in work.pictures:
                    _check_no_video(picture)
                decoded = [(p.name, self._pool.decode(p.data, p.name)) for p in work.pictures]
            except Exception as error:
                self._fail(work, error)
                continue
            if not work.cancelled:
                self._hand_on(work, decoded)


def _check_no_video(picture: Upload) -> None:
    if signatures.is_video(picture.data[: signatures.HEAD_BYTES]):
        raise ImageError(
            f"{picture.name}: a video; the server takes pictures only.",
            "Send stills of it, or name the file in `edgeprism caption` with a model made for "
            "video.",
        )


class CaptionEngine:
    """A captioner's engines, its decoders and lanes; making one loads the models.

    `submit` and `close` may be called from any thread.
    """

    def __init__(self, captioner: Captioner, *, decode_seconds: float = 20.0) -> None:
        """Load the engines and start the threads.

        `decode_seconds` limits the time for pictures whose header does not bound their cost. They
        have a worker process of their own, so that usual pictures never wait for them.
        """
        self.captioner = captioner
        shape = batch_shape(captioner)
        engines = captioner.engines
        engines.vision()
        crowded = (
            captioner.device == "cpu"
            and engines.vision_threads() + engines.lm_threads() > available_cores()
        )
        self._cores: AbstractContextManager[object] = Turns() if crowded else nullcontext()
        self.width = shape.width * shape.lanes
        # pictures that are decoded and not yet in a lane: their tiles take memory
        self._window = threading.Semaphore(self.width + 2)
        self._to_encode: queue.Queue[tuple[Work, list[Named]] | None] = queue.Queue()
        self._ready: queue.Queue[Work | None] = queue.Queue()
        self._closed = False
        policy = captioner.bundle.manifest.image
        self._pools = [DecodePool(policy), DecodePool(policy, timeout_s=decode_seconds)]
        self._usual, self._costly = (
            _Decoder(pool, self._decoded, self._fail) for pool in self._pools
        )
        self._encoder = threading.Thread(target=self._encode_all, name="encoder", daemon=True)
        self._lanes = [
            Lane(
                engines.new_generator(shape.width), self._to_request, self._ready, self._cores,
                admitted=self._window.release, finish=self._finish, fail=self._fail,
            )
            for _ in range(shape.lanes)
        ]  # fmt: skip
        for thread in (self._usual, self._costly, self._encoder, *self._lanes):
            thread.start()

    def submit(self, work: Work) -> None:
        """Begin a work; its events come through `work.tell`."""
        if self._closed:
            self._fail(work, Interrupted("The server is stopping."))
            return
        costly = any(picture.is_costly for picture in work.pictures)
        (self._costly if costly else self._usual).queue.put(work)

    def close(self) -> None:
        """End the threads, finish the captions in the lanes, and free the engines."""
        self._closed = True
        for decoder in (self._usual, self._costly):
            decoder.queue.put(None)
        for pool in self._pools:
            pool.close()
        for decoder in (self._usual, self._costly):
            self._window.release()  # one may wait for the window
            decoder.join(_CLOSE_S)
        self._to_encode.put(None)
        self._encoder.join(_CLOSE_S)
        self._ready.put(None)
        for lane in self._lanes:
            lane.join(_CLOSE_S)
        if not any(lane.is_alive() for lane in self._lanes):
            self.captioner.close()

    # ---- decoders' threads

    def _decoded(self, work: Work, decoded: list[Named]) -> None:
        self._window.acquire()
        self._to_encode.put((work, decoded))

    # ---- the encoder's thread

    def _encode_all(self) -> None:
        while (item := self._to_encode.get()) is not None:
            work, decoded = item
            del item
            try:
                if work.cancelled:
                    self._window.release()
                    continue
                work.encoded = self._encode(decoded, work.plan)
            except Exception as error:
                self._window.release()
                self._fail(work, error)
                continue
            work.pictures = ()
            self._ready.put(work)

    def _encode(self, decoded: list[Named], plan: Plan) -> EncodedImage:
        each = []
        for name, tiles in decoded:
            with self._cores:
                each.append(self._to_tokens(name, tiles, plan))
        if len(each) == 1:
            return each[0]
        return pictures_together(each, several_of(self.captioner.bundle.manifest))

    def _to_tokens(self, name: str, decoded: Decoded, plan: Plan) -> EncodedImage:
        return self.captioner.tiles_to_encoded(
            decoded.tiles,
            picture_to_layout(decoded.size, self.captioner.bundle.manifest),
            image=name,
            image_sha256=decoded.sha256,
            size=decoded.size,
            notes=decoded.notes,
            timings=Timings(decode_image=decoded.decode_ms, preprocess=decoded.preprocess_ms),
            plan=plan,
        )

    # ---- the lanes' threads

    def _to_request(self, work: Work) -> Request:
        return self.captioner.request(_encoded(work), work.plan)

    def _finish(self, work: Work, done: Finished) -> None:
        encoded = _encoded(work)
        spent = encoded.timings
        total = work.load_ms + spent.decode_image + spent.preprocess + spent.encode
        total += done.prefill_ms + done.decode_ms
        timings = replace(spent, load=work.load_ms, total=total)
        try:
            caption = self.captioner.record(encoded, work.plan, done, timings)
        except Exception as error:  # a file of the model was changed
            self._fail(work, error)
            return
        work.tell(Described(work.index, caption))

    def _fail(self, work: Work, error: Exception) -> None:
        let_go(error)
        if not work.cancelled:
            work.tell(Failed(work.index, error))


def _encoded(work: Work) -> EncodedImage:
    if work.encoded is None:
        raise ValueError("a lane got a work whose picture is not encoded")
    return work.encoded
