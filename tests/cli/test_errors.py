"""Hints: the library names its keywords, the command line its options."""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import edgeprism
from edgeprism.cli.errors import OPTIONS, with_options
from edgeprism.cli.main import cli, run

PACKAGE = Path(edgeprism.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z]")
# what a hint tells a person to type in a shell
COMMANDS = ("pip ", "edgeprism ", "CMAKE_ARGS", "python -m")


def options_of(command: click.Command) -> Iterator[str]:
    """Every option of a command and of the commands below it."""
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from options_of(inner)


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("Lower `caption_tokens`.", "Lower --max-tokens."),
        ('Use `device="auto"`.', "Use --device auto."),
        ("Convert with `lm_quant=F32`.", "Convert with --lm-quant F32."),
        ("Wait, or `use_store=False`.", "Wait, or --no-cache."),
        ("`use_store=True`, `nothing` and `pip list` stay.",) * 2,
        ("`edgeprism pull nano` stays, `limit` goes.",
         "`edgeprism pull nano` stays, --limit goes."),
        ("a lone ` and `un closed",) * 2,
    ],
)  # fmt: skip
def test_keywords_become_options(hint: str, shown: str) -> None:
    assert with_options(hint) == shown


def test_every_keyword_has_an_option_that_some_command_takes() -> None:
    assert set(OPTIONS.values()) <= set(options_of(cli))


@functools.cache
def library_texts() -> list[tuple[str, str]]:
    """Every text that the library outside the command line may put into an error."""
    return list(_texts_of_errors())


def _texts_of_errors() -> Iterator[tuple[str, str]]:
    convert = Path(importlib.import_module("edgeprism.convert").__path__[0])
    for path in sorted([*PACKAGE.rglob("*.py"), *convert.rglob("*.py")]):
        name = path.relative_to(PACKAGE.parent).as_posix()
        if name.startswith("edgeprism/cli/"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) or (
                isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error")
            ):
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield name, part.value


def test_the_library_speaks_of_no_flags() -> None:
    texts = library_texts()
    assert len(texts) > 200
    assert [
        (name, text)
        for name, text in texts
        if FLAG.search(text) and not any(command in text for command in COMMANDS)
    ] == []


def test_keywords_in_hints_are_known() -> None:
    """A keyword that the command line cannot translate would be shown as it is."""
    keyword = re.compile(r"`(\w+)(?:=[^`]*)?`")
    names = {m[1] for _, text in library_texts() for m in keyword.finditer(text)}
    assert names
    assert names <= {option.partition("=")[0] for option in OPTIONS}


def test_doctor_names_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["doctor", "--lm", str(tmp_path / "no.gguf"), "--mmproj", str(tmp_path / "no.gguf")])
    assert "Check the path of --lm." in capsys.readouterr().out
