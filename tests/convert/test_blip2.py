"""BLIP-2 with OPT in both layouts: its bundle says what transformers' classes say."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.discover import family_named, likely_family
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.options import ConvertOptions
from edgeprism.errors import CheckpointError, UsageError
from edgeprism.folder.batch import Batch
from edgeprism.language.model import LanguageModel
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture.find import find_pictures
from edgeprism.progress import Progress
from tests.helpers.captions import caption_ids
from tests.helpers.changed_config import changed_copy
from tests.helpers.converting import convert_family, lm_of, parts_of
from tests.helpers.eva_mistakes import (
    class_row_dropped,
    epsilon_of_lavis_behind_the_tower,
    keys_for_queries,
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
    loaded,
)
from tests.helpers.tiny_blip2 import (
    COCO_SIZE,
    IMAGE,
    N_QUERIES,
    published_processor,
    whole_model,
    write_blip2,
)
from tests.helpers.tiny_captioners import INSTRUCTION, Case, pictures

CASES: dict[str, dict[str, Any]] = {
    "newer": {},
    "older": {"newer": False, "shards": "bin", "seed": 72},
    "lavis": {"layout": "lavis", "newer": False, "seed": 73},
    "lavis-coco": {"layout": "lavis-coco", "newer": False, "seed": 74},
    "coco": {"size": COCO_SIZE, "seed": 75},
}
CONVERTED = ["newer", "lavis-coco"]  # each takes some seconds
CaseOf = Callable[[str], Case]
BundleOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory) -> CaseOf:
    places = tmp_path_factory
    return cache(lambda name: write_blip2(places.mktemp("blip2") / name, **CASES[name]))


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, case_of: CaseOf) -> BundleOf:
    return cache(lambda name: converted(case_of(name), tmp_path_factory.mktemp("bundle") / name))


@pytest.mark.parametrize("name", CONVERTED)
def test_the_bundle_says_what_the_reference_says(
    name: str, case_of: CaseOf, bundle_of: BundleOf
) -> None:
    check_rows_and_texts(case_of(name).reference, bundle_of(name))


@pytest.mark.parametrize("name", [name for name in CASES if name not in CONVERTED])
def test_the_others_have_the_same_halves(name: str, case_of: CaseOf, tmp_path: Path) -> None:
    """Their graph, run in torch, and their GGUF, by its logits."""
    case, parts = case_of(name), parts_of(case_of(name))
    assert error_of(case) < 1e-5
    write_gguf(tmp_path / "lm.gguf", "F32", lm_of(parts), name, Progress())
    ids = np.random.default_rng(5).integers(4, 600, 60).tolist()
    with torch.inference_mode():
        expected = case.reference.lm(torch.tensor([ids])).logits[0].numpy()
    lm = LanguageModel(tmp_path / "lm.gguf")
    context = lm.context(256, kv_type="f32", flash_attention=False, all_logits=True)
    try:
        actual = context.logits_of_tokens(ids)
        assert lm.vocabulary.tokenize("</s>", parse_special=True) == [2]
        assert lm.vocabulary.size == len(expected[0])
    finally:
        context.close()
        lm.close()
    np.testing.assert_allclose(actual, expected, atol=1e-3 * float(np.abs(expected).max()))


def test_the_prompt_is_the_published_processors(case_of: CaseOf, bundle_of: BundleOf) -> None:
    """transformers' own generate and processor: image tokens, </s> and the instruction."""
    case = case_of("newer")
    model, processor = whole_model(case), published_processor(case)
    with loaded(bundle_of("newer")) as captioner:
        for picture in pictures()[:3]:
            for text in (INSTRUCTION, "", "a photo of", "Question: what is red? Answer:"):
                inputs = processor(images=picture, text=text, return_tensors="pt")
                ids = inputs["input_ids"][0].tolist()
                assert ids[N_QUERIES] == 2
                assert set(ids[:N_QUERIES]) == {model.config.image_token_index}
                with torch.inference_mode():
                    made = model.generate(
                        **inputs, max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS,
                        do_sample=False, eos_token_id=None,
                    )[0].tolist()  # fmt: skip
                actual = caption_ids(
                    captioner, picture, instruction=text, caption_tokens=N_TOKENS,
                    stop_at_end=False,
                )  # fmt: skip
                assert actual == made[-N_TOKENS:]


@pytest.mark.parametrize("name", CONVERTED)
def test_pixels_are_the_processors_to_one_grey_level(
    name: str, case_of: CaseOf, bundle_of: BundleOf
) -> None:
    check_pixels(case_of(name).reference, bundle_of(name))


