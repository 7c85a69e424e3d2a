"""InternLM-XComposer2 in its published layout, against a reference in torch."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import RepetitionPenaltyLogitsProcessor

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.manifest_language import RowWeights
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert import pipeline
from edgeprism.convert.families import xcomposer2
from edgeprism.convert.gate import judge
from edgeprism.convert.language import internlm2, row_adapter
from edgeprism.convert.language.config import LmConfig, LmTensor
from edgeprism.convert.language.model import LmParts
from edgeprism.convert.language.rope import permute_for_rope
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import clip_l, config, graph, weights
from edgeprism.errors import CheckpointError, ParityError
from edgeprism.language.adapter import Adapter
from edgeprism.progress import Progress
from tests.helpers.captions import caption_ids
from tests.helpers.changed_config import changed_copy
from tests.helpers.converting import convert_family, parts_of
from tests.helpers.family_checks import (
    N_TOKENS,
    check_pixels,
    check_rows_and_texts,
    converted,
    error_of,
    loaded,
)
from tests.helpers.tiny_captioners import INSTRUCTION, Case, pictures
from tests.helpers.tiny_xcomposer2 import write_checkpoint
from tests.helpers.xcomposer2_reference import XComposer2Reference

PENALTY = 1.005  # of the published `chat`
KINDS: dict[str, dict[str, Any]] = {
    "vl": {}, "vl-1.8b": {"seed": 3, "meta": False}, "7b": {"seed": 5},
}  # fmt: skip
Plant = Callable[[pytest.MonkeyPatch], None]
CaseOf = Callable[[str], Case]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> CaseOf:
    def write(kind: str) -> Case:
        case = write_checkpoint(tmp_path_factory.mktemp("x2") / "c", kind, **KINDS[kind])
        if not KINDS[kind].get("meta", True):
            case.settings["conversation"] = "plain"
        return case

    return cache(write)


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, case_of: CaseOf) -> Callable[[str], Path]:
    return cache(lambda kind: converted(case_of(kind), tmp_path_factory.mktemp("b") / kind))


def reference_of(case: Case) -> XComposer2Reference:
    assert isinstance(case.reference, XComposer2Reference)
    return case.reference


@torch.inference_mode()
def penalised(reference: XComposer2Reference, *shown: Image.Image) -> list[int]:
    """Return greedy tokens with transformers' own repetition penalty on those of the caption."""
    process, ids = RepetitionPenaltyLogitsProcessor(PENALTY), list[int]()
    seen = reference.whole.nothing_seen()
    logits = reference.logits(list(shown), INSTRUCTION, seen)
    while True:
        made = torch.tensor([ids], dtype=torch.long)
        ids.append(int(process(made, logits[-1:])[0].argmax()))
        if len(ids) == N_TOKENS:
            return ids
        embedded = reference.whole.model.tok_embeddings(torch.tensor(ids[-1:]))
        logits = reference.whole.logits(embedded, torch.tensor([False]), seen)


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundle_says_what_the_reference_says(
    kind: str, case_of: CaseOf, bundle_of: Callable[[str], Path]
) -> None:
    reference = reference_of(case_of(kind))
    check_rows_and_texts(reference, bundle_of(kind), lambda p: penalised(reference, p))
    check_pixels(reference, bundle_of(kind))


def test_several_pictures_stand_one_behind_the_other(
    case_of: CaseOf, bundle_of: Callable[[str], Path]
) -> None:
    reference = reference_of(case_of("vl"))
    first, second = pictures()[:2]
    with loaded(bundle_of("vl")) as captioner:
        for shown in ([first, second], [second, first]):
            ids = caption_ids(
                captioner, shown, instruction=INSTRUCTION, caption_tokens=N_TOKENS,
                stop_at_end=False,
            )  # fmt: skip
            assert ids == penalised(reference, *shown)


