"""Measure how many simple questions a reasoner answers from true descriptions of nano's scenes.

    python -m benchmarks.answers.reasoner [--reasoner smollm2-135m] [--scenes 20]

An answer is right if it holds the expected word (colour, shape, number, background). No captioner
takes part, so the figure is the reasoner's own limit.
"""

from __future__ import annotations

import argparse
import random

from edgeprism import Caption, ModelInfo, Reasoner, Timings, TokenCounts
from edgeprism.models.nano.recipe.world import plain_grammar, plain_scene

NUMBERS = {"one": "1", "two": "2", "three": "3"}


def questions(scenes: int) -> list[tuple[str, str, str, str]]:
    """Return (kind, description, question, expected word) for each question."""
    rng = random.Random(3)
    rows = []
    for _ in range(scenes):
        scene = plain_scene.sample_scene(rng)
        text, things = plain_grammar.scene_to_caption(scene), scene.things
        thing = rng.choice(things)
        if sum(other.shape == thing.shape for other in things) == 1:
            rows.append(("colour", text, f"What colour is the {thing.shape}?", thing.colour))
        if sum(other.colour == thing.colour for other in things) == 1:
            rows.append(("shape", text, f"What shape is {thing.colour}?", thing.shape))
        number = list(NUMBERS)[len(things) - 1]
        rows.append(("count", text, "How many objects are there?", number))
        rows.append(("background", text, "What colour is the background?", scene.background))
    return rows


def caption(text: str) -> Caption:
    return Caption(
        text, "", "", "stop", TokenCounts(0, 0, 0), Timings(), ModelInfo("true", ""), "", "", ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reasoner", default="smollm2-135m")
    parser.add_argument("--scenes", type=int, default=20)
    arguments = parser.parse_args()
    reasoner = Reasoner.load(arguments.reasoner)
    right: dict[str, list[bool]] = {}
    for kind, text, question, expected in questions(arguments.scenes):
        answer = reasoner.answer([caption(text)], question, answer_tokens=24).text.lower()
        correct = expected in answer or NUMBERS.get(expected, expected) in answer
        right.setdefault(kind, []).append(correct)
    for kind, answers in right.items():
        print(f"{kind:11} {sum(answers)} of {len(answers)}")
    print(f"all         {sum(map(sum, right.values()))} of {sum(map(len, right.values()))}")


if __name__ == "__main__":
    main()
