"""A bundle whose language model is an ONNX decoder: captions, folders, questions, refusals."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from edgeprism import Captioner, Prism, Reasoner, caption_folder
from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.read_manifest import manifest_from_json
from edgeprism.errors import Interrupted, ManifestError, ModelError, UsageError
from edgeprism.folder.events import Outcome
from edgeprism.folder.tuning import decode_rates
from edgeprism.machine import device
from edgeprism.prism import NO_FOCUS_NOTE
from edgeprism.store.caption_store import CaptionStore
from edgeprism.store.stored_captioner import StoredCaptioner
from tests.helpers import bundles
from tests.helpers import tiny_decoder as tiny
from tests.helpers.captions import caption_ids
from tests.reason.test_focus import ScriptedReasoner

PROMPT = "a red dog on"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("decoder") / "b")


@pytest.fixture(scope="module")
def captioner(bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(bundle, device="cpu", threads=1) as captioner:
        yield captioner


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tiny.write_bundle(tmp_path / "own")


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def prompt_ids() -> list[int]:
    return [tiny.START, *(tiny.PIECES.index(word) for word in PROMPT.split())]


def test_captions_are_those_of_the_reference(captioner: Captioner) -> None:
    for seed in range(3):
        rows = np.asarray(captioner.encode(picture(seed)).visual_tokens)
        ids = caption_ids(
            captioner, picture(seed), instruction=PROMPT, caption_tokens=24, stop_at_end=False
        )
        assert ids == tiny.Reference().greedy(rows, prompt_ids(), 24)


def test_the_record_counts_what_was_read(captioner: Captioner) -> None:
    caption = captioner.caption(picture(0), instruction=PROMPT, caption_tokens=5)
    assert caption.tokens.visual == bundles.N_TOKENS
    assert caption.tokens.prompt == len(prompt_ids())
    cost = captioner.cost((40, 30), instruction=PROMPT, caption_tokens=1000)
    assert (cost.visual_tokens, cost.prompt_tokens) == (bundles.N_TOKENS, len(prompt_ids()))
    assert cost.left_for_caption == tiny.CONTEXT - len(prompt_ids())


def test_a_folder_and_its_store(captioner: Captioner, tmp_path: Path) -> None:
    """Each picture gets what it gets alone; the second time from the store."""
    for seed in range(7):
        Image.fromarray(picture(seed)).save(tmp_path / f"{seed}.png")
    plan = captioner.plan(instruction=PROMPT, caption_tokens=16)
    for cached in (False, True):
        outcomes: list[Outcome] = []
        caption_folder(tmp_path, captioner, plan=plan, parallel=3, on_outcome=outcomes.append)
        assert [each.cached for each in outcomes] == [cached] * 7
        for outcome in outcomes:
            assert outcome.record is not None
            alone = captioner.caption(
                outcome.picture.path, instruction=PROMPT, caption_tokens=16
            ).text
            assert outcome.record["caption"] == alone


def test_widths_of_a_batch_are_measured(captioner: Captioner) -> None:
    assert all(rate > 0 for rate in decode_rates(captioner).values())


def test_a_question_is_answered_from_the_caption(captioner: Captioner, scripted_gguf: Path) -> None:
    reasoner = Reasoner.load(scripted_gguf, threads=1)
    answer = Prism(captioner, reasoner).ask(picture(0), "What is there?", focus="the boats")
    reasoner.close()
    assert answer.text
    (caption,) = answer.captions
    assert caption.text == captioner.caption(picture(0)).text
    assert any("takes no focus" in note for note in caption.notes)


def test_a_question_is_not_turned_into_a_focus_that_nobody_takes(
    captioner: Captioner, tmp_path: Path
) -> None:
    """But it is where another captioner takes one, and a focus of the user's own is told."""
    reasoner = ScriptedReasoner("red")
    for own in (captioner, StoredCaptioner(captioner, CaptionStore(tmp_path / "captions"))):
        reasoner.prompts.clear()
        answer = Prism(own, reasoner).ask(picture(0), "What colour is the boat?")
        assert (answer.text, answer.focus, answer.instruction_mode) == ("red", "", "generic")
        assert answer.notes == (NO_FOCUS_NOTE,)
        assert len(reasoner.prompts) == 1  # the answer's
    generic = Prism(captioner, reasoner).ask(picture(0), "What?", instruction_mode="generic")
    assert generic.notes == ()
    told = Prism(captioner, reasoner).ask(picture(0), "What?", focus="the boats")
    assert (told.focus, told.notes) == ("the boats", ())
    reasoner.prompts.clear()
    with Captioner.load("nano", device="cpu", threads=1) as other:
        both = Prism([captioner, other], reasoner)
        assert both.ask(picture(0), "What colour is the boat?").notes != (NO_FOCUS_NOTE,)
    assert len(reasoner.prompts) == 2


