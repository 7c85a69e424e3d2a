"""What `mkdocs build` adds to the written pages, and what it checks in the finished ones.

The reference of the command line comes from the extension mkdocs-click, that of the Python API from
mkdocstrings. Here the list of families is put into its page, and the finished pages are checked:
every command and option is there, and no page fetches anything from elsewhere.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

from edgeprism.cli.main import cli

FAMILIES_MARK = "<!-- families: written here when the pages are built -->"
COMMAND_LINE_PAGE = "reference/command-line.html"
# what makes a browser fetch something; links that a reader may follow are no such thing
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=["']?(?P<src>[^"'\s>]+)"""
    r"""|<link\b(?P<link>[^>]*)>|@import\s+(?:url\()?["']?(?P<css>[^"')\s;]+)"""
    r"""|\burl\(["']?(?P<url>(?:https?:)?//[^"')\s]+)"""
)
_ELSEWHERE = re.compile(r"^(?:https?:)?//")
_FETCHING_RELATIONS = ("stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "prefetch")


def families_table() -> str:
    """The families as `edgeprism convert --list` names them, as a Markdown table."""
    shown = CliRunner().invoke(cli, ["convert", "--list"], prog_name="edgeprism")
    if shown.exit_code != 0 or not shown.stdout.strip():
        raise RuntimeError(f"`edgeprism convert --list` failed: {shown.output}{shown.exception!r}")
    lines = ["| family | what it reads |", "|---|---|"]
    for line in shown.stdout.strip().splitlines():
        name, summary = line.split("\t", 1)
        link = f"command-line.md#edgeprism-convert-{name}"
        lines.append(f"| [`{name}`]({link}) | {summary.strip()} |")
    return "\n".join(lines)


def commands(
    command: click.Command = cli, path: tuple[str, ...] = ("edgeprism",)
) -> Iterator[tuple[str, click.Command]]:
    """Every command with its full name, e.g. "edgeprism cache info"."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from commands(inner, (*path, name))


def missing_from_reference(page: str) -> list[str]:
    """Commands and options that the built page (HTML) does not name under their own heading."""
    headings = {
        match[1]: match.end() for match in re.finditer(r'<h[1-6] id="(edgeprism[^"]*)"', page)
    }
    ends = sorted(headings.values())
    missing = []
    for name, command in commands():
        begin = headings.get(name.replace(" ", "-"))
        if begin is None:
            missing.append(name)
            continue
        end = next((position for position in ends if position > begin), len(page))
        text = html.unescape(re.sub(r"<[^>]+>", " ", page[begin:end]))
        words = set(re.findall(r"-{1,2}[A-Za-z][A-Za-z0-9-]*", text))
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                missing += [f"{name} {flag}" for flag in parameter.opts if flag not in words]
    return missing


def fetched_from_elsewhere(text: str) -> list[str]:
    """Addresses on other machines that a browser would ask when it shows this HTML or CSS."""
    found = []
    for match in _FETCHED.finditer(text):
        address = match["src"] or match["css"] or match["url"] or ""
        if match["link"] is not None:
            relation = re.search(r"""\brel=["']?([^"'>]+)""", match["link"])
            target = re.search(r"""\bhref=["']?([^"'\s>]+)""", match["link"])
            words = relation[1].split() if relation else []
            if target and any(word in _FETCHING_RELATIONS for word in words):
                address = target[1]
        if _ELSEWHERE.match(address):
            found.append(address)
    return found


# ---- called by mkdocs


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    if page.file.src_uri == "reference/families.md":
        if FAMILIES_MARK not in markdown:
            raise ValueError(f"{page.file.src_uri}: has no place for the families")
        return markdown.replace(FAMILIES_MARK, families_table())
    return markdown


def on_post_build(*, config: Any, **_: Any) -> None:
    """Raises ValueError, which ends the build, for pages that lack something or ask elsewhere."""
    site = Path(config.site_dir)
    faults = missing_from_reference((site / COMMAND_LINE_PAGE).read_text(encoding="utf-8"))
    faults = [f"{COMMAND_LINE_PAGE}: {name} is missing" for name in faults]
    for path in sorted(site.rglob("*")):
        if path.suffix in (".html", ".css"):
            addresses = fetched_from_elsewhere(path.read_text(encoding="utf-8"))
            faults += [f"{path.relative_to(site)}: fetches {address}" for address in addresses]
    if faults:
        raise ValueError("The built pages are not as they must be:\n  " + "\n  ".join(faults))
