"""The tables of other engines: what the page says is what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.page import README, marks
from benchmarks.peers import table
from benchmarks.peers.child import FEWER
from benchmarks.peers.compare import Runner, ratio_lines
from edgeprism.bundle.read_manifest import manifest_from_bundle
from tests.helpers import bundles


def runner(engine: str, quant: str, *seconds: float | None) -> Runner:
    rounds = [{"encode": value, "first_token": None, "decode": None} for value in seconds]
    return Runner(engine, quant, {"threads": 2}, rounds=rounds, peak=100_000_000, error=0.01)


def test_the_page_has_the_kept_figures() -> None:
    text = README.read_text(encoding="utf-8")
    assert table.page_with_tables(text) == text


def test_fewer_rows_are_compared_by_their_first_token() -> None:
    def one(engine: str, first_token: float) -> Runner:
        turn: dict[str, float | None] = {"encode": 1.0, "first_token": first_token, "decode": 0.1}
        return Runner(engine, "int8", rounds=[turn])

    runners = [one("EdgePrism", 5.0), one("EdgePrism, 196 rows", 2.0), one("libmtmd", 8.0)]
    assert ratio_lines(runners, "first_token") == [
        "first_token: libmtmd int8's time / EdgePrism int8's: 1.6 / 1.6 / 1.6",
        "first_token: libmtmd int8's time / EdgePrism, 196 rows int8's: 4 / 4 / 4",
    ]
    for stage in ("encode", "decode"):
        assert len(ratio_lines(runners, stage)) == 1


def test_a_childs_memory_is_its_engines() -> None:
    """Nothing that makes files, or is another engine's, is loaded before the engine."""
    for module, part in (
        ("benchmarks.peers.child", "benchmarks.peers.weights"),
        ("benchmarks.memory.caption", "benchmarks.peers.weights"),
        ("benchmarks.speed.attended", "benchmarks.machine"),
        ("benchmarks.speed.decoders", "benchmarks.decoders.files"),
    ):
        program = f"import sys, {module}\nprint(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        loaded = set(done.stdout.split())
        assert part in loaded
        assert not loaded & {"torch", "transformers", "onnx", "gguf", "llama_cpp", "onnxruntime"}


def test_a_child_answers_a_line_for_each_picture(tmp_path: Path) -> None:
    """With a tiny bundle in the place of a large one, and fewer rows than it gives."""
    bundle = bundles.write_bundle(tmp_path / "bundle-smolvlm-256m", seed=1)
    (variant,) = manifest_from_bundle(bundle).vision.variants
    asked = {"engine": FEWER, "quant": variant.quant, "work": str(tmp_path), "picture": [40, 30],
             "setting": {"threads": 1, "visual_tokens": 2}, "size": "smolvlm-256m",
             "rows": str(tmp_path / "rows.npy")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.child", json.dumps(asked)],
        input="0\n1\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 2
    for answer in answers:
        assert 0 < answer["seconds"]["encode"] < answer["seconds"]["first_token"]
        assert answer["seconds"]["decode"] > 0
        assert answer["peak"] > 10 << 20
    assert np.load(tmp_path / "rows.npy").shape == (2, bundles.N_EMBD)


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
    begin, end = marks("peers")
    page = table.page_with_tables(f"before{begin}old{end}after")
    assert page.startswith("before")
    assert page.endswith("after")
    assert "old" not in page
    assert "| EdgePrism int8 | 2 / 2 / 2 | – | – | 100 MB | 0.01 | threads 2 |" in page
    assert "left out: other, because it is gone" in page
    result["schema"] = 2
    (tmp_path / "peers-a.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="schema 2"):
        table.page_with_tables(page)
