"""What docs/hooks.py checks of the built pages: that it sees what is missing."""

from __future__ import annotations

import click

from edgeprism.cli.main import cli
from tests.docs.pages import ROOT, module_of

hooks = module_of(ROOT / "docs" / "hooks.py")


def page_of_reference() -> str:
    """A page with a heading, and all options, of every command."""
    lines = []
    for name, command in hooks.commands():
        flags = [f for p in command.params if isinstance(p, click.Option) for f in p.opts]
        lines.append(f'<h2 id="{name.replace(" ", "-")}">{name}</h2><p>{", ".join(flags)}</p>')
    return "\n".join(lines)


def test_every_command_is_looked_for() -> None:
    names = [name for name, _ in hooks.commands()]
    assert {f"edgeprism {name}" for name in cli.list_commands(click.Context(cli))} < set(names)
    assert "edgeprism cache prune" in names
    assert hooks.missing_from_reference(page_of_reference()) == []


def test_a_missing_command_or_option_is_seen() -> None:
    page = page_of_reference()
    assert hooks.missing_from_reference(page.replace('id="edgeprism-cache-info"', "")) == [
        "edgeprism cache info"
    ]
    # the same option of another command does not stand for it
    begin, found, end = page.partition("--dry-run, ")
    assert found
    assert hooks.missing_from_reference(begin + end) == ["edgeprism caption --dry-run"]


def test_what_a_browser_would_fetch_is_seen() -> None:
    for text in (
        '<script src="https://example.org/a.js"></script>',
        '<img alt="" src=//example.org/a.png>',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<link href="https://example.org" rel="preconnect">',
        '@import url("https://example.org/a.css");',
        "body{background:url(https://example.org/a.png)}",
    ):
        assert len(hooks.fetched_from_elsewhere(text)) == 1, text


def test_links_and_own_files_are_no_fault() -> None:
    for text in (
        '<a href="https://example.org">there</a>',
        '<link rel="canonical" href="https://example.org/page">',
        '<link rel="stylesheet" href="../assets/a.css"><script src="a.js"></script>',
        "body{background:url(data:image/svg+xml;base64,x)}",
    ):
        assert hooks.fetched_from_elsewhere(text) == [], text


def test_the_families_are_those_of_the_command() -> None:
    table = hooks.families_table()
    assert "[`llava`](command-line.md#edgeprism-convert-llava)" in table
    assert hooks.FAMILIES_MARK in (ROOT / "docs/reference/families.md").read_text(encoding="utf-8")
