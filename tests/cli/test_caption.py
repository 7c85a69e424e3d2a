"""The command line: only results on stdout, and an exit code for each kind of end."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeprism
from edgeprism.cli.folder import _OUTPUTS
from edgeprism.cli.main import COMMANDS, run
from edgeprism.errors import EdgePrismError
from edgeprism.files.home import data_dir
from tests.helpers import bundles
from tests.helpers.bundles import SAID_TEXT

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def model(scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRISM_MODEL", str(scripted_bundle))
    return scripted_bundle


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three pictures with different pixels."""
    paths = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        paths.append(tmp_path / f"photo{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def edgeprism_process(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "edgeprism", *map(str, arguments)],
        capture_output=True, check=False, timeout=120, cwd=cwd, env=env,
    )  # fmt: skip


# ---- caption


def test_one_picture(model: Path, photo: Path, capfd: Captured) -> None:
    assert run(["caption", str(photo)]) == 0
    assert capfd.readouterr() == (f"{SAID_TEXT}\n", "")


RECORD = {
    "schema": int, "image": str, "image_sha256": str, "image_size": list, "caption": str,
    "finish_reason": str,
    "tokens": {"visual", "prompt", "generated"},
    "timings_ms": {"load", "decode_image", "preprocess", "encode", "prefill", "decode", "total"},
    "model": {"name", "digest", "vision_quant", "lm_quant"},
    "device": str, "instruction": str, "notes": list, "together": list, "version": str,
}  # fmt: skip


def check_record(record: dict[str, object], *, stored: bool = False) -> None:
    # A record from the caption store also has `settings` and `cached`.
    assert set(record) == set(RECORD) | ({"cached", "settings"} if stored else set())
    for field, kind in RECORD.items():
        if isinstance(kind, set):
            assert isinstance(record[field], dict)
            assert set(record[field]) == kind  # type: ignore[call-overload]
        else:
            assert type(record[field]) is kind


