"""A bounded run of the fuzzer: no mutated file ends, hangs or floods the process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.fuzz.harness import MOST_BYTES, Report, case, fuzz
from tests.fuzz.targets import TARGETS, Target

SECONDS = 60.0  # of all targets together
PATIENCE = 300.0  # for one file: a hang is found, and a busy machine is not taken for one


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "home"))


@pytest.mark.skipif(sys.platform != "linux", reason="the harness forks, and reads /proc")
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_no_file_ends_the_process(target: Target) -> None:
    report = fuzz(target, 0, SECONDS * target.share, PATIENCE)
    assert not report.findings, "\n".join(map(str, report.findings))
    assert report.outcomes["refused"] > 0, str(report)


def test_a_number_always_makes_the_same_file() -> None:
    for target in TARGETS:
        assert case(target, 7) == case(target, 7)
        assert len({case(target, seed) for seed in range(20)}) > 10


def _misbehaving(how: str) -> Target:
    def use(data: bytes, folder: Path) -> None:
        import os
        import time

        match how:
            case "abort":
                os.abort()
            case "raise":
                raise KeyError(folder)
            case "memory":
                assert len(bytearray(MOST_BYTES + (200 << 20)))
            case "hang":
                time.sleep(100)

    return Target(how, lambda rng: rng.randbytes(3), use, 1.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the harness forks, and reads /proc")
@pytest.mark.parametrize(
    ("how", "fault"),
    [("abort", "ended its process with -6"), ("raise", "KeyError"), ("memory", "GiB"),
     ("hang", "ran for more than")],
)  # fmt: skip
def test_the_harness_sees_what_must_not_happen(
    how: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "memory":
        monkeypatch.setattr("tests.fuzz.harness.MOST_BYTES", 600 << 20)
        monkeypatch.setattr(sys.modules[__name__], "MOST_BYTES", 600 << 20)
    patience = 1.0 if how == "hang" else PATIENCE
    report: Report = fuzz(_misbehaving(how), 0, 0.05, patience)
    assert fault in report.findings[0].fault
