"""CogVLM and CogVLM2 as published, against a reference in torch: two experts, and one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.manifest_language import RowWeights
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.families import cogvlm
from edgeprism.convert.gate.judge import Verdict
from edgeprism.convert.language import experts
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import config, eva2_clip, graph
from edgeprism.convert.write_row_expert import measure_rows, write_row_expert
from edgeprism.errors import CheckpointError, EdgePrismError, ParityError, UsageError
from edgeprism.progress import Progress
from tests.helpers import bundles
from tests.helpers.captions import caption_ids
from tests.helpers.changed_config import change_config
from tests.helpers.cogvlm_reference import CogVlm, CogVlmReference
from tests.helpers.converting import convert_family, lm_of, parts_of
from tests.helpers.family_checks import (
    N_TOKENS,
    check_pixels,
    check_rows_and_texts,
    converted,
    error_of,
    loaded,
)
from tests.helpers.tiny_captioners import INSTRUCTION, Case, pictures
from tests.helpers.tiny_cogvlm import pixels, write_cogvlm

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    folder = tmp_path_factory.mktemp("cogvlm")
    return {
        "first": write_cogvlm(folder / "first", seed=100),
        "second": write_cogvlm(folder / "second", second=True, seed=104),
        "video": without_vision_expert(folder),
    }


@pytest.fixture(scope="module")
def bundles_of(cases: dict[str, Case], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("bundles")
    return {name: converted(case, out / name) for name, case in cases.items()}


def without_vision_expert(folder: Path, seed: int = 84) -> Case:
    """Write the layout of cogvlm2-llama3-caption, whose rows all go through one expert.

    The reference has two experts with the same weights, and the middle of a picture.
    """
    case = write_cogvlm(folder / "video", second=True, template="base", seed=seed)
    captioner = case.settings["captioner"]
    for path in captioner.glob("*.safetensors"):
        tensors = {n: t for n, t in load_file(path).items() if "vision_expert" not in n
                   and "vision_mlp" not in n}  # fmt: skip
        save_file(tensors, path, {"format": "pt"})
    index = captioner / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    held = [name for path in captioner.glob("*.safetensors") for name in load_file(path)]
    data["weight_map"] = {name: data["weight_map"][name] for name in held}
    index.write_text(json.dumps(data))
    change_config(captioner, {"architectures": ["CogVLMVideoForCausalLM"]})
    reference = cast("CogVlmReference", case.reference)
    model = cast("CogVlm", reference.lm)
    state = model.state_dict()
    for name in state:
        if "vision_expert_query_key_value.bias" in name:
            state[name].zero_()
        elif "vision_expert" in name or "vision_mlp" in name:
            own = name.replace("vision_expert", "language_expert")
            state[name].copy_(state[own.replace("vision_mlp", "language_mlp")])
    size = model.sizes.image_size

    def middle(image: Image.Image) -> torch.Tensor:
        shorter = min(image.size)
        edges = [int(size * edge / shorter) for edge in image.size]
        scaled = image.convert("RGB").resize((edges[0], edges[1]), Image.Resampling.BILINEAR)
        left, top = ((edge - size) // 2 for edge in edges)
        return pixels(scaled.crop((left, top, left + size, top + size)), size)

    whole = dataclasses.replace(reference, pixels=[middle], mode="crop")
    return dataclasses.replace(case, reference=whole)


@pytest.mark.parametrize("name", ["first", "second", "video"])
def test_the_bundle_says_what_the_reference_says(
    name: str, cases: dict[str, Case], bundles_of: dict[str, Path]
) -> None:
    check_rows_and_texts(cases[name].reference, bundles_of[name])
    check_pixels(cases[name].reference, bundles_of[name])


def test_the_manifest_says_how_rows_are_treated(bundles_of: dict[str, Path]) -> None:
    first, second, video = (
        manifest_from_bundle(bundles_of[name]) for name in ("first", "second", "video")
    )
    for manifest, rows in ((first, 25), (second, 9), (video, 9)):
        assert manifest.vision.grid == [1, rows + 2]
        assert manifest.vision.constant_rows == [1, 1]
        assert manifest.lm.architecture == "qwen2vl"
        assert manifest.lm.image_positions == "shared"
        assert manifest.prompts.add_bos
    assert first.lm.rows == second.lm.rows == RowWeights("expert", "lm.rows.gguf", own_last=1)
    assert video.lm.rows is None
    assert "lm.rows.gguf" not in video.files
    assert (first.lm.context_length, second.lm.context_length) == (2048, 8192)
    assert first.parity.figures["rows F32"]["relative_error"] < 1e-4
    assert "rows F32" not in video.parity.figures


@pytest.mark.parametrize(
    ("name", "form", "texts", "behind"),
    [
        ("first", "", ("Question: ", " Answer:"), None),
        ("first", "vqa", ("Question: ", " Short answer:"), None),
        ("second", "base", ("", ""), None),
        ("video", "", ("", ""), None),
        ("video", "chat", ("Question: ", " Answer:"), "0"),  # the number of the frame
    ],
)
def test_prompts(
    name: str, form: str, texts: tuple[str, str], behind: str | None, cases: dict[str, Case]
) -> None:
    case = cases[name]
    settings = {**case.settings, "conversation": form}
    prompts = parts_of(dataclasses.replace(case, settings=settings)).manifest.prompts
    assert (prompts.after_image, prompts.after_instruction) == texts
    assert (prompts.markers.end if prompts.markers else None) == behind
    with pytest.raises(UsageError, match="vicuna is not known"):
        cogvlm.read(case.settings["captioner"], None, "vicuna", Progress())


def test_one_picture_at_a_time(bundles_of: dict[str, Path]) -> None:
    with loaded(bundles_of["first"]) as captioner, pytest.raises(UsageError, match="one picture"):
        captioner.caption(pictures()[:2])


def test_both_experts_are_quantized(cases: dict[str, Case], tmp_path: Path) -> None:
    """Random weights err more than trained ones: the gate's bounds do not hold for them."""
    case, out = cases["second"], tmp_path / "b"
    options = ConvertOptions(("int8",), "Q4_K_M", force=True)
    convert_family(case.family, out, options, case.settings)
    figures = manifest_from_bundle(out).parity.figures
    for part in ("lm", "rows"):
        assert 0.01 < figures[f"{part} Q4_K_M"]["relative_error"] < 0.5
    for file in ("lm.gguf", "lm.rows.gguf"):
        assert read_gguf_header(out / file).quant == "Q4_K_M"


