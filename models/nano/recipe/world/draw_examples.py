"""Draw the example pictures.

    python -m edgeprism.models.nano.recipe.world.draw_examples ASSETS OUT

Writes ``scene1.png`` … and ``examples.json`` with true captions. For every kind it takes the first
scene of at least three items that the shipped bundle describes without a mistake, with and without
a focus. The icons come only from Noto Emoji (Apache-2.0) and Fluent Emoji (MIT), so that the
pictures may be distributed with a notice.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

from edgeprism.models.nano.recipe.world.draw import Assets, scene_to_image
from edgeprism.models.nano.recipe.world.grammar import sample_query, scene_to_long
from edgeprism.models.nano.recipe.world.scene import Sampling
from edgeprism.models.nano.recipe.world.sheets import sample_scene

KINDS = {  # number of the scene → its kind
    "noto": (7, Sampling(True, ("noto",), mixed=1.0, texts=1.0)),
    "fluent": (1, Sampling(True, ("fluent",), mixed=1.0, texts=0.0)),
    "shapes": (7, Sampling(True, mixed=0.0, plain=1.0)),
    "chart": (1, Sampling(True, mixed=0.0, plain=0.0, chart=1.0)),
    "table": (3, Sampling(True, mixed=0.0, plain=0.0, chart=0.0, table=1.0)),
}


def main(arguments: list[str] | None = None) -> int:
    """Draw from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path, help="folder that the assets command has filled")
    parser.add_argument("out", type=Path)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    assets, listed = Assets(options.assets), []
    for number, (kind, (tried, how)) in enumerate(KINDS.items(), 1):
        rng = random.Random(f"nano-wide/example/{kind}/{tried}")
        scene = sample_scene(rng, how)
        query = sample_query(scene, rng)
        name = f"scene{number}.png"
        scene_to_image(scene, assets).save(options.out / name, optimize=True)
        entry = {"image": name, "caption": scene_to_long(scene)}
        if query is not None:
            entry |= {"focus": query.focuses[-1], "said": query.sentence}
        listed.append(entry)
    text = json.dumps(listed, indent=2) + "\n"
    (options.out / "examples.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
