"""`edgeprism models add|remove|default`, and what fits in a machine's memory."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from edgeprism.cli.main import run
from edgeprism.files.home import data_dir
from tests.helpers import bundles
from tests.helpers.gguf_repositories import LM, MMPROJ, pair_files

Captured = pytest.CaptureFixture[str]
SAID = bundles.SAID_TEXT


def listed(capfd: Captured) -> dict[str, dict[str, object]]:
    capfd.readouterr()
    assert run(["models", "list", "--json"]) == 0
    return {entry["name"]: entry for entry in json.loads(capfd.readouterr().out)}


def test_add_use_and_remove(
    scripted_bundle: Path, scripted_gguf: Path, photo: Path, capfd: Captured
) -> None:
    (scripted_bundle / "notes.txt").write_text("not part of the bundle")
    assert run(["models", "add", str(scripted_bundle), "mine"]) == 0
    assert capfd.readouterr().out.strip() == str(data_dir() / "models" / "mine")
    assert run(["models", "add", str(scripted_bundle)]) == 0  # "tiny", as its manifest says
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    (scripted_bundle / "notes.txt").unlink()
    assert not (data_dir() / "models" / "mine" / "notes.txt").exists()
    assert {"mine", "tiny", "talker"} <= listed(capfd).keys()
    ask = ["ask", str(photo), "What?", "-m", "mine", "--reasoner", "talker"]
    assert run([*ask, "--instruction-mode", "generic"]) == 0
    assert capfd.readouterr().out == f"{SAID}\n"
    for name in ("mine", "talker"):
        assert run(["models", "remove", name, "--yes"]) == 0
    assert not {"mine", "talker"} & listed(capfd).keys()
    assert [p.name for p in (data_dir() / "models").iterdir()] == ["tiny"]
    assert run(["caption", str(photo), "-m", "mine"]) == 4


def test_a_pair_in_a_folder_is_added_as_a_captioner(
    tmp_path: Path, photo: Path, capfd: Captured
) -> None:
    files = pair_files(tmp_path)
    pair = tmp_path / "pair"
    pair.mkdir()
    for name in (LM, MMPROJ):
        (pair / name).write_bytes(files[name])
    assert run(["models", "add", str(pair / MMPROJ), "mine"]) == 4
    said = capfd.readouterr().err
    assert "an mmproj file, not a language model" in said
    assert "Name its language model" in said
    assert not list(data_dir().glob("models/*"))
    assert run(["models", "add", str(pair / LM), "mine"]) == 0
    shutil.rmtree(pair)
    assert listed(capfd)["mine"]["kind"] == "captioner"
    assert run(["use", "mine"]) == 0
    assert capfd.readouterr().out.startswith("captioner: mine\n")
    assert run(["caption", str(photo), "--max-tokens", "3"]) == 0
    assert run(["models", "remove", "mine", "--yes"]) == 0
    assert not list(data_dir().glob("models/*"))


def test_a_chat_format_is_a_pairs(scripted_gguf: Path, capfd: Captured) -> None:
    assert run(["models", "add", str(scripted_gguf), "mine", "--lm-chat-format", "chatml"]) == 2
    assert "Drop --lm-chat-format" in capfd.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["pull", "smolvlm-256m"],
        ["pull", "hf:someone/Tiny-Eyes-GGUF", "--dry-run"],
        ["convert", "mmproj", "lm.gguf", "mmproj.gguf", "out"],
        ["models", "add", "lm.gguf", "mine"],
    ],
)
def test_a_chat_format_that_llama_cpp_does_not_know_is_refused_at_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # who asked it would be told of that
    monkeypatch.chdir(tmp_path)  # nor is there any of the files that the command names
    assert run([*command, "--lm-chat-format", "chatlm"]) == 2
    said = capfd.readouterr().err
    assert "'chatlm' is no chat format of llama.cpp: " in said
    assert "chatml" in said
    assert not list(tmp_path.iterdir())
    assert not list(data_dir().glob("models/*"))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("mine", "already"),
        ("nano", "already"),
        ("smollm2-135m", "catalogue"),
        ("a/b", "cannot be"),
        ("..", "cannot be"),
        ("-x", "cannot be"),
        ("~x", "cannot be"),
        (".hidden", "cannot be"),
        ("x.gguf", "cannot be"),
    ],
)
def test_names_that_are_taken_or_no_names(
    name: str, fault: str, scripted_bundle: Path, capfd: Captured
) -> None:
    assert run(["models", "add", str(scripted_bundle), "mine"]) == 0
    before = sorted(p.name for p in (data_dir() / "models").rglob("*"))
    assert run(["models", "add", "--", str(scripted_bundle), name]) == 2
    assert fault in capfd.readouterr().err
    assert sorted(p.name for p in (data_dir() / "models").rglob("*")) == before


def test_a_damaged_model_is_not_added(
    scripted_bundle: Path, tmp_path: Path, capfd: Captured
) -> None:
    damaged = shutil.copytree(scripted_bundle, tmp_path / "damaged")
    data = bytearray((damaged / "lm.gguf").read_bytes())
    data[5000] ^= 1
    (damaged / "lm.gguf").write_bytes(data)
    (tmp_path / "text.gguf").write_text("no model")
    for source in (damaged, tmp_path / "text.gguf", tmp_path / "gone", tmp_path):
        assert run(["models", "add", str(source), "mine"]) == 4
        assert capfd.readouterr().err
    models = data_dir() / "models"
    assert not models.exists() or list(models.iterdir()) == []


def test_only_installed_models_are_removed(scripted_bundle: Path, capfd: Captured) -> None:
    assert run(["models", "remove", "nano", "--yes"]) == 2
    assert run(["models", "remove", str(scripted_bundle), "--yes"]) == 2
    assert run(["models", "remove", "gone", "--yes"]) == 4
    assert scripted_bundle.is_dir()
    capfd.readouterr()


def test_the_default(
    scripted_bundle: Path, scripted_gguf: Path, photo: Path, capfd: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert run(["use"]) == 0
    printed = capfd.readouterr()
    assert printed.out == "captioner: nano\nreasoner: smollm2-135m\n"
    assert "smollm2-135m is not installed yet. Get it with `edgeprism pull" in printed.err
    assert "nano" not in printed.err
    assert run(["models", "add", str(scripted_bundle), "mine"]) == 0
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    assert run(["use", "mine"]) == 0
    assert run(["use", "talker"]) == 0
    capfd.readouterr()
    for command in (["caption", str(photo)],
                    ["ask", str(photo), "What?", "--instruction-mode", "generic"]):  # fmt: skip
        assert run(command) == 0
        assert capfd.readouterr().out == f"{SAID}\n"
    assert [name for name, entry in listed(capfd).items() if entry["default"]] == ["mine", "talker"]
    assert run(["doctor"]) in (0, 5)
    assert "mine (" in capfd.readouterr().out
    monkeypatch.setenv("EDGEPRISM_MODEL", "nano")
    assert run(["use"]) == 0
    assert capfd.readouterr().out.startswith("captioner: nano\n")
    monkeypatch.delenv("EDGEPRISM_MODEL")
    assert run(["models", "remove", "mine", "--yes"]) == 0
    assert "It was the default captioner. That is nano now." in capfd.readouterr().err
    assert run(["use"]) == 0
    assert capfd.readouterr().out.startswith("captioner: nano\n")
    assert run(["use", str(scripted_bundle)]) == 2
    assert "models add" in capfd.readouterr().err


# ---- needs


def test_what_fits(capfd: Captured) -> None:
    assert run(["models", "list", "--fits", "4GB"]) == 0
    out = capfd.readouterr().out
    assert out.splitlines()[0].split() == ["NAME", "KIND", "STATE", "SIZE", "DISK", "MEMORY",
                                           "WHAT"]  # fmt: skip
    assert "prismcaptioner-2b" in out
    assert "prismcaptioner-7b" not in out
    for size in ("8GB", "8 gb", "8", "8000MB", "7.5GiB"):
        assert run(["models", "list", "--fits", size, "--json"]) == 0
        names = {entry["name"] for entry in json.loads(capfd.readouterr().out)}
        assert {"nano", "prismcaptioner-7b", "smollm2-135m", "smolvlm-500m"} <= names
    assert run(["models", "list", "--fits", "lots"]) == 2
    capfd.readouterr()


def test_the_list_counts_as_the_plan_does(scripted_gguf: Path, capfd: Captured) -> None:
    assert run(["models", "add", str(scripted_gguf), "talker"]) == 0
    assert run(["models", "list", "--fits", "8GB"]) == 0
    memory = {line.split()[0]: line for line in capfd.readouterr().out.splitlines()}
    assert "~" in memory["gemma3-1b"]  # only the size of what is to be fetched is known
    entries = listed(capfd)
    for name, plan in (("nano", ["nano"]), ("talker", ["nano", "--reasoner", "talker"])):
        assert "~" not in memory[name]
        assert run(["doctor", "--plan", *plan, "--json"]) == 0
        models = json.loads(capfd.readouterr().out)["models"]
        needed = [sum(p["size"] for p in m["parts"] if p["needed"]) for m in models]
        assert entries[name]["memory_counted"]
        assert entries[name]["memory"] == needed[0] + needed[-1]  # the process and the model


def test_a_model_that_is_not_installed_says_what_it_needs(capfd: Captured, photo: Path) -> None:
    assert run(["models", "show", "prismcaptioner-2b"]) == 0
    out = capfd.readouterr().out
    for fact in ("download_gb: 10", "disk_gb: 1.5", "memory_gb: 2.4"):
        assert fact in out
    assert run(["models", "show", "prismcaptioner-2b", "--size", "640x480"]) == 4
    err = capfd.readouterr().err
    assert "is not installed yet" in err
    assert "edgeprism pull prismcaptioner-2b" in err


def test_a_file_that_nobody_vouches_for_is_not_verified(
    scripted_gguf: Path, tmp_path: Path, capfd: Captured
) -> None:
    path = shutil.copy(scripted_gguf, tmp_path / "own.gguf")
    assert run(["models", "verify", str(path)]) == 1
    assert "no digest is recorded" in capfd.readouterr().out


def test_a_name_that_is_built_in_is_not_to_be_removed_first(
    scripted_bundle: Path, scripted_gguf: Path, capfd: Captured
) -> None:
    assert run(["models", "add", str(scripted_bundle), "nano"]) == 2
    err = capfd.readouterr().err
    assert "There is a model nano already" in err
    assert "remove" not in err
    assert run(["models", "add", "nano"]) == 4
    assert "is there already" in capfd.readouterr().err
    assert run(["models", "add", str(scripted_gguf), "mine"]) == 0
    assert run(["models", "add", str(scripted_gguf), "mine"]) == 2
    assert "edgeprism models remove mine" in capfd.readouterr().err


# ---- questions to nobody


@pytest.mark.parametrize("command", ["cache clear", "models remove mine"])
def test_without_an_answer_nothing_is_deleted(
    command: str, scripted_gguf: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["models", "add", str(scripted_gguf), "mine"]) == 0
    capfd.readouterr()
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        assert run(command.split()) == 2
    err = capfd.readouterr().err
    assert "Nothing was deleted" in err
    assert "--yes" in err
    assert run(["models", "show", "mine"]) == 0
