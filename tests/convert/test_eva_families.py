"""Captioners on EVA-ViT-g, converted, say what stock classes say: xcomposer and minigpt4."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sentencepiece import sentencepiece_model_pb2
from transformers import RepetitionPenaltyLogitsProcessor

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.vision import eva_side, eva_vit, graph, qformer, weights
from edgeprism.errors import CheckpointError, UsageError
from tests.helpers.converting import lm_of, parts_of
from tests.helpers.eva_mistakes import (
    class_row_dropped,
    last_block_runs,
    other_epsilon_behind_the_tower,
    queries_not_normed,
)
from tests.helpers.family_checks import (
    N_TOKENS,
    check_pixels,
    check_rows_and_texts,
    converted,
    error_of,
)
from tests.helpers.tiny_captioners import Case
from tests.helpers.tiny_minigpt4 import write_minigpt4
from tests.helpers.tiny_xcomposer import write_xcomposer

CASES: dict[str, Callable[[Path], Case]] = {
    "xcomposer": lambda p: write_xcomposer(p, seed=35),
    "xcomposer-merged": lambda p: write_xcomposer(p, lora=False, seed=33),
    "xcomposer-vl": lambda p: write_xcomposer(p, kind="vl", seed=34),
    "sharecaptioner": lambda p: write_xcomposer(p / "ShareCaptioner", kind="sharecaptioner"),
    "minigpt4": write_minigpt4,
    "minigpt4-llama-2": lambda p: write_minigpt4(p, kind="llama-2", seed=42),
    "minigpt-v2": lambda p: _with_task(write_minigpt4(p, kind="v2", task=True, seed=44)),
}
CONVERTED = ["xcomposer", "sharecaptioner", "minigpt4", "minigpt-v2"]  # each takes some seconds
CaseOf = Callable[[str], Case]
# {case: upstream's repetition penalty}
PENALTIES = {name: 1.05 if name.startswith("minigpt") else 1.5 for name in CASES}


def _with_task(case: Case) -> Case:
    case.settings["task"] = "caption"
    return case


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> CaseOf:
    return cache(lambda name: CASES[name](tmp_path_factory.mktemp("captioner") / "c"))


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, case_of: CaseOf) -> Callable[[str], Path]:
    return cache(lambda name: converted(case_of(name), tmp_path_factory.mktemp("bundle") / name))


@torch.inference_mode()
def penalised_greedy(case: Case, picture: Image.Image, penalty: float) -> list[int]:
    """Return the reference's greedy tokens with transformers' own repetition penalty."""
    reference = case.reference
    embed = reference.lm.get_input_embeddings()
    before, _, after = (
        embed(torch.tensor([ids], dtype=torch.long)) for ids in reference.prompt_ids()
    )
    rows = torch.cat([before, reference.visual_tokens(picture)[None], after], dim=1)
    process = RepetitionPenaltyLogitsProcessor(penalty)
    step = reference.lm(inputs_embeds=rows, use_cache=True)
    ids: list[int] = []
    while True:
        made = torch.tensor([ids], dtype=torch.long)
        ids.append(int(process(made, step.logits[:, -1])[0].argmax()))
        if len(ids) == N_TOKENS:
            return ids
        step = reference.lm(
            input_ids=torch.tensor([ids[-1:]]), past_key_values=step.past_key_values,
            use_cache=True,
        )  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_the_bundle_says_what_the_reference_says(
    name: str, case_of: CaseOf, bundle_of: Callable[[str], Path]
) -> None:
    case, penalty = case_of(name), PENALTIES[name]
    assert manifest_from_bundle(bundle_of(name)).prompts.repetition_penalty == penalty
    check_rows_and_texts(
        case.reference, bundle_of(name), lambda picture: penalised_greedy(case, picture, penalty)
    )


@pytest.mark.parametrize("name", ["xcomposer", "sharecaptioner", "minigpt4", "minigpt-v2"])
def test_pixels_are_the_processors_to_one_grey_level(
    name: str, case_of: CaseOf, bundle_of: Callable[[str], Path]
) -> None:
    assert manifest_from_bundle(bundle_of(name)).image.mode == "stretch"
    check_pixels(case_of(name).reference, bundle_of(name))


def test_rows_of_no_place_and_of_the_frame_are_counted(bundle_of: Callable[[str], Path]) -> None:
    for name, n_rows in (("xcomposer", 6 + 2), ("sharecaptioner", 9 + 2), ("minigpt-v2", 16)):
        vision = manifest_from_bundle(bundle_of(name)).vision
        assert vision.grid == [1, n_rows]
        assert vision.tokens_per_tile == n_rows


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONVERTED])
def test_the_others_have_their_own_prompts(name: str, case_of: CaseOf) -> None:
    """Their language models and towers are compared below, and the prompts by their texts."""
    parts, reference = parts_of(case_of(name)), case_of(name).reference
    prompts = parts.manifest.prompts
    assert prompts.before_image == reference.before
    after = prompts.after_image + "{}" + prompts.after_instruction + prompts.before_caption
    assert after == reference.after + getattr(reference, "end", "")
    assert prompts.add_bos
    assert prompts.repetition_penalty == PENALTIES[name]
    assert error_of(case_of(name)) < 1e-5


# ---- the comparison sees mistakes: the vision half, run in torch with a mistake planted


def _values_before_keys(patch: pytest.MonkeyPatch) -> None:
    rows = weights.take_rows

    def planted(first: int, end: int, tensor: torch.Tensor) -> torch.Tensor:
        e = end - first
        return rows((0, 2 * e, e)[first // e], (e, 3 * e, 2 * e)[first // e], tensor)

    patch.setattr(eva_vit, "take_rows", planted)


def _gelu_of_the_other_form(patch: pytest.MonkeyPatch) -> None:
    def planted(x: torch.Tensor, _name: str) -> torch.Tensor:
        return torch.nn.functional.gelu(x, approximate="tanh")

    patch.setattr(graph, "gelu", planted)
    patch.setattr(qformer, "gelu", planted)


def _norm_before_the_branch(patch: pytest.MonkeyPatch) -> None:
    def planted(self: qformer.FeedForward, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + self.fc2(graph.gelu(self.fc1(self.norm(x)), "gelu"))
        return y

    patch.setattr(qformer.FeedForward, "forward", planted)


def _frame_turned_round(patch: pytest.MonkeyPatch) -> None:
    forward = eva_side.QueryGraph.forward

    def planted(self: eva_side.QueryGraph, pixels: torch.Tensor) -> torch.Tensor:
        rows = forward(self, pixels)
        return torch.cat([rows[:, -1:], rows[:, 1:-1], rows[:, :1]], dim=1)

    patch.setattr(eva_side.QueryGraph, "forward", planted)


def _patches_joined_as_cells(patch: pytest.MonkeyPatch) -> None:
    def planted(self: eva_side.JoinedPatchGraph, pixels: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.projector(graph.join_cells(self.tower(pixels), 2))
        return rows

    patch.setattr(eva_side.JoinedPatchGraph, "forward", planted)


def _no_norm_behind_the_tower(patch: pytest.MonkeyPatch) -> None:
    forward = graph.Norm.forward

    def planted(self: graph.Norm, x: torch.Tensor) -> torch.Tensor:
        return x if self.eps == eva_side.EPS_LAST else forward(self, x)

    patch.setattr(graph.Norm, "forward", planted)


def _positions_repeated(patch: pytest.MonkeyPatch) -> None:
    def planted(grid: int, table: torch.Tensor) -> torch.Tensor:
        return table[0, 1:].repeat(grid**2 // (table.shape[1] - 1), 1)

    patch.setattr(eva_vit, "_resampled", planted)


MISTAKES: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("xcomposer", other_epsilon_behind_the_tower),
    ("xcomposer", class_row_dropped),
    ("xcomposer", _values_before_keys),
    ("xcomposer", _gelu_of_the_other_form),
    ("xcomposer", queries_not_normed),
    ("xcomposer", _norm_before_the_branch),
    ("xcomposer", _frame_turned_round),
    ("minigpt4", other_epsilon_behind_the_tower),
    ("minigpt4", last_block_runs),
    ("minigpt4", class_row_dropped),
    ("minigpt4", queries_not_normed),
    ("minigpt4-llama-2", _patches_joined_as_cells),
    ("minigpt4-llama-2", _no_norm_behind_the_tower),
    ("minigpt4-llama-2", other_epsilon_behind_the_tower),
    ("minigpt-v2", _positions_repeated),
    ("minigpt-v2", last_block_runs),
]


@pytest.mark.parametrize("name", ["xcomposer", "minigpt4", "minigpt-v2"])
def test_without_a_mistake_the_error_is_small(name: str, case_of: CaseOf) -> None:
    assert error_of(case_of(name)) < 1e-5


@pytest.mark.parametrize(("name", "plant"), MISTAKES)
def test_planted_mistakes_are_seen(
    name: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    case_of: CaseOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(name)  # made before the mistake is planted
    plant(monkeypatch)
    assert error_of(case) > 1e-4


@pytest.mark.parametrize("name", ["xcomposer", "xcomposer-vl", "minigpt-v2"])
def test_the_merged_lora_is_the_published_product(name: str, case_of: CaseOf) -> None:
    """A LoRA left out, or with its rank for its scale, gives other matrices."""
    case = case_of(name)
    lm = lm_of(parts_of(case))
    layer = case.reference.lm.model.layers[1]
    for stem, module in (("self_attn.v_proj", layer.self_attn.v_proj),):
        source = next(n for n in lm.shapes if n.endswith(f"layers.1.{stem}.weight"))
        with torch.inference_mode():
            rows = torch.eye(module.in_features)
            bias = 0 if module.bias is None else module.bias
            expected = (module(rows) - bias).t()
        base = lm.checkpoint.read_float32(source)
        torch.testing.assert_close(lm.read(source), expected, atol=1e-5, rtol=1e-4)
        assert float((base - expected).abs().max()) > 1e-2


# ---- refusals


def refusal(case: Case, out: Path, **settings: Any) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        converted(dataclasses.replace(case, settings={**case.settings, **settings}), out)
    assert not out.exists()
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_query_token": 7}, "num_query_token = 7, and query_tokens has 6 rows"),
        ({"kqvo_bias": False}, "kqvo_bias = False (expected True)"),
        ({"intern_converted_llm": False}, "intern_converted_llm = False"),
        ({"lora_cfg": None}, "internlm_lora and lora_cfg differ"),
        ({"internlm_lora": None, "lora_cfg": None}, "unexpected: internlm_model.model.layers.0."),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"model_type": "internlmxcomposer2"}, "is not a checkpoint of xcomposer"),
    ],
)
def test_other_xcomposers_are_refused(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    case = write_xcomposer(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    error = refusal(case, tmp_path / "out")
    assert expected in error.message


def test_a_lora_of_another_rank_is_refused(tmp_path: Path) -> None:
    case = write_xcomposer(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    changed = {**config["internlm_lora"], "lora_r": 4}
    path.write_text(json.dumps({**config, "internlm_lora": changed, "lora_cfg": changed}))
    error = refusal(case, tmp_path / "out")
    assert "lora_A.weight: [8, 64], expected [4, 64]" in error.message


def test_what_minigpt4_needs_is_named(tmp_path: Path) -> None:
    case = write_minigpt4(tmp_path / "c")
    assert "blip2_pretrained_flant5xxl.pth" in refusal(case, tmp_path / "out", qformer=None).hint
    swapped = refusal(case, tmp_path / "out", vision=case.settings["qformer"]).message
    assert "holds no .pth file with patch_embed.proj.weight" in swapped
    assert "blip2_pretrained_flant5xxl.pth" in swapped
    case.settings["task"] = "caption"
    with pytest.raises(UsageError, match="knows no tasks"):
        converted(case, tmp_path / "out")


def test_minigpt4_runs_on_no_later_llama(tmp_path: Path) -> None:
    """Llama 3 is as wide as Llama 2, so the tensors alone would fit."""
    case = write_minigpt4(tmp_path / "c", kind="llama-2")
    path = Path(case.settings["llm"]) / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    for piece in model.pieces:
        piece.piece = {"<s>": "<begin>", "</s>": "<end>"}.get(piece.piece, piece.piece)
    path.write_bytes(model.SerializeToString())
    path.with_name("tokenizer_config.json").unlink()
    assert "no token is named <s> or </s>" in refusal(case, tmp_path / "out").message


def test_files_that_do_not_tell_which_are_refused(tmp_path: Path) -> None:
    case = write_minigpt4(tmp_path / "c")
    (own,) = Path(case.settings["captioner"]).glob("*.pth")
    (own.parent / "again.pth").write_bytes(own.read_bytes())
    message = refusal(case, tmp_path / "out").message
    assert "holds more than one file with llama_proj.weight" in message
    assert f"again.pth, {own.name}" in message
    (own.parent / "again.pth").write_bytes(b"not a table of tensors")
    assert "again.pth cannot be read as tensors alone" in refusal(case, tmp_path / "out").message
    (own.parent / "again.pth").unlink()
    tensors = torch.load(own, weights_only=True)
    tensors["model"]["llama_proj.weight"] = torch.zeros(64, 40)
    torch.save(tensors, own)
    expected = "llama_proj.weight: [64, 40], expected [64, 48]"
    assert expected in refusal(case, tmp_path / "out").message


def test_a_qformer_of_another_tower_is_refused(tmp_path: Path) -> None:
    case = write_minigpt4(tmp_path / "c")
    (path,) = Path(case.settings["qformer"]).glob("*.pth")
    tables = torch.load(path, weights_only=True)
    for name, tensor in list(tables["model"].items()):
        if "crossattention.self.key.weight" in name:
            tables["model"][name] = tensor[:, :40].clone()
    torch.save(tables, path)
    message = refusal(case, tmp_path / "out").message
    assert "reads features of width 40, and the vision model's have 64" in message


def test_all_files_of_minigpt4_may_lie_in_one_folder(tmp_path: Path, case_of: CaseOf) -> None:
    case = case_of("minigpt4")
    together = tmp_path / "all"
    together.mkdir()
    for part in ("captioner", "vision", "qformer"):
        for path in Path(case.settings[part]).glob("*.pth"):
            (together / path.name).write_bytes(path.read_bytes())
    settings = {**case.settings, **dict.fromkeys(("captioner", "vision", "qformer"), together)}
    assert error_of(dataclasses.replace(case, settings=settings)) < 1e-5
