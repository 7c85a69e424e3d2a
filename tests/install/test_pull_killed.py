"""`edgeprism pull` killed with SIGKILL at random moments: a model is whole, or it is not there.

A few moments by default; EDGEPRISM_KILLS=30 tries thirty.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeprism.bundle.open import check_file, open_bundle
from edgeprism.bundle.pulled import pulled_from
from edgeprism.errors import ModelError
from edgeprism.files.home import data_dir
from tests.helpers.gguf_repositories import LM, MMPROJ, PAIR, pair_files
from tests.helpers.hub import StandInHub

NAME, OTHER = "tiny-eyes", "tiny-eyes-F16.gguf"
MOMENTS = int(os.environ.get("EDGEPRISM_KILLS", "4"))
COMMAND = [sys.executable, "-c", "from edgeprism.cli.main import main; main()", "pull"]


def start(hub: StandInHub, quant: str, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, f"hf:{PAIR}:{quant}", "--encoder", "mtmd"],
        env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home),
             "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def installed(files: dict[str, bytes]) -> str:
    """Return the language model that is installed, checked byte for byte; "" if none is."""
    folder = data_dir() / "models" / NAME
    try:
        bundle = open_bundle(NAME)
    except ModelError:
        assert not folder.exists(), "half a model lies under its name"
        return ""
    for file, entry in bundle.manifest.files.items():
        check_file(folder / file, entry.sha256, entry.size, again=True)
    origin = pulled_from(NAME)
    assert origin is not None
    assert (folder / "lm.gguf").read_bytes() == files[origin.lm]
    assert (folder / "mmproj.gguf").read_bytes() == files[MMPROJ]
    return origin.lm


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX's")
def test_whole_or_not_there(tmp_path: Path) -> None:
    files = pair_files(tmp_path)
    rng = random.Random(15)
    with StandInHub({PAIR: files}) as hub:
        began = time.monotonic()
        process = start(hub, "F16", tmp_path / "measured")
        assert process.wait(120) == 0
        whole_s = time.monotonic() - began
        home = tmp_path / "hf"
        ends = []
        for moment in range(MOMENTS):
            if moment % 3 == 2:  # from nothing
                shutil.rmtree(data_dir() / "models", ignore_errors=True)
                shutil.rmtree(home, ignore_errors=True)
            before = installed(files)
            quant, wanted = ("F16", OTHER) if before == LM else ("Q8_0", LM)
            hub.budgets = {wanted: [rng.randrange(len(files[wanted]))]}  # and a broken transfer
            process = start(hub, quant, home)
            time.sleep(rng.uniform(0.2, 1.1) * whole_s)
            process.kill()
            process.wait(10)
            after = installed(files)
            set_aside = list((data_dir() / "models").glob(f".{NAME}.old-*"))
            assert after in (before, wanted) or (not after and set_aside)
            ends.append("new" if after == wanted else "old" if after else "none")
        hub.budgets = {}
        last = "Q8_0" if installed(files) != LM else "F16"
        assert start(hub, last, home).wait(120) == 0
        assert installed(files) == {"Q8_0": LM, "F16": OTHER}[last]
    assert [path.name for path in (data_dir() / "models").iterdir()] == [NAME]
    assert not (data_dir() / "partial").exists()
    assert not list(home.rglob("*.incomplete"))
    print(f"{MOMENTS} kills within {whole_s:.1f} s: {ends}")
