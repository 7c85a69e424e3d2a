"""Writes a data file with a test's rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.eval_files import Rows, WriteTsv, write_rows


@pytest.fixture
def write_tsv(tmp_path: Path) -> WriteTsv:
    def write(rows: Rows, name: str = "data.tsv", line_end: str = "\n") -> Path:
        return write_rows(tmp_path / name, rows, line_end)

    return write
