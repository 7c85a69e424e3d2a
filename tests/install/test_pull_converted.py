"""`pull blip-base`: one published repository, fetched whole, converted, and said beforehand."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgeprism.bundle.open import open_bundle
from edgeprism.cli.main import run
from edgeprism.convert.options import ConvertOptions
from edgeprism.errors import CheckpointError, Interrupted, ParityError, PullError
from edgeprism.files.home import data_dir
from edgeprism.install import pull as pull_module
from edgeprism.install.pull import pull
from edgeprism.machine import facts
from edgeprism.memory import plan as memory_plan
from edgeprism.models.catalogue import read_catalogue
from edgeprism.progress import Progress
from tests.helpers import bundles
from tests.helpers.hub import StandInHub

NAME = "blip-base"
REPO = "Salesforce/blip-image-captioning-base"
WEIGHTS = "pytorch_model.bin"
FILES = {
    "README.md": b"---\nlicense: bsd-3-clause\n---\n",
    "config.json": b'{"model_type": "blip"}',
    "preprocessor_config.json": b'{"do_resize": true}',
    "vocab.txt": b"[PAD]\n[unused0]\n",
    "tokenizer.json": b"{}",
    WEIGHTS: bytes(range(256)) * 2000,
    "tf_model.h5": b"the same once more" * 1000,
    "handler.py": b"print('code from a hub is not wanted')",
}
Captured = pytest.CaptureFixture[str]
Convert = Callable[[str, Path, ConvertOptions, dict[str, Path], Progress], None]

pytestmark = pytest.mark.usefixtures("plain_client")


class Messages(Progress):
    """Records the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with StandInHub({REPO: dict(FILES)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """In place of the family: write a bundle; the list has the files that it was given."""
    seen: list[dict[str, bytes]] = []

    def convert(
        family: str, out: Path, _options: ConvertOptions, folders: dict[str, Path], _: Progress
    ) -> None:
        assert family == "blip"
        (folder,) = folders.values()
        seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
        bundles.write_bundle(out)

    monkeypatch.setattr(pull_module, "convert_in_child", convert)
    return seen


def left_behind() -> list[str]:
    """Return what stands in the folder of models, hidden or not."""
    return sorted(path.name for path in (data_dir() / "models").glob("*"))


def test_fetches_one_repository_and_converts_it(
    hub: StandInHub, converted: list[dict[str, bytes]]
) -> None:
    messages = Messages()
    pulled = pull(NAME, progress=messages)
    open_bundle(pulled.path)
    wanted = {
        name: data for name, data in FILES.items() if name not in ("tf_model.h5", "handler.py")
    }
    assert converted == [wanted]
    assert [(f.role, f.repo) for f in pulled.fetched] == [("captioner", REPO)]
    said = "\n".join(messages.lines)
    assert f"captioner: {REPO} at main, unverified: this project has not run it" in said
    assert "licence: BSD-3-Clause" in said
    assert "to fetch: about 1 GB, converted to 0.27 GB" in said
    assert "to convert it takes the extra `convert` with PyTorch, about 1.6 GB of memory" in said
    assert "their digests are not recorded" in said
    n_requests = len(hub.requests)
    assert pull(NAME).was_there
    assert len(hub.requests) == n_requests


def test_a_dry_run_says_the_same_and_fetches_nothing(hub: StandInHub, capfd: Captured) -> None:
    assert run(["pull", NAME, "--dry-run"]) == 0
    said = capfd.readouterr()
    text = said.out + said.err
    assert f"{NAME}: captioner" in text
    assert "to convert it takes the extra `convert`" in text
    assert "free disk for as much again as is fetched" in text
    assert hub.requests == []


def test_without_pytorch_the_command_that_installs_it(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, capfd: Captured
) -> None:
    monkeypatch.setattr(pull_module, "missing_for_convert", lambda: ["torch>=2.8"])
    assert run(["pull", NAME]) != 0
    said = capfd.readouterr().err
    assert f"{NAME} must be converted, and that needs torch>=2.8." in said
    assert f'{sys.executable} -m pip install "edgeprism[convert]"' in said
    assert hub.requests == []
    assert left_behind() == []


@pytest.mark.parametrize(
    ("share", "fits"),
    [(0.9, False), (1.9, False), (2.1, True)],  # of the files: to fetch them, and to convert them
)
def test_a_full_disk_is_told_before_anything_is_fetched(
    hub: StandInHub, converted: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch,
    share: float, fits: bool,
) -> None:  # fmt: skip
    size = sum(
        len(data) for name, data in FILES.items() if name not in ("tf_model.h5", "handler.py")
    )
    usage = SimpleNamespace(free=int(size * share))
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage)
    if fits:
        pull(NAME)
    else:
        with pytest.raises(PullError, match=r"are free, .* are needed"):
            pull(NAME)
        assert left_behind() == []
    assert bool(hub.downloads(WEIGHTS)) is bool(converted) is fits


def test_too_little_memory_for_the_conversion_is_said(
    hub: StandInHub, converted: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = facts.MemoryLimit(10**9, "a test")
    monkeypatch.setattr(memory_plan, "memory_limit", lambda: limit)
    messages = Messages()
    pull(NAME, progress=messages)
    assert any(f"The conversion of {NAME} may fail" in line for line in messages.lines)


@pytest.mark.parametrize(
    "error", [CheckpointError("no such tensor"), ParityError("x"), Interrupted()]
)
def test_a_conversion_that_fails_leaves_the_older_bundle(
    hub: StandInHub, converted: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pull_module, "convert_in_child", fail)
        with pytest.raises(type(error)):
            pull(NAME)
    assert left_behind() == []
    assert not (data_dir() / "partial").exists()
    path = pull(NAME).path  # from the cache: nothing is fetched again
    assert len(hub.downloads(WEIGHTS)) == 1
    before = (path / "manifest.json").read_bytes()
    monkeypatch.setattr(pull_module, "convert_in_child", fail)
    with pytest.raises(type(error)):
        pull(NAME, again=True)
    assert left_behind() == [NAME]
    assert (path / "manifest.json").read_bytes() == before


def test_a_damaged_file_is_not_converted(
    hub: StandInHub, converted: list[dict[str, bytes]]
) -> None:
    hub.damaged = {WEIGHTS}
    with pytest.raises(PullError, match=f"{REPO}: {WEIGHTS} arrived damaged"):
        pull(NAME)
    assert converted == []
    assert left_behind() == []
    hub.damaged = set()
    pull(NAME)
    assert converted[0][WEIGHTS] == FILES[WEIGHTS]


def test_safetensors_go_before_pickled_weights(
    hub: StandInHub, converted: list[dict[str, bytes]]
) -> None:
    hub.repositories[REPO]["model.safetensors"] = b"s" * 3000
    pull(NAME)
    assert "model.safetensors" in converted[0]
    assert WEIGHTS not in converted[0]


@pytest.mark.parametrize("name", ["blip-base", "blip-large"])
def test_the_catalogue_describes_it(name: str, capfd: Captured) -> None:
    assert run(["models", "show", name, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["kind"], told["family"], told["state"]) == ("captioner", "blip", "available")
    assert (told["license"], told["license_terms"]) == ("BSD-3-Clause", "permissive")
    assert [r["repo"] for r in told["repositories"]] == [
        f"Salesforce/blip-image-captioning-{name.removeprefix('blip-')}"
    ]
    assert told["convert_memory_gb"] > told["memory_gb"]
    assert read_catalogue().names().index(name) < read_catalogue().names().index("smollm2-135m")
