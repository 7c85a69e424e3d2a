"""A language model's GGUF and its mmproj: captioning with them, bundling them, refusing them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.cli.main import run
from edgeprism.errors import ModelError, TemplateError, UsageError
from edgeprism.files.home import data_dir
from edgeprism.install.memory_needs import counted_pair_memory
from edgeprism.machine import child
from edgeprism.memory.plan import PROCESS_BYTES
from edgeprism.perceive import footprint
from edgeprism.perceive.captioner import Captioner
from edgeprism.vision.pair import open_pair
from edgeprism.vision.pair_trial import try_pair
from tests.helpers import bundles, mmprojs
from tests.helpers.children import in_child
from tests.helpers.elsewhere import ollama_model
from tests.language.test_generator import multi_axis_lm

LONG = mmprojs.IDEFICS


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    lm = mmprojs.with_marks(bundles.lm_parts(2))
    lm.metadata["general.name"] = ("string", "Tiny")
    lm.metadata["general.file_type"] = ("uint32", 0)
    lm.metadata["general.license"] = ("string", "other")
    lm.metadata["general.license.name"] = ("string", "qwen-research")
    return lm.write(folder / "lm.gguf"), mmprojs.mmproj_parts(LONG).write(folder / "mm.gguf")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, shape in enumerate(((20, 30), (90, 40), (20, 30))):
        pixels = np.random.default_rng(i % 2).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def flags(files: tuple[Path, Path]) -> list[str]:
    return ["--lm", str(files[0]), "--mmproj", str(files[1])]


def test_a_licence_of_a_name_of_its_own(files: tuple[Path, Path]) -> None:
    manifest = open_pair(*files).manifest
    assert manifest.license == "qwen-research"
    assert [source.license for source in manifest.sources] == [
        "qwen-research", "not stated in the file"
    ]  # fmt: skip


def test_what_a_pair_takes_is_counted_before_it_runs(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From both headers; but for the picture's tokens, which are guessed, as its bundle is."""
    bundle = open_pair(*files)
    with Captioner(bundle, device="cpu") as captioner:
        counted = captioner.engines.memory_parts()
    guessed = counted_pair_memory(*files)
    monkeypatch.setattr(footprint, "_PAIR_ROWS", bundle.manifest.vision.tokens_per_tile)
    parts = footprint.pair_parts("Tiny", *files)
    exact = {part.what: part.size for part in counted.parts}
    assert {part.what for part in parts.parts} == exact.keys()
    for part in parts.parts:
        if "weights" in part.what or part.what in ("vocabulary", "vision activations"):
            assert part.size == exact[part.what], part
    assert parts.size("cpu") == pytest.approx(counted.size("cpu"), rel=0.1)
    assert parts.size("cpu") < guessed - PROCESS_BYTES < 3 * parts.size("cpu")