@pytest.mark.parametrize(
    ("name", "instruction"),
    [("newer", ""), ("older", ""), ("lavis", ""), ("coco", "a photo of")],
)
def test_the_default_is_what_the_captioner_was_trained_with(
    name: str, instruction: str, case_of: CaseOf
) -> None:
    """Nothing, or what the captioners for COCO, whose pictures are larger, were trained with."""
    prompts = parts_of(case_of(name)).manifest.prompts
    assert prompts.default_instruction == instruction
    assert prompts.markers is not None
    assert (prompts.before_image, prompts.markers.end, prompts.after_image) == ("", "</s>", "")
    assert (prompts.add_bos, prompts.stop, prompts.repetition_penalty) == (False, ["\n"], 1)


def test_a_focus_is_a_question(bundle_of: BundleOf) -> None:
    with loaded(bundle_of("newer")) as captioner:
        alone = captioner.caption(pictures()[0], focus="the boats")
        behind = captioner.caption(pictures()[0], instruction="a photo of", focus="the boats")
        plain = captioner.caption(pictures()[0])
    question = "Question: what can be said about the boats? Answer:"
    assert alone.instruction == question
    assert behind.instruction == f"a photo of {question}"
    assert plain.instruction == ""
    assert plain.text != alone.text


def test_a_batch_gives_what_single_pictures_give(bundle_of: BundleOf, tmp_path: Path) -> None:
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
    with loaded(bundle_of("newer")) as captioner:
        plan = captioner.plan(caption_tokens=12)
        outcomes = list(Batch(captioner, plan, parallel=4).run(find_pictures([tmp_path])))
        singles = [captioner.caption(picture, caption_tokens=12).text for picture in pictures()]
    assert [outcome.record and outcome.record["caption"] for outcome in outcomes] == singles
    assert len(set(singles)) > 3


def test_a_caption_is_one_line(case_of: CaseOf, bundle_of: BundleOf) -> None:
    reference = case_of("newer").reference
    tokenizer = Tokenizer.from_file(str(reference.tokenizer / "tokenizer.json"))
    with loaded(bundle_of("newer")) as captioner:
        for picture in pictures():
            ids = reference.greedy(picture, N_TOKENS)
            line = tokenizer.decode(ids[: (*ids, 2).index(2)], skip_special_tokens=False)
            caption = captioner.caption(picture, instruction=INSTRUCTION, caption_tokens=N_TOKENS)
            assert line.partition("\n")[0].strip().startswith(caption.text)


def test_the_image_token_and_other_marks_are_no_text(case_of: CaseOf, bundle_of: BundleOf) -> None:
    """The newer revision has a token <image>, and rows that fill the vocabulary up."""
    header = read_gguf_header(bundle_of("newer") / "lm.gguf", tokens=True)
    rows = whole_model(case_of("newer")).config.text_config.vocab_size
    assert (header.n_vocab, header.tensors["token_embd.weight"][1]) == (rows, rows)
    assert list(header.tokens).count(IMAGE.encode()) == 1
    with loaded(bundle_of("newer")) as captioner:
        marks = f"{IMAGE}</s><pad><s><unk>"
        *_, prompt = captioner.request(
            captioner.encode(pictures()[0]), captioner.plan(instruction=marks)
        ).prompt
    assert isinstance(prompt, list)
    assert prompt[0] == 2
    assert len(prompt) > 12
    special = {0, 1, 2, 3, list(header.tokens).index(IMAGE.encode())}
    assert not special & set(prompt[1:])


def test_a_quantized_conversion_passes_its_gate(tmp_path: Path, case_of: CaseOf) -> None:
    options = ConvertOptions(vision_quants=("auto",), lm_quant="Q4_K_M")
    convert_family("blip2", tmp_path / "b", options, case_of("newer").settings)
    manifest = manifest_from_bundle(tmp_path / "b")
    assert manifest.parity.passed
    assert manifest.parity.figures["tokenizer"]["different"] == 0
    assert (manifest.lm.architecture, manifest.lm.quant) == ("mpt", "Q4_K_M")
    with Captioner.load(tmp_path / "b", device="cpu") as captioner:
        assert captioner.caption(pictures()[0], instruction=INSTRUCTION).text


# ---- the comparison sees mistakes: in the vision half, run in torch


