"""Batches of rendered scenes, drawn in worker processes ahead of the training step.

Batch ``i`` of seed ``s`` is a function of ``(s, i)`` alone: a resumed run asks for the same
batches an uninterrupted one would have seen, in whatever process they are drawn.
"""

from __future__ import annotations

import multiprocessing as mp
import queue
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scene import (
    BACKGROUNDS,
    Scene,
    image_to_pixels,
    sample_scene,
    scene_to_image,
    scene_to_patch_labels,
)


@dataclass(frozen=True)
class Batch:
    """Pixels [b, 112, 112, 3] uint8, patch labels [b, 64, 5], scene labels [b, 2], scenes."""

    pixels: NDArray[np.uint8]
    patch_labels: NDArray[np.int8]
    scene_labels: NDArray[np.int8]
    scenes: tuple[Scene, ...]


def scenes_to_batch(scenes: list[Scene]) -> Batch:
    """Render the scenes and label every patch."""
    backgrounds = list(BACKGROUNDS)
    labels = [(backgrounds.index(s.background), len(s.things) - 1) for s in scenes]
    return Batch(
        pixels=np.stack([image_to_pixels(scene_to_image(s)) for s in scenes]),
        patch_labels=np.stack([scene_to_patch_labels(s) for s in scenes]),
        scene_labels=np.array(labels, np.int8),
        scenes=tuple(scenes),
    )


def training_scenes(seed: int, index: int, size: int) -> list[Scene]:
    """Scenes of training batch ``index``; never one of the unseen pairs."""
    rng = random.Random(f"nano/train/{seed}/{index}")
    return [sample_scene(rng) for _ in range(size)]


def heldout_scenes(seed: int, count: int) -> list[Scene]:
    """Test scenes: another random stream than training's; every second shows an unseen pair."""
    return [
        sample_scene(random.Random(f"nano/heldout/{seed}/{i}"), unseen=i % 2 == 0)
        for i in range(count)
    ]


def _draw(seed: int, start: int, stride: int, size: int, out: mp.Queue[Batch]) -> None:
    parent = mp.parent_process()
    index = start
    while True:
        batch = scenes_to_batch(training_scenes(seed, index, size))
        index += stride
        while True:
            try:
                out.put(batch, timeout=5)
                break
            except queue.Full:
                if parent is not None and not parent.is_alive():
                    out.cancel_join_thread()  # nobody is left to read what is in the pipe
                    return


class BatchStream:
    """Training batches ``first, first + 1, …`` in order, from ``workers`` processes."""

    def __init__(self, seed: int, first: int, size: int, workers: int = 1) -> None:
        context = mp.get_context("spawn")  # a forked copy of a threaded torch may deadlock
        self._queues: list[mp.Queue[Batch]] = [context.Queue(maxsize=8) for _ in range(workers)]
        self._workers = [
            context.Process(target=_draw, args=(seed, first + i, workers, size, q), daemon=True)
            for i, q in enumerate(self._queues)
        ]
        for worker in self._workers:
            worker.start()

    def __iter__(self) -> Iterator[Batch]:
        turn = 0
        while True:
            try:
                batch = self._queues[turn].get(timeout=60)
            except queue.Empty:
                if not self._workers[turn].is_alive():
                    raise RuntimeError("a rendering process ended early") from None
                continue
            yield batch
            turn = (turn + 1) % len(self._queues)

    def close(self) -> None:
        for worker in self._workers:
            worker.terminate()
            worker.join()
