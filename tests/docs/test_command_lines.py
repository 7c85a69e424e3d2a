"""Every `edgeprism …` that a page quotes is a command with these options."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

import click
import pytest

from edgeprism.cli.main import cli
from tests.docs.pages import blocks, inline_code, name_of, pages

_ENDS = {"|", "||", "&&", ";", ">", ">>", "<", "2>&1", "&", "#"}


@dataclass(frozen=True)
class Quoted:
    """A command line as a page has it."""

    page: str
    words: tuple[str, ...]  # behind `edgeprism`


def quoted(text: str, page: str) -> list[Quoted]:
    """The command lines in a block or in inline code."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("from edgeprism"):
            continue  # Python
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        try:
            words = list(lexer)
        except ValueError:  # a quotation that ends on another line is no command line of ours
            continue
        for i, word in enumerate(words):
            if word == "edgeprism" or word.endswith("bin/edgeprism"):
                rest = words[i + 1 :]
                end = next((j for j, w in enumerate(rest) if w in _ENDS), len(rest))
                found.append(Quoted(page, tuple(rest[:end])))
    return found


def faults(words: tuple[str, ...]) -> list[str]:
    """What is wrong with a command line: a command or an option that is not there."""
    command: click.Command = cli
    # with the program's own settings: click keeps the help option that the first context asks for,
    # and later tests of this process would know no -h
    context = click.Context(cli, info_name="edgeprism", **cli.context_settings)
    wrong = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag = word.partition("=")[0]
        if re.fullmatch(r"-{1,2}[A-Za-z][\w-]*", flag):
            options = {o: p for p in command.get_params(context) for o in (*p.opts,
                       *p.secondary_opts) if isinstance(p, click.Option)}  # fmt: skip
            option = options.get(flag)
            if option is None:
                wrong.append(f"{command.name} has no {flag}")
            elif not option.is_flag and flag == word and rest:
                rest.pop(0)
        elif isinstance(command, click.Group):
            inner = command.get_command(context, word)
            if inner is None and word not in ("…", "..."):
                return [*wrong, f"{command.name} has no command {word}"]
            if inner is None:
                break
            command, context = inner, click.Context(inner, parent=context, info_name=word)
    return wrong


ALL = [
    line
    for page in pages()
    for text in (*(b.code for b in blocks(page) if b.language == "sh"), *inline_code(page))
    for line in quoted(text, name_of(page))
]


def test_command_lines_exist() -> None:
    assert len(ALL) > 80
    wrong = [(line.page, " ".join(line.words), fault) for line in ALL for fault in
             faults(line.words)]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("edgeprism capton photo.jpg", "has no command capton"),
        ("edgeprism caption photo.jpg --jason", "caption has no --jason"),
        ("X=1 edgeprism ask a.png b --show-captions | edgeprism cache inf", "has no command inf"),
        ("edgeprism convert llava --captioner a --llm b out", "llava has no --llm"),
    ],
)
def test_a_wrong_one_is_seen(line: str, fault: str) -> None:
    said = [fault for found in quoted(line, "a page") for fault in faults(found.words)]
    assert len(said) == 1
    assert said[0].endswith(fault)


def test_every_command_is_shown_at_work() -> None:
    """On a page that a person wrote, not in the reference alone."""
    used = {line.words[0] for line in ALL if line.words and not line.page.startswith("CHANGELOG")}
    assert used >= set(cli.list_commands(click.Context(cli)))
