"""Measure nano on plain shapes: ``python -m edgeprism.models.nano.recipe.measure.plain``.

Captions held-out scenes through EdgePrism's public API and scores every claim against the scene.
The scenes come from another random stream than training's; every second one has a colour-shape pair
that no training scene had.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

from edgeprism import Captioner
from edgeprism.models.nano.recipe.world.plain_grammar import (
    CaptionScore,
    score_caption,
    scores_to_table,
)
from edgeprism.models.nano.recipe.world.plain_scene import Scene, sample_scene, scene_to_image


def heldout_scenes(seed: int, count: int) -> list[Scene]:
    """Return test scenes from another random stream than training's, half with an unseen pair."""
    return [
        sample_scene(random.Random(f"nano/heldout/{seed}/{i}"), unseen=i % 2 == 0)
        for i in range(count)
    ]


def score_bundle(
    model: str, scenes: list[Scene], instruction: str | None = None
) -> list[CaptionScore]:
    """Caption every scene with a bundle (name or folder) and score the captions."""
    scores = []
    with Captioner.load(model) as captioner:
        for scene in scenes:
            text = captioner.caption(scene_to_image(scene), instruction=instruction).text
            scores.append(score_caption(scene, text))
    return scores


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bundle", default="nano", help="name or folder of the bundle")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the held-out scenes")
    parser.add_argument("--instruction", help="an instruction in place of the bundle's")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.scenes < 1:
        parser.error("--scenes: at least 1")
    scenes = heldout_scenes(options.seed, options.scenes)
    began = time.perf_counter()
    scores = score_bundle(options.bundle, scenes, options.instruction)
    seconds = time.perf_counter() - began
    table = scores_to_table(scores, scenes)
    objects = sum(len(s.things) for s in scenes)
    print(f"{len(scenes)} held-out scenes, {objects} objects, seed {options.seed}, {seconds:.0f} s")
    for name, value in table.items():
        shown = f"{value:8.3f}" if name.startswith("invented") else f"{value:8.1%}"
        print(f"{name:<36}{shown}")
    if options.json is not None:
        figures = {"scenes": len(scenes), "objects": objects, "seed": options.seed} | table
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
