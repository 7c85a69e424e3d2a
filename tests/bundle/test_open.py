"""Bundles: found by name or path, checked by digest, and refused with a reason if damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeprism.bundle import open as b
from edgeprism.bundle.manifest import FILE_NAME, FileEntry, VisionVariant
from edgeprism.cli.main import run
from edgeprism.errors import ManifestError, ModelError
from edgeprism.files import digests, home
from edgeprism.perceive.captioner import Captioner
from tests.helpers import bundles
from tests.helpers.children import in_child


@pytest.fixture
def copy(scripted_bundle: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(scripted_bundle, tmp_path / "copy"))
    time.sleep(0.1)  # the digest of a file that was written just now is not remembered
    return path


def flip(path: Path, offset: int = 1000) -> None:
    """Change one byte of a file, but not its size, times or inode."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# ---- finding


def test_a_bundle_by_path(scripted_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = b.open_bundle(scripted_bundle)
    assert (opened.path, opened.manifest.name) == (scripted_bundle, "tiny")
    monkeypatch.chdir(scripted_bundle.parent)
    assert b.open_bundle(f"./{scripted_bundle.name}").digest == opened.digest


def test_models_of_the_data_folder_by_name(copy: Path) -> None:
    models = home.data_dir() / "models"
    shutil.copytree(copy, models / "mine")
    shutil.copytree(copy, models / "nested" / "bundle")
    shutil.copy(copy / "lm.gguf", models / "talker.gguf")
    assert b.find_model("mine") == models / "mine"
    assert b.find_model("nested") == models / "nested" / "bundle"
    assert b.find_model("talker") == models / "talker.gguf"


def test_a_folder_that_only_has_the_name_hides_nothing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(copy, home.data_dir() / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert b.find_model("mine") == home.data_dir() / "models" / "mine"


@pytest.mark.parametrize(
    "name", ["nothing", "no/such/way", "..", "", "x" * 5000, "a/" * 3000, "a\0b", "写真"]
)
def test_what_is_no_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        b.open_bundle(name)
    assert caught.value.exit_code == 4
    assert caught.value.hint


def test_a_file_is_no_bundle(scripted_gguf: Path) -> None:
    with pytest.raises(ModelError, match=r"lm\.gguf: a file, not a bundle"):
        b.open_bundle(scripted_gguf)


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(ModelError, match=r"manifest\.json cannot be read"):
        b.open_bundle(tmp_path / "sub")


def test_a_manifest_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(ModelError):
        b.open_bundle(tmp_path)


# ---- incomplete, damaged


def test_every_missing_or_cut_file_is_named_at_once(copy: Path) -> None:
    (copy / "lm.gguf").unlink()
    with open(copy / "vision.fp32.onnx", "ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError) as caught:
        b.open_bundle(copy)
    assert "lm.gguf: cannot be read (No such file or directory)" in caught.value.message
    assert "vision.fp32.onnx: has " in caught.value.message
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["lm.gguf", "vision.fp32.onnx"])
def test_one_changed_byte_is_caught_at_first_use(copy: Path, name: str, photo: Path) -> None:
    flip(copy / name)
    with (
        Captioner.load(copy, threads=1) as captioner,
        pytest.raises(ModelError, match=rf"{name}: its content is not what the manifest says"),
    ):
        captioner.caption(photo)


def test_a_changed_manifest_is_another_model(copy: Path) -> None:
    before = b.open_bundle(copy).digest
    path = copy / FILE_NAME
    path.write_text(path.read_text().replace('"tiny"', '"tinier"'))
    assert b.open_bundle(copy).digest != before


def test_unknown_manifest_field(copy: Path) -> None:
    data = json.loads((copy / FILE_NAME).read_text())
    data["plugin"] = "run_me.so"
    (copy / FILE_NAME).write_text(json.dumps(data))
    with pytest.raises(ManifestError, match="plugin: unknown field"):
        b.open_bundle(copy)


def test_a_file_that_may_not_be_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(digests, "sha256_of_file", refuse)
    with pytest.raises(ModelError, match=r"lm\.gguf: cannot be read: Permission denied"):
        digests.file_digest(copy / "lm.gguf")


# ---- stamps


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed, in order."""
    names: list[str] = []
    original: Callable[[Path], str] = digests.sha256_of_file

    def count(path: Path) -> str:
        names.append(path.name)
        return original(path)

    monkeypatch.setattr(digests, "sha256_of_file", count)
    return names


def test_the_first_use_hashes_and_later_the_stamp_vouches(copy: Path, hashed: list[str]) -> None:
    opened = b.open_bundle(copy)
    hashed.clear()
    for _ in range(3):
        opened.file("lm.gguf")
    opened.file("vision.fp32.onnx")
    assert hashed == ["lm.gguf", "vision.fp32.onnx"]


def test_new_content_with_a_new_time_is_caught(copy: Path) -> None:
    opened = b.open_bundle(copy)
    path = opened.file("lm.gguf")
    flip(path)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    with pytest.raises(ModelError, match="not what the manifest says"):
        opened.file("lm.gguf")


def test_a_replaced_file_is_caught_though_its_time_is_the_old(copy: Path) -> None:
    opened = b.open_bundle(copy)
    path = opened.file("lm.gguf")
    other = path.with_name("other")
    shutil.copy2(path, other)
    flip(other)
    os.replace(other, path)
    with pytest.raises(ModelError, match="not what the manifest says"):
        opened.file("lm.gguf")


def test_a_restored_time_hides_nothing(copy: Path) -> None:
    """The system sets ctime; size, mtime and inode are as before."""
    opened = b.open_bundle(copy)
    path = opened.file("lm.gguf")
    entry = opened.manifest.files["lm.gguf"]
    flip(path)
    with pytest.raises(ModelError, match="not what the manifest says"):
        opened.file("lm.gguf")
    with pytest.raises(ModelError, match="not what the manifest says"):
        b.check_file(path, entry.sha256, entry.size, again=True)
    with pytest.raises(ModelError, match="not what the manifest says"):
        opened.file("lm.gguf")  # the new digest is remembered


@pytest.mark.parametrize("text", ["", "[]", "{", '{"x": 1}', "null", '{"%s": []}', '{"%s": [1]}'])
def test_damaged_stamps_cost_a_hash_and_nothing_else(
    copy: Path, hashed: list[str], text: str
) -> None:
    path = home.data_dir() / "verified.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("%s", str(copy / "lm.gguf")))
    digests.file_digest(copy / "lm.gguf")
    digests.file_digest(copy / "lm.gguf")
    assert hashed == ["lm.gguf"]


def test_a_data_folder_that_cannot_be_written(
    copy: Path, hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "file" / "home"))
    opened = b.open_bundle(copy)
    hashed.clear()
    opened.file("lm.gguf")
    opened.file("lm.gguf")
    assert hashed == ["lm.gguf", "lm.gguf"]


# ---- variants


ORDERS = [
    # (on the CPU, no saturation, order of preference)
    (True, False, ["int8", "fp32", "fp16", "int8-full"]),
    (True, True, ["int8-full", "int8", "fp32", "fp16"]),
    (False, False, ["fp16", "fp32", "int8", "int8-full"]),
    (False, True, ["fp16", "fp32", "int8", "int8-full"]),
]


@pytest.mark.parametrize(("on_cpu", "int8_dot", "order"), ORDERS)
def test_the_best_variant_that_is_there(on_cpu: bool, int8_dot: bool, order: list[str]) -> None:
    entry = FileEntry("0" * 64, 1)
    base = bundles.make_manifest({"lm.gguf": entry})
    for subset in range(1, 16):
        quants = [q for i, q in enumerate(sorted(order)) if subset >> i & 1]
        vision = dataclasses.replace(
            base.vision, variants=[VisionVariant(f"{q}.onnx", q) for q in quants]
        )
        bundle = b.Bundle(Path(), dataclasses.replace(base, vision=vision), "")
        chosen = b.choose_vision(bundle, None, on_cpu=on_cpu, int8_dot=int8_dot)
        assert chosen.quant == next(q for q in order if q in quants)
        for quant in order:
            if quant in quants:
                assert b.choose_vision(bundle, quant, on_cpu=on_cpu, int8_dot=int8_dot)
            else:
                with pytest.raises(ModelError, match=f"holds no {quant} vision graph"):
                    b.choose_vision(bundle, quant, on_cpu=on_cpu, int8_dot=int8_dot)


# ---- what is no regular file


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_could_be_read_for_ever_is_never_read(kind: str, copy: Path) -> None:
    path = copy / "lm.gguf"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    manifest = json.loads((copy / FILE_NAME).read_text())
    manifest["files"]["lm.gguf"]["size"] = 0
    (copy / FILE_NAME).write_text(json.dumps(manifest))
    for work in (
        lambda: Captioner.load(copy).caption(bytes(10)),
        lambda: run(["models", "verify", str(copy)]),
        lambda: digests.sha256_of_file(path),
    ):
        result = in_child(work, seconds=10)
        assert result.returncode >= 0, result
        assert "regular file" in result.text or result.text == "4", result
