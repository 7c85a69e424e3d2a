"""The image holds what the installation needs, and its recipe names what is there."""

from __future__ import annotations

import re
import tomllib

from tests.docs.pages import ROOT

LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def copied() -> list[str]:
    """What the first stage takes from the clone."""
    lines = [
        line.split()[1:-1] for line in LINES if line.startswith("COPY ") and "--from" not in line
    ]
    return [name for names in lines for name in names]


def test_what_it_copies_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    for name in copied():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_every_package_is_in_the_image() -> None:
    tops = {
        folder.split("/")[0] for folder in PROJECT["tool"]["setuptools"]["package-dir"].values()
    }
    assert {*tops, "edgeprism", "pyproject.toml", *PROJECT["project"]["license-files"]} <= set(
        copied()
    )


def test_python_and_extras() -> None:
    (version,) = {found for line in LINES for found in re.findall(r"^FROM python:([\d.]+)", line)}
    assert tuple(map(int, version.split("."))) >= (3, 11)
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', "\n".join(LINES))
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
