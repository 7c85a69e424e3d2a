"""The checks of output paths, as other parts of EdgePrism call them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgeprism.errors import EdgePrismError, OutputError, UsageError
from edgeprism.output.places import Place, check_places, check_report_folder, check_writable
from tests.helpers import ordinary_user


def test_permissions_are_tried_not_guessed() -> None:
    with ordinary_user.folder() as folder:
        (folder / "closed").mkdir(mode=0o555)
        (folder / "open").mkdir()
        os.chmod(folder / "open", 0o777)
        with ordinary_user.rights():
            check_places([Place(folder / "open" / "x", "output", "jsonl")])
            check_writable(folder / "open" / "a" / "b", folder / "open" / "a" / "b")
            with pytest.raises(OutputError, match="closed: cannot be written"):
                check_places([Place(folder / "closed" / "x", "output", "jsonl")])
            with pytest.raises(OutputError, match="closed"):
                check_writable(folder / "closed" / "a", folder / "closed" / "a")


def test_any_number_of_places_and_inputs(tmp_path: Path) -> None:
    data = tmp_path / "data.tsv"
    data.write_text("index\n")
    fine = [Place(tmp_path / name, "output", form) for name, form in
            (("a.jsonl", "jsonl"), ("b.csv", "csv"), ("c", "other"))]  # fmt: skip
    check_places(fine, [data])
    assert [p.name for p in tmp_path.iterdir()] == ["data.tsv"]
    with pytest.raises(UsageError, match="is an input"):
        check_places([*fine, Place(data, "output", "text")], [data], overwrite=True)
    os.link(data, tmp_path / "hard")
    with pytest.raises(UsageError, match="is an input"):
        check_places([Place(tmp_path / "hard", "output", "text")], [data], overwrite=True)
    with pytest.raises(EdgePrismError):
        check_places([Place(tmp_path / "a\0b", "output", "text")])


def test_a_report_folder(tmp_path: Path) -> None:
    def check(folder: Path, *, own: bool = False, inputs: tuple[Path, ...] = ()) -> None:
        check_report_folder(folder, ["report.json"], keyword="out", own=own, inputs=inputs)

    check(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    report = tmp_path / "report.json"
    report.write_text("{}")
    check(tmp_path, own=True)
    with pytest.raises(OutputError, match="did not write it"):
        check(tmp_path)
    with pytest.raises(UsageError, match="is an input"):
        check(tmp_path, own=True, inputs=(report,))
    with pytest.raises(OutputError, match="is not a folder"):
        check(report)
