"""The videos among a batch's files, for a model that takes videos."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from edgeprism.perceive.video import is_video_for, read_for_model, tiles_to_encoded_video
from edgeprism.picture.video import VideoTiles
from edgeprism.store.stored_captioner import request_key

if TYPE_CHECKING:
    from edgeprism.folder.events import Job
    from edgeprism.perceive.captioner import Captioner
    from edgeprism.perceive.options import Plan
    from edgeprism.picture.find import PictureFile
    from edgeprism.picture.workers import DecodePool
    from edgeprism.records import EncodedImage
    from edgeprism.store.request_key import RequestKey


class Videos:
    """Tells videos from pictures, reads their frames in a pool's threads, and encodes them."""

    def __init__(self, captioner: Captioner, plan: Plan) -> None:
        self._captioner, self._manifest = captioner, captioner.bundle.manifest
        self._plan = plan.for_video()
        self._of_pictures = request_key(captioner, plan)
        self._of_videos = request_key(captioner, self._plan)

    def has(self, picture: PictureFile) -> bool:
        """Return whether a file is a video; never with a model of pictures, which refuses it."""
        return is_video_for(self._manifest, picture.path)

    def request_of(self, job: Job) -> RequestKey:
        """Return what decides the words of a job's caption, except its file."""
        return self._of_videos if job.is_video else self._of_pictures

    def submit(self, pool: DecodePool, picture: PictureFile) -> Future[VideoTiles]:
        """Read a video's frames in a thread of `pool`, in a process of its own."""
        path = str(picture.path)
        return pool.submit_with_child(
            lambda own: read_for_model(path, self._manifest, self._plan, isolate=True, on_child=own)
        )

    def encode(self, video: VideoTiles, name: str) -> EncodedImage:
        """Turn frames into visual tokens."""
        return tiles_to_encoded_video(
            video,
            self._captioner.engines,
            self._manifest,
            self._plan,
            name=name,
            digest=self._captioner.bundle.digest,
        )
