"""BLIP's captioners as published, against transformers' BlipForConditionalGeneration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.family import GGUF_QUANTS
from edgeprism.convert.gate.judge import Verdict
from edgeprism.convert.language import bert_decoder, decoder
from edgeprism.convert.language.write_decoder import write_decoder
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import graph
from edgeprism.errors import CheckpointError, UsageError
from edgeprism.language import onnx_decoder
from edgeprism.language.generator import Finished
from edgeprism.machine.onnx_runtime import GraphSession
from edgeprism.perceive.captioner import Captioner
from edgeprism.progress import Progress
from tests.helpers.captions import caption_ids, plan_of
from tests.helpers.converting import convert_family, parts_of
from tests.helpers.family_checks import (
    N_TOKENS,
    check_folder,
    check_pixels,
    check_rows_and_texts,
    converted,
    error_of,
    loaded,
)
from tests.helpers.tiny_blip import START, BlipReference, write_blip
from tests.helpers.tiny_captioners import Case, pictures

Plant = Callable[[pytest.MonkeyPatch], None]
LARGE, BASE = 192, 128  # widths of the tower; the decoder's is 128


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_blip(tmp_path_factory.mktemp("blip") / "c", width=LARGE)


@pytest.fixture(scope="module")
def bundle(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(case, tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def captioner(bundle: Path) -> Iterator[Captioner]:
    with loaded(bundle) as captioner:
        yield captioner


def reference_of(case: Case) -> BlipReference:
    assert isinstance(case.reference, BlipReference)
    return case.reference


def test_the_bundle_says_what_the_published_model_says(case: Case, bundle: Path) -> None:
    check_rows_and_texts(case.reference, bundle)
    check_pixels(case.reference, bundle)
    manifest = manifest_from_bundle(bundle)
    assert manifest.vision.grid == [1, 17]  # the class row and the patches
    assert (manifest.vision.n_embd, manifest.lm.n_embd) == (LARGE, BASE)
    assert manifest.lm.decoder is not None
    assert manifest.prompts.default_instruction == "a picture of"


@pytest.mark.parametrize("instruction", [None, "a picture of", "a photo", ""])
def test_captions_are_those_of_generate(
    instruction: str | None, case: Case, captioner: Captioner
) -> None:
    """With the text at the beginning of the caption, and without any; put together as BERT does."""
    reference = reference_of(case)
    text = "a picture of" if instruction is None else instruction
    for picture in pictures()[:3]:
        caption = captioner.caption(picture, instruction=instruction, caption_tokens=40)
        assert caption.text == reference.caption(picture, text).strip()
        assert caption.tokens.visual == 17
        ids = reference.processor.tokenizer(text)["input_ids"]
        assert caption.tokens.prompt == len(ids) - 1  # [DEC] in place of [CLS], and no [SEP]


@pytest.mark.parametrize("layout", ["bin", "pth"])
def test_other_layouts_compute_the_same(layout: str, tmp_path: Path) -> None:
    other = write_blip(tmp_path / "c", layout=layout, width=BASE, seed=43)
    bundle = converted(other, tmp_path / "b")
    reference = reference_of(other)
    with loaded(bundle) as captioner:
        for picture in pictures()[:2]:
            ids = caption_ids(
                captioner, picture, instruction="", caption_tokens=N_TOKENS, stop_at_end=False
            )
            assert ids == reference.continued(picture, "", N_TOKENS)


def test_eight_bits_pass_the_gate(tmp_path: Path) -> None:
    """They are the default, and near."""
    calm = write_blip(tmp_path / "c", width=BASE, seed=44, sharpness=0.3)
    convert_family("blip", tmp_path / "b", ConvertOptions(("fp32",)), calm.settings)
    manifest = manifest_from_bundle(tmp_path / "b")
    assert manifest.lm.quant == "Q8_0"
    assert 1e-5 < manifest.parity.figures["lm Q8_0"]["relative_error"] < 0.06
    (found, crossed) = (
        {node.op_type for node in _nodes(tmp_path / "b" / name)}
        for name in ("lm.onnx", "lm.cross.onnx")
    )
    assert {"MatMulNBits", "GatherBlockQuantized"} <= found
    assert not {"MatMul", "Gemm"} & crossed
    with loaded(tmp_path / "b") as captioner:
        assert captioner.caption(pictures()[0], caption_tokens=8).text


def _nodes(path: Path) -> Any:
    import onnx

    return onnx.load(str(path), load_external_data=False).graph.node


def test_a_folder_says_what_each_picture_says_alone(
    captioner: Captioner, bundle: Path, tmp_path: Path
) -> None:
    check_folder(captioner, bundle, tmp_path, pictures(), 20)


def test_a_focus_is_left_out_with_a_note(captioner: Captioner) -> None:
    picture = pictures()[0]
    plain = captioner.caption(picture, caption_tokens=8)
    focused = captioner.caption(picture, focus="the boats", caption_tokens=8)
    assert focused.text == plain.text
    assert plain.notes == ()
    assert any("focus" in note for note in focused.notes)


def test_fewer_visual_tokens(case: Case, captioner: Captioner) -> None:
    picture = pictures()[0]
    caption = captioner.caption(picture, visual_tokens=6, caption_tokens=8)
    assert caption.tokens.visual == 6
    assert captioner.caption(picture, caption_tokens=8).tokens.visual == 17


# ---- mistakes that the comparison must notice


def _class_row_last(patch: pytest.MonkeyPatch) -> None:
    right = graph.Tower.forward
    patch.setattr(graph.Tower, "forward", lambda self, pixels: right(self, pixels).roll(-1, dims=1))


def _quick_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _name: right(x, "quick_gelu"))


def test_without_a_mistake_the_error_is_small(case: Case) -> None:
    assert error_of(case) < 1e-5


@pytest.mark.parametrize(
    "plant", [_class_row_last, _quick_gelu], ids=lambda plant: plant.__name__.strip("_")
)
def test_planted_mistakes_of_the_tower_are_seen(
    plant: Plant, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert error_of(case) > 1e-4


def _keys_for_values(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bert_decoder, "_CROSS", tuple(reversed(bert_decoder._CROSS)))


def _norms_changed_over(patch: pytest.MonkeyPatch) -> None:
    names = bert_decoder._NORMS
    swapped = {"norm_out": names["norm_cross"], "norm_cross": names["norm_out"]}
    patch.setattr(bert_decoder, "_NORMS", {**names, **swapped})


def _heads_of_the_rows_interleaved(patch: pytest.MonkeyPatch) -> None:
    def planted(self: decoder.CrossGraph, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        c = self.config
        return tuple(
            layer(rows).unflatten(-1, (c.head_dim, c.n_heads)).permute(0, 3, 1, 2)
            for layer in self.layers
        )

    patch.setattr(decoder.CrossGraph, "forward", planted)


@pytest.mark.parametrize(
    "plant", [_keys_for_values, _norms_changed_over, _heads_of_the_rows_interleaved],
    ids=lambda plant: plant.__name__.strip("_"),
)  # fmt: skip
def test_planted_mistakes_of_the_decoder_fail_the_gate(
    plant: Plant, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    parts, verdict = parts_of(case), Verdict()
    assert isinstance(parts.lm, decoder.DecoderParts)
    write_decoder(parts.lm, parts.manifest, tmp_path, "F32", verdict, Progress())
    assert verdict.failed == ["lm F32"]


def test_cross_attention_of_another_width_is_refused(case: Case, tmp_path: Path) -> None:
    """As if the rows were as wide as the decoder."""
    parts = parts_of(case)
    assert isinstance(parts.lm, decoder.DecoderParts)
    assert isinstance(parts.lm.config, decoder.DecoderConfig)
    config = dataclasses.replace(parts.lm.config, row_width=BASE)
    cross = bert_decoder.cross_weights(config, parts.lm.checkpoint, "text_decoder.")
    other = decoder.CrossParts(decoder.CrossGraph(config), cross)
    wrong = dataclasses.replace(parts.lm, config=config, cross=other)
    with pytest.raises(CheckpointError) as caught:
        parts.lm.checkpoint.require(wrong.shapes)
    assert any(f"expected [{BASE}, {BASE}]" in each for each in caught.value.details)


def _positions_off_by_one(patch: pytest.MonkeyPatch) -> None:
    right = GraphSession.run_in_place

    def planted(self: GraphSession, inputs: Any, *rest: Any) -> np.ndarray:
        return right(self, {**inputs, "positions": inputs["positions"] + 1}, *rest)

    patch.setattr(GraphSession, "run_in_place", planted)


def _rows_one_short(patch: pytest.MonkeyPatch) -> None:
    right = onnx_decoder.OnnxContext.prefill_rows

    def planted(self: Any, seq: int, rows: np.ndarray, *rest: Any, **more: Any) -> None:
        right(self, seq, rows, *rest, **more)
        self._n_rows[seq] -= 1

    patch.setattr(onnx_decoder.OnnxContext, "prefill_rows", planted)


def _rows_of_the_first_slot(patch: pytest.MonkeyPatch) -> None:
    right = onnx_decoder.OnnxContext._run

    def planted(self: Any, first: int, *rest: Any) -> np.ndarray:
        for rows in self._rows.values():
            rows[1:] = rows[:1]
        return right(self, first, *rest)

    patch.setattr(onnx_decoder.OnnxContext, "_run", planted)


def _cells_of_the_slot_before(patch: pytest.MonkeyPatch) -> None:
    right = onnx_decoder.OnnxContext._run

    def planted(self: Any, first: int, *rest: Any) -> np.ndarray:
        for cells in self._keys.values():
            cells[1:] = cells[:1]
        return right(self, first, *rest)

    patch.setattr(onnx_decoder.OnnxContext, "_run", planted)


def _said(captioner: Captioner) -> list[list[int]]:
    """Return the ids of two pictures' captions, made together."""
    generator = captioner.engines.new_generator(2)
    plan = plan_of(captioner, instruction="a picture of", caption_tokens=16, stop_at_end=False)
    requests = [captioner.request(captioner.encode(each), plan) for each in pictures()[:2]]
    done = [event for event in generator.run(requests) if isinstance(event, Finished)]
    generator.close()
    return [each.ids for each in sorted(done, key=lambda each: each.index)]