def test_the_manifest_names_the_adapter(bundle_of: Callable[[str], Path]) -> None:
    bundle = bundle_of("vl")
    manifest = manifest_from_bundle(bundle)
    assert manifest.lm.rows == RowWeights("adapter", "lm.rows.gguf")
    assert manifest.prompts.repetition_penalty == PENALTY
    assert manifest.prompts.stop == ["<|im_end|>", "</s>"]
    assert manifest.parity.figures["rows F32"]["relative_error"] < 1e-4
    header = read_gguf_header(bundle / "lm.rows.gguf")
    assert header.metadata["adapter.lora.alpha"] == 256
    assert len(header.tensors) == 2 * 2 * 7  # halves, layers, matrices
    assert set(header.tensor_types.values()) == {0}  # F32, as the language model


def measured(case: Case, folder: Path, quant: str = "F32") -> judge.Verdict:
    """Write the language model and its adapter as a conversion does, and have the gate judge."""
    parts, verdict, progress = parts_of(case), judge.Verdict(), Progress()
    assert isinstance(parts.lm, LmParts)
    pipeline._write_lm(parts, parts.lm, folder / pipeline.LM_FILE, quant, verdict, progress)
    return verdict


@pytest.mark.parametrize(("quant", "kind"), [("F16", 1), ("Q8_0", 8), ("Q4_K_M", 8)])
def test_an_adapter_is_quantized_with_its_model(
    quant: str, kind: int, case_of: CaseOf, tmp_path: Path
) -> None:
    error = measured(case_of("vl"), tmp_path, quant).figures[f"rows {quant}"]["relative_error"]
    header = read_gguf_header(tmp_path / "lm.rows.gguf")
    assert set(header.tensor_types.values()) == {kind}
    assert 1e-6 < error < {"F16": 0.02, "Q8_0": 0.1, "Q4_K_M": 0.6}[quant]


def test_positions_of_another_size_are_resampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `resize_pos` does it where a folder holds those of 336 pixels."""
    case = write_checkpoint(tmp_path / "c", "vl", seed=8)
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "img_size": 98}))
    tower: Any = reference_of(case).whole.vit["vision_tower"]
    embeddings = tower.vision_model.embeddings
    table = embeddings.position_embedding.weight.detach()
    square = table[1:].reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
    square = functional.interpolate(square, size=(7, 7), mode="bicubic", align_corners=False)
    resized = torch.cat([table[:1], square[0].flatten(1).t()])
    embeddings.position_embedding = nn.Embedding.from_pretrained(resized)
    embeddings.position_ids, embeddings.image_size = torch.arange(50)[None], 98
    monkeypatch.setattr(XComposer2Reference, "size", 98)
    assert error_of(case) < 1e-5
    parts = parts_of(case)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 98, 98, 3), dtype=np.uint8)
    expected = parts.reference_visual_tokens(pixels, lambda: None)  # the gate's
    module = parts.vision(torch.float32)
    state = {n: parts.vision_weights.read(n, torch.float32) for n, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    rows = module(torch.from_numpy(pixels)).detach().numpy()
    np.testing.assert_allclose(rows, expected, atol=1e-4 * float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["internlm2", "internlm"])
def test_other_names_of_the_model(kind: str, case_of: CaseOf, tmp_path: Path) -> None:
    """lmdeploy knows folders by the code that `auto_map` names."""
    source = case_of("vl").settings["captioner"]
    folder = changed_copy(source, tmp_path / "1", {"model_type": kind})
    lm = xcomposer2.read(folder, "chat", "9", Progress()).lm
    assert isinstance(lm, LmParts)
    assert lm.row_adapter is not None
    folder = changed_copy(source, tmp_path / "2", {"model_type": kind, "auto_map": None})
    with pytest.raises(CheckpointError, match="is not a checkpoint of xcomposer2"):
        xcomposer2.read(folder, "chat", "9", Progress())


# ---- mistakes that the gate must notice


def _swapped_halves_of_wqkv(patch: pytest.MonkeyPatch) -> None:
    """The B of keys for values, and the other way round: the wrong part of wqkv's B."""
    right, swapped = internlm2.unpack_wqkv, {"q": "q", "k": "v", "v": "k"}

    def planted(packed: torch.Tensor, lm: LmConfig, part: str) -> torch.Tensor:
        return right(packed, lm, swapped[part] if packed.shape[1] == 256 else part)

    patch.setattr(internlm2, "unpack_wqkv", planted)