def test_the_example_picture(model: Path, photo: Path, capfd: Captured) -> None:
    assert run(["caption", "--example", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["image"].endswith("scene1.png")
    assert run(["caption", "--example", str(photo), "--jsonl", "--no-cache"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 2, "together with others"


def test_json_of_one_picture(model: Path, photo: Path, capfd: Captured) -> None:
    assert run(["caption", str(photo), "--json"]) == 0
    out, err = capfd.readouterr()
    record = json.loads(out)
    check_record(record)
    assert (record["schema"], record["caption"], record["image"]) == (1, SAID_TEXT, str(photo))
    assert record["version"] == edgeprism.__version__
    assert record["tokens"]["visual"] == bundles.N_TOKENS
    assert err == ""


def test_jsonl_of_one_picture_is_one_line(model: Path, photo: Path, capfd: Captured) -> None:
    assert run(["caption", str(photo), "--jsonl"]) == 0
    out, _ = capfd.readouterr()
    assert out.count("\n") == 1
    check_record(json.loads(out))


def test_several_pictures(model: Path, photos: list[Path], capfd: Captured) -> None:
    names = [str(p) for p in photos]
    assert run(["caption", *names]) == 0
    assert capfd.readouterr().out.splitlines() == [f"{name}: {SAID_TEXT}" for name in names]
    assert run(["caption", *names, "--json"]) == 0
    records = json.loads(capfd.readouterr().out)
    assert [r["image"] for r in records] == names
    assert run(["caption", *names, "--jsonl"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["image"] for line in lines] == names
    for record in [*records, *map(json.loads, lines)]:
        check_record(record, stored=True)


@pytest.mark.parametrize("form", ["text", "--json", "--jsonl"])
def test_one_bad_picture_among_several(
    model: Path, photos: list[Path], tmp_path: Path, capfd: Captured, form: str
) -> None:
    (tmp_path / "bad.jpg").write_text("not a picture")
    names = [str(photos[0]), str(tmp_path / "bad.jpg"), str(tmp_path / "gone.png"), str(photos[1])]
    options = [] if form == "text" else [form]
    assert run(["caption", *names, *options]) == 3
    out, err = capfd.readouterr()
    assert out.count(SAID_TEXT) == 2
    assert "bad.jpg: not a picture" in err
    assert "gone.png: no such file" in err
    assert "Traceback" not in err
    assert "bad.jpg" not in out


def test_a_slip_in_an_argument_is_told_before_the_work(
    model: Path, photos: list[Path], tmp_path: Path, capfd: Captured
) -> None:
    gone, folder = tmp_path / "gone.png", tmp_path / "no such folder"
    assert run(["caption", str(photos[0]), str(gone), str(folder), "--dry-run"]) == 0
    err = capfd.readouterr().err
    assert f"note: {gone}: no such file." in err
    assert f"note: {folder}: no such file." in err
    assert run(["caption", str(photos[0]), str(gone)]) == 3
    err = capfd.readouterr().err
    assert err.splitlines()[0] == f"error: {gone}: no such file."
    assert err.count(str(gone)) == 1, "what counts as failed is told once, as an error"
    assert "2 pictures: 1 captioned, 0 known already, 1 failed" in err
    assert run(["caption", str(photos[0]), f"{folder}/", str(gone), str(photos[0])]) == 3
    err = capfd.readouterr().err
    assert (err.count(str(folder)), err.count("hint: ")) == (2, 1)  # the summary names both again
    assert run(["caption", str(photos[0]), str(gone), "--quiet"]) == 3
    assert capfd.readouterr().err.count(f"error: {gone}: no such file.") == 1
    assert run(["caption", str(photos[0]), str(tmp_path / "photo*.png")]) == 0
    assert "no such file" not in capfd.readouterr().err


def test_only_bad_pictures(model: Path, tmp_path: Path, capfd: Captured) -> None:
    (tmp_path / "bad.jpg").write_text("not a picture")
    assert run(["caption", str(tmp_path / "bad.jpg")]) == 1
    assert run(["caption", str(tmp_path / "bad.jpg"), str(tmp_path / "gone.jpg")]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("bad.jpg: not a picture") == 2
    assert "gone.jpg: no such file" in err


@pytest.mark.parametrize("name", ["x" * 5000, "x/" * 3000], ids=["name", "path"])
def test_a_name_too_long_for_any_file_system(model: Path, capfd: Captured, name: str) -> None:
    assert run(["caption", name]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert "File name too long" in err


def test_notes_go_to_stderr_and_the_record(model: Path, tmp_path: Path, capfd: Captured) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert run(["caption", str(path)]) == 0
    assert capfd.readouterr() == (f"{SAID_TEXT}\n", f"{path}: first of 2 frames\n")
    assert run(["caption", str(path), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["notes"] == ["first of 2 frames"]


def test_options_reach_the_caption(model: Path, photo: Path, capfd: Captured) -> None:
    arguments = (
        "--instruction Count. --focus boats --max-tokens 2 --threads 1 --device cpu "
        "--vision-quant fp32 --temperature 0 --seed 3 --json"
    )
    assert run(["caption", str(photo), *arguments.split()]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["instruction"] == "Count. Attend to: boats."
    assert (record["caption"], record["finish_reason"]) == ("a red", "length")


# ---- ask


def test_ask(model: Path, photo: Path, capfd: Captured) -> None:
    ask = ["ask", str(photo), "What is there?", "--captioner", str(model), "--reasoner",
           str(model / "lm.gguf")]  # fmt: skip
    assert run(ask) == 0
    out, err = capfd.readouterr()
    assert out == f"{SAID_TEXT}\n"
    assert err.startswith("no focus: the question names nothing")
    assert run([*ask, "--instruction-mode", "generic"]) == 0
    assert capfd.readouterr() == (f"{SAID_TEXT}\n", "")
    assert run([*ask, "--show-captions"]) == 0
    evidence = "evidence: none; the description does not say\n"
    assert capfd.readouterr().out == f"{photo}: {SAID_TEXT}\n{evidence}{SAID_TEXT}\n"
    assert run([*ask, "--json", "--focus", "dogs"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert (record["answer"], record["focus"]) == (SAID_TEXT, "dogs")
    check_record(record["captions"][0])


def test_ask_without_a_picture(model: Path, capfd: Captured) -> None:
    assert run(["ask", "What is there?"]) == 2
    assert capfd.readouterr().out == ""


def test_ask_without_the_reasoner(model: Path, photo: Path, capfd: Captured) -> None:
    assert run(["ask", str(photo), "What?", "--reasoner", "not-installed"]) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert "'not-installed'" in err
    assert "edgeprism models list" in err


def test_ask_with_a_strange_template(
    model: Path, photo: Path, tmp_path: Path, capfd: Captured
) -> None:
    odd = bundles.write_lm(
        tmp_path / "odd.gguf", script=bundles.piece_ids("▁a", "▁dog", bundles.IM_END),
        chat_template="{{ own_dialect }}",
    )  # fmt: skip
    ask = ["ask", str(photo), "What?", "--captioner", str(model), "--reasoner", str(odd)]
    assert run(ask) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "--chat-format" in err
    assert "chatml" in err
    assert run([*ask, "--chat-format", "nonsense"]) == 2
    capfd.readouterr()
    assert run([*ask, "--chat-format", "chatml"]) == 0
    assert capfd.readouterr().out == "a dog\n"


# ---- exit codes


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption"],
        ["caption", "{photo}", "--json", "--jsonl"],
        ["caption", "{photo}", "--max-tokens", "0"],
        ["caption", "{photo}", "--max-tokens", "many"],
        ["caption", "{photo}", "--threads", "0"],
        ["caption", "{photo}", "--device", "tpu"],
        ["caption", "{photo}", "--temperature", "-1"],
        ["caption", "{photo}", "--vision-quant", "int3"],
        ["caption", "{photo}", "--no-such-option"],
        ["no-such-command"],
        ["ask"],
    ],
    ids=lambda a: " ".join(a),
)
def test_usage_errors(model: Path, photo: Path, capfd: Captured, arguments: list[str]) -> None:
    assert run([a.format(photo=photo) for a in arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_missing_and_damaged_models(
    scripted_bundle: Path, photo: Path, tmp_path: Path, capfd: Captured
) -> None:
    damaged = shutil.copytree(scripted_bundle, tmp_path / "damaged")
    data = bytearray((damaged / "lm.gguf").read_bytes())
    data[5000] ^= 1
    (damaged / "lm.gguf").write_bytes(data)
    strange = shutil.copytree(scripted_bundle, tmp_path / "strange")
    manifest = json.loads((strange / "manifest.json").read_text())
    (strange / "manifest.json").write_text(json.dumps({**manifest, "plugin": "x.so"}))
    for name, message in (
        ("not-installed", "nor an installed model"),
        (tmp_path / "gone", "nor an installed model"),
        (tmp_path, "manifest.json cannot be read"),
        (damaged, "not what the manifest says"),
        (strange, "plugin: unknown field"),
    ):
        assert run(["caption", str(photo), "--model", str(name)]) == 4
        out, err = capfd.readouterr()
        assert out == ""
        assert message in err
        assert "hint: " in err


@pytest.mark.parametrize("device", ["cuda", "metal"])
def test_a_device_that_is_not_there(
    model: Path, photo: Path, capfd: Captured, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["caption", str(photo), "--device", device]) == 5
    monkeypatch.setenv("EDGEPRISM_DEVICE", device)
    assert run(["caption", str(photo)]) == 5
    out, err = capfd.readouterr()
    assert out == ""
    assert f"Device {device}" in err
    assert (
        run(["caption", str(photo), "--device", "cpu"]) == 0
    )  # a flag takes precedence over the environment


def test_the_flag_wins_over_the_environment_over_the_default(
    scripted_bundle: Path, photo: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_MODEL", "not-installed")
    assert run(["caption", str(photo)]) == 4
    assert "'not-installed'" in capfd.readouterr().err
    assert run(["caption", str(photo), "--model", str(scripted_bundle)]) == 0


def test_a_model_by_name(scripted_bundle: Path, photo: Path, capfd: Captured) -> None:
    shutil.copytree(scripted_bundle, data_dir() / "models" / "mine")
    assert run(["caption", str(photo), "--model", "mine"]) == 0
    assert capfd.readouterr().out == f"{SAID_TEXT}\n"


def test_every_error_has_an_exit_code_of_the_table() -> None:
    def kinds(kind: type[EdgePrismError]) -> list[type[EdgePrismError]]:
        return [kind, *(k for sub in kind.__subclasses__() for k in kinds(sub))]

    assert {kind.exit_code for kind in kinds(EdgePrismError)} <= {1, 2, 4, 5, 130}


# ---- the form of messages


def test_colour_only_on_request(
    model: Path, photo: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ["caption", "gone.jpg"]
    run(bad)
    assert "\x1b" not in capfd.readouterr().err  # no colours without a terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(bad)
    assert "\x1b[31m" in capfd.readouterr().err
    run(["--no-color", *bad])
    assert "\x1b" not in capfd.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    run(bad)
    assert "\x1b" not in capfd.readouterr().err


def test_native_logs_only_when_asked(model: Path, photo: Path, capfd: Captured) -> None:
    assert run(["-v", "caption", str(photo)]) == 0
    out, err = capfd.readouterr()
    assert out == f"{SAID_TEXT}\n"
    assert "llama_model_loader" in err
    os.environ.pop("EDGEPRISM_NATIVE_LOG", None)


def test_version_and_help(capfd: Captured) -> None:
    assert run(["--version"]) == 0
    assert edgeprism.__version__ in capfd.readouterr().out
    for arguments in (["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)):
        assert run(arguments) == 0
        out, err = capfd.readouterr()
        assert "Usage: edgeprism" in out
        assert err == ""
    for name in COMMANDS:
        run(["--help"])
        assert name in capfd.readouterr().out


# ---- in a child process


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_text_is_utf8_whatever_the_locale_says(
    model: Path, photo: Path, tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "été 写真 🚤.png"
    shutil.copy(photo, path)
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = edgeprism_process("caption", path, "--json", env=environment)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.decode("utf-8"))
    assert record["image"] == str(path)
    assert record["caption"] == SAID_TEXT
    assert "été 写真 🚤.png".encode() in done.stdout  # in UTF-8, not escaped


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_file_name_that_is_not_utf8(model: Path, photo: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    shutil.copy(os.fsencode(photo), name)
    done = subprocess.run(
        [sys.executable, "-m", "edgeprism", "caption", name, "--json"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode("utf-8"))["caption"] == SAID_TEXT


def test_a_reader_that_leaves(model: Path, photos: list[Path]) -> None:
    """`edgeprism caption … | head -0`"""
    for arguments in (["caption", photos[0]], ["caption", *photos, "--jsonl"], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeprism", *map(str, arguments)],
            stdout=writing, stderr=subprocess.PIPE,
        )  # fmt: skip
        os.close(writing)
        _, err = process.communicate(timeout=120)
        assert b"Traceback" not in err
        assert b"Exception ignored" not in err
        assert process.returncode in (0, 1)


def test_the_installed_command(model: Path, photo: Path) -> None:
    command = shutil.which("edgeprism", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run([command, "caption", photo], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{SAID_TEXT}\n", "")


def test_nothing_is_written_beside_the_picture(model: Path, tmp_path: Path, photo: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    shutil.copy(photo, folder)
    before = sorted(folder.iterdir())
    assert edgeprism_process("caption", folder / photo.name, cwd=folder).returncode == 0
    assert sorted(folder.iterdir()) == before


def test_every_format_for_one_picture(model: Path, photo: Path, capfd: Captured) -> None:
    """A format that only folders have makes a single picture a folder of one."""
    printed = {}
    for form in _OUTPUTS:
        flags = [] if form == "text" else [f"--{form}"]
        assert run(["caption", str(photo), "--model", str(model), *flags]) == 0
        printed[form] = capfd.readouterr().out
    assert len(set(printed.values())) == len(printed)
    assert printed["text"] == f"{SAID_TEXT}\n"
    assert json.loads(printed["json"])["caption"] == SAID_TEXT
    assert json.loads(printed["jsonl"])["caption"] == SAID_TEXT
    header, row = csv.reader(printed["csv"].splitlines())
    assert dict(zip(header, row, strict=True))["caption"] == SAID_TEXT
