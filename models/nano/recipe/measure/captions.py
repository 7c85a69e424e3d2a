"""Measure nano's captions: ``python -m edgeprism.models.nano.recipe.measure.captions ASSETS``.

Captions held-out scenes (another random stream than training's; colour-shape pairs, pairings of
things, printed words and the wordings of focuses that training never had) and scores every claim
against the scene. ``--bundle`` captions through EdgePrism's public API, ``--checkpoint`` in
float32 torch; both together also print the cost of quantization, row by row. ``--before`` prints
instead what the bundle costs against an earlier one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from edgeprism.models.nano.recipe.learn.data import heldout_scenes
from edgeprism.models.nano.recipe.measure.scoring import carries, score_captions
from edgeprism.models.nano.recipe.world.draw import Assets, scene_to_image
from edgeprism.models.nano.recipe.world.grammar import ASK, NOTHING, Query
from edgeprism.models.nano.recipe.world.scene import Sampling, Scene
from edgeprism.models.nano.recipe.world.sheets import sample_nothing, sample_scene
from edgeprism.models.nano.recipe.world.things import HELD_OUT_STYLE

Describe = Callable[[Image.Image, str | None], str]  # picture, focus → caption
GOALS = {  # row → goal for a model trained on two cores: a minimum, or a maximum for "absent"
    "named": 0.85, "named though absent": 0.08, "named, new style": 0.4, "colour": 0.85,
    "count": 0.85, "relation": 0.85, "word exact": 0.6, "bar within one step": 0.6,
    "focus: carried with the focus": 0.85, "blank and noise": 0.85, "photographs": 0.85,
}  # fmt: skip


def bundle_to_describe(model: str) -> Describe:
    """Return a function that captions with a bundle (name or folder)."""
    from edgeprism import Captioner

    captioner = Captioner.load(model)
    return lambda image, focus: str(captioner.caption(image, focus=focus).text)


def checkpoint_to_describe(path: Path) -> Describe:
    """Return a function that captions with a training checkpoint in float32."""
    import torch

    from edgeprism.models.nano.recipe.learn.caption import write_captions
    from edgeprism.models.nano.recipe.learn.export import checkpoint_to_model
    from edgeprism.models.nano.recipe.learn.tokenizer import DEFAULT_INSTRUCTION, FOCUS
    from edgeprism.models.nano.recipe.world.draw import image_to_pixels

    model = checkpoint_to_model(path)

    def describe(image: Image.Image, focus: str | None) -> str:
        instruction = DEFAULT_INSTRUCTION + (FOCUS + focus if focus else "")
        pixels = torch.from_numpy(image_to_pixels(image).copy())[None]
        return write_captions(model, pixels, [instruction])[0]

    return describe


def heldout_queries(seed: int, count: int) -> list[tuple[Scene, Query]]:
    """Return scenes with a query about each, equally many of each kind."""
    pairs: list[tuple[Scene, Query]] = []
    number = 0
    while len(pairs) < count:
        kind = list(ASK)[len(pairs) % len(ASK)]
        rng = random.Random(f"nano-wide/queries/{seed}/{number}")
        scene = sample_scene(rng, Sampling(unseen=True))
        number += 1
        query = ASK[kind](scene, rng)
        if query is not None:
            pairs.append((scene, query))
    return pairs


def score_focus(
    describe: Describe, pairs: list[tuple[Scene, Query]], assets: Assets
) -> dict[str, float]:
    """Return how often a caption carries the fact, with an (unseen) focus and without."""
    rows: dict[str, list[bool]] = {}
    for scene, query in pairs:
        image = scene_to_image(scene, assets)
        for way, focus in (("with the focus", query.focuses[-1]), ("generic", None)):
            hit = carries(query, scene, describe(image, focus))
            for row in (f"focus: carried {way}", f"  {query.kind}, {way}"):
                rows.setdefault(row, []).append(hit)
    return {row: sum(hits) / len(hits) for row, hits in sorted(rows.items(), reverse=True)}


def heldout_words(seed: int, count: int) -> list[Scene]:
    """Return scenes with a printed word: other held-out scenes mostly have printed numbers."""
    scenes: list[Scene] = []
    how, number = Sampling(unseen=True, mixed=1.0, texts=1.0), 0
    while len(scenes) < count:
        scene = sample_scene(random.Random(f"nano-wide/words/{seed}/{number}"), how)
        number += 1
        if any(i.kind == "text" and not i.name.isdigit() for i in scene.items):
            scenes.append(scene)
    return scenes


def evaluate(
    describe: Describe, assets: Assets, scenes: int, seed: int, photographs: list[Path]
) -> dict[str, float]:
    """Return every row of the table."""
    test_scenes = heldout_scenes(seed, scenes, Sampling(unseen=True))
    other = heldout_scenes(seed, scenes // 2, Sampling(True, (HELD_OUT_STYLE,), mixed=1.0))

    def captions(drawn: list[Scene]) -> list[str]:
        return [describe(scene_to_image(s, assets), None) for s in drawn]

    table = score_captions(test_scenes, captions(test_scenes))
    words = heldout_words(seed, scenes // 2)
    table["word exact"] = score_captions(words, captions(words))["word exact"]
    fresh = score_captions(other, captions(other))
    table |= {f"{row}, new style": fresh[row] for row in ("named", "named though absent")}
    rng = random.Random(f"nano-wide/nothing/{seed}")
    blank = [sample_nothing(rng, kind) for kind in ("blank", "noise") * (scenes // 10)]
    texts = captions(blank)
    table["blank and noise"] = sum(NOTHING in t for t in texts) / max(1, len(texts))
    if photographs:
        refusals = []
        for path in photographs:
            with Image.open(path) as picture:
                refusals.append(NOTHING in describe(picture.convert("RGB"), None))
        table["photographs"] = sum(refusals) / len(refusals)
    return table | score_focus(describe, heldout_queries(seed, scenes // 2), assets)


def print_tables(tables: dict[str, dict[str, float]]) -> None:
    """Print one line per row: the goal, if any, each model's figure, and what the first costs."""
    names = list(tables)
    cost = ["cost"] if len(names) == 2 else []
    print(f"{'row':<36}{'goal':>8}" + "".join(f"{name:>14}" for name in names + cost))
    for row, value in tables[names[0]].items():
        values = [tables[name][row] for name in names]
        goal = f"{GOALS[row]:8.0%}" if row in GOALS else " " * 8
        line = f"{row:<36}{goal}" + "".join(f"{v:14.1%}" for v in values)
        if cost:
            worse = values[1] - value if "absent" not in row else value - values[1]
            line += f"{worse:14.1%}"
        print(line)


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path, help="folder that the assets command has filled")
    parser.add_argument("--bundle", help="name or folder of the bundle")
    parser.add_argument("--checkpoint", type=Path, help="caption.pt of training, in float32")
    parser.add_argument("--before", help="an earlier bundle, to compare the bundle with")
    parser.add_argument("--photographs", type=Path, help="folder of photographs (.jpg, .png)")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the held-out scenes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if not options.bundle and not options.checkpoint:
        parser.error("name a --bundle or a --checkpoint, or both")
    if options.scenes < 10:
        parser.error("--scenes: at least 10")
    photographs = []
    if options.photographs:
        kinds = (".jpg", ".jpeg", ".png")
        photographs = sorted(p for p in options.photographs.iterdir() if p.suffix in kinds)
    ways: dict[str, Describe] = {}
    if options.bundle:
        ways["bundle"] = bundle_to_describe(options.bundle)
    if options.checkpoint:
        ways["float32"] = checkpoint_to_describe(options.checkpoint)
    if options.before:
        ways["before"] = bundle_to_describe(options.before)
    assets, began = Assets(options.assets), time.perf_counter()
    tables = {
        name: evaluate(way, assets, options.scenes, options.seed, photographs)
        for name, way in ways.items()
    }
    print(f"{options.scenes} held-out scenes, seed {options.seed}, {len(photographs)} photographs,"
          f" {time.perf_counter() - began:.0f} s")  # fmt: skip
    print_tables(tables)
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
