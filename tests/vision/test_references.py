"""Models that other programs keep, run by reference: where they are, and by the usual rules."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeprism import Captioner, Reasoner
from edgeprism.bundle.elsewhere.chat_formats import chat_format_of
from edgeprism.bundle.open import find_model
from edgeprism.cli.main import run
from edgeprism.errors import ModelError, TemplateError, UsageError
from edgeprism.install.discover import discover
from edgeprism.language.chat import Message
from edgeprism.language.model import LanguageModel
from edgeprism.vision.open_model import open_model
from edgeprism.vision.pair import open_pair
from tests.helpers import bundles, elsewhere, mmprojs

LIBRARY = "registry.ollama.ai/library"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> elsewhere.Models:
    return elsewhere.write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory, models: elsewhere.Models) -> Path:
    """A home with a store of every program, which tests copy."""
    home = tmp_path_factory.mktemp("stores")
    elsewhere.all_stores(home, models)
    return home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stores: Path) -> Path:
    home = elsewhere.new_home(tmp_path / "home", monkeypatch)
    shutil.copytree(stores, home, symlinks=True, dirs_exist_ok=True)
    return home


@pytest.fixture
def store(home: Path) -> Path:
    return home / ".ollama" / "models"


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(list(arguments)) == ModelError.exit_code
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


def test_a_captioner_and_a_reasoner_run_where_they_are(
    home: Path, photo: Path, models: elsewhere.Models, capsys: pytest.CaptureFixture[str]
) -> None:
    before = elsewhere.snapshot(home)
    short = ["--max-tokens", "4", "--json", "--no-cache"]
    assert run(["caption", str(photo), "--model", "ollama:llava:7b", *short]) == 0
    by_reference = json.loads(capsys.readouterr().out)
    files = ["--lm", str(models.lm), "--mmproj", str(models.mmproj)]
    assert run(["caption", str(photo), *files, *short]) == 0
    by_files = json.loads(capsys.readouterr().out)
    assert by_reference["caption"] == by_files["caption"]
    assert by_reference["model"]["name"] == "ollama:llava:7b"
    asked = ["ask", str(photo), "What is it?", "-m", "nano", "--answer-tokens", "3", "--json"]
    assert run([*asked, "--reasoner", "ollama:qwen2.5:3b"]) == 0
    assert json.loads(capsys.readouterr().out)["reasoner"]["name"] == "ollama:qwen2.5:3b"
    assert elsewhere.snapshot(home) == before


@pytest.mark.parametrize("reference", [
    "ollama:llava:7b", "ollama:library/llava:7b", "ollama:registry.ollama.ai/library/llava:7b",
    "lmstudio:lmstudio-community/eyes-GGUF", "lmstudio:lmstudio-community/eyes-GGUF/eyes-Q8_0.gguf",
    "hub:owner/eyes-GGUF", "hub:owner/eyes-GGUF:q8_0", "hub:owner/eyes-GGUF:eyes-Q8_0.gguf",
    "llamacpp:ggml-org/eyes-GGUF", "llamacpp:ggml-org/eyes-GGUF:latest", "jan:owner/eyes",
])  # fmt: skip
@pytest.mark.usefixtures("home")
def test_every_program_keeps_captioners(reference: str, models: elsewhere.Models) -> None:
    bundle = open_model(reference)
    digests = sorted(entry.sha256 for entry in bundle.manifest.files.values())
    assert digests == sorted(bundles.file_entry(path).sha256 for path in (models.lm, models.mmproj))
    assert Captioner.load(reference).bundle == bundle
    assert isinstance(Reasoner.load(reference), Reasoner)  # its language model answers, too


@pytest.mark.parametrize(("reference", "name"), [
    ("ollama:qwen2.5", "ollama:qwen2.5:latest"), ("ollama:somebody/tuned:v1", ""),
    ("ollama:hf.co/owner/repo:Q4_K_M", ""), ("lmstudio:bartowski/words-GGUF", ""),
    ("hub:owner/words-GGUF:q4_k_m", "hub:owner/words-GGUF:Q4_K_M"),
    ("llamacpp:fetched-by-url.gguf", ""), ("jan:cortex.so/words/1b", ""), ("jan:old-words", ""),
    ("gpt4all:Other.Q4_0", "gpt4all:Other.Q4_0.gguf"),
])  # fmt: skip
@pytest.mark.usefixtures("home")
def test_every_program_keeps_reasoners(reference: str, name: str) -> None:
    reasoner = Reasoner.load(reference)
    assert reasoner.name == (name or reference)
    assert reasoner.path == find_model(reference)
    with pytest.raises(ModelError, match="sees no pictures") as caught:
        Captioner.load(reference)
    assert "`reasoner`" in caught.value.hint


def test_the_digest_is_that_of_the_files(home: Path, models: elsewhere.Models) -> None:
    """Else captions that were made by --lm and --mmproj would be made again."""
    store = home / ".lmstudio" / "models" / "lmstudio-community" / "eyes-GGUF"
    pair = open_pair(store / "eyes-Q8_0.gguf", store / "mmproj-model-f16.gguf")
    assert open_model("lmstudio:lmstudio-community/eyes-GGUF").digest == pair.digest
    assert models.lm.is_file()


# ---- what is not there, or not whole


def test_what_is_gone_says_what_is_there(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / "manifests" / LIBRARY / "llava" / "7b").rename(
        store / "manifests" / LIBRARY / "llava" / "13b"
    )
    err = error_of(capsys, "caption", "x.jpg", "-m", "ollama:llava:7b")
    assert "ollama:llava:7b: Ollama keeps no such model" in err
    assert "Did you mean ollama:llava:13b" in err
    err = error_of(capsys, "ask", "x.jpg", "What?", "--reasoner", "jan:nosuch")
    assert "jan:cortex.so/words/1b" in err
    err = error_of(capsys, "models", "show", "hub:somebody/Other-GGUF")
    assert "edgeprism pull hf:somebody/Other-GGUF" in err
    err = error_of(capsys, "caption", "x.jpg", "--model", "hf:owner/repo:Q8_0")
    assert "edgeprism pull hf:owner/repo:Q8_0" in err
    assert "hub:owner/repo:Q8_0" in err
    err = error_of(capsys, "ask", "x.jpg", "What?", "--reasoner", "ollama:11434")
    assert "http://ollama:11434/v1" in err


@pytest.mark.parametrize("reference", [
    "ollama:", "ollama:../../../etc/passwd", "ollama:a/../b:7b", "lmstudio:..", "lmstudio:/",
    "lmstudio:../../x/y.gguf", "hub:owner/..", "hub:a:b:c", "llamacpp:../x.gguf", "jan:..",
    "jan:/etc", "gpt4all:../../x", "gpt4all:\0", "ollama:\udcff", "hub:" + "x" * 9000,
])  # fmt: skip
@pytest.mark.usefixtures("home")
def test_names_that_lead_nowhere(reference: str) -> None:
    for load in (Captioner.load, Reasoner.load, find_model):
        with pytest.raises(ModelError, match="keeps no such model"):
            load(reference)


@pytest.mark.usefixtures("home")
def test_a_folder_named_like_a_reference_is_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_bundle: Path
) -> None:
    """A stranger's folder of pictures may hold one; the name means the other program's model."""
    (tmp_path / "ollama:nosuch").symlink_to(random_bundle)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="keeps no such model"):
        Captioner.load("ollama:nosuch")
    assert Captioner.load("./ollama:nosuch").bundle.manifest.name


def test_a_file_that_is_not_what_ollama_recorded(store: Path) -> None:
    manifest = json.loads((store / "manifests" / LIBRARY / "qwen2.5" / "3b").read_text())
    blob = store / "blobs" / manifest["layers"][0]["digest"].replace(":", "-")
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ModelError, match="damaged: its sha256"):
        Reasoner.load("ollama:qwen2.5:3b")
    os.truncate(blob, 5000)
    with pytest.raises(ModelError, match="not a whole GGUF") as caught:
        Reasoner.load("ollama:qwen2.5:3b")
    assert caught.value.summary.startswith("ollama:qwen2.5:3b: ")
    assert caught.value.hint == "Get the model again with that program."
    assert str(blob) in caught.value.details[0]
    blob.unlink()
    with pytest.raises(ModelError, match="is missing"):
        Reasoner.load("ollama:qwen2.5:3b")


def test_a_model_that_is_cut_short_is_named_as_it_was_asked_for(
    store: Path, tmp_path: Path, models: elsewhere.Models
) -> None:
    """Ollama recorded the digest of what it keeps, so only the trial can tell."""
    cut = {}
    for path in (models.lm, models.mmproj):
        cut[path] = tmp_path / path.name
        cut[path].write_bytes(path.read_bytes()[:-9000])
    elsewhere.ollama_model(store, f"{LIBRARY}/short/1b", model=cut[models.lm])
    elsewhere.ollama_model(
        store, f"{LIBRARY}/half/1b", model=models.lm, projector=cut[models.mmproj]
    )
    with pytest.raises(ModelError, match=r"^ollama:short:1b: ") as caught:
        Reasoner.load("ollama:short:1b").complete([Message("user", "Hello")], max_tokens=1)
    assert caught.value.hint == "Get the model again with that program."
    with pytest.raises(ModelError, match=r"^the mmproj of ollama:half:1b: ") as caught:
        Captioner.load("ollama:half:1b")
    assert caught.value.hint == "Get the model again with that program."


def test_a_model_that_only_ollama_runs(store: Path, tmp_path: Path) -> None:
    parts = bundles.lm_parts()
    parts.tensors["v.blk.0.attn_q.weight"] = parts.tensors["output_norm.weight"]
    elsewhere.ollama_model(store, f"{LIBRARY}/all/1b", model=parts.write(tmp_path / "all.gguf"))
    for load in (Captioner.load, Reasoner.load):
        with pytest.raises(ModelError, match="only Ollama's own engine"):
            load("ollama:all:1b")


def test_ollamas_own_template_names_the_chat_format(store: Path, tmp_path: Path) -> None:
    """Where the file has none; the same words as with a file that has one."""
    bare = bundles.lm_parts(chat_template=None, script=bundles.SAID).write(tmp_path / "x.gguf")
    go = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user"
    elsewhere.ollama_model(store, f"{LIBRARY}/bare/1b", template=go, model=bare)
    reasoner = Reasoner.load("ollama:bare:1b")
    assert reasoner.chat_format == "chatml"
    assert Reasoner.load("ollama:bare:1b", chat_format="zephyr").chat_format == "zephyr"
    answer = reasoner.complete([Message("user", "Hello")], max_tokens=20)
    reasoner.close()
    assert answer.text == bundles.SAID_TEXT
    bundles.lm_parts(chat_template=None).write(bare)
    elsewhere.ollama_model(store, f"{LIBRARY}/odd/1b", template="odd", model=bare)
    assert Reasoner.load("ollama:odd:1b").chat_format is None
    notes = {model.reference: model.note for model in discover()}
    assert notes["ollama:bare:1b"] == ""
    assert "chat format" in notes["ollama:odd:1b"]


@pytest.mark.parametrize(("template", "name"), [
    ("<|start_header_id|>user<|end_header_id|>", "llama3"),
    ("[INST] {{ .Prompt }} [/INST]", "llama2"),
    ("{{ .System }}\nUSER: {{ .Prompt }}\nASSISTANT: ", "vicuna"), ("<start_of_turn>user", "gemma"),
    ("[INST] <<SYS>>{{ .System }}<</SYS>>", "llama2-sys"), ("### Instruction:", None),
    ("<|user|>\n{{ .Prompt }}<|end|>\n<|assistant|>", "phi3"),
])  # fmt: skip
def test_formats_that_llama_cpp_knows(
    template: str, name: str | None, tmp_path: Path, scripted_lm: LanguageModel
) -> None:
    (tmp_path / "template").write_text(template)
    assert chat_format_of(tmp_path / "template") == name
    if name:
        assert "Hello" in scripted_lm.vocabulary.render_chat([Message("user", "Hello")], name)


# ---- a GGUF file by its path


def test_the_mmproj_beside_a_file(
    tmp_path: Path, models: elsewhere.Models, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = elsewhere.copy(models.lm, tmp_path / "pair" / "eyes-Q8_0.gguf")
    elsewhere.copy(models.mmproj, tmp_path / "pair" / "mmproj-eyes-f16.gguf")
    assert run(["caption", str(photo), "-m", str(lm), "--max-tokens", "3", "--no-cache"]) == 0
    assert capsys.readouterr().out
    assert open_model(lm).manifest.vision.mmproj
    other = mmprojs.with_marks(bundles.lm_parts(9))
    other.write(tmp_path / "pair" / "words-Q8_0.gguf")
    assert open_model(lm).manifest.vision.mmproj  # it is named like this model
    with pytest.raises(ModelError, match="sees no pictures"):
        open_model(tmp_path / "pair" / "words-Q8_0.gguf")
    mmprojs.mmproj_parts(mmprojs.IDEFICS, 1).write(tmp_path / "pair" / "mmproj-words-f16.gguf")
    assert open_model(tmp_path / "pair" / "words-Q8_0.gguf").places["mmproj.gguf"].name == (
        "mmproj-words-f16.gguf"
    )


def test_a_chat_format_is_a_pairs(random_bundle: Path) -> None:
    with pytest.raises(UsageError, match="A bundle knows its chat format"):
        open_model(random_bundle, lm_chat_format="chatml")


@pytest.fixture
def odd(store: Path, tmp_path: Path, models: elsewhere.Models) -> str:
    """A pair whose chat template nobody knows, and Ollama's own for it neither."""
    lm = mmprojs.with_marks(bundles.lm_parts(2, chat_template="{{ surprise }}"))
    path = lm.write(tmp_path / "odd.gguf")
    name = f"{LIBRARY}/odd/1b"
    elsewhere.ollama_model(store, name, template="odd", model=path, projector=models.mmproj)
    return "ollama:odd:1b"


