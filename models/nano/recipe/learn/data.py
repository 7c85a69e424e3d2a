"""Batches of rendered scenes, drawn in worker processes ahead of the training step.

Batch ``i`` of seed ``s`` is a function of ``(s, i)`` alone, in whatever process it is drawn. So a
resumed run gets the same batches as an uninterrupted one.
"""

from __future__ import annotations

import multiprocessing as mp
import queue
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprism.models.nano.recipe.world.draw import Assets, image_to_pixels, scene_to_image
from edgeprism.models.nano.recipe.world.labels import scene_to_patch_labels, scene_to_scene_labels
from edgeprism.models.nano.recipe.world.scene import Sampling, Scene
from edgeprism.models.nano.recipe.world.sheets import sample_scene


@dataclass(frozen=True)
class Batch:
    """Pixels [b, FRAME, FRAME, 3] uint8, patch labels [b, GRID², 12], scene labels [b, 3].

    ``lessons`` are for stage ``caption``: ids, targets, and which targets come after the list.
    """

    pixels: NDArray[np.uint8]
    patch_labels: NDArray[np.int16]
    scene_labels: NDArray[np.int16]
    scenes: tuple[Scene, ...]
    lessons: tuple[NDArray[Any], ...] = ()


# scenes, seed, number of the batch → its lessons
Teach = Callable[[tuple[Scene, ...], int, int], tuple[NDArray[Any], ...]]


def scenes_to_batch(scenes: list[Scene], assets: Assets) -> Batch:
    """Render the scenes and label every patch."""
    return Batch(
        pixels=np.stack([image_to_pixels(scene_to_image(s, assets)) for s in scenes]),
        patch_labels=np.stack([scene_to_patch_labels(s) for s in scenes]),
        scene_labels=np.array([scene_to_scene_labels(s) for s in scenes], np.int16),
        scenes=tuple(scenes),
    )


def training_scenes(seed: int, index: int, size: int, how: Sampling) -> list[Scene]:
    """Return the scenes of training batch ``index``."""
    rng = random.Random(f"nano-wide/train/{seed}/{index}")
    return [sample_scene(rng, how) for _ in range(size)]


def heldout_scenes(seed: int, count: int, how: Sampling) -> list[Scene]:
    """Return test scenes from another random stream than training's."""
    return [sample_scene(random.Random(f"nano-wide/heldout/{seed}/{i}"), how) for i in range(count)]


def training_batch(
    assets: Assets, seed: int, index: int, size: int, how: Sampling, teach: Teach | None = None
) -> Batch:
    """Return training batch ``index``, with lessons if there is a teacher."""
    batch = scenes_to_batch(training_scenes(seed, index, size, how), assets)
    return batch if teach is None else replace(batch, lessons=teach(batch.scenes, seed, index))


def _draw(
    folder: Path, seed: int, start: int, stride: int, size: int, how: Sampling,
    teach: Teach | None, out: mp.Queue[Batch],
) -> None:  # fmt: skip
    assets = Assets(folder)
    index = start
    while True:
        out.put(training_batch(assets, seed, index, size, how, teach))
        index += stride


class BatchStream:
    """Training batches ``first, first + 1, …`` in order, from ``workers`` processes."""

    def __init__(
        self, folder: Path, seed: int, first: int, size: int, how: Sampling, workers: int = 1,
        teach: Teach | None = None,
    ) -> None:  # fmt: skip
        context = mp.get_context("spawn")  # a forked copy of a threaded torch may deadlock
        self._queues: list[mp.Queue[Batch]] = [context.Queue(maxsize=6) for _ in range(workers)]
        self._workers = [
            context.Process(
                target=_draw,
                args=(folder, seed, first + i, workers, size, how, teach, q),
                daemon=True,
            )
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
        """Stop the rendering processes."""
        for worker in self._workers:
            worker.terminate()
            worker.join()