# ---- mistakes that the comparison of visual tokens must notice


def _norms_before(patch: pytest.MonkeyPatch) -> None:
    right = config.TowerConfig

    def planted(**fields: Any) -> config.TowerConfig:
        return right(**{**fields, "norm_after": False})

    patch.setattr(config, "TowerConfig", planted)


def _quick_gelu(patch: pytest.MonkeyPatch) -> None:
    right = graph.gelu
    patch.setattr(graph, "gelu", lambda x, _name: right(x, "quick_gelu"))


def _cells_by_columns(patch: pytest.MonkeyPatch) -> None:
    right = graph.join_cells

    def planted(x: torch.Tensor, s: int) -> torch.Tensor:
        joined = right(x, s).unflatten(-1, [s, s, x.shape[-1]])
        by_columns: torch.Tensor = joined.transpose(2, 3).flatten(2)
        return by_columns

    patch.setattr(eva2_clip, "join_cells", planted)


def _gate_and_up_changed_over(patch: pytest.MonkeyPatch) -> None:
    right = eva2_clip._projector_weights

    def planted(*arguments: Any) -> Any:
        weights = right(*arguments)
        weights["gate.weight"], weights["up.weight"] = weights["up.weight"], weights["gate.weight"]
        return weights

    patch.setattr(eva2_clip, "_projector_weights", planted)


def _ends_changed_over(patch: pytest.MonkeyPatch) -> None:
    right = eva2_clip._projector_weights

    def planted(*arguments: Any) -> Any:
        weights = right(*arguments)
        weights["first_row"], weights["last_row"] = weights["last_row"], weights["first_row"]
        return weights

    patch.setattr(eva2_clip, "_projector_weights", planted)


