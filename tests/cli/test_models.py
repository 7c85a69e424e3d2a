"""`edgeprism models`: listing, describing and verifying models."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import ModelError
from edgeprism.files.home import data_dir
from edgeprism.install import inventory
from tests.helpers import bundles, wheels

CATALOGUED = {"prismcaptioner-2b", "prismcaptioner-7b", "smollm2-135m"}


@pytest.fixture
def installed(random_bundle: Path, scripted_gguf: Path) -> Path:
    """A data folder with the bundle `mine` and the reasoner `chat`."""
    models = data_dir() / "models"
    shutil.copytree(random_bundle, models / "mine")
    shutil.copy(scripted_gguf, models / "chat.gguf")
    return models


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["models", *arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


@pytest.mark.usefixtures("installed")
def test_list_names_installed_and_catalogued(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = printed(capsys, "list", "--json")
    assert (code, err) == (0, "")
    entries = {entry["name"]: entry for entry in json.loads(out)}
    assert set(entries) >= {"mine", "chat"} | CATALOGUED
    assert (entries["mine"]["kind"], entries["mine"]["state"]) == ("captioner", "installed")
    assert (entries["chat"]["kind"], entries["chat"]["state"]) == ("reasoner", "installed")
    assert {entries[name]["state"] for name in CATALOGUED} == {"available"}
    assert entries["smollm2-135m"]["license"] == "Apache-2.0"
    code, out, _ = printed(capsys, "list")
    assert out.splitlines()[0].split() == ["NAME", "KIND", "STATE", "SIZE", "WHAT"]
    assert len(out.splitlines()) == len(entries) + 1


def test_list_shows_what_is_damaged_and_goes_on(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed / "mine" / "lm.gguf").unlink()
    (installed / "chat.gguf").write_bytes(b"GGUF\x03")
    (installed / "smollm2-135m.gguf").write_bytes(bundles.lm_parts().write(
        installed / "x.tmp").read_bytes())  # fmt: skip
    (installed / "noise").mkdir()
    (installed / "no-manifest.txt").write_text("")
    (installed / ".mine.partial-1").mkdir()
    code, out, _ = printed(capsys, "list", "--json")
    assert code == 0
    entries = {entry["name"]: entry for entry in json.loads(out)}
    for name in ("mine", "chat", "smollm2-135m"):
        assert entries[name]["state"] == "damaged"
        assert entries[name]["problem"]
    assert not {"noise", "no-manifest", ".mine.partial-1"} & set(entries)


@pytest.mark.usefixtures("installed")
def test_show_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = printed(capsys, "show", "mine", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["kind"] == "captioner"
    assert facts["visual_tokens_per_picture"] == bundles.N_TOKENS
    assert facts["lm"]["n_embd"] == bundles.N_EMBD
    assert facts["license"] == "Apache-2.0"
    assert set(facts["files"]) == {"lm.gguf", "vision.fp32.onnx"}
    assert facts["parity"]["passed"] is True
    code, out, _ = printed(capsys, "show", "mine")
    assert f"visual_tokens_per_picture: {bundles.N_TOKENS}" in out
    assert facts["files"]["lm.gguf"]["sha256"] in out


def test_show_a_picture_that_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "show", "nano", "--size", "40x30"]) == 0
    assert "size: 40 × 30\ngrid: not cut\ntiles: 1\n" in capsys.readouterr().out
    assert run(["models", "show", "nano", "--size", "40x30", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["grid"] == [0, 0]


def test_show_a_reasoner_by_name_and_by_path(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("chat", str(installed / "chat.gguf")):
        code, out, _ = printed(capsys, "show", name, "--json")
        facts = json.loads(out)
        assert code == 0
        assert facts["architecture"] == "llama"
        assert facts["context_length"] == bundles.CONTEXT
        assert facts["has_chat_template"] is True
        assert facts["digest"] == bundles.file_entry(installed / "chat.gguf").sha256


def test_show_what_is_not_installed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = printed(capsys, "show", "prismcaptioner-2b")
    assert code == 0
    assert "google/siglip-so400m-patch14-384" in out
    assert "verified: no" in out
    code, out, _ = printed(capsys, "show", "gemma3-4b")
    assert out.startswith("name: gemma3-4b\nkind: captioner\nstate: available\n")
    assert re.search(r"^memory_gb: [0-9.]+$", out, re.MULTILINE)
    code, out, err = printed(capsys, "show", "nosuch")
    assert (code, out) == (ModelError.exit_code, "")
    assert "models list" in err


@pytest.mark.usefixtures("installed")
def test_verify_hashes_whole_files(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = printed(capsys, "verify", "mine", "chat")
    assert code == 0
    assert out.count("intact") == 2
    assert "no digest is recorded" in out
    # The size and mtime are the same, so only hashing shows the damage.
    path = installed / "mine" / "lm.gguf"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, out, _ = printed(capsys, "verify", "mine", "--json")
    assert code == ModelError.exit_code
    wrong = [check["file"] for check in json.loads(out) if check["problem"]]
    assert wrong == ["lm.gguf"]


def test_verify_names_every_file_that_is_wrong(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (installed / "mine" / "lm.gguf").unlink()
    (installed / "mine" / "vision.fp32.onnx").write_bytes(b"")
    code, out, _ = printed(capsys, "verify", "mine")
    assert code == ModelError.exit_code
    assert out.count("WRONG") == 2


def test_verify_a_reasoner_against_the_catalogue(
    scripted_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = scripted_gguf.read_bytes()
    target = data_dir() / "models" / "tiny.gguf"
    target.parent.mkdir()
    target.write_bytes(model)
    [check] = inventory.verify_model("tiny", wheels.catalogue_for(model))
    assert (check.recorded, check.problem) == (True, "")
    [check] = inventory.verify_model("tiny", wheels.catalogue_for(model, sha256="0" * 64))
    assert "its content is not" in check.problem
    # another model under a name of the catalogue
    target.rename(target.with_name("smollm2-135m.gguf"))
    assert printed(capsys, "verify", "smollm2-135m")[0] == ModelError.exit_code


def test_verify_without_names_takes_all_that_are_here(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = printed(capsys, "verify", "--json")
    assert code == 0
    assert {check["model"] for check in json.loads(out)} >= {"mine", "chat"}
    assert printed(capsys, "verify", "nosuch")[0] == ModelError.exit_code


def test_control_sequences_in_a_models_name_stay_off_the_terminal(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = bundles.lm_parts()
    parts.metadata["general.name"] = ("string", "nice\x1b[2J\x9bmodel\r")
    parts.metadata["general.license"] = ("string", "\x1b]0;title\x07")
    parts.write(installed / "nice.gguf")
    for arguments in (["list"], ["show", "nice"]):
        code, out, _ = printed(capsys, *arguments)
        assert code == 0
        assert not any(c in out for c in "\x1b\x9b\x07\r")


def test_a_manifest_with_faults_lists_them(
    installed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = installed / "mine" / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["license"]
    data["surprise"] = 1
    path.write_text(json.dumps(data), encoding="utf-8")
    for command in ("show", "verify"):
        code, _, err = printed(capsys, command, "mine")
        assert code == ModelError.exit_code
        assert "license: missing" in err
        assert "surprise: unknown field" in err
