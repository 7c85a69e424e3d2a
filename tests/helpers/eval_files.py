"""Write small data files in VLMEvalKit's format."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WriteTsv = Callable[..., Path]
Rows = Sequence[Mapping[str, Any]]


def picture(seed: int, size: int = 12) -> str:
    """Return a small PNG in Base64, with more than 64 characters."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def lettered(number: int, **changes: Any) -> dict[str, Any]:
    """Return a valid row; `changes` replace cells."""
    row = {
        "index": number, "image": picture(number), "question": f"Which is number {number}?",
        "A": "red boat", "B": "blue dog", "C": "", "answer": "AB"[number % 2],
        "category": ("sea", "land")[number % 2], "l2-category": f"kind {number % 3}",
    }  # fmt: skip
    return row | changes


def write_rows(path: Path, rows: Rows, line_end: str = "\n") -> Path:
    """Write rows to a TSV as pandas would write it."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="\t", lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path
