"""Measure what fewer visual tokens cost nano's captions, by method and by number.

    python -m benchmarks.answers.visual_tokens [--scenes 200] [--questions 240] [--method NAME ...]
        [--tokens 64 40 25 9]

Each picture is encoded once; each method then reduces its visual tokens, and the captioner
describes it from what is left. Held-out scenes of plain shapes are scored claim by claim, and the
pictures of nano's question set by whether the caption, with the question as its focus, holds the
fact that the question is about. `diverse` is the method of `--visual-tokens`; the others lie here
alone, for comparison:

- pool: averages of k × k patches, with the smallest k that is enough
- merge: token merging (ToMe, Bolya et al., ICLR 2023): the most alike pairs become their average
- diverse: max-min diversity (DivPrune, Alvar et al., CVPR 2025)
- cluster: as `diverse`, but each row that stays becomes the average of the rows most like it
- even: every k-th row, without looking at them
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from edgeprism import Captioner, EncodedImage
from edgeprism.evaluation.questions import QuestionFile
from edgeprism.models import nano
from edgeprism.models.nano.recipe.measure.evidence import carries
from edgeprism.models.nano.recipe.measure.plain import heldout_scenes
from edgeprism.models.nano.recipe.world import plain_grammar, plain_scene
from edgeprism.reason.evidence import caption_to_sentences
from edgeprism.segments import ImageRows
from edgeprism.vision.token_reduction import diverse_rows

# rows [n, n_embd] of a grid [down, across], and how many may stay → the rows that stay
Method = Callable[[np.ndarray, tuple[int, int], int], np.ndarray]
QUESTIONS = Path(nano.__file__).with_name("questions.tsv")
SHOWN = (
    "objects right (shape and colour)", "invented objects per caption",
    "place right, of objects named", "captions without any mistake",
)  # fmt: skip


def pool(rows: np.ndarray, grid: tuple[int, int], count: int) -> np.ndarray:
    """Average squares of k × k patches; at the edges what is left of a square."""
    down, across = grid
    k = next(k for k in range(1, max(grid) + 1) if -(-down // k) * -(-across // k) <= count)
    cells = rows.reshape(down, across, -1)
    return np.array(
        [
            cells[y : y + k, x : x + k].mean(axis=(0, 1))
            for y in range(0, down, k)
            for x in range(0, across, k)
        ]
    )


def merge(rows: np.ndarray, _grid: tuple[int, int], count: int) -> np.ndarray:
    """Merge rows at even places into the most alike one at odd places, the most alike first."""
    sizes = np.ones(len(rows))
    while len(rows) > count:
        unit = _unit(rows)
        likeness = unit[::2] @ unit[1::2].T
        best, nearest = likeness.max(axis=1), likeness.argmax(axis=1)
        merged = np.argsort(-best, kind="stable")[: len(rows) - count]
        weighted = rows * sizes[:, None]
        for even in merged:
            into, away = 2 * nearest[even] + 1, 2 * even
            weighted[into] += weighted[away]
            sizes[into] += sizes[away]
        stays = np.ones(len(rows), bool)
        stays[2 * merged] = False
        rows, sizes = (weighted / sizes[:, None])[stays], sizes[stays]
    return rows


def diverse(rows: np.ndarray, _grid: tuple[int, int], count: int) -> np.ndarray:
    """Keep the rows that differ most, as EdgePrism does."""
    kept: np.ndarray = rows[diverse_rows(rows, count)]
    return kept


def cluster(rows: np.ndarray, _grid: tuple[int, int], count: int) -> np.ndarray:
    """Average around the rows that differ most."""
    centres = diverse_rows(rows, count)
    unit = _unit(rows)
    nearest = (unit @ unit[centres].T).argmax(axis=1)
    nearest[centres] = np.arange(len(centres))
    return np.array([rows[nearest == i].mean(axis=0) for i in range(len(centres))])


def even(rows: np.ndarray, _grid: tuple[int, int], count: int) -> np.ndarray:
    """Keep rows at even distances."""
    return rows[(np.arange(count) * 2 + 1) * len(rows) // (2 * count)]


METHODS: dict[str, Method] = {
    "pool": pool, "merge": merge, "diverse": diverse, "cluster": cluster, "even": even,
}  # fmt: skip


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def reduced(encoded: EncodedImage, rows: np.ndarray) -> EncodedImage:
    """Return a picture of one tile with other rows."""
    layout = tuple(
        dataclasses.replace(s, stop=len(rows)) if isinstance(s, ImageRows) else s
        for s in encoded.layout
    )
    rows = np.ascontiguousarray(rows, np.float32)
    return dataclasses.replace(encoded, visual_tokens=rows, layout=layout)


def variants(
    encoded: EncodedImage, grid: tuple[int, int], methods: Iterable[str], counts: Iterable[int]
) -> dict[str, EncodedImage]:
    """Return {"method, rows": the picture with those rows}."""
    rows = encoded.visual_tokens
    found = {f"all, {len(rows)}": encoded}
    for count in counts:
        for name in methods:
            fewer = METHODS[name](rows, grid, count)
            found[f"{name}, {len(fewer)}"] = reduced(encoded, fewer)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 40, 25, 9])
    options = parser.parse_args()
    began = time.perf_counter()
    with Captioner.load("nano") as captioner:
        down, across = captioner.bundle.manifest.vision.grid
        choice = ((down, across), options.method, options.tokens)
        scores: dict[str, list[plain_grammar.CaptionScore]] = {}
        scenes = heldout_scenes(0, options.scenes)
        for scene in scenes:
            encoded = captioner.encode(plain_scene.scene_to_image(scene))
            for name, picture in variants(encoded, *choice).items():
                text = captioner.caption(picture).text
                scores.setdefault(name, []).append(plain_grammar.score_caption(scene, text))
        facts: dict[str, list[bool]] = {}
        file = QuestionFile(QUESTIONS)
        for question in file.questions[: options.questions]:
            encoded = captioner.encode(file.picture_bytes(question.pictures[0]))
            for name, picture in variants(encoded, *choice).items():
                text = captioner.caption(picture, focus=question.text).text
                held = any(carries(each, question) for each in caption_to_sentences(text))
                facts.setdefault(name, []).append(held)
    print(f"{len(scenes)} held-out scenes, {options.questions} questions, "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    print(f"{'method, rows':<14}" + "".join(f"{row.split(',')[0]:>34}" for row in SHOWN)
          + f"{'fact in the caption':>34}")  # fmt: skip
    for name in scores | facts:
        table = plain_grammar.scores_to_table(scores.get(name, []), scenes) if scenes else {}
        cells = [table.get(row, float("nan")) for row in SHOWN]
        held_share = np.mean(facts[name]) if name in facts else float("nan")
        print(f"{name:<14}" + "".join(f"{cell:34.3f}" for cell in (*cells, held_share)))


if __name__ == "__main__":
    main()
