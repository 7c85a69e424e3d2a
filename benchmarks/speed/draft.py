"""Measure what decoding a large JPEG at reduced scale saves, and how it changes the pixels.

    python -m benchmarks.speed.draft [--megapixels 100] [--size 384]

The picture is an enlarged scene of nano's renderer, with grain and edges at full resolution. The
script prints differences in grey levels of the tile that goes into the vision graph.
"""

from __future__ import annotations

import argparse
import io
import random
import time

import numpy as np
from PIL import Image

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.models.nano.recipe.world import plain_scene
from edgeprism.picture.read import enough_for, read_picture
from tests.helpers.tiles import picture_to_tiles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megapixels", type=float, default=100)
    parser.add_argument("--size", type=int, default=384)
    arguments = parser.parse_args()
    policy = ImagePolicy("pad", arguments.size, [127, 127, 127], "bicubic", 1)
    edge = round((arguments.megapixels * 1e6 * 3 / 4) ** 0.5)
    picture = plain_scene.scene_to_image(plain_scene.sample_scene(random.Random(4)))
    pixels = np.asarray(picture.resize((edge * 4 // 3, edge), Image.Resampling.LANCZOS))
    grain = np.random.default_rng(0).integers(-20, 21, pixels.shape, dtype=np.int16)
    noisy = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=92)
    data = file.getvalue()
    tiles, times = [], []
    for enough in (None, enough_for(policy)):
        start = time.perf_counter()
        read = read_picture(data, enough=enough)
        tiles.append(picture_to_tiles(read, policy).astype(np.int16))
        times.append(time.perf_counter() - start)
        print(f"enough={enough}: {read.size} read as {read.rgb.size}, {times[-1]:.2f} s")
    difference = np.abs(tiles[0] - tiles[1])
    print(f"{times[0] / times[1]:.1f} times faster; difference in grey levels:")
    print(f"  mean {difference.mean():.3f}, maximum {difference.max()}")


if __name__ == "__main__":
    main()