def test_a_caption_can_be_cancelled(captioner: Captioner) -> None:
    stream = captioner.stream(picture(0), instruction=PROMPT, caption_tokens=60)
    next(stream)
    captioner.cancel()
    with pytest.raises(Interrupted):
        list(stream)
    assert captioner.caption(picture(0), instruction=PROMPT, caption_tokens=4).text


def test_memory_is_counted_before_anything_loads(bundle: Path) -> None:
    fresh = Captioner.load(bundle, device="cpu")
    parts = {part.what: part for part in fresh.engines.memory_parts().parts}
    assert not fresh.engines.is_loaded()
    cell = 2 * tiny.LAYERS * tiny.WIDTH * 4
    assert parts["picture's keys and values"].size == bundles.N_TOKENS * cell
    assert 0 < parts["KV cache"].size <= tiny.CONTEXT * cell
    graphs = sum((bundle / name).stat().st_size for name in ("lm.onnx", "lm.cross.onnx"))
    weights = sum(part.size for part in fresh.engines.memory_parts().parts
                  if part.what == "language weights")  # fmt: skip
    assert weights >= graphs
    assert fresh.engines.model_bytes() == sum(
        path.stat().st_size for path in bundle.iterdir() if path.name != "manifest.json"
    )


def test_a_graph_takes_threads_for_all_its_weights(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie beside it, so its own size says nothing."""
    model = onnx.load(str(own / "lm.onnx"))
    onnx.save_model(
        model, str(own / "lm.onnx"), save_as_external_data=True, location="lm.onnx.data",
        size_threshold=64,
    )  # fmt: skip
    sealed(own)
    sizes: list[int] = []

    def chosen(_: int | None, size: int) -> int:
        sizes.append(size)
        return 1

    monkeypatch.setattr("edgeprism.perceive.engines.choose_threads", chosen)
    Captioner.load(own).engines.lm_threads()
    beside = (own / "lm.onnx.data").stat().st_size
    assert sizes == [(own / "lm.onnx").stat().st_size + beside]
    assert beside > 1000


def test_it_stays_on_the_cpu(bundle: Path) -> None:
    engines = Captioner.load(bundle, device="cpu").engines
    assert engines.placement() == (device.CPU_PROVIDER, 0)
    with pytest.raises(UsageError, match="ONNX graph"):
        Captioner.load(bundle, gpu_layers=3).engines.placement()


# ---- strangers' files


def sealed(folder: Path, **changes: Any) -> Path:
    """Write the manifest anew for the files that lie there now."""
    manifest = manifest_from_json((folder / "manifest.json").read_bytes(), "m")
    parts = {"lm": manifest.lm, "prompts": manifest.prompts, **changes}
    return bundles.seal_bundle(folder, **parts)


def refused(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught, Captioner.load(folder, device="cpu") as captioner:
        captioner.caption(picture(0), caption_tokens=2)
    return caught.value


def test_a_graph_with_an_operator_that_no_decoder_needs(own: Path) -> None:
    model = onnx.load(str(own / "lm.onnx"))
    model.graph.node.insert(0, helper.make_node("RandomNormal", [], ["noise"], shape=[4]))
    (own / "lm.onnx").write_bytes(model.SerializeToString())
    assert "RandomNormal" in refused(sealed(own)).message


@pytest.mark.parametrize("field", ["n_layers", "n_heads", "head_dim"])
def test_graphs_of_other_sizes_than_the_manifest_says(own: Path, field: str) -> None:
    assert tiny.SPEC.decoder is not None
    value = getattr(tiny.SPEC.decoder, field) + 1
    decoder = dataclasses.replace(tiny.SPEC.decoder, **{field: value})
    error = refused(sealed(own, lm=dataclasses.replace(tiny.SPEC, decoder=decoder)))
    assert "but the manifest says" in error.message


def test_the_graphs_must_not_be_changed_over(own: Path) -> None:
    (own / "lm.onnx").rename(own / "x")
    (own / "lm.cross.onnx").rename(own / "lm.onnx")
    (own / "x").rename(own / "lm.cross.onnx")
    assert "lm.onnx" in refused(sealed(own)).message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("tokenizer.ggml.model", ("string", "llama"), "a vocabulary of kind 'llama'"),
        ("tokenizer.ggml.tokens", ("array", ["▁a", "▁a", "▁b"]), "n_vocab"),
        ("bert.context_length", ("uint32", 7), "context_length is 7"),
    ],
)
def test_a_vocabulary_of_another_model(
    own: Path, key: str, value: tuple[str, Any], expected: str
) -> None:
    (own / "lm.gguf").unlink()
    tiny.write_vocabulary(own / "lm.gguf", **{key.replace(".", "__"): value})
    assert expected in refused(sealed(own)).message


def test_a_damaged_graph(own: Path) -> None:
    path = own / "lm.onnx"
    path.write_bytes(path.read_bytes()[:2000])
    assert str(path) in refused(sealed(own)).message


def test_weights_that_are_not_finite(own: Path) -> None:
    model = onnx.load(str(own / "lm.onnx"))
    (head,) = (each for each in model.graph.initializer if each.name == "head")
    values = onnx.numpy_helper.to_array(head).copy()
    values[0, 150] = np.nan
    head.CopyFrom(onnx.numpy_helper.from_array(values, "head"))
    path = own / "lm.onnx"
    path.write_bytes(model.SerializeToString())
    assert "not finite" in refused(sealed(own)).message


def test_no_caption_comes_from_a_graph_that_was_written_over(own: Path) -> None:
    with Captioner.load(own, threads=1) as captioner:
        captioner.caption(picture(0), caption_tokens=2)
        data = bytearray((own / "lm.onnx").read_bytes())
        data[-100:] = bytes(100)
        (own / "lm.onnx").write_bytes(data)
        with pytest.raises(ModelError, match="was changed while it was in use"):
            captioner.caption(picture(0), caption_tokens=2)


# ---- the manifest


def manifest_data(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    return data


def test_the_manifest_comes_back_as_it_was(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text(encoding="utf-8")
    manifest = manifest_from_json(text, "m")
    assert isinstance(manifest, Manifest)
    assert manifest.to_json() == text
    assert manifest.lm.decoder == tiny.SPEC.decoder


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("file", "other.onnx", "lm.decoder.file: 'other.onnx' is not among files"),
        ("cross", "lm.onnx", "lm.decoder.file: is lm.decoder.cross, too"),
        ("n_layers", 0, "lm.decoder.n_layers: must lie in 1…512"),
        ("n_heads", 1 << 20, "lm.decoder.n_heads: must lie in 1…1024"),
        ("head_dim", -8, "lm.decoder.head_dim: must lie in 1…1024"),
        ("clean_up", "tidy", "lm.decoder.clean_up: 'tidy'; known: '', 'wordpiece'"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    bundle: Path, path: str, value: object, expected: str
) -> None:
    data = manifest_data(bundle)
    data["lm"]["decoder"][path] = value
    with pytest.raises(ManifestError) as caught:
        manifest_from_json(json.dumps(data), "m")
    assert expected in caught.value.details


def test_rows_without_positions_are_neither_both_ways_nor_placed(bundle: Path) -> None:
    data = manifest_data(bundle)
    data["lm"]["image_attention"] = "both-ways"
    with pytest.raises(ManifestError) as caught:
        manifest_from_json(json.dumps(data), "m")
    assert any("lm.decoder: its rows have no positions" in each for each in caught.value.details)
