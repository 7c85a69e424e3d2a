"""A family is one file: no other file names it, and everything that lists families finds it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.cli import convert as convert_command
from edgeprism.cli.errors import with_options
from edgeprism.cli.main import run
from edgeprism.convert import families as package
from edgeprism.convert import pipeline, supervise
from edgeprism.convert.discover import families, family_named, family_names
from edgeprism.convert.family import CONVERSATION_NAMES, Family
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.read.conversations import CONVERSATIONS
from edgeprism.errors import CheckpointError, UsageError
from tests.docs.pages import ROOT, module_of
from tests.helpers.converting import convert_family
from tests.helpers.tiny_captioners import write_llava_hf

TOY = '''
"""A toy: what LLaVA is, under another name."""

from edgeprism.convert.families import llava
from edgeprism.convert.family import Family, Option


def read(picture_book, paper, glossy, words, progress):
    progress.say(f"on {paper} paper, {'glossy' if glossy else 'matt'}, with {words}")
    return llava.read(picture_book, vision=None, conversation="", progress=progress)


FAMILY = Family(
    name="toy-book",
    summary="Toy books: a tower, a projector and a language model",
    help="Toy books, into OUT.",
    options=(
        Option("picture_book", "folder", "Folder of the toy.", required=True),
        Option("paper", "choice", "What it is printed on.", default="thin",
               choices=("thin", "thick")),
        Option("glossy", "flag", "Whether it shines.", default=False),
        Option("words", "text", "What is written in it.", default="rhymes"),
    ),
    read=read,
    model_types=("toy_book",),
    signs=("pages",),
)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return another folder of families, with one file."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "toy_book.py").write_text(TOY)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    yield folder
    sys.modules.pop(f"{package.__name__}.toy_book", None)


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(convert_command.command, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_without_its_file_there_is_no_toy() -> None:
    assert "toy-book" not in family_names()
    assert "toy-book" not in shown("--list")


@pytest.mark.usefixtures("toy")
def test_the_list_the_help_and_the_documentation_have_it() -> None:
    assert "toy-book\tToy books: a tower, a projector and a language model" in shown("--list")
    summary = "Toy books: a tower, a projector and a language model"
    assert summary in " ".join(shown("--help").split())
    assert "toy-book" in [family.name for family in families()]
    hooks = module_of(ROOT / "docs" / "hooks.py")
    assert "toy-book) | Toy books: a tower" in hooks.families_table()


@pytest.mark.usefixtures("toy")
def test_its_own_help_has_its_options_and_every_familys() -> None:
    words = " ".join(shown("toy-book", "--help").split())
    for text in ("Toy books, into OUT.", "--picture-book DIRECTORY Folder of the toy. [required]",
                 "--paper [thin|thick]", "--glossy", "--words NAME", "--vision-quant",
                 "--lm-quant", "--force"):  # fmt: skip
        assert text in words


@pytest.mark.usefixtures("toy")
def test_errors_name_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "unknown"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "toy_book", "pages": 12}))
    with pytest.raises(CheckpointError, match="families that come close: toy-book\n") as caught:
        convert_family("smolvlm", tmp_path / "out", ConvertOptions(), {"captioner": folder})
    assert caught.value.hint == "Try `edgeprism convert toy-book`."
    assert run(["convert", "toy-bok", "out"]) == 2
    message = capsys.readouterr().err
    assert "Did you mean 'toy-book'?" in message
    assert "smolvlm, toy-book, vila" in message


@pytest.mark.usefixtures("toy")
def test_the_command_line_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def in_this_process(family: str, *rest: object) -> None:
        pipeline.convert(family_named(family), *rest)  # type: ignore[arg-type]

    # a child process would not see this test's folder
    monkeypatch.setattr(supervise, "convert_in_child", in_this_process)
    case, out = write_llava_hf(tmp_path / "c"), tmp_path / "out"
    book = str(case.settings["captioner"])
    arguments = ["--vision-quant", "fp32", "--lm-quant", "F32", "--paper", "thick", "--glossy"]
    assert run(["convert", "toy-book", "--picture-book", book, *arguments, str(out)]) == 0
    assert manifest_from_bundle(out).family == "toy-book"
    assert manifest_from_bundle(out).parity.passed
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "on thick paper, glossy, with rhymes" in printed.err
    assert f"edgeprism caption photo.jpg --model {out}" in printed.err
    assert run(["convert", "toy-book", "--picture-book", book, "--paper", "wet", str(out)]) == 2


# ---- rules for every family


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_family_is_what_its_file_says(family: Family) -> None:
    assert family_named(family.name) is family
    assert "\n" not in family.summary
    assert family.model_types or family.signs
    names = [option.name for option in family.options]
    assert list(signature(family.read).parameters) == [*names, "progress"]
    assert all((option.kind == "choice") == bool(option.choices) for option in family.options)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_the_command_line_needs_the_required_options_alone(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A default that the command line itself would refuse makes a family unusable there."""
    passed: list[dict[str, Any]] = []
    monkeypatch.setattr(
        convert_command, "_convert", lambda *arguments: passed.append(dict(arguments[3]))
    )
    required = [option for option in family.options if option.required]
    assert all(option.kind == "folder" for option in required)
    given = [f"--{option.name.replace('_', '-')}={tmp_path}" for option in required]
    assert run(["convert", family.name, *given, str(tmp_path / "out")]) == 0
    (settings,) = passed
    expected = {o.name: tmp_path if o.required else o.default for o in family.options}
    assert family.settings(settings) == expected


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (
            {"model_type": "minicpmv", "query_num": 64},
            "resemble minicpm-v: `edgeprism convert mini",
        ),
        # a field that many models have is no sign of one of them
        ({"model_type": "qwen2_vl", "vision_config": {}}, "`edgeprism convert --list`"),
        ({"model_type": "kosmos-2", "vision_config": {}, "num_query_tokens": 32}, "--list`"),
        ({}, "`edgeprism convert --list`"),
    ],
)
def test_a_folder_in_place_of_a_family_is_looked_at(
    config: dict[str, Any], hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(["convert", str(tmp_path), "out"]) == 2
    message = capsys.readouterr().err
    assert f"{tmp_path} is a folder, and a family of checkpoints comes first: " in message
    assert hint in message


# as published: model_type and the field by which each is known
NOT_YET = [
    (
        {"model_type": "cambrian_llama", "mm_vision_tower_aux_list": ["siglip", "dinov2"]},
        "llava", "Cambrian-1 or a model derived from it", "between layers of the language model",
    ),
    (
        {"model_type": "cogagent", "cross_compute_hidden_size": 1024},
        "llava", "CogAgent-18B", "attends to 6,400 features of a second vision model",
    ),
    (
        {"model_type": "internvl", "qllama_config": {"hidden_size": 4096}, "vision_config": {}},
        "internvl", "InternVL-14B-224px", "QLLaMA",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "family", "name", "why"), NOT_YET)
def test_captioners_without_a_family_are_told_why(
    config: dict[str, Any],
    family: str,
    name: str,
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether a family is named or not; none of the folder's weights is read."""
    folder = tmp_path / "captioner"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(CheckpointError, match=f"holds {name}, which cannot be conv") as caught:
        convert_family(family, tmp_path / "out", ConvertOptions(), {"captioner": folder})
    assert why in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "out").exists()
    assert run(["convert", str(folder), "out"]) == 2
    message = capsys.readouterr().err
    assert f"holds {name}, which cannot be converted yet" in message
    assert why in message


def test_the_documentation_names_those_without_a_family() -> None:
    page = (ROOT / "docs" / "reference" / "families.md").read_text(encoding="utf-8")
    for name in ("Cambrian-1", "CogAgent-18B", "InternVL-14B-224px"):
        assert f"| {name} |" in page


def test_a_folder_of_checkpoints_is_told_as_that(tmp_path: Path) -> None:
    shelf = tmp_path / "models"
    configs = {
        "llm": {"model_type": "llama"},
        "minicpm": {"model_type": "minicpmv", "query_num": 64},
    }
    for name, config in configs.items():
        (shelf / name).mkdir(parents=True)
        (shelf / name / "config.json").write_text(json.dumps(config))
    (shelf / "notes").mkdir()
    with pytest.raises(CheckpointError, match="holds no checkpoint itself") as caught:
        convert_family("llava", tmp_path / "out", ConvertOptions(), {"captioner": shelf})
    assert "minicpm (minicpm-v)" in caught.value.hint
    assert "llm (" in caught.value.hint
    assert "notes" not in caught.value.hint
    (shelf / "llm" / "config.json").unlink()
    (shelf / "minicpm" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="families that come close: none"):
        convert_family("llava", tmp_path / "out", ConvertOptions(), {"captioner": shelf})


def test_the_help_of_a_conversation_lists_its_forms() -> None:
    assert tuple(CONVERSATIONS) == CONVERSATION_NAMES
    words = " ".join(shown("llava-next-video", "--help").split())
    assert "llama-3-system, gemma" in words
    assert "--rope-factor NUMBER" in words


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_hints_name_a_familys_settings_as_options(family: Family) -> None:
    for option in family.options:
        assert with_options(f"Pass `{option.name}`.") == f"Pass --{option.name.replace('_', '-')}."


def test_settings_are_completed_and_checked() -> None:
    llava = family_named("llava")
    expected = {"captioner": Path("c"), "vision": None, "conversation": ""}
    assert llava.settings({"captioner": Path("c"), "vision": None}) == expected
    with pytest.raises(UsageError, match="captioner is missing"):
        llava.settings({})
    with pytest.raises(UsageError, match="colour is not one of its settings"):
        llava.settings({"captioner": Path("c"), "colour": "red"})
    with pytest.raises(UsageError, match="No family of checkpoints is named nosuch"):
        family_named("nosuch")


@pytest.mark.parametrize("arguments", [["--help"], ["--list"], ["prismatic", "--help"]])
def test_naming_the_families_loads_nothing_that_converts(arguments: list[str]) -> None:
    code = (
        f"from edgeprism.cli.main import run\nassert run({['convert', *arguments]!r}) == 0\n"
        "import sys\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stderr.split()
    assert "edgeprism.convert.family" in loaded
    assert not {"numpy", "torch", "transformers", "onnx", "gguf"} & set(loaded)
    rooms = tuple(f"edgeprism.convert.{room}" for room in ("read", "vision", "language", "gate"))
    assert [name for name in loaded if name.startswith(rooms)] == []
