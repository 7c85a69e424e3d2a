"""`edgeprism doctor`: it names each fault with its fix, and survives broken engines."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from edgeprism.bundle.pulled import PulledFrom, remember_pulled
from edgeprism.cli.main import run
from edgeprism.files.home import data_dir
from edgeprism.install import doctor
from edgeprism.install.diagnosis import BAD, WARN, Diagnosis, Finding
from edgeprism.models.catalogue import read_catalogue

GOOD: dict[str, dict[str, Any]] = {
    "vision": {"providers": {"CPUExecutionProvider": ""}},
    "language": {"offload": False},
}


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Replace the probes' child processes by a dictionary, which a test can change."""
    answers = dict(GOOD)
    monkeypatch.setattr(doctor, "probe", lambda engine: answers[engine])
    return answers


@pytest.fixture
def usable(random_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide the default model."""
    monkeypatch.setenv("EDGEPRISM_MODEL", str(random_bundle))


def finding(diagnosis: Diagnosis, topic: str) -> Finding:
    [match] = [f for f in diagnosis.findings if f.topic == topic]
    return match


def test_amx_is_said_to_be_left_alone(
    usable: None, engines: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    engines["language"] = {"offload": False, "amx": True}
    assert run(["doctor"]) == 0
    assert "EdgePrism does not use its AMX code" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("usable")
def test_here_it_is_usable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket", lambda *_: pytest.fail("a socket was made"))
    before = sorted(data_dir().rglob("*"))
    assert run(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is True
    texts = {f["topic"]: f["text"] for f in report["findings"]}
    assert "CPUExecutionProvider" in texts["vision engine"]
    assert "llama-cpp-python" in texts["language engine"]
    assert "switched off" in texts["telemetry"]
    assert {"python", "numpy", "pillow", "device", "cpu", "cores", "int8", "memory",
            "data folder", "default model", "convert extra"} <= set(texts)  # fmt: skip
    assert sorted(data_dir().rglob("*")) == before, "it changes nothing"


@pytest.mark.usefixtures("usable", "engines")
def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    output = capsys.readouterr()
    assert "edgeprism pull smollm2-135m" in output.out  # the fix for the missing reasoner
    assert "\x1b" not in output.out
    assert output.err == ""


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize(
    ("module", "topic", "package"),
    [
        ("onnxruntime", "vision engine", "onnxruntime"),
        ("llama_cpp", "language engine", "llama-cpp-python"),
        ("numpy", "vision engine", "onnxruntime"),
    ],
)
def test_a_missing_engine(
    module: str, topic: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module} here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    diagnosis = doctor.examine()
    assert diagnosis.exit_code == 5
    result = finding(diagnosis, topic)
    assert result.state == BAD
    assert f"no {module} here" in result.text
    assert package in result.fix


def test_an_engine_that_kills_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for another processor dies with SIGILL."""
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp" / "__init__.py").touch()
    (tmp_path / "llama_cpp" / "llama_cpp.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    )
    (tmp_path / "onnxruntime.py").write_text("import sys; print('hello'); sys.exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "signal 4" in doctor.probe("language")["error"]
    assert "error" in doctor.probe("vision")


def test_an_engine_that_is_half_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime.py").write_text("print('an empty shell')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "overwrote each other" in doctor.probe("vision")["error"]


@pytest.mark.usefixtures("usable", "engines")
def test_both_builds_of_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    true_version = metadata.version

    def version(name: str) -> str:
        return "1.31.1" if name.startswith("onnxruntime") and name[11:] in ("", "-gpu") else (
            true_version(name))  # fmt: skip

    monkeypatch.setattr(metadata, "version", version)
    diagnosis = doctor.examine()
    assert diagnosis.exit_code == 5
    result = finding(diagnosis, "vision engine")
    assert result.fix == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


@pytest.mark.usefixtures("engines")
def test_the_default_model(tmp_path: Path, random_bundle: Path) -> None:
    diagnosis = doctor.examine({"EDGEPRISM_MODEL": "nosuch"})
    assert diagnosis.exit_code == 4
    assert finding(diagnosis, "default model").fix == "unset EDGEPRISM_MODEL"
    damaged = tmp_path / "damaged"
    shutil.copytree(random_bundle, damaged)
    with (damaged / "lm.gguf").open("ab") as file:
        file.write(b"x")
    assert doctor.examine({"EDGEPRISM_MODEL": str(damaged)}).exit_code == 4


@pytest.mark.usefixtures("engines")
def test_damaged_settings(tmp_path: Path) -> None:
    assert finding(doctor.examine(), "default model").state == "ok"
    (data_dir() / "config.toml").write_text("model = 'nano'\n")
    assert finding(doctor.examine(), "settings").state == "ok"
    (data_dir() / "config.toml").write_text("model =\n")
    diagnosis = doctor.examine()
    assert diagnosis.exit_code == 2
    assert finding(diagnosis, "settings").state == "bad"


@pytest.mark.usefixtures("engines")
def test_a_default_model_with_a_flipped_bit(
    tmp_path: Path, random_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = json.loads((random_bundle / "manifest.json").read_text())["files"]
    for number, name in enumerate(good):
        damaged = shutil.copytree(random_bundle, tmp_path / str(number))
        assert doctor.examine({"EDGEPRISM_MODEL": str(damaged)}).exit_code == 0
        data = bytearray((damaged / name).read_bytes())
        data[len(data) // 2] ^= 1
        (damaged / name).write_bytes(data)  # of the same size
        diagnosis = doctor.examine({"EDGEPRISM_MODEL": str(damaged)})
        assert diagnosis.exit_code == 4
        assert finding(diagnosis, "default model").state == "bad"
        assert name in finding(diagnosis, "default model").text
    shutil.move(tmp_path / "0", data_dir() / "models" / "mine")
    monkeypatch.delenv("EDGEPRISM_MODEL", raising=False)
    assert run(["use", "mine"]) == 0
    found = finding(doctor.examine({}), "default model")
    assert (found.state, found.fix) == ("bad", "edgeprism use nano")


@pytest.mark.usefixtures("usable")
def test_an_engine_weighs_more_than_a_model(engines: dict[str, dict[str, Any]]) -> None:
    engines["language"] = {"error": "gone", "hint": ""}
    assert doctor.examine({"EDGEPRISM_MODEL": "nosuch"}).exit_code == 5


@pytest.mark.usefixtures("usable")
def test_gpu_hints(engines: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: True)
    fixes = [f.fix for f in doctor.examine().findings if f.topic == "gpu"]
    assert len(fixes) == 2
    assert "onnxruntime-gpu" in fixes[0]
    assert "GGML_CUDA" in fixes[1]
    diagnosis = doctor.examine({"EDGEPRISM_DEVICE": "cuda"})
    assert finding(diagnosis, "device").exit_code == 5
    both = ("CUDAExecutionProvider", "CPUExecutionProvider")
    engines["vision"] = {"providers": dict.fromkeys(both, "")}
    engines["language"] = {"offload": True}
    diagnosis = doctor.examine()
    assert not [f for f in diagnosis.findings if f.topic == "gpu"]
    if sys.platform != "darwin":
        assert finding(diagnosis, "device").text.startswith("cuda")


@pytest.mark.usefixtures("usable", "engines")
def test_a_data_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "file" / "home"))
    result = finding(doctor.examine(), "data folder")
    assert result.state == WARN
    assert "EDGEPRISM_HOME" in result.fix
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "not" / "yet"))
    assert "not created yet" in finding(doctor.examine(), "data folder").text
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    assert finding(doctor.examine(), "data folder").state == WARN


@pytest.mark.usefixtures("usable", "engines")
def test_damaged_models_are_told(tmp_path: Path) -> None:
    models = data_dir() / "models"
    models.mkdir()
    (models / "smollm2-135m.gguf").write_bytes(b"cut short")
    diagnosis = doctor.examine()
    assert diagnosis.exit_code == 0
    assert finding(diagnosis, "model smollm2-135m").fix == "edgeprism pull smollm2-135m"


@pytest.mark.usefixtures("usable", "engines")
def test_models_whose_links_lead_nowhere_are_pulled_again() -> None:
    models = data_dir() / "models"
    models.mkdir()
    for name, repo in (("talker", "someone/Chat-GGUF"), ("llama3.2-1b", "")):
        (models / f"{name}.gguf").symlink_to(models / "gone")
        repo = repo or read_catalogue().gguf[name].repo
        remember_pulled(name, PulledFrom(f"{repo}@{'0' * 40}", "chat-Q8_0.gguf", "", {}))
    cures = {
        "talker": "edgeprism pull hf:someone/Chat-GGUF:chat-Q8_0.gguf --name talker",
        "llama3.2-1b": "edgeprism pull llama3.2-1b",
    }
    for name, cure in cures.items():
        (data_dir() / "config.toml").write_text(f'reasoner = "{name}"\n')
        diagnosis = doctor.examine()
        assert finding(diagnosis, "reasoner").fix == cure
        assert finding(diagnosis, f"model {name}").fix == cure


@pytest.mark.usefixtures("usable", "engines")
def test_without_the_convert_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "missing_for", lambda _extra: ["torch>=2.8", "gguf"])
    diagnosis = doctor.examine()
    assert diagnosis.exit_code == 0
    for extra in ("convert", "pairs"):
        cure = f'{sys.executable} -m pip install "edgeprism[{extra}]"'
        assert finding(diagnosis, f"{extra} extra").fix == cure


