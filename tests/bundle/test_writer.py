"""A bundle that is written: it appears whole, and stays over a loss of power."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from edgeprism.bundle.open import open_bundle
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.bundle.writer import BundleWriter


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
