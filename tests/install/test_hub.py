"""Fetching checkpoints from a stand-in hub on loopback, which works, fails or misbehaves."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest

from edgeprism.convert.options import ConvertOptions
from edgeprism.errors import PullError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.install import pull as pull_module
from edgeprism.install import verify_published
from edgeprism.install.hub import Fetched, fetch_files, list_needed, needed_files
from edgeprism.install.pull import pull
from edgeprism.install.work_folder import mend_interrupted
from edgeprism.models.catalogue import Repository, read_catalogue
from edgeprism.progress import Progress
from tests.helpers import bundles
from tests.helpers.checkpoints import Spec, write_checkpoint
from tests.helpers.hub import StandInHub, commit_of

NAME = "prismcaptioner-2b"
ENTRY = read_catalogue().captioners[NAME]
SOURCE = ENTRY.repositories[0]
WEIGHTS = "llm_adapter/adapter_model.safetensors"
FILES = {
    "README.md": b"---\nlicense: test\n---\n",
    "llm_adapter/adapter_config.json": b"{}",
    WEIGHTS: bytes(range(256)) * 2000,
    "llm_adapter/adapter_model.bin": b"pickled twin" * 100,
    "projector/config.json": b'{"depth": 2}',
    "projector/model.safetensors": b"p" * 5000,
    "modeling_stranger.py": b"print('code from a hub is not wanted')",
    "optimizer/state.safetensors": b"o" * 5000,
}


pytestmark = pytest.mark.usefixtures("plain_client")


def fetch(hub: StandInHub, cache: Path, source: Repository = SOURCE) -> Fetched:
    listing, names = list_needed(source, Progress(), endpoint=hub.endpoint, cache=cache)
    return fetch_files(listing, names, Progress(), role=source.role, recorded=source.sha256)


def test_brings_the_needed_files_at_one_revision(tmp_path: Path) -> None:
    with StandInHub({SOURCE.repo: FILES}) as hub:
        fetched = fetch(hub, tmp_path)
    assert fetched.revision == commit_of(FILES)
    names = [file.name for file in fetched.files]
    assert names == [
        "README.md", "llm_adapter/adapter_config.json", WEIGHTS, "projector/config.json",
        "projector/model.safetensors",
    ]  # fmt: skip
    assert all((fetched.folder / name).read_bytes() == FILES[name] for name in names)
    paths = [path for _, path, _ in hub.requests]
    assert not [path for path in paths if "stranger" in path or "bin" in path or "state" in path]
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_pickled_weights_only_where_there_are_no_others() -> None:
    patterns = ["*.safetensors", "*.bin", "*.index.json", "config.json"]
    both = ["config.json", "a.bin", "b.safetensors", "pytorch_model.bin.index.json", "x.py"]
    assert needed_files(both, patterns) == ["b.safetensors", "config.json"]
    pickled = ["config.json", "a.bin", "pytorch_model.bin.index.json"]
    assert needed_files(pickled, patterns) == sorted(pickled)


def test_the_token_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with StandInHub({SOURCE.repo: FILES}) as hub:
        fetch(hub, tmp_path)
    assert hub.tokens == {"Bearer hf_test"}


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with StandInHub({SOURCE.repo: FILES}, budgets={WEIGHTS: [100_000, 50_000]}) as hub:
        fetched = fetch(hub, tmp_path)
        first, second, third = hub.downloads(WEIGHTS)
    assert (fetched.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert first == ""
    starts = [int(re.sub(r"\D", "", range_)) for range_ in (second, third)]
    assert 0 < starts[0] < starts[1] <= 150_000


def test_what_arrived_is_kept_for_the_next_run(tmp_path: Path) -> None:
    with StandInHub({SOURCE.repo: FILES}, budgets={WEIGHTS: [100_000, 0, 0]}) as hub:
        with pytest.raises(PullError) as caught:
            fetch(hub, tmp_path)
        assert SOURCE.repo in caught.value.message
        assert WEIGHTS in caught.value.message
        assert "same command again" in caught.value.hint
        fetched = fetch(hub, tmp_path)
        assert hub.downloads(WEIGHTS)[-1] != ""
        assert len(hub.downloads("projector/model.safetensors")) == 1
    assert (fetched.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_the_next_run_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    large = os.urandom(25_000_000)  # the client writes 10 MB at a time
    files = {**FILES, WEIGHTS: large}
    others = {r.repo: {"model.safetensors": b"m"} for r in ENTRY.repositories}
    repositories = {**others, SOURCE.repo: files}
    with StandInHub(repositories, budgets={WEIGHTS: [21_000_000]}, stalls=True) as hub:
        process = subprocess.Popen(
            [sys.executable, "-c", "from edgeprism.cli.main import main; main()", "pull", NAME],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path)},
            stderr=subprocess.DEVNULL,
        )
        assert hub.stalled.wait(30)
        [incomplete] = tmp_path.rglob("*.incomplete")
        deadline = time.monotonic() + 10
        while incomplete.stat().st_size < 20_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        start = time.monotonic()
        process.send_signal(how)
        assert process.wait(10) == (130 if how == signal.SIGINT else -signal.SIGKILL)
        assert time.monotonic() - start < 1.5
        fetched = fetch(hub, tmp_path / "hub")
        assert hub.downloads(WEIGHTS) == ["", "bytes=20971520-"]
    assert (fetched.folder / WEIGHTS).read_bytes() == large
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize("name", [WEIGHTS, "projector/config.json"])
def test_a_damaged_file_is_named_removed_and_fetched_again(tmp_path: Path, name: str) -> None:
    with StandInHub({SOURCE.repo: FILES}, damaged={name}) as hub:
        with pytest.raises(PullError, match="arrived damaged") as caught:
            fetch(hub, tmp_path)
        assert f"{SOURCE.repo}: {name}" in caught.value.message
        hub.damaged = set()
        assert (fetch(hub, tmp_path).folder / name).read_bytes() == FILES[name]


def test_a_file_that_is_not_the_recorded_one(tmp_path: Path) -> None:
    source = dataclasses.replace(SOURCE, sha256={WEIGHTS: "0" * 64})
    with StandInHub({SOURCE.repo: FILES}) as hub, pytest.raises(PullError) as caught:
        fetch(hub, tmp_path, source)
    assert f"{WEIGHTS} is not the recorded file" in caught.value.message


def test_refusals_name_repository_and_file(tmp_path: Path) -> None:
    with StandInHub({SOURCE.repo: FILES}, lost={WEIGHTS}) as hub:
        with pytest.raises(PullError, match="no such file") as caught:
            fetch(hub, tmp_path)
        assert f"{SOURCE.repo}: {WEIGHTS}" in caught.value.message
        hub.gated = {SOURCE.repo}
        with pytest.raises(PullError, match="must be granted") as caught:
            fetch(hub, tmp_path)
        assert "HF_TOKEN" in caught.value.hint
        hub.gated = set()
        with pytest.raises(PullError, match="no revision v9"):
            fetch(hub, tmp_path, dataclasses.replace(SOURCE, revision="v9"))
        with pytest.raises(PullError, match="a/b: the hub has no such repository"):
            fetch(hub, tmp_path, dataclasses.replace(SOURCE, repo="a/b"))
        hub.garbled = {SOURCE.repo}
        with pytest.raises(PullError, match=SOURCE.repo):
            fetch(hub, tmp_path)
        hub.repositories["a/b"] = {"README.md": b"no weights"}
        with pytest.raises(PullError, match="does not hold any weights"):
            fetch(hub, tmp_path, dataclasses.replace(SOURCE, repo="a/b"))
    with pytest.raises(PullError, match=f"{SOURCE.repo}: the hub cannot be reached"):
        fetch(hub, tmp_path / "other")  # the hub has ended


def test_other_transports_fail_in_their_own_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def broken(*_: object, **__: object) -> None:
        tries.append(1)
        raise RuntimeError("Data processing error: the stream broke")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", broken)
    with StandInHub({SOURCE.repo: FILES}) as hub, pytest.raises(PullError, match="stream broke"):
        fetch(hub, tmp_path)
    assert len(tries) == 3
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", mock.Mock(side_effect=full))
    with StandInHub({SOURCE.repo: FILES}) as hub, pytest.raises(PullError, match="No space") as e:
        fetch(hub, tmp_path)
    assert "HF_HOME" in e.value.hint


def test_a_file_name_that_leads_out_of_the_cache(tmp_path: Path) -> None:
    name = "../../../../../out.safetensors"
    source = dataclasses.replace(SOURCE, files=["*"])
    with StandInHub({SOURCE.repo: {name: b"x" * 2000}}) as hub, pytest.raises(PullError):
        fetch(hub, tmp_path / "a" / "b" / "cache", source)
    assert not list(tmp_path.rglob("out.safetensors"))


def test_without_the_convert_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull_module, "missing_for_convert", lambda: ["torch>=2.8", "gguf>=0.19"])
    with pytest.raises(UsageError, match="needs torch") as caught:
        pull(NAME)
    assert caught.value.hint == f'{sys.executable} -m pip install "edgeprism[convert]"'


def test_without_huggingface_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(UsageError, match="huggingface_hub") as caught:
        list_needed(SOURCE, Progress(), endpoint="http://127.0.0.1:9", cache=tmp_path)
    assert f'{sys.executable} -m pip install "edgeprism[convert]"' == caught.value.hint


def test_what_a_killed_conversion_left_is_mended(tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / ".x.partial-12").mkdir(parents=True)
    (models / ".x.old-12").mkdir()
    (models / ".x.old-12" / "manifest.json").write_text("the old bundle")
    mend_interrupted(models / "x")
    assert [p.name for p in models.iterdir()] == ["x"]
    assert (models / "x" / "manifest.json").read_text() == "the old bundle"


# ---- from the command to the bundle


def test_pull_converts_and_a_bundle_that_serves_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[ConvertOptions] = []

    def convert(
        family: str, out: Path, options: ConvertOptions, folders: dict[str, Path], _: Progress
    ) -> None:
        assert family == "prismcaptioner"
        assert sorted(folders) == ["captioner", "llm", "vision"]
        assert (folders["captioner"] / WEIGHTS).is_file()
        converted.append(options)
        bundles.write_bundle(out)

    repositories = {r.repo: {**FILES, "model.safetensors": b"m" * 2000}
                    for r in ENTRY.repositories}  # fmt: skip
    monkeypatch.setattr(pull_module, "convert_in_child", convert)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with StandInHub(repositories) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        pulled = pull(NAME, vision_quants=("fp32",), lm_quant="F32")
        assert [f.role for f in pulled.fetched] == ["captioner", "llm", "vision"]
        n_requests = len(hub.requests)
        assert pull(NAME, vision_quants=("fp32",), lm_quant="F32").was_there
        assert len(hub.requests) == n_requests, "an intact bundle needs no network"
        there = pull(NAME)  # what is left open stays as it is
        assert (there.was_there, there.quant) == (True, "F32")
        # another quantization, or a damaged file, makes `pull` convert again
        pull(NAME, lm_quant="Q8_0")
        (pulled.path / "lm.gguf").write_bytes(b"damaged")
        pull(NAME, vision_quants=("fp32",), lm_quant="F32")
    assert [(o.vision_quants, o.lm_quant) for o in converted] == [
        (("fp32",), "F32"), (("fp32",), "Q8_0"), (("fp32",), "F32")
    ]  # fmt: skip
    assert not (data_dir() / "partial").exists()


def test_a_report_of_a_pull_that_failed(
    tmp_path: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with StandInHub({SOURCE.repo: FILES}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        report = verify_published.verify_published(NAME, [photo])
    assert not report.passed
    assert "internlm/internlm2-chat-1_8b" in report.failures[0]
    for path in report.write(tmp_path / "report"):
        assert "internlm/internlm2-chat-1_8b: the hub has no such" in path.read_text()


def test_reports_need_photographs_and_a_published_model(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    with pytest.raises(UsageError, match="No photograph"):
        verify_published.verify_published(NAME, [tmp_path / "empty"])
    with pytest.raises(UsageError, match="digest is in the catalogue"):
        verify_published.verify_published("smollm2-135m", [photo])


def test_verify_published_end_to_end(tmp_path: Path, photo: Path) -> None:
    """Run the command on tiny random checkpoints in the published layout."""
    folders = write_checkpoint(tmp_path / "checkpoint", Spec(lm_layers=1, vision_layers=2))
    with StandInHub({}) as hub:
        roles = {"captioner": folders.captioner, "llm": folders.llm, "vision": folders.vision}
        for repository in read_catalogue().captioners[NAME].repositories:
            hub.add_folder(repository.repo, roles[repository.role])
        process = subprocess.run(
            [sys.executable, "-c", "from edgeprism.cli.main import main; main()",
             "models", "verify-published", NAME,
             "--photos", str(photo), "--out", str(tmp_path / "report")],
            env={**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "Yuxuan-Qiao/PrismCaptioner-2B at main, unverified" in process.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["passed"]
    assert [r["role"] for r in report["repositories"]] == ["captioner", "llm", "vision"]
    assert report["bundle"]["parity"]["passed"]
    assert [source["name"] for source in report["bundle"]["sources"]] == [
        f"{r['repo']}@{r['revision']}" for r in report["repositories"]
    ]
    assert report["captions"][0]["image"] == photo.name
    assert report["captions"][0]["caption"]
    text = (tmp_path / "report" / "report.txt").read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    assert "parity vision int8" in text