@pytest.mark.usefixtures("usable", "engines")
@pytest.mark.parametrize("text", ['device = "gpu"', "lens = 3", "[caption]\nmax-tokens = 0"])
def test_settings_that_every_command_refuses(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (data_dir() / "config.toml").write_text(text + "\n")
    assert run(["doctor"]) == 2
    [line] = [line for line in capsys.readouterr().out.splitlines() if "  settings" in line]
    assert line.startswith("BAD")
    assert text.split()[-3] in line


@pytest.mark.usefixtures("usable", "engines")
def test_the_default_reasoner(scripted_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = data_dir() / "config.toml"
    for name, state in ((str(scripted_gguf), "ok"), ("http://127.0.0.1:8080/v1", "ok"),
                        ("ollama:nosuch", "warn"), ("nosuch", "warn")):  # fmt: skip
        config.write_text(f'reasoner = "{name}"\n')
        found = finding(doctor.examine(), "reasoner")
        assert found.state == state
        assert name.removeprefix("ollama:") in found.text
    config.write_text('model = "ollama:nosuch"\nreasoner = "ollama:nosuch"\n')
    assert run(["doctor"]) == 0  # EDGEPRISM_MODEL goes before the setting
    assert "\\n" not in capsys.readouterr().out


def test_telemetry_is_off_in_the_process_that_loads_the_engine(tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    (tmp_path / "onnxruntime.py").write_text(
        "import os\nraise ImportError(os.environ['ORT_DISABLE_TELEMETRY'] + ' it says')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(os.environ, "ORT_DISABLE_TELEMETRY", "0")
    assert "1 it says" in doctor.probe("vision")["error"]


def test_only_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = {"CPUExecutionProvider": "", "AzureExecutionProvider": ""}
    monkeypatch.setattr(doctor, "probe", lambda _: {"providers": providers, "offload": False})
    text = finding(doctor.examine(), "vision engine").text
    assert "CPUExecutionProvider" in text
    assert "Azure" not in text