@pytest.mark.parametrize(
    "plant", [_positions_off_by_one, _rows_one_short, _rows_of_the_first_slot,
              _cells_of_the_slot_before],
    ids=lambda plant: plant.__name__.strip("_"),
)  # fmt: skip
def test_planted_mistakes_of_the_engine_change_the_text(
    plant: Plant, case: Case, captioner: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_of(case)
    expected = [reference.continued(each, "a picture of", 16) for each in pictures()[:2]]
    assert _said(captioner) == expected
    plant(monkeypatch)
    assert _said(captioner) != expected


# ---- refusals


def test_quantizations_that_it_has_not_are_refused(case: Case, tmp_path: Path) -> None:
    assert "Q6_K" in GGUF_QUANTS
    with pytest.raises(UsageError, match="Q6_K") as caught:
        convert_family("blip", tmp_path / "b", ConvertOptions(lm_quant="Q6_K"), case.settings)
    assert "F32" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text_config": {"hidden_act": "relu"}}, "hidden_act = 'relu'"),
        ({"text_config": {"num_attention_heads": 5}}, "no multiple of num_attention_heads"),
        ({"text_config": {"vocab_size": 300}}, "expected [300, 128]"),
        ({"vision_config": {"image_size": 70}}, "image_size is 70, the tensors have 56"),
        ({"vision_config": {"hidden_size": 0}}, "vision_config.hidden_size = 0"),
        ({"text_config": {"rotary": 4}}, "rotary = 4"),
        ({"model_type": "blip-2"}, "is not a checkpoint of blip"),
    ],
)
def test_what_contradicts_the_published_layout_is_refused(
    fields: dict[str, Any], expected: str, case: Case, tmp_path: Path
) -> None:
    source, folder = case.settings["captioner"], tmp_path / "c"
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    data = json.loads((source / "config.json").read_text())
    for name, value in fields.items():
        data[name] = {**data[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError) as caught:
        convert_family("blip", tmp_path / "b", ConvertOptions(("fp32",), "F32"),
                       {"captioner": folder})  # fmt: skip
    text = " ".join([caught.value.message, *caught.value.details])
    assert expected in text
    assert not (tmp_path / "b").exists()


def test_the_original_layout_needs_a_vocabulary(tmp_path: Path) -> None:
    other = write_blip(tmp_path / "c", layout="pth", width=BASE)
    vocabulary = tmp_path / "c" / "vocab.txt"
    vocabulary.rename(tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match="without a tokenizer"):
        parts_of(other)
    other.settings["tokenizer"] = tmp_path
    assert parts_of(other).lm.vocabulary.bos == START
    vocabulary.write_text("".join(f"{i}\n" for i in range(150)) + "[UNK]\n[CLS]\n[SEP]\n")
    other.settings["tokenizer"] = tmp_path / "c"
    with pytest.raises(CheckpointError, match="number"):
        parts_of(other)


def test_values_that_are_not_finite_are_refused(case: Case, tmp_path: Path) -> None:
    other = write_blip(tmp_path / "c", layout="bin", width=BASE)
    (path,) = (tmp_path / "c").glob("pytorch_model*.bin")
    tensors = torch.load(path, weights_only=True)
    tensors["text_decoder.bert.encoder.layer.0.output.dense.bias"][3] = float("nan")
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=r"layer\.0\.output\.dense\.bias"):
        converted(other, tmp_path / "b")
