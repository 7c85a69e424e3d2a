"""Draw the example pictures: ``python -m edgeprism.models.nano.draw_examples``.

Writes ``examples/scene1.png``, ``scene3.png`` and ``examples.json`` with what is true of them.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from .grammar import scene_to_caption
from .scene import UNSEEN_PAIRS, sample_scene, scene_to_image

FOLDER = Path(__file__).with_name("examples")
KINDS = {1: (3, False), 3: (1, False)}  # number: objects, with a pair training never had


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    listed = []
    for number, (count, unseen) in KINDS.items():
        scene = sample_scene(random.Random(f"nano/example/{number}"), count, unseen)
        name = f"scene{number}.png"
        scene_to_image(scene).save(FOLDER / name, optimize=True)
        pairs = [(t.colour, t.shape) for t in scene.things]
        listed.append(
            {
                "image": name,
                "caption": scene_to_caption(scene),
                "pairs_never_trained": [" ".join(p) for p in pairs if p in UNSEEN_PAIRS],
            }
        )
    (FOLDER / "examples.json").write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
