"""What a fork of the process does to engines, and how they go on in the child.

A forked child has only the thread that called fork. The native libraries' other threads are gone,
and their queues and locks stay as they were: a call that uses them, or frees them, waits for ever.
So in the child every engine forgets its native objects without freeing them, and loads anew when
it is used. llama.cpp's team of threads (OpenMP's) belongs to the process, not to an engine: once
the parent has used it, the child can use llama.cpp with one thread only.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from typing import Protocol

from edgeprism.errors import UsageError


class HasNatives(Protocol):
    """An object that holds native objects."""

    def forget_natives(self) -> None:
        """Give them to `keep_for_ever`, and be as before they were loaded."""


_holders: weakref.WeakSet[HasNatives] = weakref.WeakSet()
_has_team = _team_is_lost = False


def forget_natives_after_fork(holder: HasNatives) -> None:
    """Have `holder.forget_natives` called in every forked child, as long as `holder` exists."""
    _holders.add(holder)


def keep_for_ever(*objects: object) -> None:
    """Keep objects from being freed, even at the end of the process."""
    for kept in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def use_team(threads: int) -> None:
    """Note that llama.cpp runs with `threads` from now on.

    Raises UsageError if its threads were lost by a fork.
    """
    global _has_team
    if threads < 2:
        return
    if _team_is_lost:
        raise UsageError(
            "This process was forked from one in which llama.cpp ran with several threads, and "
            "they do not survive a fork.",
            'Start processes with multiprocessing.get_context("spawn"), or fork before the first '
            "caption or answer; a `threads` of 1 works here as well.",
        )
    _has_team = True


def _in_child() -> None:
    global _team_is_lost
    _team_is_lost = _has_team
    for holder in list(_holders):
        holder.forget_natives()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
