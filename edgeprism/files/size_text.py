"""Numbers of bytes as a person reads them."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Return a number of bytes in GB, below one of them in MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
