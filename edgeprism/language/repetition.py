"""Notices that a text repeats itself, as small models do until they reach their limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPETITION_NOTE = "the text repeats itself, and ends there"

_CHECK_EVERY = 16  # tokens
# While a text grows it ends only after this many repeating tokens; a list of the same few things
# is shorter. Repeated digits and signs may be a table, which gets more room.
_WORDS_SPAN, _SIGNS_SPAN = 128, 384
_LEAST_TIMES = 5
_LONGEST_PERIOD = 100  # tokens
# A text that has reached its limit repeats itself if at least half of it does, over and over.
_LEAST_AT_LIMIT, _LEAST_TIMES_AT_LIMIT = 24, 4


def ending_notes(finish_reason: str) -> tuple[str, ...]:
    """Return a note on a text that ended for the reason "repetition"; none for others."""
    return (REPETITION_NOTE,) if finish_reason == "repetition" else ()


def repeats_for_good(ids: Sequence[int], has_letters: Callable[[Sequence[int]], bool]) -> bool:
    """Return whether a growing text only repeats itself any more.

    `ids` are its tokens so far. The last `_WORDS_SPAN` of them must be one unit over and over, at
    least `_LEAST_TIMES`; a longer unit needs more tokens, and so does a unit without letters.
    """
    if len(ids) < _WORDS_SPAN or len(ids) % _CHECK_EVERY:
        return False
    for period in range(1, min(_LONGEST_PERIOD, len(ids) // _LEAST_TIMES) + 1):
        span = max(_WORDS_SPAN, _LEAST_TIMES * period)
        if _has_period(ids, period, span):
            if has_letters(ids[-period:]):
                return True
            return _has_period(ids, period, max(_SIGNS_SPAN, span))
    return False


def repeats_at_limit(ids: Sequence[int]) -> bool:
    """Return whether a text that has reached its limit did so because it repeats itself."""
    span = max(_LEAST_AT_LIMIT, len(ids) // 2)
    longest = min(_LONGEST_PERIOD, span // _LEAST_TIMES_AT_LIMIT)
    return any(_has_period(ids, period, span) for period in range(1, longest + 1))


def _has_period(ids: Sequence[int], period: int, span: int) -> bool:
    """Return whether the last `span` ids are one unit of `period` ids, over and over."""
    if span > len(ids) or ids[-1] != ids[-1 - period]:
        return False
    return ids[-span:-period] == ids[-span + period :]
