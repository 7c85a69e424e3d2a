"""InstructBLIP in both layouts: its bundle says what transformers' classes say."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.discover import family_named, likely_family
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import FamilyParts, captioner_parts
from edgeprism.convert.read.card import card_from_folder
from edgeprism.convert.vision import eva_side, eva_vit, qformer
from edgeprism.convert.vision.eager import with_weights
from edgeprism.convert.vision.weights import Weights
from edgeprism.errors import CheckpointError
from edgeprism.machine.onnx_runtime import GraphSession
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.read import read_picture
from edgeprism.progress import Progress
from edgeprism.vision.wordpiece import WordPiece
from tests.helpers.captions import caption_ids
from tests.helpers.changed_config import changed_copy
from tests.helpers.converting import convert_family, lm_of
from tests.helpers.eva_mistakes import (
    class_row_dropped,
    epsilon_of_lavis_behind_the_tower,
    keys_for_queries,
    other_epsilon_behind_the_tower,
)
from tests.helpers.instructed import VOCABULARY
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import pictures
from tests.helpers.tiny_instructblip import (
    LAVIS_IDS,
    N_POSITIONS,
    SIZE,
    InstructBlipCase,
    write_instructblip,
)
from tests.helpers.tiny_t5 import END

N_TOKENS = 32
INSTRUCTION = "Describe the red house near a tree."
OTHER = "Is the dog in the picture red? It's naïve!"
CASES: dict[str, dict[str, Any]] = {
    "transformers": {},
    "bin": {"shards": "bin", "seed": 62},
    "lavis": {"layout": "lavis", "seed": 63},
    "t5": {"language": "t5", "shards": "bin", "seed": 64},
    "t5-lavis": {"layout": "lavis", "language": "t5", "seed": 65},
}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], InstructBlipCase]:
    places = tmp_path_factory
    return cache(
        lambda name: write_instructblip(places.mktemp("instructblip") / name, **CASES[name])
    )


@pytest.fixture(scope="module")
def bundle_of(
    tmp_path_factory: pytest.TempPathFactory, case_of: Callable[[str], InstructBlipCase]
) -> Callable[[str], Path]:
    cached: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in cached:
            out = tmp_path_factory.mktemp("bundle") / name
            options = ConvertOptions(vision_quants=("fp32",), lm_quant="F32")
            convert_family("instructblip", out, options, case_of(name).settings)
            cached[name] = out
        return cached[name]

    return get


def load(bundle: Path) -> Captioner:
    return Captioner.load(bundle, device="cpu", kv_type="f32", flash_attention=False)


@pytest.mark.parametrize("name", CASES)
def test_the_bundle_says_what_the_reference_says(
    name: str, case_of: Callable[[str], InstructBlipCase], bundle_of: Callable[[str], Path]
) -> None:
    """Visual tokens and greedy text, with upstream's penalty of repetitions."""
    case, texts = case_of(name), []
    with load(bundle_of(name)) as captioner:
        for picture in pictures():
            encoded = captioner.encode(picture)
            for instruction in (INSTRUCTION, OTHER):
                ids = caption_ids(
                    captioner, encoded, instruction=instruction, caption_tokens=N_TOKENS,
                    stop_at_end=False,
                )  # fmt: skip
                assert ids == case.greedy(picture, instruction, N_TOKENS, ids)
                texts.append(tuple(ids))
            default = "Write a detailed description."
            expected = case.visual_tokens(picture, default).numpy()
            np.testing.assert_allclose(
                encoded.visual_tokens, expected, atol=1e-4 * float(np.abs(expected).max())
            )
    assert len(set(texts)) == len(texts)  # pictures and instructions are told apart
    assert all(len(set(ids)) >= 8 for ids in texts)


