"""The reference pages hold every field, code, variable and name, and none that is not there."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import edgeprism
import edgeprism.store.caption_store  # its error belongs to the tree
from edgeprism import errors
from edgeprism.bundle.manifest import Manifest
from edgeprism.cli.main import cli, run
from edgeprism.cli.settings import SETTINGS, sections_with
from edgeprism.convert.discover import family_names
from edgeprism.files.home import data_dir
from edgeprism.perceive.captioner import Captioner
from edgeprism.records import Answer, Evidence, ModelInfo, Timings, TokenCounts
from tests.docs.pages import ROOT, first_column, section

REFERENCE = ROOT / "docs" / "reference"
RECORDS = REFERENCE / "records.md"


# ---- the manifest


def manifest_paths(kind: Any = Manifest, path: str = "") -> list[tuple[str, bool]]:
    """Every field's path with whether it may be left out; of objects the fields inside."""
    found = []
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        where = f"{path}.{field.name}" if path else field.name
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        inner, suffix = hints[field.name], ""
        nullable = isinstance(inner, types.UnionType)
        if nullable:
            inner = typing.get_args(inner)[0]
        if typing.get_origin(inner) is list and dataclasses.is_dataclass(typing.get_args(inner)[0]):
            inner, suffix = typing.get_args(inner)[0], "[]"
        elif typing.get_origin(inner) is dict:
            inner, suffix = typing.get_args(inner)[1], ".{}"
            if typing.get_origin(inner) is dict:
                inner, suffix = typing.get_args(inner)[1], ".{}.{}"
        if not dataclasses.is_dataclass(inner):
            found.append((where + suffix, optional))
            continue
        if nullable:
            found.append((where, optional))
        found += manifest_paths(inner, where + suffix)
    return found


def test_the_manifests_fields() -> None:
    text = (REFERENCE / "manifest.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| [^|]+ \| ([^|]*)", text, re.MULTILINE)
    told = [(re.sub(r"\{\w+\}", "{}", path), meaning.startswith("*optional*"))
            for path, meaning in rows]  # fmt: skip
    assert sorted(told) == sorted(manifest_paths())


# ---- records


def paths_of(value: Any, path: str = "") -> set[str]:
    """Paths of a record's fields: of objects those inside, of lists of objects their items'."""
    if isinstance(value, Mapping) and value:
        lead = f"{path}." if path else ""
        return set().union(*(paths_of(inner, f"{lead}{name}") for name, inner in value.items()))
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return set().union(*(paths_of(inner, f"{path}[]") for inner in value))
    return {path}


def told(heading: str) -> set[str]:
    return set(first_column(section(RECORDS, heading)))


