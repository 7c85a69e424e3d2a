"""A request to a language model: its prompt as token ids and visual tokens, and its sampling."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from edgeprism.errors import UsageError
from edgeprism.language.engine import LanguageEngine
from edgeprism.language.markers import tokenize_plain
from edgeprism.records import TokenCounts
from edgeprism.segments import ImageRows, Segment, Text, Tokens


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop."""

    max_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str = ""  # GBNF from `edgeprism.reason.shape`; the text must match it
    # of a token that the text holds already; see the manifest's `Prompts`; 1: none
    repetition_penalty: float = 1.0
    stop_at_end: bool = True  # False: go on past the vocabulary's end tokens, for comparisons


@dataclass(frozen=True)
class Rows:
    """Visual tokens [n, n_embd] float32 that enter the language model together (see ImageRows)."""

    values: np.ndarray
    causal: bool = True
    positions: np.ndarray | None = None
    n_text: int = 0  # how many of the rows are embeddings of text between visual tokens
    apart: bool = False  # they stand beside the sequence, in no cell and at no position

    def __len__(self) -> int:
        return len(self.values)


Part = list[int] | Rows
_MARK_TOKENS = 16  # between two tiles; a longer text may be a turn of a conversation


@dataclass(frozen=True)
class Request:
    """A tokenised prompt: parts are token ids or visual tokens, in order.

    A bare array [n, n_embd] stands for rows in one causal run.
    """

    parts: tuple[Part | np.ndarray, ...]
    sampling: Sampling
    keep_first: bool = False  # the first part begins other prompts, too: keep its state
    prompt: tuple[Part, ...] = field(init=False)

    def __post_init__(self) -> None:
        # llama.cpp keeps no logits of rows, and ends the process if it is asked for them
        if not self.parts or not isinstance(self.parts[-1], list) or not self.parts[-1]:
            raise UsageError(
                "The prompt has no text after the picture.", "Give an instruction or a question."
            )
        object.__setattr__(self, "prompt", tuple(_part(part) for part in self.parts))

    def count(self) -> int:
        """Return how many cells of the KV cache the prompt takes."""
        return sum(len(part) for part in self.prompt if not is_apart(part))

    def token_counts(self, generated: int) -> TokenCounts:
        """Return the prompt's visual and other tokens, with those of its answer."""
        rows = [part for part in self.prompt if isinstance(part, Rows)]
        text = sum(len(part) for part in self.prompt if isinstance(part, list))
        n_text = sum(part.n_text for part in rows)
        return TokenCounts(sum(map(len, rows)) - n_text, text + n_text, generated)

    def n_positions(self) -> int:
        """Return how many positions the prompt takes: fewer than cells if rows share positions."""
        return sum(advance(part) for part in self.prompt)

    def longest_whole_run(self) -> int:
        """Return the rows of the longest run that must go through the model in one batch."""
        runs = [part for part in self.prompt if isinstance(part, Rows) and not part.causal]
        return max(map(len, runs), default=0)


def _part(part: Part | np.ndarray) -> Part:
    return Rows(part) if isinstance(part, np.ndarray) else part


def is_apart(part: Part) -> bool:
    """Return whether `part` is of visual tokens that stand beside the sequence."""
    return isinstance(part, Rows) and part.apart


def advance(part: Part) -> int:
    """Return how far `part` advances the position."""
    if is_apart(part):
        return 0
    if isinstance(part, list) or part.positions is None:
        return len(part)
    return int(part.positions.max(initial=-1)) + 1


def segments_to_parts(
    lm: LanguageEngine, segments: Sequence[Segment], rows: np.ndarray | None, *, add_bos: bool
) -> tuple[Part, ...]:
    """Return token ids and rows in order; neighbouring ids become one part.

    Neighbouring texts of one kind are tokenised as one text, because a token may span both.
    """
    vocabulary = lm.vocabulary
    parts: list[Part] = [vocabulary.bos() if add_bos else []]
    for kind, run in itertools.groupby(segments, _kind_of):
        if isinstance(kind, bool):
            text = "".join(segment.text for segment in run if isinstance(segment, Text))
            ids = (
                vocabulary.tokenize(text, parse_special=True)
                if kind
                else tokenize_plain(vocabulary, text)
            )
            _last_ids(parts).extend(ids)
            continue
        for segment in run:
            if isinstance(segment, Tokens):
                _last_ids(parts).extend(segment.ids)
            elif isinstance(segment, ImageRows) and rows is not None:
                values = rows[segment.start : segment.stop]
                parts.append(Rows(values, segment.causal, segment.positions, apart=lm.rows_apart))
    if lm.rows_apart:
        return _rows_first(parts)
    return tuple(_join_tiles(lm, [part for part in parts if len(part)]))


def _rows_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return visual tokens before all ids, which become one part: every token looks at them."""
    ids = [token for part in parts if isinstance(part, list) for token in part]
    rows = [part for part in parts if isinstance(part, Rows) and len(part)]
    return (*rows, ids) if ids else tuple(rows)


def _join_tiles(lm: LanguageEngine, parts: Sequence[Part]) -> Iterator[Part]:
    """Yield `parts` with short texts between causal visual tokens as rows, all in one part.

    The tiles of a picture with their marks then go through the model together, in few long calls.
    """
    joined: list[Rows] = []
    for part, following in itertools.zip_longest(parts, parts[1:]):
        if _is_plain_run(part, lm.n_embd):
            joined.append(part)
            continue
        is_mark = joined and len(part) <= _MARK_TOKENS and _is_plain_run(following, lm.n_embd)
        rows = lm.embed(part) if is_mark and isinstance(part, list) else None
        if rows is not None:
            joined.append(Rows(rows, n_text=len(rows)))
            continue
        yield from _as_one(joined)
        joined = []
        yield part
    yield from _as_one(joined)


def _is_plain_run(part: Part | None, n_embd: int) -> TypeGuard[Rows]:
    """Return whether `part` is rows of width `n_embd`, each one position after the previous."""
    if not isinstance(part, Rows) or part.values.ndim != 2:
        return False
    return part.causal and part.positions is None and part.values.shape[1] == n_embd


def _as_one(run: Sequence[Rows]) -> Iterator[Rows]:
    """Yield the rows of `run` as one part; nothing for an empty run."""
    if run:
        values = [rows.values for rows in run]
        yield (
            run[0]
            if len(run) == 1
            else Rows(np.concatenate(values), n_text=sum(rows.n_text for rows in run))
        )


def _last_ids(parts: list[Part]) -> list[int]:
    """Return the list of ids that ends `parts`; appends a new one if `parts` ends in rows."""
    last = parts[-1]
    if isinstance(last, list):
        return last
    ids: list[int] = []
    parts.append(ids)
    return ids


def _kind_of(segment: Segment) -> bool | type:
    """Return True for a template's text, False for plain text, else the segment's class."""
    return segment.template if isinstance(segment, Text) else type(segment)