def test_a_focus_changes_the_rows_without_the_tower(
    case_of: Callable[[str], InstructBlipCase],
    bundle_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[str] = []
    run = GraphSession.run

    def counted(self: GraphSession, *arguments: Any) -> list[np.ndarray]:
        runs.append(self.path.name)
        return run(self, *arguments)

    monkeypatch.setattr(GraphSession, "run", counted)
    case, picture = case_of("transformers"), pictures()[0]
    with load(bundle_of("transformers")) as captioner:
        encoded = captioner.encode(picture)
        captions = [captioner.caption(encoded, focus=focus) for focus in (None, "a dog", "a tree")]
        assert runs.count("vision.fp32.onnx") == 1
        assert runs.count("connector.fp32.onnx") == 3
        prompts = [caption.instruction for caption in captions]
        assert prompts[1].endswith("a dog")
        assert prompts[2].endswith("a tree")
        whole = captioner.start(picture, captioner.plan(focus="a dog")).finished().caption
        assert whole.text == captions[1].text
        rows = [case.visual_tokens(picture, prompt) for prompt in prompts]
        assert all((rows[0] - other).abs().max() > 0.01 for other in rows[1:])


@pytest.mark.parametrize("name", ["transformers", "lavis"])
def test_pixels_are_the_processors_to_one_grey_level(
    name: str, case_of: Callable[[str], InstructBlipCase], bundle_of: Callable[[str], Path]
) -> None:
    case, policy = case_of(name), manifest_from_bundle(bundle_of(name)).image
    assert (policy.mode, policy.size, policy.resample) == ("stretch", SIZE, "bicubic")
    std, mean = np.array(eva_vit.STD, np.float32), np.array(eva_vit.MEAN, np.float32)
    for picture in pictures():
        (tile,) = picture_to_tiles(read_picture(picture), policy).astype(np.float32)
        expected = case.inputs(picture, "")["pixels"][0].permute(1, 2, 0).numpy()
        assert np.abs(tile - (expected * std + mean) * 255).max() <= 1.001


@pytest.mark.parametrize("name", ["transformers", "lavis"])
def test_the_prompt_and_the_length_of_an_instruction(
    name: str, case_of: Callable[[str], InstructBlipCase], bundle_of: Callable[[str], Path]
) -> None:
    """Rows, </s> and the instruction; LAVIS cuts a long one, and transformers has room for it."""
    case, manifest = case_of(name), manifest_from_bundle(bundle_of(name))
    prompts, text = manifest.prompts, manifest.vision.text
    assert text is not None
    assert not prompts.add_bos
    assert prompts.markers is not None
    assert (prompts.before_image, prompts.markers.end, prompts.after_image) == ("", "</s>", "")
    assert prompts.default_instruction == "Write a detailed description."
    assert prompts.repetition_penalty == 1.5
    assert (text.max_ids, text.truncation) == (
        (LAVIS_IDS, "left") if name == "lavis" else (N_POSITIONS, "right")
    )
    tokenizer = WordPiece.from_file(
        bundle_of(name) / text.vocabulary, max_ids=text.max_ids, truncation=text.truncation
    )
    for instruction in (INSTRUCTION, OTHER, "red dog " * 100, ""):
        ids = tokenizer.ids(instruction)
        if name == "lavis" or len(instruction) < 100:
            assert ids == case.inputs(pictures()[0], instruction)["text"][0].tolist()
        assert len(ids) <= text.max_ids
    with load(bundle_of(name)) as captioner:  # the longest reaches the last position
        assert captioner.caption(pictures()[0], instruction="red dog " * 100).text


@pytest.mark.parametrize("name", ["t5", "t5-lavis"])
def test_flan_t5_ends_its_prompt_and_has_the_erf_form_of_gelu(
    name: str, case_of: Callable[[str], InstructBlipCase], bundle_of: Callable[[str], Path]
) -> None:
    """As BLIP-2 was trained, although FlanT5's own file names the tanh form."""
    case, manifest = case_of(name), manifest_from_bundle(bundle_of(name))
    prompts = manifest.prompts
    assert (prompts.add_bos, prompts.before_caption, prompts.markers) == (False, "</s>", None)
    assert (manifest.lm.encodes, manifest.lm.image_attention) == (True, "both-ways")
    assert manifest.vision.text is not None
    ids = case.inputs(pictures()[0], INSTRUCTION)["prompt"][0].tolist()
    assert ids[-1] == END
    assert case.t5 is not None
    (made,) = lm_of(parts_of(case)).reference_logits([ids], lambda: None)
    expected = case.t5.logits(case.t5.embed(ids), ids)[1:]
    np.testing.assert_allclose(made, expected, atol=1e-5 * float(np.abs(expected).max()))


def test_a_prompt_without_its_end_is_seen(
    case_of: Callable[[str], InstructBlipCase], bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(bundle_of("t5"), tmp_path / "b")
    manifest = manifest_from_bundle(tmp_path / "b")
    prompts = dataclasses.replace(manifest.prompts, before_caption="")
    planted = dataclasses.replace(manifest, prompts=prompts)
    (tmp_path / "b" / "manifest.json").write_text(planted.to_json(), encoding="utf-8")
    with load(tmp_path / "b") as captioner:
        ids = caption_ids(
            captioner, pictures()[0], instruction=INSTRUCTION, caption_tokens=N_TOKENS,
            stop_at_end=False,
        )  # fmt: skip
    assert ids != case_of("t5").greedy(pictures()[0], INSTRUCTION, N_TOKENS, ids)


def test_int8_and_auto_are_measured_as_a_whole(
    tmp_path: Path, case_of: Callable[[str], InstructBlipCase]
) -> None:
    options = ConvertOptions(vision_quants=("auto",), lm_quant="F32", force=True)
    convert_family("instructblip", tmp_path / "b", options, case_of("transformers").settings)
    manifest = manifest_from_bundle(tmp_path / "b")
    for variant in manifest.vision.variants:
        assert {variant.file, variant.connector, f"{variant.connector}.data"} <= set(manifest.files)
        figures = manifest.parity.figures[f"vision {variant.quant}"]
        assert figures["relative_error"] < (0.08 if variant.quant == "int8" else 0.02)
    assert manifest.has_quants(("auto",))
    assert not [name for name in manifest.parity.figures if "different" in name]
    assert manifest.parity.figures["instruction tokenizer"]["different"] == 0
    case, picture = case_of("transformers"), pictures()[0]
    exact = case.visual_tokens(picture, "Write a detailed description.").numpy()
    for variant in manifest.vision.variants:
        with Captioner.load(tmp_path / "b", device="cpu", vision_quant=variant.quant) as captioner:
            rows = captioner.encode(picture).visual_tokens
        assert np.linalg.norm(rows - exact) < 0.15 * np.linalg.norm(exact)


# ---- the comparison sees mistakes: both halves, run in torch with a mistake planted


def parts_of(case: InstructBlipCase) -> FamilyParts:
    family = family_named("instructblip")
    captioner = family.read(**family.settings(case.settings), progress=Progress())
    captioner.requirements().check()
    return captioner_parts(family.name, "", captioner, card_from_folder(captioner.folder))


@torch.inference_mode()
def error_of(case: InstructBlipCase) -> float:
    """Relative error over two pictures and instructions; infinite where a shape differs."""
    parts = parts_of(case)
    assert parts.text is not None
    tower = with_weights(parts.vision(torch.float32), parts.vision_weights)
    connector = with_weights(parts.text.connector(torch.float32), parts.vision_weights)
    worst = 0.0
    for picture, instruction in zip(pictures()[:2], (INSTRUCTION, OTHER), strict=True):
        tiles = picture_to_tiles(read_picture(picture), parts.manifest.image)
        ids = torch.tensor([parts.text.reference_ids(instruction)])
        rows = connector(tower(torch.from_numpy(tiles.copy())), ids)[0]
        expected = case.visual_tokens(picture, instruction)
        if rows.shape != expected.shape:
            return float("inf")
        worst = max(worst, float((rows - expected).norm() / expected.norm()))
    return worst


def _gelu_tanh(patch: pytest.MonkeyPatch) -> None:
    gelu = torch.nn.functional.gelu
    patch.setattr(qformer, "gelu", lambda x, _name: gelu(x, approximate="tanh"))


def _text_through_the_queries_network(patch: pytest.MonkeyPatch) -> None:
    def planted(self: qformer.Layer, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, x)
        queries = x[:, : self.n_queries]
        queries = queries if self.cross is None else self.cross(queries, image)
        rows: torch.Tensor = self.queries(torch.cat([queries, x[:, self.n_queries :]], dim=1))
        return rows if self.text is not None else rows[:, : self.n_queries]

    patch.setattr(qformer.Layer, "forward", planted)


def _text_attends_to_the_picture(patch: pytest.MonkeyPatch) -> None:
    def planted(self: qformer.Layer, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        x = self.attention(x, x)
        if self.cross is not None:
            x = self.cross(x, image)
        queries: torch.Tensor = self.queries(x[:, : self.n_queries])
        if self.text is None:
            return queries
        return torch.cat([queries, self.text(x[:, self.n_queries :])], dim=1)

    patch.setattr(qformer.Layer, "forward", planted)


def _positions_after_the_queries(patch: pytest.MonkeyPatch) -> None:
    result = qformer.qformer_weights

    def planted(*arguments: Any) -> Weights:
        by_name = result(*arguments)
        places = by_name["positions"]
        by_name["positions"] = type(places)(
            places.checkpoint, places.shapes, lambda table: table.roll(-6, 0)
        )
        return by_name

    patch.setattr(eva_side, "qformer_weights", planted)


MISTAKES: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("lavis", other_epsilon_behind_the_tower),
    ("lavis", class_row_dropped),
    ("lavis", _text_through_the_queries_network),
    ("lavis", keys_for_queries),
    ("transformers", epsilon_of_lavis_behind_the_tower),
    ("transformers", _gelu_tanh),
    ("transformers", _text_attends_to_the_picture),
    ("transformers", _positions_after_the_queries),
]


@pytest.mark.parametrize("name", ["transformers", "lavis"])
def test_without_a_mistake_the_error_is_small(
    name: str, case_of: Callable[[str], InstructBlipCase]
) -> None:
    assert error_of(case_of(name)) < 1e-5


@pytest.mark.parametrize(("name", "plant"), MISTAKES)
def test_planted_mistakes_are_seen(
    name: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    case_of: Callable[[str], InstructBlipCase],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(name)  # made before the mistake is planted
    plant(monkeypatch)
    assert error_of(case) > 1e-4


# ---- refusals


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("vision_config.num_hidden_layers", 2, "num_hidden_layers is 2, the tensors have 3"),
        ("qformer_config.vocab_size", 30522, "qformer_config.vocab_size is 30522"),
        ("num_query_tokens", 32, "num_query_tokens is 32, the tensors have 6"),
        ("qformer_config.layer_norm_eps", 1e-5, "layer_norm_eps 1e-05"),
        ("qformer_config.cross_attention_frequency", 1, "cross_attention_frequency 1"),
        ("vision_config.qkv_bias", False, "qkv_bias False"),
        ("vision_config.num_attention_heads", 7, "7 heads"),
        ("text_config.model_type", "opt", "'opt' (expected 'llama', 't5')"),
        ("vision_config.window_size", 7, "window_size"),
    ],
)
def test_what_config_says_otherwise_is_refused(
    tmp_path: Path,
    case_of: Callable[[str], InstructBlipCase],
    field: str,
    value: object,
    words: str,
) -> None:
    folder = changed_copy(
        case_of("transformers").settings["captioner"], tmp_path / "c", {field: value}
    )
    with pytest.raises(CheckpointError) as caught:
        family_named("instructblip").read(
            captioner=folder, vision=None, llm=None, qformer_tokenizer=None, progress=Progress()
        )
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_a_tokenizer_of_another_kind_is_refused(
    tmp_path: Path, case_of: Callable[[str], InstructBlipCase]
) -> None:
    folder = changed_copy(case_of("transformers").settings["captioner"], tmp_path / "c", {})
    path = folder / "qformer_tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "do_lower_case": False}))
    settings = {"captioner": folder}
    family = family_named("instructblip")
    with pytest.raises(CheckpointError, match="do_lower_case is False"):
        family.read(**family.settings(settings), progress=Progress())
    (folder / "qformer_tokenizer" / "vocab.txt").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        family.read(**family.settings(settings), progress=Progress())
    shutil.rmtree(folder / "qformer_tokenizer")
    with pytest.raises(CheckpointError, match="qformer_tokenizer is not a folder"):
        family.read(**family.settings(settings), progress=Progress())


def test_lavis_other_parts_are_named(case_of: Callable[[str], InstructBlipCase]) -> None:
    settings, family = case_of("lavis").settings, family_named("instructblip")
    for part in ("vision", "llm", "qformer_tokenizer"):
        given = {**settings, part: None}
        with pytest.raises(CheckpointError) as caught:
            family.read(**family.settings(given), progress=Progress())
        assert f"`{part}`" in str(caught.value.hint)
    swapped = {**settings, "vision": settings["captioner"]}
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight"):
        family.read(**family.settings(swapped), progress=Progress())


def test_the_family_is_found_by_its_folder(case_of: Callable[[str], InstructBlipCase]) -> None:
    for name in ("transformers", "lavis"):
        assert likely_family(case_of(name).settings["captioner"]) == "instructblip"


def test_a_newer_tokenizer_file_alone_is_enough(
    tmp_path: Path, case_of: Callable[[str], InstructBlipCase]
) -> None:
    """transformers 5 writes tokenizer.json in the place of vocab.txt."""
    from edgeprism.convert.read.wordpiece import read_wordpiece

    source = case_of("transformers").settings["captioner"] / "qformer_tokenizer"
    model = {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(VOCABULARY)}}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    assert read_wordpiece(tmp_path).pieces == read_wordpiece(source).pieces == tuple(VOCABULARY)