def _halves_as_in_rope(patch: pytest.MonkeyPatch) -> None:
    """B in the order of the published matrix: rotated by halves, where llama.cpp takes pairs."""
    right = permute_for_rope
    patch.setattr(
        internlm2, "permute_for_rope",
        lambda rows, n: rows if rows.shape[1] == 256 else right(rows, n),
    )  # fmt: skip


def _half_alpha(patch: pytest.MonkeyPatch) -> None:
    right = row_adapter.partial_lora

    def planted(*arguments: Any) -> tuple[list[LmTensor], int]:
        halves, rank = right(*arguments)
        return halves, rank // 2

    patch.setattr(row_adapter, "partial_lora", planted)


def _gate_for_up(patch: pytest.MonkeyPatch) -> None:
    right, other = row_adapter._half, {"w1": "w3", "w3": "w1"}

    def planted(tensor: LmTensor, which: str) -> str:
        name = right(tensor, which)
        for part, swapped in other.items():
            if f"feed_forward.{part}." in name:
                return name.replace(f".{part}.", f".{swapped}.")
        return name

    patch.setattr(row_adapter, "_half", planted)


def _off_for_rows(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Adapter, "applied", lambda *_: contextlib.nullcontext())


def _on_for_text(patch: pytest.MonkeyPatch) -> None:
    """Once on, it stays on."""
    right = Adapter._set

    def planted(self: Adapter, context: Any, adapters: Any, n: int, scales: Any) -> None:
        if n:
            right(self, context, adapters, n, scales)

    patch.setattr(Adapter, "_set", planted)


ADAPTER_MISTAKES = (_swapped_halves_of_wqkv, _halves_as_in_rope, _half_alpha, _gate_for_up,
                    _off_for_rows, _on_for_text)  # fmt: skip