def _another_epsilon(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(eva2_clip, "_EPS", 1e-2)


VISION_MISTAKES: list[Plant] = [
    _norms_before, _quick_gelu, _cells_by_columns, _gate_and_up_changed_over, _ends_changed_over,
    _another_epsilon,
]  # fmt: skip


def test_without_a_mistake_the_error_is_small(cases: dict[str, Case]) -> None:
    assert error_of(cases["first"]) < 1e-5
    assert error_of(cases["second"]) < 1e-5


@pytest.mark.parametrize("plant", VISION_MISTAKES, ids=lambda plant: plant.__name__.strip("_"))
def test_planted_mistakes_are_seen(
    plant: Plant, cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert error_of(cases["second"]) > 1e-4


# ---- mistakes that the gate must notice in the language model


def _changed(**changes: Callable[[Any, str], Any]) -> Plant:
    """Return a mistake in the tensors of the expert that a keyword names."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = experts.gguf_tensors

        def planted(config: Any, expert: str) -> Any:
            change = changes.get(expert)
            tensors = list(right(config, expert))
            return [change(t, expert) for t in tensors] if change else tensors

        patch.setattr(experts, "gguf_tensors", planted)

    return plant


def _with_source(tensor: Any, change: Callable[[str], str]) -> Any:
    return dataclasses.replace(tensor, source=change(tensor.source))


def _language_weights(tensor: Any, _: str) -> Any:
    if tensor.name.endswith(".bias"):
        return tensor
    return _with_source(
        tensor,
        lambda source: source.replace("vision_expert", "language_expert").replace(
            "vision_mlp", "language_mlp"
        ),
    )


def _next_layer(tensor: Any, _: str) -> Any:
    if "attn_k" not in tensor.name and "attn_v" not in tensor.name:
        return tensor
    other = {"layers.0.": "layers.1.", "layers.1.": "layers.0."}
    lead = next((each for each in other if each in tensor.source), "")
    return _with_source(tensor, lambda source: source.replace(lead, other.get(lead, "")))


def _values_as_keys(tensor: Any, _: str) -> Any:
    if "attn_v" not in tensor.name:
        return tensor
    rows = tensor.shape[0]
    packed = tensor.source_shape[0]
    return dataclasses.replace(tensor, turn=lambda t: t[packed - 2 * rows : packed - rows])


def _no_bias(tensor: Any, _: str) -> Any:
    if not tensor.name.endswith(".bias"):
        return tensor
    right = tensor.turn
    return dataclasses.replace(tensor, turn=lambda t: 0 * right(t))


GATE_MISTAKES = {
    "language weights for rows": _language_weights,
    "keys and values of the other layer": _next_layer,
    "keys for values": _values_as_keys,
    "no bias": _no_bias,
}


def failures_of_rows(
    case: Case, folder: Path, change: Callable[[Any, str], Any] = lambda tensor, _: tensor
) -> list[str]:
    """Write both language models, the expert with a change, and measure rows as the gate does."""
    parts, verdict = parts_of(case), Verdict()
    lm = lm_of(parts)
    expert = lm.row_expert
    assert expert is not None
    planted = dataclasses.replace(expert, tensors=[change(t, "vision") for t in expert.tensors])
    path, progress = folder / "lm.gguf", Progress()
    write_gguf(path, "F32", lm, "tiny", progress)
    write_row_expert(lm, planted, folder / "lm.rows.gguf", "F32", "tiny", progress)
    measure_rows(parts, lm, planted, path, "F32", verdict, progress)
    return verdict.failures


def test_the_gate_sees_no_mistake_where_there_is_none(
    cases: dict[str, Case], tmp_path: Path
) -> None:
    assert failures_of_rows(cases["second"], tmp_path) == []


@pytest.mark.parametrize("name", GATE_MISTAKES)
def test_the_gate_sees_planted_mistakes(name: str, cases: dict[str, Case], tmp_path: Path) -> None:
    assert failures_of_rows(cases["second"], tmp_path, GATE_MISTAKES[name])


def test_the_gate_sees_a_row_too_many_through_the_expert(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cogvlm, "_OWN_LAST", 0)
    assert failures_of_rows(cases["first"], tmp_path)


def test_nothing_is_written_where_the_gate_fails(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _changed(language=_next_layer, vision=_no_bias)(monkeypatch)
    with pytest.raises(ParityError, match="does not compute") as caught:
        converted(cases["second"], tmp_path / "b")
    failed = {detail.partition(":")[0] for detail in caught.value.details}
    assert failed == {"lm F32", "rows F32"}
    assert "what its picture rows go through (F32)" in caught.value.message
    assert not (tmp_path / "b").exists()


# ---- mistakes that the comparison of texts must notice


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": RowWeights("expert", "lm.rows.gguf", own_last=0)},
        {"rows": RowWeights("expert", "lm.rows.gguf", own_last=2)},
        {"rows": None},
        {"image_positions": "one-by-one"},
    ],
    ids=["the expert for the last row", "the model for the last two", "no expert",
         "a position for each row"],
)  # fmt: skip
def test_another_manifest_says_something_else(
    changes: dict[str, Any], cases: dict[str, Case], bundles_of: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(bundles_of["second"], tmp_path / "b")
    manifest = manifest_from_bundle(folder)
    lm = dataclasses.replace(manifest.lm, **changes)
    text = dataclasses.replace(manifest, lm=lm).to_json()
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    bundles.known_to_run(folder)
    different = 0
    with loaded(folder) as captioner:
        for picture in pictures()[:3]:
            ids = caption_ids(
                captioner, picture, instruction=INSTRUCTION, caption_tokens=N_TOKENS,
                stop_at_end=False,
            )  # fmt: skip
            different += ids != cases["second"].reference.greedy(picture, N_TOKENS)
    assert different


# ---- refusals


def refused(folder: Path, out: Path, **settings: Any) -> EdgePrismError:
    options = ConvertOptions(("fp32",), "F32")
    with pytest.raises((CheckpointError, UsageError)) as caught:
        convert_family("cogvlm", out, options, {"captioner": folder, **settings})
    assert not out.exists()
    return caught.value


def linked(source: Path, folder: Path) -> Path:
    """Return a folder of links to the files of `source`, with a config.json of its own."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path)
    shutil.copy(source / "config.json", folder)
    return folder


VISION = "vision_config"


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("second", {"architectures": ["LlamaForCausalLM"]}, ("is not a checkpoint of cogvlm",)),
        ("second", {"surprise": 3, "hidden_act": "gelu"}, ("surprise = 3",)),
        ("second", {VISION: {"surprise": 3}}, ("(vision_config)", "surprise = 3")),
        ("second", {"template_version": "poem"}, ("template_version = 'poem'",)),
        ("second", {"num_multi_query_heads": None}, ("a convolution behind the tower",)),
        ("first", {"num_multi_query_heads": 2}, ("no convolution behind the tower",)),
        ("second", {"num_multi_query_heads": 3}, ("is no multiple of",)),
        ("second", {"num_multi_query_heads": "two"}, ("num_multi_query_heads = 'two'",)),
        ("second", {"num_multi_query_heads": 1}, ("query_key_value.weight: [128, 64]",)),
        ("second", {"hidden_act": "gelu"}, ("hidden_act = 'gelu'",)),
        ("second", {"tie_word_embeddings": True}, ("a head of its own",)),
        ("second", {"intermediate_size": None}, ("lacks intermediate_size",)),
        ("second", {"num_hidden_layers": 0}, ("num_hidden_layers = 0",)),
        ("second", {"rms_norm_eps": "tiny"}, ("rms_norm_eps = 'tiny'",)),
        ("second", {"bos_token_id": 3}, ("config.json has bos_token_id 3",)),
        ("second", {"eos_token_id": 1 << 20}, ("eos_token_id 1048576",)),
        ("second", {"max_position_embeddings": 11}, ("a picture alone has 11 visual tokens",)),
        ("second", {VISION: {"num_positions": 17}}, ("num_positions 17, but 37",)),
        ("second", {VISION: {"num_heads": 5}}, ("no multiple of num_heads 5",)),
        ("second", {VISION: {"in_channels": 4, "hidden_act": "silu"}},
         ("in_channels = 4", "hidden_act = 'silu'")),
        ("second", {VISION: {"layer_norm_eps": 0, "patch_size": None}}, ("patch_size = None",)),
        ("second", {VISION: {"image_size": 70, "num_positions": 26}}, ("cannot be joined",)),
        ("second", {VISION: {"num_hidden_layers": 4}}, ("does not hold the tensors",)),
        ("first", {"architectures": ["CogVLMVideoForCausalLM"]},
         ("CogVLMVideoForCausalLM", "num_multi_query_heads")),
        ("video", {"architectures": ["CogVLMForCausalLM"]}, ("does not hold the tensors",)),
        ("second", {"architectures": ["CogVLMVideoForCausalLM"]}, ("vision_expert",)),
    ],
)  # fmt: skip
def test_what_contradicts_the_published_layout_is_refused(
    name: str,
    fields: dict[str, Any],
    expected: tuple[str, ...],
    cases: dict[str, Case],
    tmp_path: Path,
) -> None:
    settings = cases[name].settings
    folder = linked(settings["captioner"], tmp_path / "c")
    change_config(folder, fields)
    error = refused(
        folder, tmp_path / "b", **{n: p for n, p in settings.items() if n != "captioner"}
    )
    text = " ".join([error.message, *error.details])
    assert all(part in text for part in expected), text


def test_the_first_needs_a_tokenizer_from_elsewhere(cases: dict[str, Case], tmp_path: Path) -> None:
    error = refused(cases["first"].settings["captioner"], tmp_path / "b")
    assert "holds no tokenizer" in error.message
    assert "lmsys/vicuna-7b-v1.5" in error.hint
    other = cases["second"].settings["captioner"]
    error = refused(cases["first"].settings["captioner"], tmp_path / "b", tokenizer=other)
    assert "ids up to 703, the model's vocabulary 436 rows" in error.message
