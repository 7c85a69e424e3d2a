"""The tables of other engines: what the page says is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import table
from benchmarks.peers.compare import Runner, ratio_lines


def runner(engine: str, quant: str, *seconds: float | None) -> Runner:
    rounds = [{"encode": value, "first_token": None, "decode": None} for value in seconds]
    return Runner(engine, quant, {"threads": 2}, rounds=rounds, peak=100_000_000, error=0.01)


def test_the_page_has_the_kept_figures() -> None:
    text = table.README.read_text(encoding="utf-8")
    assert table.page_with_tables(text) == text


def test_each_peers_fastest_type_is_compared_round_by_round() -> None:
    runners = [
        runner("EdgePrism", "fp32", 9.0, 9.0, 9.0),  # the reference for rows, no competitor
        runner("EdgePrism", "int8", 2.0, 4.0, 2.0),
        runner("libmtmd", "F16", 6.0, 4.0, 8.0),
        runner("libmtmd", "Q8_0", 7.0, 7.0, 7.0),
        runner("OpenVINO", "int8", 1.0, 2.0, 3.0),
    ]
    assert ratio_lines(runners, "encode") == [
        "encode: libmtmd F16's time / EdgePrism int8's: 1 / 3 / 4",
        "encode: OpenVINO int8's time / EdgePrism int8's: 0.5 / 0.5 / 1.5",
    ]
    assert ratio_lines(runners, "decode") == []


def test_a_table_tells_who_was_left_out_and_what_has_no_such_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    result: dict[str, Any] = {
        "schema": 1, "size": "nano-2b", "picture": [640, 480], "rounds": 1, "layers": 3,
        "lm_quant": "Q8_0", "date": "2026-01-02",
        "machine": {"cpu": "A CPU", "cores": 2, "int8_dot": False, "rates": {}}, "versions": {},
        "engines": [vars(runner("EdgePrism", "int8", 2.0))], "left_out": {"other": "it is gone"},
    }  # fmt: skip
    (tmp_path / "peers-a.json").write_text(json.dumps(result))
    page = table.page_with_tables(f"before{table.BEGIN}old{table.END}after")
    assert page.startswith("before")
    assert page.endswith("after")
    assert "old" not in page
    assert "| EdgePrism int8 | 2 / 2 / 2 | – | – | 100 MB | 0.01 | threads 2 |" in page
    assert "left out: other, because it is gone" in page
    result["schema"] = 2
    (tmp_path / "peers-a.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="schema 2"):
        table.page_with_tables(page)
