"""Measure what the tower alone reveals.

    python -m edgeprism.models.nano.recipe.measure.tower ASSETS CHECKPOINT

The script scores the heads that only training uses, on held-out scenes: the patches of an item vote
on its identity and its number, the patches of a letter on the letter. Captions cannot be better, so
the figures show which stage needs more training when a row of ``measure.captions`` is low.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from edgeprism.models.nano.recipe.learn.data import heldout_scenes, scenes_to_batch
from edgeprism.models.nano.recipe.learn.export import checkpoint_to_model
from edgeprism.models.nano.recipe.learn.model import Nano
from edgeprism.models.nano.recipe.measure.captions import heldout_words
from edgeprism.models.nano.recipe.world.draw import Assets
from edgeprism.models.nano.recipe.world.labels import IDENTITIES, PATCH_LABELS
from edgeprism.models.nano.recipe.world.scene import CHARS, NAMES, SHAPES, Sampling, Scene

BATCH = 20  # pictures at once
_COLUMN = {name: i for i, name in enumerate(PATCH_LABELS)}
RANK = _COLUMN["rank"]
_KINDS = {**dict.fromkeys(NAMES, "things"), **dict.fromkeys(SHAPES, "shapes"), "text": "print"}


# the patches' labels [n, labels], and each head's log probabilities
Predictions = tuple[Tensor, list[Tensor]]


@torch.no_grad()
def predict_labels(
    model: Nano, scenes: list[Scene], assets: Assets, device: torch.device | str = "cpu"
) -> Iterator[Predictions]:
    """Yield each picture's true labels and the heads' predictions."""
    for start in range(0, len(scenes), BATCH):
        batch = scenes_to_batch(scenes[start : start + BATCH], assets)
        labels = torch.from_numpy(batch.patch_labels).long().to(device)
        logits = model.heads(model.tower(torch.from_numpy(batch.pixels).to(device)))
        logs = [head.log_softmax(-1) for head in logits]
        for b in range(len(labels)):
            yield labels[b], [log[b] for log in logs]


def to_items(labels: Tensor, logs: list[Tensor]) -> Iterator[Predictions]:
    """Yield the labels and predictions of each group of equal items."""
    ranks = labels[:, RANK]
    for rank in range(1, int(ranks.max()) + 1):
        yield labels[ranks == rank], [log[ranks == rank] for log in logs]


def has(labels: Tensor, name: str) -> bool:
    """Return whether an item has a label ``name``; e.g. only print has letters."""
    return int(labels[0, _COLUMN[name]]) >= 0


def vote(labels: Tensor, logs: list[Tensor], name: str, value: int | None = None) -> bool:
    """Return whether the patches vote for the right ``name``; ``value``: only patches with it."""
    column = _COLUMN[name]
    expected = int(labels[0, column]) if value is None else value
    voters = labels[:, column] == expected
    return int(logs[column][voters].sum(0).argmax()) == expected


def _items(model: Nano, scenes: list[Scene], assets: Assets) -> Iterator[Predictions]:
    for picture in predict_labels(model, scenes, assets):
        yield from to_items(*picture)


def score_tower(
    model: Nano, scenes: list[Scene], words: list[Scene], assets: Assets
) -> dict[str, tuple[int, int]]:
    """Return {row: (number right, number of all)}."""
    hits: dict[str, list[bool]] = {}
    for labels, logs in _items(model, scenes, assets):
        kind = _KINDS.get(IDENTITIES[int(labels[0, 0])])
        if kind is not None:
            hits.setdefault(f"{kind} named rightly", []).append(vote(labels, logs, "identity"))
        if int(labels[0, _COLUMN["count"]]) > 0:
            hits.setdefault("count of several", []).append(vote(labels, logs, "count"))
    for labels, logs in _items(model, words, assets):
        if IDENTITIES[int(labels[0, 0])] != "text":
            continue
        shown = sorted(set(labels[:, _COLUMN["char"]].tolist()) - {-1})
        letters = [vote(labels, logs, "char", char) for char in shown]
        what = "numbers" if CHARS[shown[0]].isdigit() else "words"
        hits.setdefault(f"{what}: each sign", []).extend(letters)
        hits.setdefault(f"{what}: all signs", []).append(all(letters))
    return {row: (sum(h), len(h)) for row, h in sorted(hits.items())}


def main(arguments: list[str] | None = None) -> int:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("assets", type=Path, help="folder that the assets command has filled")
    parser.add_argument("checkpoint", type=Path, help="a checkpoint of training, of any stage")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the held-out scenes")
    options = parser.parse_args(arguments)
    if options.scenes < 2:
        parser.error("--scenes: at least 2")
    scenes = heldout_scenes(options.seed, options.scenes, Sampling(unseen=True))
    words = heldout_words(options.seed, options.scenes // 2)
    model = checkpoint_to_model(options.checkpoint)
    table = score_tower(model, scenes, words, Assets(options.assets))
    print(f"{options.checkpoint}: {options.scenes} held-out scenes, seed {options.seed}")
    for row, (right, among) in table.items():
        print(f"{row:<24}{right:>6} of {among:<6}{right / among:7.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
