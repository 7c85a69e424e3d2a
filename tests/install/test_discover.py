"""`models discover`: what other programs keep is found, told apart, and left as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest

from edgeprism.bundle.elsewhere import kept, ollama
from edgeprism.bundle.open import find_model
from edgeprism.cli.main import run
from edgeprism.errors import ModelError
from edgeprism.files.home import data_dir
from edgeprism.install.discover import Discovered, discover, looked_in, reference_facts
from tests.helpers import bundles, elsewhere, mmprojs, ordinary_user

LIBRARY = "registry.ollama.ai/library"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the folders are those of Linux")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> elsewhere.Models:
    return elsewhere.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any store, whose environment names none."""
    return elsewhere.new_home(tmp_path / "home", monkeypatch)


@pytest.fixture
def store(home: Path) -> Path:
    return home / ".ollama" / "models"


def by_reference(found: list[Discovered]) -> dict[str, Discovered]:
    return {model.reference: model for model in found if model.reference}


def only(found: list[Discovered]) -> Discovered:
    assert len(found) == 1, found
    return found[0]


# ---- healthy stores


@linux
def test_a_default_that_another_program_keeps(
    store: Path, models: elsewhere.Models, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    elsewhere.ollama_store(store, models)
    assert run(["use", "ollama:llava:7b"]) == 0
    assert run(["use", "ollama:qwen2.5:3b"]) == 0
    capfd.readouterr()
    assert run(["models", "show", "ollama:llava:7b"]) == 0
    shown = capfd.readouterr().out
    assert re.search(r"^paths:\n  /\S+\n  /\S+\n", shown, re.MULTILINE)
    assert "problem:" not in shown
    assert "note:" not in shown
    assert run(["models", "list"]) == 0
    assert "The default captioner is ollama:llava:7b, which" in capfd.readouterr().err
    shutil.rmtree(store)
    assert run(["caption", str(photo)]) == 4
    said = capfd.readouterr().err
    assert "ollama:llava:7b is the setting model in" in said
    assert run(["ask", str(photo), "What?", "-m", "nano"]) == 4
    assert "ollama:qwen2.5:3b is the setting reasoner in" in capfd.readouterr().err
    assert run(["caption", str(photo), "-m", "ollama:llava:7b"]) == 4  # named by the caller
    assert "is the setting" not in capfd.readouterr().err
    assert run(["use"]) == 0
    assert "ollama:llava:7b: Ollama keeps no such model" in capfd.readouterr().err


def test_a_pair_whose_mmproj_cannot_be_used_is_a_reasoner_and_says_why(
    store: Path, tmp_path: Path, models: elsewhere.Models, capfd: pytest.CaptureFixture[str]
) -> None:
    wide = mmprojs.mmproj_parts(mmprojs.IDEFICS, n_embd=96).write(tmp_path / "mmproj-wide.gguf")
    short = tmp_path / "short.gguf"
    short.write_bytes(models.mmproj.read_bytes()[:-9000])
    library = "registry.ollama.ai/library"
    elsewhere.ollama_model(store, f"{library}/wide/1b", model=models.lm, projector=wide)
    elsewhere.ollama_model(store, f"{library}/short/1b", model=models.lm, projector=short)
    for name in ("ollama:wide:1b", "ollama:short:1b"):
        assert run(["use", name]) == 0
        said = capfd.readouterr()
        assert f"{name} is taken as a reasoner: its mmproj cannot be used: " in said.err
        assert f"reasoner: {name}\n" in said.out
        assert run(["config", "set", "model", name]) == 4
        said = capfd.readouterr()
        assert f"{name} is a reasoner, not a captioner" in said.err
        assert "its mmproj cannot be used: " in said.err
    lm = elsewhere.copy(models.lm, tmp_path / "pair" / "eyes.gguf")
    elsewhere.copy(wide, tmp_path / "pair" / "mmproj-eyes.gguf")
    assert run(["config", "set", "model", str(lm)]) == 4
    assert "width 96" in capfd.readouterr().err


@linux
def test_a_name_similar_to_what_another_program_keeps(
    store: Path, models: elsewhere.Models, photo: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    elsewhere.ollama_store(store, models)
    for name in ("llava:7b", "llava", "olama:llava:7b", "ollama-llava:7b"):
        with pytest.raises(ModelError) as caught:
            find_model(name)
        assert "Did you mean 'ollama:llava:7b'?" in caught.value.hint, name
    with pytest.raises(ModelError) as caught:
        find_model("wholly-different")
    assert "Did you mean" not in caught.value.hint
    assert run(["caption", str(photo), "-m", "llava:7b"]) == 4
    assert "ollama:llava:7b" in capfd.readouterr().err


@linux
def test_what_pull_installed_is_told_to_be_that(home: Path, models: elsewhere.Models) -> None:
    elsewhere.all_stores(home, models)
    found = by_reference(discover())
    [lm] = found["hub:owner/words-GGUF:Q4_K_M"].paths
    installed = data_dir() / "models"
    installed.mkdir(parents=True, exist_ok=True)
    (installed / "mine.gguf").symlink_to(lm)
    found = by_reference(discover())
    assert found["hub:owner/words-GGUF:Q4_K_M"].note == "installed here as mine"
    assert [model.reference for model in found.values() if "installed" in model.note] == [
        "hub:owner/words-GGUF:Q4_K_M"
    ]


@linux
def test_every_program_in_its_published_layout(home: Path, models: elsewhere.Models) -> None:
    elsewhere.all_stores(home, models)
    before = elsewhere.snapshot(home)
    found = discover()
    assert elsewhere.snapshot(home) == before
    listed = by_reference(found)
    captioners = {name for name, model in listed.items() if model.kind == "captioner"}
    assert captioners == {
        "ollama:llava:7b", "lmstudio:lmstudio-community/eyes-GGUF",
        "llamacpp:ggml-org/eyes-GGUF", "jan:owner/eyes",
    }  # fmt: skip
    assert {name for name, model in listed.items() if model.kind == "reasoner"} == {
        "ollama:qwen2.5:3b", "ollama:somebody/tuned:v1", "ollama:hf.co/owner/repo:Q4_K_M",
        "lmstudio:bartowski/words-GGUF", "lmstudio:bartowski/words-GGUF/words-Q4_K_M.gguf",
        "hub:owner/words-GGUF", "hub:owner/words-GGUF:Q4_K_M", "llamacpp:fetched-by-url.gguf",
        "jan:cortex.so/words/1b", "jan:old-words", "gpt4all:Other.Q4_0.gguf",
        "gpt4all:Words-8B.Q4_0.gguf",
    }  # fmt: skip
    unusable = [model for model in found if model.kind == "unusable"]
    assert [(m.program, m.problem) for m in unusable] == [("GPT4All", kept.UNFINISHED)]
    eyes = listed["ollama:llava:7b"]
    assert (eyes.architecture, eyes.projector, eyes.quant) == ("llama", "idefics3", "F32")
    assert eyes.size == models.lm.stat().st_size + models.mmproj.stat().st_size
    # the hub's blobs have the same digests, so it is the same model
    assert eyes.also == ("hub:owner/eyes-GGUF",)
    assert listed["ollama:qwen2.5:3b"].also == ("ollama:qwen2.5:latest",)
    assert listed["lmstudio:bartowski/words-GGUF"].quant == "Q8_0"  # small: taken by default


def test_one_inode_is_listed_once(home: Path, models: elsewhere.Models) -> None:
    first = elsewhere.copy(models.lm, home / "a" / "one.gguf")
    os.link(first, home / "a" / "two.gguf")
    (home / "a" / "three.gguf").symlink_to(first)
    model = only(discover([home / "a"]))
    assert model.reference == str(home / "a" / "one.gguf")
    assert set(model.also) == {str(home / "a" / f"{name}.gguf") for name in ("two", "three")}


def test_settings_and_variables_lead_elsewhere(
    home: Path, models: elsewhere.Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    elsewhere.lm_studio_store(disk / "lm", models)
    (home / ".lmstudio-home-pointer").write_text(f"{home}/studio\n")
    (home / "studio").mkdir()
    (home / "studio" / "settings.json").write_text(json.dumps({"downloadsFolder": f"{disk}/lm"}))
    for name, folder in (("OLLAMA_MODELS", "ollama"), ("HF_HUB_CACHE", "hub"),
                         ("LLAMA_CACHE", "llama"), ("JAN_DATA_FOLDER", "jan")):  # fmt: skip
        monkeypatch.setenv(name, str(disk / folder))
    elsewhere.ollama_store(disk / "ollama", models)
    elsewhere.hub_cache(disk / "llama", models)  # llama.cpp's newer layout
    elsewhere.jan_store(disk / "jan", models)
    listed = by_reference(discover())
    assert {name.partition(":")[0] for name in listed} == {"lmstudio", "ollama", "llamacpp", "jan"}
    assert "llamacpp:owner/words-GGUF:Q4_K_M" in listed


@pytest.mark.parametrize("variable", ["OLLAMA_MODELS", "HF_HUB_CACHE", "LLAMA_CACHE",
                                      "JAN_DATA_FOLDER", "HF_HOME", "XDG_CACHE_HOME"])  # fmt: skip
@pytest.mark.usefixtures("home")
def test_the_current_folder_never_holds_a_store(
    tmp_path: Path, models: elsewhere.Models, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    stranger = tmp_path / "pictures"
    elsewhere.ollama_store(stranger / "store", models)
    elsewhere.hub_cache(stranger / "store", models)
    elsewhere.llama_cache(stranger / "store" / "llama.cpp", models)
    elsewhere.jan_store(stranger / "store", models)
    monkeypatch.chdir(stranger)
    monkeypatch.setenv(variable, "store")  # a relative folder
    assert discover() == []


def test_the_earlier_place_wins(
    home: Path, models: elsewhere.Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"{LIBRARY}/words/1b"
    elsewhere.ollama_model(home / ".ollama/models", name, model=models.lm)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "first"))
    other = elsewhere.other_lm(tmp_path / "other.gguf")
    elsewhere.ollama_model(tmp_path / "first", name, model=other)
    found = discover()
    assert reference_facts("ollama:words:1b")["paths"][0].startswith(str(tmp_path / "first"))
    assert [(m.reference, m.kind) for m in found] == [
        ("ollama:words:1b", "reasoner"), ("", "unusable")
    ]  # fmt: skip
    assert "goes first" in found[1].problem


# ---- any folder


def test_a_folder_of_many_models(home: Path, models: elsewhere.Models) -> None:
    folder = home / "Downloads"
    elsewhere.copy(models.lm, folder / "eyes-Q8_0.gguf")
    elsewhere.copy(models.mmproj, folder / "mmproj-eyes-f16.gguf")
    elsewhere.other_lm(folder / "words-Q8_0.gguf")
    deep = folder / "more" / "deeper"
    elsewhere.copy(models.lm, deep / "other.gguf")
    elsewhere.copy(models.mmproj, deep / "mmproj-model-f16.gguf")
    kinds = {Path(m.reference).name: m.kind for m in discover([folder])}
    assert kinds == {
        "eyes-Q8_0.gguf": "captioner", "words-Q8_0.gguf": "reasoner", "other.gguf": "captioner"
    }  # fmt: skip


def test_an_ollama_store_on_another_disk(tmp_path: Path, models: elsewhere.Models) -> None:
    elsewhere.ollama_store(tmp_path / "disk" / "models", models)
    found = discover([tmp_path / "disk"])
    assert {m.program for m in found} == {"Ollama"}
    assert all("OLLAMA_MODELS" in m.note and not m.reference for m in found)


def test_links_that_lead_round_and_names_without_number(
    home: Path, models: elsewhere.Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "loop"
    elsewhere.copy(models.lm, folder / "a" / "model.gguf")
    (folder / "a" / "back").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    (folder / "itself.gguf").symlink_to(folder / "itself.gguf")
    for i in range(300):
        (folder / f"{i}.jpg").touch()
    start = time.process_time()
    found = discover([folder])
    assert time.process_time() - start < 2
    assert [m.kind for m in found] == ["reasoner", "unusable"]
    monkeypatch.setattr(kept, "MAX_ENTRIES", 100)
    assert any("not searched to its end" in m.problem for m in discover([folder]))


def test_links_that_lead_back_make_no_endless_store(home: Path, models: elsewhere.Models) -> None:
    """Followed one by one, these links are thousands of millions of folders in a store."""
    for store in (".lmstudio/models", "jan/models", ".ollama/models/manifests", "models--x/y"):
        for i in range(20):
            link = home / store / f"l{i}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(".")
    elsewhere.copy(models.lm, home / "jan/m.gguf")
    record = home / "jan/models/m/model.yml"
    record.parent.mkdir()
    record.write_text("model_path: m.gguf\n")
    start = time.process_time()
    found = discover()
    assert time.process_time() - start < 5
    assert [m.reference for m in found] == ["jan:m"]


def test_a_store_is_read_to_a_bound_and_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that lead to one another in turn are no loop that can be seen from one of them."""
    monkeypatch.setattr(kept, "MAX_ENTRIES", 100)
    for store in (".lmstudio/models", ".ollama/models/manifests"):
        for i in range(20):
            (home / store / f"f{i}").mkdir(parents=True)
            for j in range(20):
                (home / store / f"f{i}" / f"l{j}").symlink_to(f"../f{j}")
    found = discover()
    ends = [m.program for m in found if "not searched to its end" in m.problem]
    assert ends == ["Ollama", "LM Studio"]
    assert len(found) < 300


def test_the_kernels_own_files_are_not_searched() -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.skip("no /proc")
    start = time.process_time()
    assert "system's own" in only(discover([Path("/proc")])).problem
    assert time.process_time() - start < 2


@pytest.mark.parametrize("folder", ["/tmp/\0x", "/tmp/\ud800x", "~a\0b", "~nobody-of-this-name"])
def test_settings_that_name_no_path(
    home: Path, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        ".lmstudio/settings.json": json.dumps({"downloadsFolder": folder}),
        ".lmstudio-home-pointer": folder,
        ".local/share/Jan/settings.json": json.dumps({"data_folder": folder}),
        ".config/nomic.ai/GPT4All.ini": f"modelPath={folder}\n",
    }
    for name, text in settings.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert discover() == []
    for reference in ("lmstudio:a/b", "jan:a", "gpt4all:a"):
        assert run(["models", "show", reference]) == 4
        assert "keeps no such model" in capsys.readouterr().err


def test_a_misspelt_name_among_very_many(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(1500):
        file = home / f".cache/gpt4all/some-model-{i:04}-instruct-Q8_0.gguf"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    start = time.process_time()
    assert run(["models", "show", "gpt4all:some-model-1234-instrukt-Q8_0.gguf"]) == 4
    assert time.process_time() - start < 10
    assert "Did you mean gpt4all:some-model-1234-instruct-Q8_0.gguf" in capsys.readouterr().err


# ---- what cannot be used, and why


def reason_for(path: Path, parts: bundles.GgufParts) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    parts.write(path)
    return only(discover([path.parent])).problem


def test_files_that_are_no_language_model(tmp_path: Path) -> None:
    inside = bundles.lm_parts()
    inside.tensors["v.blk.0.attn_q.weight"] = inside.tensors["output_norm.weight"]
    assert "Ollama's own engine" in reason_for(tmp_path / "a" / "x.gguf", inside)
    joined = bundles.lm_parts()
    joined.tensors["mm.0.weight"] = joined.tensors["output_norm.weight"]
    assert "mmproj" in reason_for(tmp_path / "b" / "x.gguf", joined)
    own = bundles.lm_parts()
    own.architecture = "mllama"
    assert "mllama" in reason_for(tmp_path / "c" / "x.gguf", own)
    adapter = bundles.GgufParts(metadata={"general.type": ("string", "adapter")})
    adapter.metadata["adapter.type"] = ("string", "lora")
    assert "LoRA" in reason_for(tmp_path / "d" / "x.gguf", adapter)
    bert = bundles.lm_parts()
    bert.architecture = "nomic-bert"
    assert "embeddings" in reason_for(tmp_path / "e" / "x.gguf", bert)
    pooled = bundles.lm_parts()
    pooled.metadata["llama.pooling_type"] = ("uint32", 3)
    assert "embeddings" in reason_for(tmp_path / "f" / "x.gguf", pooled)
    pictures = bundles.GgufParts(architecture="flux")
    pictures.tensors["double_blocks.0.weight"] = inside.tensors["output_norm.weight"]
    assert "no vocabulary" in reason_for(tmp_path / "g" / "x.gguf", pictures)
    alone = mmprojs.mmproj_parts(mmprojs.IDEFICS)
    assert "without its language model" in reason_for(tmp_path / "h" / "mmproj-x.gguf", alone)
    assert "an mmproj file" in reason_for(tmp_path / "i" / "eyes.gguf", alone)


def test_an_mmproj_of_another_model_leaves_a_reasoner(
    tmp_path: Path, models: elsewhere.Models
) -> None:
    elsewhere.copy(models.lm, tmp_path / "x.gguf")
    mmprojs.mmproj_parts(mmprojs.IDEFICS, n_embd=96).write(tmp_path / "mmproj-x.gguf")
    model = only(discover([tmp_path]))
    assert model.kind == "reasoner"
    assert "width 96" in model.note


def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    bundles.lm_parts(chat_template=None).write(tmp_path / "base.gguf")
    model = only(discover([tmp_path]))
    assert (model.kind, "chat template" in model.note) == ("reasoner", True)


def test_split_models(tmp_path: Path) -> None:
    """All parts make one model; without one of them it is none."""
    whole = bundles.lm_parts()
    names = sorted(whole.tensors)
    for number, part in enumerate((names[:5], names[5:])):
        parts = bundles.GgufParts(dict(whole.metadata) if not number else {})
        parts.tensors = {name: whole.tensors[name] for name in part}
        parts.metadata |= {
            "split.no": ("uint16", number), "split.count": ("uint16", 2),
            "split.tensors.count": ("int32", len(names)),
        }  # fmt: skip
        parts.write(tmp_path / f"big-Q8_0-0000{number + 1}-of-00002.gguf")
    model = only(discover([tmp_path]))
    assert (model.kind, len(model.paths)) == ("reasoner", 2)
    (tmp_path / "big-Q8_0-00002-of-00002.gguf").unlink()
    assert only(discover([tmp_path])).kind == "unusable"


# ---- damaged stores


def test_ollama_manifests_of_every_damage(store: Path, models: elsewhere.Models) -> None:
    def manifest(name: str, text: str | bytes) -> None:
        path = store / "manifests" / LIBRARY / name / "1b"
        path.parent.mkdir(parents=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64}
    manifest("missing-blob", json.dumps({"layers": [layer]}))
    manifest("escape", json.dumps({"layers": [{**layer, "digest": "sha256:../../../etc/passwd"}]}))
    manifest("number", json.dumps({"layers": [{**layer, "digest": 7}]}))
    manifest("remote", json.dumps({"layers": []}))
    manifest("list", "[1, 2]")
    manifest("words", json.dumps({"layers": ["model"]}))
    manifest("deep", "[" * 100_000)
    manifest("bytes", b"\xff\xfe\x00{")
    manifest("empty", "")
    huge = store / "manifests" / LIBRARY / "huge" / "1b"
    huge.parent.mkdir()
    with huge.open("wb") as file:
        file.truncate(1 << 30)  # sparse: it takes no room
    truncated = elsewhere.ollama_model(store, f"{LIBRARY}/cut/1b", model=models.lm)
    digest = json.loads(truncated.read_text())["layers"][0]["digest"]
    os.truncate(store / "blobs" / digest.replace(":", "-"), 5000)
    adapter = models.mmproj
    elsewhere.ollama_model(store, f"{LIBRARY}/tuned/1b", model=adapter, adapter=adapter)
    (store / "blobs" / f"sha256-{'1' * 64}-partial").write_bytes(b"GGUF")
    start = time.process_time()
    found = discover()
    assert time.process_time() - start < 2
    assert {m.kind for m in found} == {"unusable"}
    problems = {m.reference.split(":")[1] if m.reference else "": m.problem for m in found}
    assert "is missing" in problems["missing-blob"]
    assert "by no sha256" in problems["escape"]
    assert "names no weights" in problems["number"]
    assert "names no weights" in problems["remote"]
    for name in ("list", "words", "deep", "bytes", "empty"):
        assert "manifest cannot be read" in problems[name], name
    assert "more than 4 MB" in problems["huge"]
    assert "not a whole GGUF" in problems["cut"]
    assert "LoRA adapter" in problems["tuned"]
    assert problems[""] == kept.UNFINISHED


def test_names_that_ollama_itself_refuses_are_not_listed(
    store: Path, models: elsewhere.Models
) -> None:
    elsewhere.ollama_model(store, f"{LIBRARY}/x/a b", model=models.lm)
    elsewhere.ollama_model(store, f"{LIBRARY}/-x/1b", model=models.lm)
    elsewhere.ollama_model(store, f"{LIBRARY}/x/\x1b[31m", model=models.lm)
    assert discover() == []


def test_the_hubs_cache_in_every_damage(home: Path, models: elsewhere.Models) -> None:
    cache = home / ".cache" / "huggingface" / "hub"
    gone = elsewhere.hub_file(cache, "owner/gone-GGUF", "gone-Q8_0.gguf", models.lm)
    gone.resolve().unlink()
    (cache / "models--owner--half-GGUF" / "blobs").mkdir(parents=True)
    (cache / "models--owner--half-GGUF" / "blobs" / "abc.incomplete").write_bytes(b"GGUF")
    elsewhere.hub_file(cache, "owner/lost-main", "x-Q8_0.gguf", models.lm)
    (cache / "models--owner--lost-main" / "refs" / "main").write_bytes(b"../../\xff")
    (cache / "models--owner--empty").mkdir()
    (cache / "models--").mkdir()
    (cache / "version.txt").touch()
    found = {m.reference or m.problem: m for m in discover()}
    assert "half fetched" in found["hub:owner/gone-GGUF/gone-Q8_0.gguf"].problem
    assert found["hub:owner/lost-main"].kind == "reasoner"
    assert f"{kept.UNFINISHED} (owner/half-GGUF)" in found


@linux
def test_llama_and_jan_records_of_every_damage(home: Path, models: elsewhere.Models) -> None:
    cache = home / ".cache" / "llama.cpp"
    cache.mkdir(parents=True)
    for name, text in (("a", "{"), ("b", "[]"), ("c", "{}"), ("d", '{"ggufFile": 3}'),
                       ("e", '{"ggufFile": {"rfilename": "../../../../etc/passwd"}}')):  # fmt: skip
        (cache / f"manifest=owner={name}=Q8_0.json").write_text(text)
    (cache / "manifest=owner=too=many=parts=x.json").write_text("{}")
    (cache / "x.gguf.downloadInProgress").write_bytes(b"GGUF")
    records = home / ".local" / "share" / "Jan" / "data" / "llamacpp" / "models"
    texts = {
        "a": "model_path: ../../../nowhere.gguf", "b": 'model_path: "unclosed',
        "c": "- model_path", "d": "\x00\x01", "e": "model_path: \x00",
    }  # fmt: skip
    for name, text in texts.items():
        (records / name).mkdir(parents=True)
        (records / name / "model.yml").write_text(text)
    (records / "f").mkdir()
    (records / "f" / "model.json").write_text('{"settings": {"llama_model_path": "../x.gguf"}}')
    found = discover()
    assert {m.kind for m in found} == {"unusable"}
    assert {f"llamacpp:owner/{name}:Q8_0" for name in "abcde"} <= by_reference(found).keys()
    assert {f"jan:{name}" for name in "abcdef"} <= by_reference(found).keys()
    assert all(model.problem for model in found)


@linux
def test_folders_that_may_not_be_read(
    models: elsewhere.Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's home is, and the folder of a service."""
    with ordinary_user.folder() as folder:
        home = elsewhere.new_home(folder / "home", monkeypatch)
        elsewhere.all_stores(home, models)
        elsewhere.ollama_store(folder / "service", models)
        monkeypatch.setattr(ollama, "SERVICE", folder / "service")
        closed = [
            home / ".lmstudio" / "models" / "bartowski" / "words-GGUF",
            home / ".cache" / "huggingface" / "hub",
            home / ".cache" / "llama.cpp",
            home / ".local" / "share" / "Jan" / "data",
            home / ".ollama" / "models" / "manifests" / LIBRARY / "llava",
            folder / "service",
        ]
        for path in closed:
            path.chmod(0o700 if path == folder / "service" else 0)
        with ordinary_user.rights():
            found = discover()
        for path in closed:
            path.chmod(0o755)
    unreadable = {m.paths[0] for m in found if "Permission denied" in m.problem}
    assert unreadable == {*map(str, closed[:-1]), str(closed[-1] / "manifests")}
    assert "lmstudio:lmstudio-community/eyes-GGUF" in by_reference(found)


def test_pipes_and_folders_in_a_models_place(home: Path) -> None:
    folder = home / "odd"
    folder.mkdir()
    os.mkfifo(folder / "pipe.gguf")
    (folder / "folder.gguf").mkdir()
    (folder / "empty.gguf").touch()
    found = {Path(m.paths[0]).name: m.problem for m in discover([folder])}
    assert found == {"pipe.gguf": "not a regular file", "empty.gguf": found["empty.gguf"]}


def test_a_large_vocabulary_is_passed_in_a_moment(tmp_path: Path) -> None:
    """Strings are passed without a look at each: vocabularies of large models have 300,000."""
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", [f"token{i}" for i in range(50_000)])
    writer.add_array("tokenizer.ggml.merges", [f"a{i} b{i}" for i in range(50_000)])
    writer.add_tensor("output_norm.weight", bundles.lm_parts().tensors["output_norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    start = time.process_time()
    assert only(discover([tmp_path])).kind == "reasoner"
    assert time.process_time() - start < 0.5
    data = bytearray((tmp_path / "big.gguf").read_bytes())
    at = data.index(struct.pack("<Q", 6) + b"token0")
    data[at : at + 8] = struct.pack("<Q", 1 << 62)
    (tmp_path / "big.gguf").write_bytes(data)
    assert "cut short" in only(discover([tmp_path])).problem


# ---- the command


@pytest.mark.usefixtures("home")
def test_nothing_found_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "discover"]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert ".ollama" in output.err
    assert str(ollama.SERVICE) in output.err
    assert run(["models", "discover", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run(["models", "discover", "/nosuch"]) == 2


def test_the_table(
    home: Path, models: elsewhere.Models, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = home / "my models"
    elsewhere.copy(models.lm, folder / "x\x1b[31m.gguf")
    (folder / "half.gguf.part").touch()
    elsewhere.ollama_store(home / ".ollama/models", models)
    assert run(["models", "discover"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["REFERENCE", "KIND", "WHAT", "QUANT", "SIZE", "PROGRAM"]
    assert lines[1].split() == [
        "ollama:llava:7b", "captioner", "llama/idefics3", "F32", "1.6", "MB", "Ollama"
    ]  # fmt: skip
    assert run(["models", "discover", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "Not usable:" in out
    assert kept.UNFINISHED in out
    assert run(["models", "discover", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[0]["reference"] == "ollama:llava:7b"
    assert len(listed[0]["paths"]) == 2


@pytest.mark.usefixtures("home")
@linux
def test_no_socket_is_opened(home: Path, models: elsewhere.Models) -> None:
    """The kernel ends a process that opens one."""
    elsewhere.all_stores(home, models)
    silence = Path(elsewhere.__file__).with_name("silence.py")
    done = subprocess.run(
        [sys.executable, str(silence), "--", sys.executable, "-m", "edgeprism", "models",
         "discover", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ollama:llava:7b" in {model["reference"] for model in json.loads(done.stdout)}


def test_where_macos_keeps_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    places = {place for _, place in looked_in()}
    library = home / "Library"
    assert {
        home / ".ollama" / "models", home / ".lmstudio" / "models",
        home / ".cache" / "huggingface" / "hub", library / "Caches" / "llama.cpp",
        library / "Application Support" / "Jan" / "data",
        library / "Application Support" / "nomic.ai" / "GPT4All",
    } <= places  # fmt: skip
