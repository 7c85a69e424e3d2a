"""A bundle that is written: it appears whole, and stays over a loss of power."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import pytest

from edgeprism.bundle.open import open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.bundle.writer import BundleWriter
from edgeprism.errors import OutputError, UsageError


@pytest.mark.skipif(sys.platform == "win32", reason="a folder is flushed where it can be opened")
def test_every_file_is_on_the_disk_before_the_bundle_has_its_name(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, flushed, fsync = tmp_path / "out", set[int](), os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        if not out.exists():
            flushed.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    manifest = manifest_from_bundle(scripted_bundle)
    with BundleWriter(out, overwrite=False) as writer:
        for name in manifest.files:
            shutil.copy(scripted_bundle / name, writer.folder)
        writer.finish(manifest)
    assert open_bundle(out).manifest == manifest
    assert {path.stat().st_ino for path in (out, *out.iterdir())} <= flushed


def write(writer: BundleWriter, bundle: Path, name: str) -> None:
    manifest = manifest_from_bundle(bundle)
    for file in manifest.files:
        shutil.copy(bundle / file, writer.folder)
    writer.finish(dataclasses.replace(manifest, name=name))


def make(out: Path, bundle: Path, name: str, pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a bundle as another process does."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        with BundleWriter(out, overwrite=True) as writer:
            write(writer, bundle, name)


def test_a_bundle_that_appeared_meanwhile_is_not_replaced(
    scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with BundleWriter(out, overwrite=False) as writer:
        make(out, scripted_bundle, "other", 1, monkeypatch)
        with pytest.raises(UsageError, match="out exists already"):
            write(writer, scripted_bundle, "late")
    assert open_bundle(out).manifest.name == "other"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("moment", ["before", "while it is replaced"])
def test_a_bundle_that_was_changed_meanwhile_is_not_replaced(
    moment: str, scripted_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", Path.rename
    make(out, scripted_bundle, "old", 1, monkeypatch)

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        make(out, scripted_bundle, "other", 2, monkeypatch)
        return rename(path, target)

    with BundleWriter(out, overwrite=True) as writer:
        if moment == "before":
            make(out, scripted_bundle, "other", 2, monkeypatch)
        else:
            monkeypatch.setattr(Path, "rename", late)
        with pytest.raises(OutputError, match="changed by another program meanwhile"):
            write(writer, scripted_bundle, "late")
    assert open_bundle(out).manifest.name == "other"
    assert list(tmp_path.iterdir()) == [out]