@pytest.mark.parametrize("plant", ADAPTER_MISTAKES, ids=lambda plant: plant.__name__)
def test_the_gate_notices_a_mistake_in_the_adapter(
    plant: Plant, case_of: CaseOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("vl")
    assert measured(case, tmp_path).failed == []
    plant(monkeypatch)
    assert "rows F32" in measured(case, tmp_path).failed


def test_a_conversion_that_the_gate_refuses_leaves_nothing(
    case_of: CaseOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of("vl")
    _half_alpha(monkeypatch)
    with pytest.raises(ParityError, match="what its picture rows go through"):
        convert_family(case.family, tmp_path / "b", ConvertOptions(("fp32",), "F32"), case.settings)
    assert not (tmp_path / "b").exists()


# ---- mistakes of the vision half, run in torch


def _exact_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _name: right(x, "gelu"))


def _norm_behind_the_tower(patch: pytest.MonkeyPatch) -> None:
    right = config.TowerConfig
    patch.setattr(config, "TowerConfig", lambda **fields: right(**fields, norm_last=True))


def _a_layer_less(patch: pytest.MonkeyPatch) -> None:
    right = config.tower_config_from_dict

    def planted(*arguments: Any) -> Any:
        kind, tower = right(*arguments)
        return kind, dataclasses.replace(tower, n_layers=tower.n_layers - 1)

    patch.setattr(clip_l, "tower_config_from_dict", planted)


def _half_the_heads(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(clip_l, "HEADS", 8)


def _class_row_kept(patch: pytest.MonkeyPatch) -> None:
    right = config.TowerConfig
    patch.setattr(config, "TowerConfig", lambda **fields: right(**fields, keeps_prefix=True))


def _no_class_position(patch: pytest.MonkeyPatch) -> None:
    right = weights.stock_tower_weights

    def planted(*arguments: Any) -> weights.Weights:
        made = right(*arguments)
        prefix = made["prefix"]
        return {**made, "prefix": dataclasses.replace(prefix, turn=lambda row, _: row[None])}

    patch.setattr(clip_l, "stock_tower_weights", planted)


VISION_MISTAKES = (_exact_gelu, _norm_behind_the_tower, _half_the_heads, _class_row_kept,
                   _no_class_position)  # fmt: skip


@pytest.fixture(scope="module")
def with_last_norm(case_of: CaseOf) -> Case:
    return case_of("vl-1.8b")  # whose files hold the norm, so that it could be used


def test_the_vision_half_is_right_without_a_mistake(with_last_norm: Case) -> None:
    assert error_of(with_last_norm) < 1e-5


@pytest.mark.parametrize("plant", VISION_MISTAKES, ids=lambda plant: plant.__name__)
def test_the_comparison_notices_a_mistake_in_the_tower(
    plant: Plant, with_last_norm: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert error_of(with_last_norm) > 3e-3


def test_a_layer_that_would_not_run_is_noticed(
    with_last_norm: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    _a_layer_less(monkeypatch)
    with pytest.raises(CheckpointError, match=r"unexpected: vit\.vision_tower.*layers\.3\."):
        parts_of(with_last_norm)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"img_size": None}, "img_size = None"),
        ({"img_size": "490"}, "img_size = '490'"),
        ({"img_size": 75}, "pictures of 75 pixels, no whole number of patches of 14"),
        ({"lora_targets": ["w1"]}, r"lora_targets = \['w1'\]"),
        ({"bias": True}, "bias = True"),
        ({"model_type": "llava"}, "is not a checkpoint of xcomposer2"),
        ({"hidden_size": 96}, "wrong shape"),
    ],
)
def test_other_configurations_are_refused(
    changes: dict[str, Any], fault: str, case_of: CaseOf, tmp_path: Path
) -> None:
    folder = changed_copy(case_of("vl").settings["captioner"], tmp_path / "c", changes)
    with pytest.raises(CheckpointError, match=fault):
        parts_of(Case("xcomposer2", {"captioner": folder}, case_of("vl").reference))


Tensors = dict[str, torch.Tensor]
_WO = "model.layers.1.attention.wo.Plora_{}.weight"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda t: t.pop(_WO.format("B")), r"missing: model\.layers\.1\.attention\.wo\.Plora_B"),
        (lambda t: t.update({_WO.format("A"): torch.zeros(8, 64)}), "has the ranks 8, 256"),
        (lambda t: t.update({_WO.format("B"): torch.zeros(64, 8)}), "wrong shape"),
        (lambda t: [t.pop(n) for n in list(t) if "Plora" in n], "has the ranks of no matrix"),
        (lambda t: t.update({"output.Plora_A.weight": torch.zeros(256, 64)}), "unexpected: output"),
    ],
)
def test_contradictions_of_the_adapter_are_refused(
    change: Callable[[Tensors], object], fault: str, case_of: CaseOf, tmp_path: Path
) -> None:
    case = case_of("vl-1.8b")
    folder = changed_copy(case.settings["captioner"], tmp_path / "c", {})
    files = sorted(folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    change(tensors)
    for file in (*files, *folder.glob("*.index.json")):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=fault):
        parts_of(Case("xcomposer2", {"captioner": folder}, case.reference))


def test_another_rank_is_refused(tmp_path: Path) -> None:
    """The factor of its products would be a guess."""
    case = write_checkpoint(tmp_path / "c", "vl", rank=16)
    with pytest.raises(CheckpointError, match="has the ranks 16; 256 is expected of all"):
        parts_of(case)