@pytest.mark.parametrize("name", ["newer", "lavis", "lavis-coco"])
def test_without_a_mistake_the_error_is_small(name: str, case_of: CaseOf) -> None:
    assert error_of(case_of(name)) < 1e-5


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("newer", epsilon_of_lavis_behind_the_tower),
        ("newer", class_row_dropped),
        ("newer", queries_not_normed),
        ("newer", keys_for_queries),
        ("lavis", other_epsilon_behind_the_tower),
        ("lavis", last_block_runs),
        ("lavis-coco", other_epsilon_behind_the_tower),
    ],
)
def test_planted_mistakes_are_seen(
    name: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    case_of: CaseOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = case_of(name)  # made before the mistake is planted
    plant(monkeypatch)
    assert error_of(case) > 1e-4


# ---- and mistakes in the prompt


@pytest.mark.parametrize(
    "change",
    [
        {"begin": "</s>", "end": ""},  # the beginning before the rows
        {"end": ""},  # none at all
        {"end": "</s></s>"},  # as a tokenizer that adds one, too
    ],
)
def test_a_wrong_prompt_is_seen(
    change: dict[str, str], tmp_path: Path, case_of: CaseOf, bundle_of: BundleOf
) -> None:
    copy = tmp_path / "b"
    shutil.copytree(bundle_of("newer"), copy)
    manifest = manifest_from_bundle(copy)
    assert manifest.prompts.markers is not None
    markers = dataclasses.replace(manifest.prompts.markers, **change)
    prompts = dataclasses.replace(manifest.prompts, markers=markers)
    changed_manifest = dataclasses.replace(manifest, prompts=prompts)
    (copy / "manifest.json").write_text(changed_manifest.to_json(), encoding="utf-8")
    with pytest.raises(AssertionError):
        check_rows_and_texts(case_of("newer").reference, copy)


# ---- refusals


def refusal(**settings: Path | None) -> CheckpointError:
    family = family_named("blip2")
    with pytest.raises(CheckpointError) as caught:
        family.read(**family.settings(settings), progress=Progress()).requirements().check()
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("vision_config.num_hidden_layers", 2, "num_hidden_layers is 2, the tensors have 3"),
        ("num_query_tokens", 32, "num_query_tokens is 32, the tensors have 6"),
        ("qformer_config.use_qformer_text_input", True, "use_qformer_text_input True"),
        ("qformer_config.cross_attention_frequency", 1, "cross_attention_frequency 1"),
        ("vision_config.qkv_bias", False, "qkv_bias False"),
        ("vision_config.window_size", 7, "window_size"),
        ("text_config.model_type", "bloom", "model_type 'bloom' (expected 'opt', 't5')"),
        ("text_config.do_layer_norm_before", False, "do_layer_norm_before = False"),
        ("text_config.word_embed_proj_dim", 32, "word_embed_proj_dim = 32"),
        ("text_config.activation_function", "gelu", "activation_function = 'gelu'"),
        ("text_config.num_hidden_layers", 3, "missing: language_model.model.decoder.layers.2."),
        ("text_config.max_position_embeddings", 2048, "embed_positions.weight: [1026, 64]"),
    ],
)
def test_what_config_says_otherwise_is_refused(
    tmp_path: Path, case_of: CaseOf, field: str, value: object, words: str
) -> None:
    folder = changed_copy(case_of("newer").settings["captioner"], tmp_path / "c", {field: value})
    error = refusal(captioner=folder)
    assert words in " ".join([error.message, *error.details])


def test_lavis_other_parts_are_named(case_of: CaseOf, tmp_path: Path) -> None:
    settings = case_of("lavis").settings
    assert "eva_vit_g.pth" in refusal(**{**settings, "vision": None}).hint
    assert "`llm`" in refusal(**{**settings, "llm": None}).hint
    trained_with_t5 = with_projection(settings["captioner"], "t5_proj", tmp_path)
    message = refusal(**{**settings, "captioner": trained_with_t5}).message
    assert "was trained with FlanT5" in message
    assert "'opt' (expected 't5')" in message
    with_neither = with_projection(settings["captioner"], "bloom_proj", tmp_path)
    message = refusal(**{**settings, "captioner": with_neither}).message
    assert "holds no opt_proj.weight or t5_proj.weight" in message


@pytest.mark.parametrize(("name", "option"), [("lavis-coco", "vision"), ("newer", "llm")])
def test_a_folder_that_is_not_needed_is_refused(
    name: str, option: str, case_of: CaseOf, tmp_path: Path
) -> None:
    settings, folder = case_of(name).settings, case_of("lavis").settings[option]
    with pytest.raises(UsageError) as caught:
        convert_family(
            "blip2", tmp_path / "b", ConvertOptions(("fp32",), "F32"), {**settings, option: folder}
        )
    assert str(folder) in caught.value.message
    assert caught.value.hint == f"Leave `{option}` out."
    assert not (tmp_path / "b").exists()


def with_projection(folder: Path, name: str, tmp_path: Path) -> Path:
    """Return a copy of LAVIS' layout in `folder` whose projection is called `name`."""
    copy = tmp_path / name
    copy.mkdir()
    (path,) = folder.glob("*.pth")
    tensors = torch.load(path, weights_only=True)
    for kind in ("weight", "bias"):
        tensors["model"][f"{name}.{kind}"] = tensors["model"].pop(f"opt_proj.{kind}")
    torch.save(tensors, copy / path.name)
    return copy


def test_the_family_is_found_by_its_folder(case_of: CaseOf) -> None:
    for name in ("newer", "older", "lavis", "lavis-coco"):
        assert likely_family(case_of(name).settings["captioner"]) == "blip2"
