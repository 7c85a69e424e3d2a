"""Make the question set that ships.

    python -m edgeprism.models.nano.recipe.world.questions ASSETS OUT.tsv

The set is a VLMEvalKit TSV with questions of six kinds about held-out scenes, in wordings that
training never uses. Most have lettered options, whose wrong ones name other things in the picture
if possible; every sixth of a kind is open. The set is a function of the seed and the grammar.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import random
import sys
from pathlib import Path

from PIL import Image

from edgeprism.models.nano.recipe.measure.ask import KINDS, sample_questions
from edgeprism.models.nano.recipe.world.draw import Assets, scene_to_image
from edgeprism.models.nano.recipe.world.grammar import NUMBERS, Query
from edgeprism.models.nano.recipe.world.plain_grammar import cells_to_relation
from edgeprism.models.nano.recipe.world.scene import CHARS, COLOURS, MOST_ITEMS, Scene

COLUMNS = ("index", "image", "question", "A", "B", "C", "D", "answer", "answer_type", "category",
           "l2-category")  # fmt: skip
LETTERS = "ABCD"
OPEN_EVERY = 6
OPEN_KINDS = {"colour": "text", "count": "integer", "text": "text", "chart": "integer"}
_JPEG_QUALITY = 90


def query_to_answer(query: Query) -> str:
    """Return the text of an option or an open answer: numbers in digits, "0" for none."""
    if query.kind == "count" and query.answer in NUMBERS:
        return str(NUMBERS.index(query.answer))
    return query.answer


def query_to_distractors(query: Query, scene: Scene, rng: random.Random) -> list[str]:
    """Return wrong answers, those from the picture first; fewer than three for yes and no."""
    answer = query_to_answer(query)
    if query.kind == "presence":
        return ["no" if answer == "yes" else "yes"]
    shown: list[str] = []
    if query.kind == "colour":
        shown = [item.colour for item in scene.items if item.colour]
        others = list(COLOURS)
    elif query.kind == "count":
        others = [str(n) for n in range(MOST_ITEMS + 1)]
    elif query.kind == "relation":
        others = sorted({cells_to_relation(a, b) for a in range(9) for b in range(9) if a != b})
    elif query.kind == "text":
        others = ["no text"]
        like = answer if answer != "no text" else "STOP"
        shown = [_misread(like, rng) for _ in range(8)]
    else:
        shown = [str(item.value) for item in scene.items]
        near = int(answer)
        others = [str(n) for n in range(max(1, near - 3), near + 4)]
    rng.shuffle(shown)
    rng.shuffle(others)
    if query.kind == "text":
        shown[2:2] = others  # two misread words come first
    wrong = [text for text in dict.fromkeys([*shown, *others]) if text != answer]
    return wrong[:3]


def _misread(word: str, rng: random.Random) -> str:
    """Return the word with one or two characters changed, letters to letters, digits to digits."""
    letters = list(word)
    for index in rng.sample(range(len(letters)), min(len(letters), rng.choice((1, 2)))):
        alike = CHARS[26:] if letters[index].isdigit() else CHARS[:26]
        letters[index] = rng.choice([c for c in alike if c != letters[index]])
    return "".join(letters)


def part(query: Query, scene: Scene) -> str:
    """Return the second-level category: the subject of a question within its kind."""
    if query.kind == "chart":
        return "bars" if scene.kind == "chart" else "table"
    if query.kind == "presence":
        return "there" if query.answer == "yes" else "not there"
    if query.kind == "text":
        return (
            "number" if query.answer.isdigit() else "word" if query.answer != "no text" else "none"
        )
    if query.kind == "count":
        return (
            "none" if query.answer == NUMBERS[0] else "one" if query.answer == "one" else "several"
        )
    return "one object" if len(scene.items) == 1 else "several objects"


def image_to_cell(image: Image.Image) -> str:
    """Return Base64 of a PNG, or of a JPEG if that is smaller."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    data = min(png.getvalue(), jpeg.getvalue(), key=len)
    return base64.b64encode(data).decode("ascii")


def to_row(number: int, scene: Scene, query: Query, assets: Assets, seed: int) -> dict[str, str]:
    """One question as a row of the file of questions."""
    rng = random.Random(f"nano-wide/options/{seed}/{number}")
    row = dict.fromkeys(COLUMNS, "")
    row |= {
        "index": str(number),
        "image": image_to_cell(scene_to_image(scene, assets)),
        "question": query.focuses[-1],  # the wording for tests
        "category": query.kind,
        "l2-category": f"{query.kind}: {part(query, scene)}",
    }
    answer = query_to_answer(query)
    if query.kind in OPEN_KINDS and (number // len(KINDS)) % OPEN_EVERY == OPEN_EVERY - 1:
        return row | {"answer": answer, "answer_type": OPEN_KINDS[query.kind]}
    options = [answer, *query_to_distractors(query, scene, rng)]
    rng.shuffle(options)
    row |= dict(zip(LETTERS, options, strict=False))
    return row | {"answer": LETTERS[options.index(answer)]}


def questions_to_tsv(assets: Assets, *, count: int, seed: int) -> str:
    """Return the whole file: tab-separated, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for number, (scene, query) in enumerate(sample_questions(seed, count)):
        writer.writerow(to_row(number, scene, query, assets, seed))
    return text.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Write the questions from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path, help="folder that the assets command has filled")
    parser.add_argument("out", type=Path, help="TSV file to write")
    parser.add_argument("--questions", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    if options.questions < len(KINDS):
        parser.error(f"--questions: at least {len(KINDS)}, one of each kind")
    text = questions_to_tsv(Assets(options.assets), count=options.questions, seed=options.seed)
    options.out.write_text(text, encoding="utf-8", newline="")
    print(
        f"{options.questions} questions, seed {options.seed}: {options.out} ({len(text):,} bytes)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
