"""What a model's name means: a plain name never leads into the working directory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from edgeprism import Captioner, Reasoner
from edgeprism.bundle.open import find_model, open_bundle
from edgeprism.cli.main import run
from edgeprism.errors import EdgePrismError, ModelError
from edgeprism.files.home import data_dir

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def strangers_folder(
    scripted_bundle: Path, scripted_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working directory with models that are named like the defaults."""
    folder = tmp_path / "photos"
    shutil.copytree(scripted_bundle, folder / "nano")
    shutil.copytree(scripted_bundle, folder / "other")
    shutil.copy(scripted_gguf, folder / "smollm2-135m")
    shutil.copy(scripted_gguf, folder / "talker.gguf")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ["smolvlm-256m", "prismcaptioner-2b", "qwen2.5-0.5b"])
def test_a_model_of_the_catalogue_is_told_how_to_get(name: str) -> None:
    kind = "reasoner" if name.startswith("qwen") else "captioner"
    load = Reasoner.load if kind == "reasoner" else Captioner.load
    with pytest.raises(ModelError, match="not installed") as missing:
        load(name)
    assert f"edgeprism pull {name}" in missing.value.hint
    with pytest.raises(ModelError, match="not installed yet") as missing:
        find_model(name)
    assert f"It is a {kind}" in missing.value.hint


@pytest.mark.usefixtures("strangers_folder")
def test_the_default_captioner_is_the_built_in_one(capfd: Captured) -> None:
    assert run(["caption", "--example", "--json"]) == 0
    with_stranger = json.loads(capfd.readouterr().out)
    os.chdir("/")
    assert run(["caption", "--example", "--json"]) == 0
    alone = json.loads(capfd.readouterr().out)
    assert with_stranger["model"] == alone["model"]
    assert with_stranger["caption"] == alone["caption"]


def test_python_names_are_not_paths_either(strangers_folder: Path) -> None:
    assert open_bundle("nano").path != strangers_folder / "nano"
    with Captioner.load("nano") as captioner:
        assert captioner.bundle.path.resolve() != (strangers_folder / "nano").resolve()
    for name in ("smollm2-135m", "talker.gguf"):
        with pytest.raises(ModelError, match="current folder"):
            Reasoner.load(name)
    for missing in ("talker", "othe"):
        with pytest.raises(ModelError):
            find_model(missing)


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption", "--example", "--model", "other"],
        ["ask", "{photo}", "What?", "--captioner", "other", "--reasoner", "./talker.gguf"],
        ["ask", "{photo}", "What?", "--reasoner", "smollm2-135m"],
        ["chat", "{photo}", "--reasoner", "smollm2-135m"],
        ["eval", "--captioner", "other", "--reasoner", "./talker.gguf"],
        ["eval", "--reasoner", "smollm2-135m"],
        ["eval", "--reasoner", "./talker.gguf", "--judge", "smollm2-135m"],
        ["models", "show", "other"],
        ["models", "verify", "other"],
        ["cache", "prune", "--keep", "other"],
    ],
    ids=lambda a: " ".join(a),
)
@pytest.mark.usefixtures("strangers_folder")
def test_no_command_takes_a_name_from_the_current_folder(
    arguments: list[str], photo: Path, capfd: Captured
) -> None:
    assert run([a.format(photo=photo) for a in arguments]) == 4
    out, err = capfd.readouterr()
    assert out == ""
    wrong = next(word for word in reversed(arguments) if not word.startswith((".", "-", "{")))
    assert f"'{wrong}'" in err
    assert f"write it as a path: ./{wrong}" in err


@pytest.mark.usefixtures("strangers_folder")
def test_the_environment_names_a_model_as_an_option_does(
    monkeypatch: pytest.MonkeyPatch, capfd: Captured, strangers_folder: Path
) -> None:
    monkeypatch.setenv("EDGEPRISM_MODEL", "other")
    assert run(["caption", "--example"]) == 4
    assert "./other" in capfd.readouterr().err
    for path in ("./other", str(strangers_folder / "other"), "../photos/other"):
        monkeypatch.setenv("EDGEPRISM_MODEL", path)
        assert run(["caption", "--example"]) == 0


def test_paths_are_paths(strangers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(strangers_folder))
    expected = (strangers_folder / "other").resolve()
    for path in ("./other", Path("other"), "~/other", "../photos/other", expected, str(expected)):
        assert find_model(path).resolve() == expected
    monkeypatch.chdir(strangers_folder / "other")
    assert find_model(".").resolve() == expected
    assert Reasoner.load(Path("lm.gguf")).path == Path("lm.gguf")
    assert Reasoner.load("../talker.gguf").name == "talker"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("nan", "nano"),
        ("nnao", "nano"),
        ("mien", "mine"),
        ("talkr", "talker"),
        ("SmolVLM-256", "smolvlm-256m"),
    ],
)
def test_a_misspelt_name(
    wrong: str, right: str, scripted_bundle: Path, scripted_gguf: Path
) -> None:
    shutil.copytree(scripted_bundle, data_dir() / "models" / "mine")
    shutil.copy(scripted_gguf, data_dir() / "models" / "talker.gguf")
    with pytest.raises(EdgePrismError) as caught:
        open_bundle(wrong)
    assert f"Did you mean '{right}'" in caught.value.hint


# ---- one name in all places


@pytest.fixture
def installed(scripted_bundle: Path) -> Path:
    """A bundle in the data folder whose manifest has another name than its folder."""
    return Path(shutil.copytree(scripted_bundle, data_dir() / "models" / "mine"))


def test_an_installed_bundle_has_one_name(
    installed: Path, photo: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(*arguments: str) -> str:
        assert run(list(arguments)) == 0
        return capfd.readouterr().out

    assert json.loads(printed("models", "show", "mine", "--json"))["name"] == "mine"
    assert json.loads(printed("models", "show", str(installed), "--json"))["name"] == "mine"
    cost = printed("models", "show", "mine", "--size", "40x30", "--json")
    assert json.loads(cost)["name"] == "mine"
    assert "mine" in {entry["name"] for entry in json.loads(printed("models", "list", "--json"))}
    record = json.loads(printed("caption", str(photo), "--model", "mine", "--json"))
    assert record["model"]["name"] == "mine"
    monkeypatch.setenv("EDGEPRISM_MODEL", "mine")
    run(["doctor", "--json"])
    findings = json.loads(capfd.readouterr().out)["findings"]
    (default,) = [f["text"] for f in findings if f["topic"] == "default model"]
    assert default.startswith("mine (")


def test_a_bundle_elsewhere_has_its_manifests_name(scripted_bundle: Path) -> None:
    with Captioner.load(scripted_bundle) as captioner:
        assert captioner.model.name == "tiny"


@pytest.mark.usefixtures("installed")
def test_show_and_list_agree_on_the_state(scripted_bundle: Path, capfd: Captured) -> None:
    run(["models", "list", "--json"])
    states = {e["name"]: e["state"] for e in json.loads(capfd.readouterr().out)}
    for name in ("nano", "mine", "prismcaptioner-2b"):
        assert run(["models", "show", name, "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["state"] == states[name]
    assert run(["models", "show", str(scripted_bundle), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["state"] == "file"
