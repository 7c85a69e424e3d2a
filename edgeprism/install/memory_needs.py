"""How much memory a model needs to run."""

from __future__ import annotations


def needed_memory(size: int) -> int:
    """Estimate the memory that a model of `size` bytes on disk needs to run, in bytes.

    A rule of thumb, not a measurement: a quarter of the weights' size more for a cache of a short
    context and for buffers, and 250 MB for the engines. A long context or a batch needs more.
    """
    return int(1.25 * size) + 250_000_000
