"""Measure the second stage: ``python -m edgeprism.models.nano.recipe.measure.ask ASSETS``.

A reasoner answers questions of six kinds about held-out scenes with five kinds of evidence: no
caption (the floor), the generic caption, the caption with the question as focus, and the captions
of a perfect captioner in both cases (the ceilings). The script uses only the public API, and
training never had the questions' wordings.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgeprism import Captioner, Reasoner
from edgeprism.models.nano.recipe.world.draw import Assets, scene_to_image
from edgeprism.models.nano.recipe.world.grammar import ASK, NUMBERS, Query, list_then, scene_to_long
from edgeprism.models.nano.recipe.world.scene import COLOURS, Sampling, Scene
from edgeprism.models.nano.recipe.world.sheets import sample_scene
from edgeprism.models.reader.recipe.measure.elsewhere_scoring import (
    plain_words,
    says_nothing_is_said,
)

KINDS = ("colour", "count", "relation", "text", "presence", "chart")
EVIDENCE = (
    "no caption",
    "generic caption",
    "caption with focus",
    "true generic caption",
    "true caption with focus",
)
SAID_SO = "… said to be unknown"  # of the floor's answers, those that say that nothing is known
EMPTY = "(no description)"  # the caption of the case "no caption"
_DIRECTIONS = ("above", "below", "left", "right")


def sample_questions(seed: int, count: int) -> list[tuple[Scene, Query]]:
    """Return ``count`` questions, equally many of each kind, with the scenes that answer them."""
    pairs: list[tuple[Scene, Query]] = []
    number = 0
    while len(pairs) < count:
        kind = KINDS[len(pairs) % len(KINDS)]
        rng = random.Random(f"nano-wide/ask/{seed}/{number}")
        number += 1
        scene = sample_scene(rng, Sampling(unseen=True))
        query = ASK[kind](scene, rng)
        if query is not None and scene.kind != "nothing":
            pairs.append((scene, query))
    return pairs


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def is_right(query: Query, text: str) -> bool:
    """Return whether an answer has the right fact and no wrong one of the same kind."""
    words = _words(text)
    if query.kind == "colour":
        return {w for w in words if w in COLOURS} == {query.answer}
    if query.kind in ("count", "chart"):
        numbers = {str(NUMBERS.index(w)) if w in NUMBERS else w for w in words}
        number = NUMBERS.index(query.answer) if query.answer in NUMBERS else query.answer
        stated = {w for w in numbers if w.isdigit()} - {
            n for n in _words(query.question) if n.isdigit()
        }
        return stated == {str(number)}
    if query.kind == "relation":
        expected = {w for w in _words(query.answer) if w in _DIRECTIONS}
        return {w for w in words if w in _DIRECTIONS} == expected
    if query.kind == "text":
        present = query.answer.lower() in words
        return present if query.answer != "no text" else bool({"no", "not", "none"} & set(words))
    negative = bool({"no", "not"} & set(words))
    return negative == (query.answer == "no") and bool(words)


def ask_all(
    captioner: Captioner,
    reasoner: Reasoner,
    assets: Assets,
    pairs: list[tuple[Scene, Query]],
    wanted: Sequence[str] = EVIDENCE,
) -> dict[str, dict[str, float]]:
    """Return {evidence: {kind of question: share of right answers}} of the `wanted` evidence.

    Without a caption, `SAID_SO` has the share of answers that say that nothing is known.
    """
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: {k: [] for k in KINDS})
    for scene, query in pairs:
        encoded = captioner.encode(scene_to_image(scene, assets))
        generic = captioner.caption(encoded)
        written = {
            "no caption": EMPTY,
            "generic caption": generic.text,
            "true generic caption": scene_to_long(scene),
            "true caption with focus": list_then(scene, query.sentence),
        }
        for name in wanted:
            if name in written:
                caption = replace(generic, text=written[name])
            else:
                caption = captioner.caption(encoded, focus=query.question)
            answer = reasoner.answer([caption], query.question, answer_tokens=24)
            hits[name][query.kind].append(is_right(query, answer.text))
            if name == "no caption":
                said_so = says_nothing_is_said(plain_words(answer.text))
                hits[SAID_SO][query.kind].append(said_so)
    shares = {e: {k: sum(h) / len(h) for k, h in kinds.items() if h} for e, kinds in hits.items()}
    for kinds in shares.values():
        kinds["all"] = sum(kinds.values()) / len(kinds)
    return shares


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path, help="folder that the assets command has filled")
    parser.add_argument("--bundle", default="nano", help="name or folder of the captioner")
    parser.add_argument("--reasoner", default="smollm2-135m", help="name or GGUF file")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--evidence", nargs="+", choices=EVIDENCE, default=EVIDENCE, help="ask with these alone"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    if options.questions < len(KINDS):
        parser.error(f"--questions: at least {len(KINDS)}, one of each kind")
    began = time.perf_counter()
    pairs = sample_questions(options.seed, options.questions)
    captioner, reasoner = Captioner.load(options.bundle), Reasoner.load(options.reasoner)
    shares = ask_all(captioner, reasoner, Assets(options.assets), pairs, options.evidence)
    print(f"{len(pairs)} questions, seed {options.seed}, {time.perf_counter() - began:.0f} s")
    print(f"{'right answers with':<24}" + "".join(f"{k:>10}" for k in (*KINDS, "all")))
    for name, kinds in shares.items():
        print(f"{name:<24}" + "".join(f"{kinds[k]:10.1%}" for k in (*KINDS, "all")))
    if options.json is not None:
        options.json.write_text(json.dumps(shares, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
