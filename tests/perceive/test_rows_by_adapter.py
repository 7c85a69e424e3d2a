"""Captioners whose pictures' rows go through an adapter: files, trial, memory, captions."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeprism import Captioner
from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.manifest import FILE_NAME
from edgeprism.bundle.manifest_language import LanguageModelFile, RowWeights
from edgeprism.cli.main import run
from edgeprism.errors import ManifestError, ModelError
from edgeprism.memory.parts import CPU
from tests.helpers import bundles
from tests.helpers.adapters import AdapterReference, adapter_parts
from tests.helpers.captions import caption_ids
from tests.helpers.children import in_child
from tests.helpers.llama_reference import Visual

ROWS_FILE = "lm.rows.gguf"
LM = bundles.lm_parts(4)
ADAPTER = adapter_parts(LM)
SPEC = LanguageModelFile(
    "lm.gguf", "F32", "llama", bundles.N_EMBD, bundles.N_VOCAB, bundles.CONTEXT, "causal",
    rows=RowWeights("adapter", ROWS_FILE),
)  # fmt: skip


def write(folder: Path, adapter: bundles.GgufParts = ADAPTER) -> Path:
    folder.mkdir()
    adapter.write(folder / ROWS_FILE)
    return bundles.write_bundle(folder, model=LM, lm=SPEC)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("adapter") / "bundle")


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "bundle")


@pytest.fixture
def own(bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(bundle, threads=1, kv_type="f32", flash_attention=False) as it:
        yield it


def test_a_caption_is_the_references(own: Captioner, photo: Path) -> None:
    ids = caption_ids(own, photo, instruction="a boat", caption_tokens=12, stop_at_end=False)
    vocabulary = own.engines.lm().vocabulary
    prompts = own.bundle.manifest.prompts
    before = [1, *vocabulary.tokenize(prompts.before_image, parse_special=True)]
    after = vocabulary.tokenize("\na boat")
    after += vocabulary.tokenize(prompts.before_caption, parse_special=True)
    shown = Visual(own.encode(photo).visual_tokens)
    assert ids == AdapterReference(LM, ADAPTER).greedy([before, shown, after], 12)
    others = (lambda _: False, lambda _: True)
    for applies in others:
        wrong = AdapterReference(LM, ADAPTER, applies)
        assert ids[:6] != wrong.greedy([before, shown, after], 6)


def write_over(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-400:] = np.random.default_rng(3).bytes(400)
    path.write_bytes(data)


def test_a_changed_adapter_is_refused(own: Captioner, bundle: Path, photo: Path) -> None:
    write_over(bundle / ROWS_FILE)
    with pytest.raises(ModelError, match=r"lm\.rows\.gguf: its content is not what the manifest"):
        own.caption(photo, caption_tokens=4)


def test_an_adapter_that_changes_in_use_is_refused(
    own: Captioner, bundle: Path, photo: Path
) -> None:
    own.caption(photo, caption_tokens=4)
    write_over(bundle / ROWS_FILE)
    with pytest.raises(ModelError, match=r"lm\.rows\.gguf: was changed while it was in use"):
        own.caption(photo, caption_tokens=4)


def test_a_missing_adapter_is_refused(bundle: Path) -> None:
    (bundle / ROWS_FILE).unlink()
    with pytest.raises(ModelError, match=r"lm\.rows\.gguf: cannot be read"):
        Captioner.load(bundle)


def test_a_strangers_adapter_is_refused_by_the_trial(tmp_path: Path, photo: Path) -> None:
    """Its digest is the manifest's, so that only its content is wrong."""
    wrong = adapter_parts(LM)
    wrong.tensors["blk.1.ffn_up.weight.lora_b"] = np.zeros((160, 2), np.float32)
    folder = write(tmp_path / "stranger", wrong)
    with (
        Captioner.load(folder, threads=1) as captioner,
        pytest.raises(ModelError, match=r"lm\.rows\.gguf: no adapter for this language model"),
    ):
        captioner.caption(photo, caption_tokens=4)


def test_the_adapter_counts_in_memory_and_size(own: Captioner, bundle: Path) -> None:
    header = read_gguf_header(bundle / ROWS_FILE)
    expected = sum(map(header.tensor_bytes, header.tensors))
    parts = own.engines.memory_parts()
    assert [(p.size, p.place) for p in parts.parts if p.what == "row adapter"] == [(expected, CPU)]
    files = ("lm.gguf", ROWS_FILE, "vision.fp32.onnx")
    assert own.engines.model_bytes() == sum((bundle / name).stat().st_size for name in files)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_loads_its_own(own: Captioner, photo: Path) -> None:
    expected = own.caption(photo, caption_tokens=6).text
    outcome = in_child(lambda: own.caption(photo, caption_tokens=6).text, seconds=60)
    assert (outcome.error, outcome.text, outcome.returncode) == ("", expected, 0)
    assert own.caption(photo, caption_tokens=6).text == expected


def test_the_plan_of_a_command_names_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--plan", str(bundle)]) == 0
    assert "row adapter" in capsys.readouterr().out


def test_captions_again_after_closing(own: Captioner, photo: Path) -> None:
    first = own.caption(photo, caption_tokens=6).text
    own.close()
    assert own.caption(photo, caption_tokens=6).text == first


def test_a_manifest_without_an_adapter_is_as_before(sound: Path, random_bundle: Path) -> None:
    """Earlier versions, which know no `rows`, read the one and refuse the other."""
    own, plain = (json.loads((path / FILE_NAME).read_text()) for path in (sound, random_bundle))
    assert own["lm"].pop("rows") == {"by": "adapter", "file": ROWS_FILE}
    assert own["lm"].keys() == plain["lm"].keys()


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ({"by": "magic", "file": ROWS_FILE}, "lm.rows.by: 'magic'; known: adapter"),
        ({"by": "adapter", "file": "other.gguf"}, "lm.rows.file: 'other.gguf' is not among files"),
        ({"by": "adapter", "file": "../lm.rows.gguf"}, "is not among files"),
        ({"by": "adapter", "file": "lm.gguf"}, "lm.rows.file: 'lm.gguf' is the language model"),
        ({"by": "adapter"}, "lm.rows.file: missing"),
        ({"by": "adapter", "file": ROWS_FILE, "scale": 2}, "lm.rows.scale: unknown field"),
        ("lm.rows.gguf", "lm.rows"),
    ],
)
def test_faults_of_the_manifest(bundle: Path, rows: object, fault: str) -> None:
    path = bundle / FILE_NAME
    data = json.loads(path.read_text())
    data["lm"]["rows"] = rows
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError) as caught:
        Captioner.load(bundle)
    assert any(fault in each for each in caught.value.faults), caught.value.faults
