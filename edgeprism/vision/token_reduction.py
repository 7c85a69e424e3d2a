"""Fewer visual tokens for the language model: of each tile, the rows that differ most stay.

The language model takes in a prompt row by row, so a quarter of a picture's rows needs about a
quarter of the time until the first word. The rows are chosen by max-min diversity: each next row
is the one that is least like the rows chosen before it (DivPrune, Alvar et al., CVPR 2025,
arXiv 2503.02175). That needs no attention scores, no class token and no training.

Rows that stay keep their values and their order, so marks between tiles stay where they are.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeprism.arguments import check_integer
from edgeprism.choices import ALL, AUTO, AUTO_LEAST, AUTO_SHARE
from edgeprism.errors import UsageError
from edgeprism.picture.layout import NEWLINE, PictureLayout, tokens_of_tile
from edgeprism.segments import ImageRows, Segment

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest

# In the caption store's keys: it changes whenever the same rows would be reduced to others.
METHOD = "max-min-diversity"
CONSTANT = -2  # in the place of a tile's number: a row that is the same for all pictures

TokenLimit = int | Literal["auto", "all"]


def check_token_limit(value: object) -> None:
    """Refuse what is neither "auto" nor "all" nor an integer of at least 1; raises UsageError."""
    if not (isinstance(value, str) and value in (AUTO, ALL)):
        hint = f'Give a number of them, "{AUTO}" for one in {AUTO_SHARE}, or "{ALL}".'
        check_integer("visual_tokens", value, least=1, hint=hint)


def limit_for(manifest: Manifest, limit: TokenLimit | None) -> TokenLimit | None:
    """Return a valid limit as records hold it: numpy's integers become Python's, "all" None.

    Raises UsageError for a model none of whose visual tokens can be left out, and for fewer than
    must stay.
    """
    if limit is None or (isinstance(limit, str) and limit == ALL):
        return None
    check_reducible(manifest)
    if isinstance(limit, str):
        return limit
    number = operator.index(limit)
    least = _least_rows(manifest)
    if number < least:
        raise UsageError(
            f"{manifest.name}: {number} visual tokens are too few: {least - 1} of a picture's have "
            "a part of their own.",
            f'Give at least {least}, or "{ALL}".',
        )
    return number


def _least_rows(manifest: Manifest) -> int:
    """Return how many rows must stay: a patch, and the rows that the language model tells apart."""
    lm = manifest.lm
    apart = lm.image_positions == "shared" or (lm.rows is not None and lm.rows.own_last > 0)
    return 1 + sum(manifest.vision.constant_rows) if apart else 1


def check_reducible(manifest: Manifest) -> None:
    """Raise UsageError for a model none of whose visual tokens can be left out."""
    mmproj = manifest.vision.mmproj
    by_mtmd = mmproj is not None and mmproj.multi_axis
    if by_mtmd or manifest.lm.image_positions == "down-across":
        raise _bound_to_places(manifest.name)


def _bound_to_places(name: str) -> UsageError:
    return UsageError(
        f"{name}: its visual tokens have places down and across (M-RoPE), so none can be left out.",
        f'Leave out `visual_tokens`, or give "{ALL}".',
    )


def most_rows(n_rows: int, limit: TokenLimit | None) -> int:
    """Return how many of a picture's `n_rows` stay; all of them without a limit."""
    if limit is None:
        return n_rows
    if isinstance(limit, str):
        return n_rows if limit == ALL else min(n_rows, max(AUTO_LEAST, -(-n_rows // AUTO_SHARE)))
    return min(n_rows, limit)


def rows_to_tiles(
    manifest: Manifest, layout: PictureLayout | None, segments: Sequence[Segment]
) -> np.ndarray:
    """Return the number of each row's tile, int32 [n_rows]; NEWLINE for the model's newline rows.

    It is CONSTANT for the rows that the manifest calls so. libmtmd, which makes its own layout,
    gives each tile a segment.
    """
    if manifest.vision.mmproj is None and layout is not None:
        counts = np.array([tokens_of_tile(shape, manifest) for shape in layout.shapes])
        ends = np.cumsum(counts)
        tiles = np.searchsorted(ends, layout.rows, side="right")
        own = np.minimum(tiles, len(ends) - 1)  # newline rows belong to no tile
        ahead, behind = layout.rows - (ends - counts)[own], ends[own] - 1 - layout.rows
        first, last = manifest.vision.constant_rows
        tiles = np.where((ahead < first) | (behind < last), CONSTANT, tiles)
        return np.where(layout.rows == NEWLINE, NEWLINE, tiles)
    lengths = [s.stop - s.start for s in segments if isinstance(s, ImageRows)]
    return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)


def reduce_rows(
    rows: np.ndarray, segments: Sequence[Segment], tiles: np.ndarray, limit: TokenLimit
) -> tuple[np.ndarray, tuple[Segment, ...]]:
    """Leave out rows of one picture; return those that stay, and their segments.

    Parameters:
        rows: visual tokens in the prompt's order, float32 [n_rows, n_embd].
        segments: how they stand in the prompt.
        tiles: the tile of each row, as `rows_to_tiles` gives it.
        limit: the most rows that stay.

    Raises UsageError for rows with places down and across (M-RoPE).
    """
    n_rows = len(rows)
    if (most := most_rows(n_rows, limit)) >= n_rows:
        return rows, tuple(segments)
    kept = np.zeros(n_rows, bool)
    for tile, count in _counts_of_tiles(tiles, most).items():
        own = np.flatnonzero(tiles == tile)
        if tile == CONSTANT:
            chosen = np.arange(count)
        else:
            chosen = _spread(len(own), count) if tile == NEWLINE else diverse_rows(rows[own], count)
        kept[own[chosen]] = True
    return rows[kept], _shortened(segments, kept)


def reduce_segments(
    segments: Sequence[Segment], tiles: np.ndarray, limit: TokenLimit | None
) -> tuple[Segment, ...]:
    """Return the segments that `reduce_rows` gives; how many rows stay depends on no value."""
    if (most := most_rows(len(tiles), limit)) >= len(tiles):
        return tuple(segments)
    kept = np.zeros(len(tiles), bool)
    for tile, count in _counts_of_tiles(tiles, most).items():
        kept[np.flatnonzero(tiles == tile)[:count]] = True
    return _shortened(segments, kept)


def diverse_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Return the indices, ascending, of the `count` rows of [n, n_embd] that differ most.

    The first is the row whose nearest other row is farthest away; each next is the row whose
    nearest chosen row is. The distance is 1 - cosine.
    """
    if count >= len(rows):
        return np.arange(len(rows))
    if count < 1:
        return np.arange(0)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.maximum(norms, np.finfo(np.float32).tiny)
    likeness = unit @ unit.T  # cosines [n, n]
    np.fill_diagonal(likeness, -np.inf)
    chosen = [int(likeness.max(axis=1).argmin())]
    np.fill_diagonal(likeness, np.inf)  # a chosen row is never chosen again
    nearest = likeness[chosen[0]].copy()  # of each row: the cosine with its nearest chosen row
    while len(chosen) < count:
        chosen.append(int(nearest.argmin()))
        np.maximum(nearest, likeness[chosen[-1]], out=nearest)
    return np.sort(np.array(chosen))


def _spread(n: int, count: int) -> np.ndarray:
    """Return `count` of n indices at even distances; the last is always among them."""
    return (np.arange(1, count + 1) * n) // max(count, 1) - 1


def _counts_of_tiles(tiles: np.ndarray, most: int) -> dict[int, int]:
    """Return {tile: how many of its rows stay}, `most` in all, in proportion to the tiles' rows.

    A tile keeps one row at least where `most` allows it, and then all constant rows stay if there
    is room for them. A newline row ends a row of patches, and the picture has fewer of those in the
    square root of the share that stays.
    """
    numbers, counts = np.unique(tiles, return_counts=True)
    newlines = int(counts[numbers == NEWLINE].sum())
    constant = int(counts[numbers == CONSTANT].sum())
    is_tile = numbers >= 0
    share = most / len(tiles)
    room = max(0, most - int(is_tile.sum()))
    constant = constant if constant <= room else 0
    ends = min(round(newlines * share**0.5), room - constant)
    kept = _shares(counts[is_tile], most - constant - ends)
    found = dict(zip(numbers[is_tile].tolist(), kept.tolist(), strict=True))
    return found | ({NEWLINE: ends} if newlines else {}) | {CONSTANT: constant}


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Split `total` in proportion to `counts` by largest remainders; 1 each where that suffices."""
    total = min(total, int(counts.sum()))
    exact = counts * (total / counts.sum())
    shares: np.ndarray = np.maximum(np.floor(exact).astype(int), int(total >= len(counts)))
    while shares.sum() > total:  # because some got one that were due less
        shares[np.where(shares > 1, shares - exact, -np.inf).argmax()] -= 1
    while shares.sum() < total:
        shares[np.where(shares < counts, exact - shares, -np.inf).argmax()] += 1
    return shares


def _shortened(segments: Sequence[Segment], kept: np.ndarray) -> tuple[Segment, ...]:
    """Return `segments` of the rows that stay; one without rows is left out."""
    shorter: list[Segment] = []
    stop = 0
    for segment in segments:
        if not isinstance(segment, ImageRows):
            shorter.append(segment)
            continue
        own, positions = kept[segment.start : segment.stop], segment.positions
        if positions is not None and len(positions) > 1:
            raise _bound_to_places("This model")
        start, stop = stop, stop + int(own.sum())
        if stop > start:
            positions = None if positions is None else positions[:, own]
            shorter.append(replace(segment, start=start, stop=stop, positions=positions))
    return tuple(shorter)
