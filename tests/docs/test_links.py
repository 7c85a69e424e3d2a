"""Links between pages lead somewhere, and files that pages name are there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, inline_code, name_of, pages, prose

_LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_IMAGE_MARKS = ("only-light", "only-dark")  # of mkdocs-material
# pages of which the headings are made when the site is built
_GENERATED = ("docs/reference/command-line.md", "docs/reference/python.md")
_SKIPPED = {".git", ".venv", "site", "build", "dist", "__pycache__"}


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and mkdocs spell them in addresses."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s+", "-", heading) for heading in plain}


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    wrong = []
    for match in _LINK.finditer(prose(page)):
        target, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            wrong.append(match["target"])
        elif anchor and anchor not in _IMAGE_MARKS and name_of(path) not in _GENERATED:
            wrong += [match["target"]] if anchor not in anchors(path) else []
    return wrong


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = ROOT / "docs" / "start.md"
    text = (
        "[a](no-such.md) [b](index.md#no-such) [c](index.md#where-to-go) [d](https://example.org)"
    )
    probe = page.with_name("probe.md")
    probe.write_text(text, encoding="utf-8")
    try:
        assert broken(probe) == ["no-such.md", "index.md#no-such"]
    finally:
        probe.unlink()


@cache
def files() -> frozenset[str]:
    """Every file and folder of the repository, as a path from its root."""
    found: set[str] = set()
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if not _SKIPPED.intersection(parts):
            found.add("/".join(parts))
    return frozenset(found)


@pytest.mark.parametrize("page", [p for p in pages() if p.name != "CHANGELOG.md"], ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    """A path, or the end of one: `reason/http.py`, `test_remote.py`, `vision/`."""
    named = [
        code
        for code in inline_code(page)
        if re.fullmatch(r"[\w./-]+\.py|(?:edgeprism|convert|models|benchmarks|tests|docs)/[\w./-]*"
                        r"|[a-z]+/", code)
    ]  # fmt: skip
    own = {"llm_adapter/", "projector/", "llm/", "vision_tower/", "mm_projector/"}  # of checkpoints
    missing = [
        code
        for code in named
        if code not in own and "NAME" not in code
        if not any(f"/{file}".endswith(f"/{code.rstrip('/')}") for file in files())
    ]
    assert missing == []