@pytest.fixture
def photos(tmp_path: Path, photo: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo.rename(folder / "a.png")
    (folder / "broken.png").write_bytes(b"not a picture")
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run(list(arguments)) == code
    return capsys.readouterr().out


def test_a_caption_and_a_failure(
    scripted_bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("--model", str(scripted_bundle))
    one = json.loads(printed(capsys, "caption", str(photos / "a.png"), *model, "--json"))
    failures = tmp_path / "failures.jsonl"
    out = printed(
        capsys, "caption", str(photos), *model, "--jsonl", "--errors", str(failures), code=3
    )
    several = json.loads(out)
    assert told("A caption") == paths_of(one) | set(several) - {"tokens", "timings_ms", "model"}
    assert set(several) - set(one) == {"settings", "cached"}
    assert told("A failure") == paths_of(json.loads(failures.read_text()))


def test_an_answer(scripted_captioner: Captioner, photos: Path) -> None:
    caption = scripted_captioner.caption(photos / "a.png")
    answer = Answer(
        text="two", question="How many?", focus="", captions=(caption,), finish_reason="stop",
        tokens=TokenCounts(0, 1, 1), timings=Timings(), model=ModelInfo("r", "0"), version="0",
        evidence=(Evidence(1, "tiny", 1, "two boats."),),
    )  # fmt: skip
    record = answer.to_dict()
    named = section(RECORDS, "An answer")
    for field in record["evidence"][0]:
        assert f"`{field}`" in named
    assert told("An answer") == paths_of({**record, "captions": [], "evidence": []})


@pytest.mark.parametrize(
    ("heading", "arguments"),
    [
        ("What a picture costs", ("models", "show", "nano", "--size", "40x30", "--json")),
        ("A diagnosis", ("doctor", "--json")),
        ("A memory plan", ("doctor", "--plan", "nano", "--json")),
        ("The models", ("models", "list", "--json")),
    ],
)
def test_other_records(
    heading: str, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads(printed(capsys, *arguments))
    assert told(heading) == paths_of(record[0] if isinstance(record, list) else record)


def test_the_store(scripted_bundle: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed(capsys, "caption", str(photos), "--model", str(scripted_bundle), code=3)
    record = json.loads(printed(capsys, "cache", "info", "--json"))
    assert told("The caption store") == paths_of(record)


# ---- exit codes, variables, names, families


def tree_of_errors(kind: type[errors.EdgePrismError] = errors.EdgePrismError) -> dict[str, int]:
    inner = [tree_of_errors(below) for below in kind.__subclasses__()]
    return {kind.__name__: kind.exit_code} | {n: c for names in inner for n, c in names.items()}


def test_every_error_stands_in_the_row_of_its_code() -> None:
    text = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| [^|]+ \|([^|]*)\|$", text, re.MULTILINE)
    named = {name: int(code) for code, cell in rows for name in re.findall(r"`(\w+)`", cell)}
    public = {n: c for n, c in tree_of_errors().items()
              if hasattr(errors, n) or hasattr(edgeprism.store.caption_store, n)}  # fmt: skip
    assert named == public
    codes = [value for name, value in vars(errors).items() if name.startswith("EXIT_")]
    assert [int(code) for code, _ in rows] == codes == [0, 1, 2, 3, 4, 5, 6, 130]


def test_variables() -> None:
    page = (REFERENCE / "environment.md").read_text(encoding="utf-8")
    sources = [
        path.read_text(encoding="utf-8")
        for folder in ("edgeprism", "convert", "models")
        for path in (ROOT / folder).rglob("*.py")
    ]
    own = re.compile(r"\bEDGEPRISM_[A-Z][A-Z_]+")
    used = {name for source in sources for name in own.findall(source)}
    told = set(first_column(section(REFERENCE / "environment.md", "EdgePrism's own")))
    assert told == used
    assert set(own.findall(page)) - used == {"EDGEPRISM_TEST_CUDA"}
    for name in ("NO_COLOR", "FORCE_COLOR", "HF_HOME", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        assert f"`{name}`" in page
        assert any(name in source for source in sources)


def test_settings(capfd: pytest.CaptureFixture[str]) -> None:
    page = (REFERENCE / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (at the top|`\[\w+\]`) \| (.*) \|$", page, re.MULTILINE)
    told = {where.strip("`[]"): set(re.findall(r"`([\w-]+)`", text)) for where, text in rows}
    at_the_top = told.pop("at the top")
    known = {key for keys in SETTINGS.values() for key in keys}
    assert {key for key in known if "" in sections_with(key)} == at_the_top
    assert told.keys() == SETTINGS.keys()
    for command, keys in SETTINGS.items():
        assert told[command] - {"reasoner"} == set(keys) - at_the_top
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (data_dir() / "config.toml").write_text(block, encoding="utf-8")
    assert run(["config", "list"]) == 0
    assert "caption.sidecar-name = full" in capfd.readouterr().out


def test_public_names() -> None:
    page = (REFERENCE / "python.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: edgeprism\.(\w+)$", page, re.MULTILINE))
    assert named == set(edgeprism.__all__) - {"__version__"}
    assert "`edgeprism.__version__`" in page


def test_the_command_line_is_generated_from_the_commands() -> None:
    """What the built page holds, its hook checks when it is built (`docs/hooks.py`)."""
    page = (REFERENCE / "command-line.md").read_text(encoding="utf-8")
    found = re.search(r"::: mkdocs-click\n    :module: (\S+)\n    :command: (\S+)\n", page)
    assert found
    assert getattr(__import__(found[1], fromlist=["x"]), found[2]) is cli


@pytest.mark.parametrize("page", ["README.md", "docs/reference/families.md"])
def test_families(page: str) -> None:
    listed = CliRunner().invoke(cli, ["convert", "--list"]).stdout
    families = {line.split("\t")[0] for line in listed.splitlines()}
    assert len(families) > 5
    rows = re.findall(r"^\| `([a-z0-9-]+)`(?::[^|]*)? \|", (ROOT / page).read_text("utf-8"), re.M)
    assert set(rows) == families
    convert = cli.get_command(click.Context(cli), "convert")
    assert isinstance(convert, click.Group)
    assert families < set(convert.list_commands(click.Context(convert)))


def test_every_family_names_the_tests_that_compare_it_with_its_reference() -> None:
    """A test names the family itself, or takes it from the helper that writes the checkpoint."""
    text = section(REFERENCE / "families.md", "What was seen of the published files")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == first_column(text)
    assert sorted(first_column(text)) == family_names()
    named = {name: re.findall(r"`(test_\w+\.py)`", cell) for name, cell in rows}
    for family, files in named.items():
        assert files, family
        for file in files:
            assert family in families_in(ROOT / "tests" / "convert" / file), (family, file)
    compared = {
        path.name
        for path in (ROOT / "tests" / "convert").glob("test_*.py")
        if _COMPARES.search(path.read_text(encoding="utf-8")) and families_in(path)
    }
    assert compared <= {file for files in named.values() for file in files}


_COMPARES = re.compile(r"(?:reference|case)\.(?:greedy|visual_tokens)\(")


def families_in(test: Path) -> set[str]:
    """The families that a test converts: named in it, or in helpers that it imports."""
    text = test.read_text(encoding="utf-8")
    for helper in re.findall(r"^from tests\.helpers\.(tiny_\w+) import", text, re.MULTILINE):
        text += (ROOT / "tests" / "helpers" / f"{helper}.py").read_text(encoding="utf-8")
    if "from tests.helpers.checkpoints import" in text:  # which writes those of one family alone
        text += '"prismcaptioner"'
    return {name for name in family_names() if f'"{name}"' in text}


def test_every_benchmark_stands_in_the_list_of_scripts() -> None:
    folder = ROOT / "benchmarks"
    text = (folder / "README.md").read_text(encoding="utf-8")
    text = text.split("## Aims")[0]
    listed = re.findall(r"^\| `(?:python -m benchmarks )?([\w/.]+)` \|", text, re.MULTILINE)
    scripts = {
        path.relative_to(folder).as_posix()
        for room in ("speed", "memory", "answers")
        for path in (folder / room).glob("[!_]*.py")
    }
    assert sorted(listed) == sorted({*scripts, "peers"})