def test_an_unknown_template_and_its_way_out(odd: str, photo: Path, capsys: Any) -> None:
    """The hint names what helps: a captioner's keyword and option, not those of a reasoner."""
    with pytest.raises(TemplateError) as caught:
        Captioner.load(odd)
    assert caught.value.summary.startswith(f"{odd}: ")
    assert "`lm_chat_format`" in caught.value.hint
    assert Captioner.load(odd, lm_chat_format="vicuna").model.name == odd
    with pytest.raises(UsageError, match="lm_chat_format must be"):
        Captioner.load(odd, lm_chat_format=1)  # type: ignore[arg-type]
    ask = ["ask", str(photo), "What is it?", "--reasoner", odd, "-m"]
    for captioner, option in ((odd, "--lm-chat-format"), ("nano", "--chat-format")):
        assert run([*ask, captioner]) == 2
        printed = capsys.readouterr().err
        assert f"error: {odd}: " in printed
        assert f" {option}: " in printed


def test_the_chat_format_of_the_default_captioner(odd: str, photo: Path) -> None:
    caption = ["caption", str(photo), "--max-tokens", "3", "--no-cache"]
    assert run(["config", "set", "lm-chat-format", "vicuna"]) == 0
    assert run(caption) == 0  # a bundle has no use for it
    assert run([*caption, "-m", odd]) == 2  # nor has a captioner that is named
    assert run(["use", odd]) == 0
    assert run(caption) == 0


# ---- the commands about models


@pytest.mark.usefixtures("home")
def test_use_show_verify_and_remove(
    store: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["models", "show", "ollama:llava:7b", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["projector"]) == ("captioner", "idefics3")
    assert len(facts["recorded_sha256"]) == 2
    assert run(["models", "show", "ollama:llava:7b", "--size", "100x100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "ollama:llava:7b"
    assert run(["models", "verify", "ollama:llava:7b"]) == 0
    assert capsys.readouterr().out.count("intact") == 2
    assert run(["models", "remove", "ollama:llava:7b", "--yes"]) == 2
    assert "belongs to another program" in capsys.readouterr().err
    assert run(["use", "ollama:library/llava:7b"]) == 0
    assert run(["use", "ollama:qwen2.5"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-2:] == [
        "captioner: ollama:llava:7b",
        "reasoner: ollama:qwen2.5:latest",
    ]
    assert run(["caption", str(photo), "--max-tokens", "2", "--json", "--no-cache"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["name"] == "ollama:llava:7b"
    (store / "manifests" / LIBRARY / "llava" / "7b").unlink()
    assert "keeps no such model" in error_of(capsys, "caption", str(photo))
    assert "keeps no such model" in error_of(capsys, "use", "ollama:llava:7b")