def test_one_picture_and_a_folder(
    files: tuple[Path, Path], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = str(pictures / "1.png")
    assert run(["caption", one, *flags(files), "--max-tokens", "6", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model"] == {
        "name": "Tiny", "digest": open_pair(*files).digest, "vision_quant": "F32", "lm_quant": "F32"
    }  # fmt: skip
    assert record["tokens"]["visual"] == 28
    # 7 tiles, of which each keeps one row at least
    assert run(["caption", one, *flags(files), "--json", "--visual-tokens", "9"]) == 0
    reduced = json.loads(capsys.readouterr().out)
    assert (reduced["tokens"]["visual"], reduced["reduction"]["encoded"]) == (9, 28)
    arguments = ["caption", str(pictures), *flags(files), "--max-tokens", "6", "--jsonl"]
    # the model cannot take a line of pixels: that picture fails, the others do not
    Image.new("RGB", (1, 4000)).save(pictures / "line.png")
    for _ in range(2):  # the second run takes the captions from the store
        assert run([*arguments, "--batch", "2"]) == 3
        out, err = capsys.readouterr()
        records = {Path(r["image"]).name: r for r in map(json.loads, out.splitlines())}
        assert sorted(records) == ["0.png", "1.png", "2.png"]
        assert records["1.png"]["caption"] == record["caption"]
        assert records["0.png"]["caption"] == records["2.png"]["caption"] != record["caption"]
        assert "line.png" in err
        assert "1 × 4000 pixels" in err


def test_made_a_bundle(
    files: tuple[Path, Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "bundle"
    made = ["convert", "mmproj", *map(str, files), "--encoder", "mtmd"]
    assert run([*made, str(out), "--name", "mine"]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["lm.gguf", "manifest.json", "mmproj.gguf"]
    assert (out / "lm.gguf").stat().st_ino == files[0].stat().st_ino
    capsys.readouterr()
    words = []
    for model in (flags(files), ["--model", str(out)]):
        assert run(["caption", str(pictures / "0.png"), *model, "--max-tokens", "5"]) == 0
        words.append(capsys.readouterr().out)
    assert words[0] == words[1]
    assert run(["models", "show", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["vision"]["mmproj"] == {
        "projector": "idefics3", "multi_axis": False, "tiles_together": False
    }  # fmt: skip
    assert facts["parity"]["passed"] is False
    assert run(["models", "show", str(out)]) == 0
    assert "parity: no gate has run\n" in capsys.readouterr().out
    # 84 × 63 pixels: 3 × 3 tiles and the overview, 4 rows each
    assert facts["visual_tokens_per_picture"] == 40
    assert run(["models", "show", str(out), "--size", "90x40", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["visual_tokens"] == 28
    assert run(["models", "show", str(out), "--size", "90x40"]) == 0
    assert "grid: llama.cpp does not report it\ntiles: 7\n" in capsys.readouterr().out
    assert run(["models", "verify", str(out)]) == 0
    assert run([*made, str(out)]) == 2
    assert run([*made, str(out), "--overwrite", "--copy"]) == 0
    assert (out / "lm.gguf").stat().st_ino != files[0].stat().st_ino


def test_a_bundle_from_a_reference_and_from_an_installed_pair(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    name = "registry.ollama.ai/library/eyes/latest"
    ollama_model(tmp_path / "ollama", name, model=files[0], projector=files[1])
    first, second = tmp_path / "first", tmp_path / "second"
    end = ["--encoder", "mtmd"]
    assert run(["convert", "mmproj", "ollama:eyes", str(first), *end]) == 0
    assert manifest_from_bundle(first).name == "eyes:latest"
    manifest = manifest_from_bundle(first)
    source = dataclasses.replace(manifest.sources[0], name="owner/repo@0123: eyes.gguf")
    changed = dataclasses.replace(
        manifest, license="mine", sources=[source, manifest.sources[1]], name="installed"
    )
    (first / "manifest.json").write_text(changed.to_json())
    assert run(["models", "add", str(first)]) == 0
    assert run(["convert", "mmproj", "installed", str(second), *end]) == 0
    again = manifest_from_bundle(second)
    assert (again.name, again.license) == ("installed", "mine")
    assert [s.name for s in again.sources] == [s.name for s in changed.sources]
    for own, theirs in zip(("lm.gguf", "mmproj.gguf"), files, strict=True):
        assert (second / own).read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("pair", "code", "words"),
    [
        (["nano"], 4, "no pair"), (["smolvlm-256m"], 4, "edgeprism pull smolvlm-256m"),
        (["qwen2.5-0.5b"], 4, "is a reasoner"), (["ollama:gone"], 4, "ollama:gone"),
        (["a.gguf", "b.gguf"], 2, "a.gguf: no such file"), (["a", "b", "c"], 2, "takes one pair"),
        ([], 2, "Missing argument"),
    ],
)  # fmt: skip
def test_what_is_no_pair_to_convert(
    pair: list[str], code: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", "mmproj", *pair, str(tmp_path / "out")]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_asked(
    files: tuple[Path, Path],
    pictures: Path,
    scripted_gguf: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["ask", str(pictures / "0.png"), "what?", "--reasoner", str(scripted_gguf)]
    arguments += ["--max-tokens", "4", "--instruction-mode", "generic", "--json"]
    assert run([*arguments, *flags(files)]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["answer"] == bundles.SAID_TEXT
    assert answer["captions"][0]["model"]["name"] == "Tiny"


def test_a_pair_is_tried_once(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_pair(*files)
    monkeypatch.setattr(child, "Child", lambda *_, **__: pytest.fail("tried again"))
    assert open_pair(*files) == first
    (data_dir() / "tried.json").write_text("{")
    with pytest.raises(pytest.fail.Exception):
        open_pair(*files)


def test_doctor_says_what_a_pair_allows(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["doctor", *flags(files), "--json"])
    findings = {f["topic"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["pair"]["state"] == "ok"
    assert "idefics3" in findings["pair"]["text"]
    assert "40 visual tokens" in findings["pair"]["text"]
    assert "one tile at a time" in findings["pair"]["text"]
    assert run(["doctor", "--lm", str(files[1]), "--mmproj", str(files[0]), "--json"]) == 4
    findings = {f["topic"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["pair"]["state"] == "bad"


# ---- what is refused, in words and without a native abort


def changed(change: Callable[[bundles.GgufParts], Any]) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        parts = mmprojs.mmproj_parts(mmprojs.INTERN)
        change(parts)
        return parts.write(path)

    return write


def meta(key: str, kind: str, value: Any) -> Callable[[Path], Path]:
    return changed(lambda parts: parts.metadata.__setitem__(key, (kind, value)))


def shaped(name: str, *shape: int) -> Callable[[Path], Path]:
    return changed(lambda parts: parts.tensors.__setitem__(name, np.ones(shape, np.float32)))


def without(name: str) -> Callable[[Path], Path]:
    return changed(lambda parts: parts.tensors.pop(name))


def cut(path: Path) -> Path:
    mmprojs.mmproj_parts(mmprojs.INTERN).write(path)
    path.write_bytes(path.read_bytes()[:-1000])
    return path


HOSTILE = {
    "cut short": (cut, "cut short"),
    "not a GGUF": (lambda path: path.write_bytes(b"no model") and path, "not a whole GGUF"),
    "empty": (lambda path: path.touch() or path, "model: the file is empty."),
    "a language model": (lambda path: bundles.write_lm(path), "not an mmproj file"),
    "unknown projector": (meta("clip.projector_type", "string", "new"), "unknown projector"),
    "no projector": (meta("clip.projector_type", "string", ""), "does not name its projector"),
    "for sound": (meta("clip.has_vision_encoder", "bool", False), "no vision encoder"),
    "another width": (
        lambda path: mmprojs.mmproj_parts(mmprojs.INTERN, n_embd=64).write(path), "takes 128"
    ),
    "no heads fit": (meta("clip.vision.attention.head_count", "uint32", 5), "5 heads"),
    "no heads": (meta("clip.vision.attention.head_count", "uint32", 0), ""),
    "no patches": (meta("clip.vision.patch_size", "uint32", 0), "patches of no size"),
    "patches too large": (meta("clip.vision.patch_size", "uint32", 300), ""),
    "too many layers": (meta("clip.vision.block_count", "uint32", 9), "attn_out"),
    "no layers": (meta("clip.vision.block_count", "uint32", 0), "block_count 0 (known: 1…512)"),
    "a huge number of layers": (meta("clip.vision.block_count", "uint32", 1 << 31), "block_count"),
    "no mean": (changed(lambda p: p.metadata.pop("clip.vision.image_mean")), "image_mean"),
    "a merge that does not divide": (meta("clip.vision.projector.scale_factor", "uint32", 3), ""),
    "no merge": (meta("clip.vision.projector.scale_factor", "uint32", 0), ""),
    "no query weights": (without("v.blk.1.attn_q.weight"), "attention weights q in layer 1"),
    "no output weights": (without("v.blk.1.attn_out.weight"), "attn_out"),
    "no projector weights": (without("mm.model.mlp.3.weight"), "mm.model.mlp.3"),
    "no class row": (without("v.class_embd"), ""),
    "no patch weights": (without("v.patch_embd.weight"), ""),
    "a wide query": (shaped("v.blk.0.attn_q.weight", 32, 48), "not 32 wide"),
    "a short bias": (shaped("v.blk.0.attn_q.bias", 7), ""),
    "a short position table": (shaped("v.position_embd.weight", 3, 32), ""),
    "a narrow norm": (shaped("v.blk.0.ln1.weight", 31), ""),
    "a narrow projector": (shaped("mm.model.mlp.1.weight", 128, 100), ""),
    "a deep position table": (shaped("v.position_embd.weight", 2, 17, 32), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    write, words = HOSTILE[name]
    path = write(tmp_path / "mm.gguf")
    # even if the trial's child dies, this process lives and reports what is wrong
    outcome = in_child(lambda: open_pair(files[0], path).manifest.name, seconds=60)
    assert (outcome.error, outcome.returncode) == ("ModelError", 4), outcome
    assert str(path) in outcome.text
    assert words in outcome.text


def test_a_pair_of_others_halves(files: tuple[Path, Path], tmp_path: Path) -> None:
    """The vocabulary of a plain model lacks the tokens that this mmproj needs."""
    plain = bundles.write_lm(tmp_path / "plain.gguf")
    with pytest.raises(ModelError, match="vocabulary lacks"):
        open_pair(plain, files[1])
    multi = multi_axis_lm(1).write(tmp_path / "multi.gguf")
    with pytest.raises(ModelError):
        open_pair(multi, files[1])


@pytest.mark.parametrize("projector", ["qwen2vl_merger", "qwen2.5vl_merger", "glm4v"])
def test_rows_in_time_down_and_across_over_a_text_model(
    projector: str, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """llama.cpp would run such a pair without an error, and count the rows one by one."""
    parts = mmprojs.mmproj_parts(mmprojs.QWEN)
    parts.metadata["clip.projector_type"] = ("string", projector)
    path = parts.write(tmp_path / "mm.gguf")
    with pytest.raises(ModelError, match=r"time, down and across \(M-RoPE\)") as caught:
        open_pair(files[0], path)
    assert str(path) in caught.value.message
    assert str(files[0]) in caught.value.message
    assert "made for" in caught.value.hint
    assert run(["doctor", *flags((files[0], path)), "--json"]) == 4
    findings = {f["topic"]: f for f in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["pair"]["state"] == "bad"
    assert "M-RoPE" in findings["pair"]["text"]


def test_rows_in_time_down_and_across_over_their_own_model(tmp_path: Path) -> None:
    lm = mmprojs.with_marks(multi_axis_lm(1)).write(tmp_path / "lm.gguf")
    path = mmprojs.mmproj_parts(mmprojs.QWEN).write(tmp_path / "mm.gguf")
    bundle = open_pair(lm, path)
    mmproj = bundle.manifest.vision.mmproj
    assert mmproj is not None
    assert mmproj.multi_axis
    with pytest.raises(UsageError, match="M-RoPE"):  # none of its visual tokens can be left out
        Captioner(bundle, visual_tokens=4)


def test_rows_one_by_one_over_a_model_of_positions_in_time_down_and_across(tmp_path: Path) -> None:
    marks = [*mmprojs.MARKS, "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
    lm = mmprojs.with_marks(multi_axis_lm(1), marks=marks)
    path = mmprojs.mmproj_parts(mmprojs.LFM2).write(tmp_path / "mm.gguf")
    with pytest.raises(
        ModelError, match="its projector lfm2 places visual tokens one by"
    ) as caught:
        open_pair(lm.write(tmp_path / "lm.gguf"), path)
    assert f"{tmp_path / 'lm.gguf'} counts positions in time" in caught.value.message
    assert caught.value.hint == "Use the mmproj file that was made for this language model."


def test_a_chat_that_llama_cpp_does_not_know(files: tuple[Path, Path], tmp_path: Path) -> None:
    lm = mmprojs.with_marks(bundles.lm_parts(2, chat_template="{{ surprise }}"))
    path = lm.write(tmp_path / "lm.gguf")
    with pytest.raises(TemplateError) as caught:
        open_pair(path, files[1])
    assert "`lm_chat_format`" in caught.value.hint
    prompts = open_pair(path, files[1], lm_chat_format="vicuna").manifest.prompts
    assert prompts.before_image.endswith("USER: ")
    with pytest.raises(TemplateError, match="does not know"):
        open_pair(path, files[1], lm_chat_format="nonsense")


def test_nothing_is_left_of_a_pair_that_is_refused(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert run(["convert", "mmproj", str(files[1]), str(files[0]), str(folder / "b")]) == 4
    assert "--lm takes the language model" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lm", "LM"], "belong together"),
        (["--mmproj", "MM"], "belong together"),
        (["--lm", "LM", "--mmproj", "MM", "--model", "nano"], "exclude each other"),
        (["--chat-format", "vicuna"], "knows its chat format"),
    ],
)
def test_flags_that_do_not_fit(
    arguments: list[str],
    words: str,
    files: tuple[Path, Path],
    photo: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"LM": str(files[0]), "MM": str(files[1])}
    assert run(["caption", str(photo), *(places.get(a, a) for a in arguments)]) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_changed_is_not_run(files: tuple[Path, Path], tmp_path: Path) -> None:
    path = mmprojs.mmproj_parts(LONG).write(tmp_path / "mm.gguf")
    bundle = open_pair(files[0], path)
    mmprojs.mmproj_parts(LONG, 9).write(path)
    with (
        Captioner(bundle) as captioner,
        pytest.raises(ModelError, match="not what the manifest says"),
    ):
        captioner.encode(np.zeros((9, 9, 3), np.uint8))


def test_the_trial_tells_how_its_child_ended(files: tuple[Path, Path], tmp_path: Path) -> None:
    path = shaped("v.position_embd.weight", 3, 32)(tmp_path / "mm.gguf")
    with pytest.raises(ModelError, match=r"ended its process \(signal"):
        try_pair(files[0], path, None)
