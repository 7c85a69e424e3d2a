"""Fuyu as published, against transformers' FuyuForCausalLM and FuyuProcessor."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import PersimmonConfig
from transformers.image_utils import ChannelDimension
from transformers.models.fuyu import image_processing_fuyu

from edgeprism.bundle.manifest import Manifest
from edgeprism.bundle.read_manifest import manifest_from_bundle
from edgeprism.convert.gate.judge import Verdict
from edgeprism.convert.language import persimmon, row_decoder
from edgeprism.convert.language.decoder import DecoderParts
from edgeprism.convert.language.vocabulary_bytes import byte_vocabulary
from edgeprism.convert.language.write_decoder import write_decoder
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.vision import patches
from edgeprism.errors import CheckpointError
from edgeprism.language.row_decoder import RowContext
from edgeprism.language.vocabulary import Vocabulary
from edgeprism.perceive.captioner import Captioner
from edgeprism.picture import layout
from edgeprism.picture.free_size import shrunk_to_fit
from edgeprism.picture.layout import most_visual_tokens, picture_to_layout
from edgeprism.picture.read import enough_for, read_picture
from edgeprism.progress import Progress
from tests.helpers import tiny_fuyu as tiny
from tests.helpers.captions import caption_ids
from tests.helpers.converting import convert_family, parts_of
from tests.helpers.family_checks import (
    N_TOKENS,
    check_folder,
    check_rows_and_texts,
    converted,
    loaded,
    thirds_of_the_matrix,
)
from tests.helpers.tiles import picture_to_tiles
from tests.helpers.tiny_captioners import INSTRUCTION, Case
from tests.helpers.tiny_fuyu import FuyuReference, pictures, reference_of, write_fuyu

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return write_fuyu(tmp_path_factory.mktemp("fuyu") / "c")


@pytest.fixture(scope="module")
def bundle(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(case, tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return manifest_from_bundle(bundle)


@pytest.fixture(scope="module")
def captioner(bundle: Path) -> Iterator[Captioner]:
    with loaded(bundle) as captioner:
        yield captioner


def reference(case: Case) -> FuyuReference:
    assert isinstance(case.reference, FuyuReference)
    return case.reference


def linked(case: Case, folder: Path, *without: str) -> Path:
    """Return `folder` with links to the published files but `without`."""
    folder.mkdir()
    for path in case.settings["captioner"].iterdir():
        if path.name not in without:
            (folder / path.name).symlink_to(path)
    return folder


def test_the_bundle_says_what_the_published_model_says(
    case: Case, bundle: Path, manifest: Manifest
) -> None:
    check_rows_and_texts(case.reference, bundle, shown=pictures())
    assert manifest.image.free is not None
    assert manifest.image.free.canvas == [1920, 1080]
    assert manifest.vision.tokens_per_tile == 64 * 36
    assert most_visual_tokens(manifest) == 64 * 36 + 36  # with a newline for each line
    assert manifest.lm.decoder is not None
    assert manifest.lm.decoder.cross == ""
    assert manifest.prompts.default_instruction == "Generate a coco-style caption."
    assert not manifest.prompts.add_bos
    assert manifest.prompts.markers is not None
    assert manifest.prompts.markers.end == "<s>"


def test_pixels_are_those_of_the_processor(case: Case, manifest: Manifest) -> None:
    """To a grey level; beyond the picture, with the published padding, which is nearly black."""
    for picture in pictures():
        (tile,) = picture_to_tiles(read_picture(picture), manifest.image).astype(np.float32)
        expected = case.reference.pixels[0](picture)[0].permute(1, 2, 0).numpy()
        levels = (expected * 0.5 + 0.5) * 255
        height, width, _ = tile.shape
        assert np.abs(tile - levels[:height, :width]).max() <= 1.001
        assert np.abs(levels[height:] - 1).max(initial=0) < 0.01  # nothing of it is left out
        assert np.abs(levels[:, width:] - 1).max(initial=0) < 0.01


def test_sizes_are_those_of_the_processor() -> None:
    processor = image_processing_fuyu.FuyuImageProcessor()
    rng = np.random.default_rng(2)
    sizes = [*rng.integers(1, 9000, (500, 2)).tolist(), [1920, 1080], [1921, 1080], [1920, 1081]]
    with mock.patch.object(image_processing_fuyu, "resize", lambda size, **_: size):
        for width, height in sizes:
            shape = np.broadcast_to(np.uint8(0), (height, width, 3))
            made: Any = processor.resize(
                shape, processor.size, input_data_format=ChannelDimension.LAST
            )
            expected = made[::-1] if isinstance(made, tuple) else (width, height)
            if 0 not in expected:  # on which it fails
                assert shrunk_to_fit((width, height), (1920, 1080)) == tuple(expected)
    assert shrunk_to_fit((9000, 1), (1920, 1080)) == (1920, 1)


def test_large_photographs_keep_more_pixels_than_the_model_takes(manifest: Manifest) -> None:
    assert enough_for(manifest.image) == 4 * 1920


def test_captions_are_those_of_the_processor(case: Case, captioner: Captioner) -> None:
    """Where the vocabulary's end ends them, put together from pieces and bytes."""
    for picture in pictures()[:3]:
        caption = captioner.caption(picture, instruction="What is it?", caption_tokens=24)
        expected = reference(case).caption(picture, "What is it?", 24)
        assert caption.text == expected.strip()
        ids = reference(case).inputs(picture, "What is it?")["input_ids"][0].tolist()
        assert caption.tokens.visual == ids.index(tiny.BEGIN)
        assert caption.tokens.prompt == len(ids) - ids.index(tiny.BEGIN)


def test_other_layouts_compute_the_same(tmp_path: Path) -> None:
    """As transformers writes the files today: .bin, a text_config, an image processor's fields."""
    case = write_fuyu(tmp_path / "c", layout="bin")
    folder = tmp_path / "c"
    config = json.loads((folder / "config.json").read_text())
    fields = {name: config[name] for name in persimmon.FIELDS}
    config["text_config"] = PersimmonConfig(**fields).to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    processor = reference(case).processor.image_processor
    (folder / "preprocessor_config.json").write_text(processor.to_json_string())
    bundle = converted(case, tmp_path / "b")
    with loaded(bundle) as captioner:
        picture = pictures()[0]
        ids = caption_ids(captioner, picture, instruction=INSTRUCTION, caption_tokens=N_TOKENS,
                          stop_at_end=False)  # fmt: skip
        assert ids == reference_of(folder).greedy(picture, N_TOKENS)


def test_a_config_of_transformers_5_means_the_same(case: Case, tmp_path: Path) -> None:
    """Which writes rope_parameters twice: at the top level, and in the text_config."""
    folder = linked(case, tmp_path / "c", "config.json")
    config = json.loads((case.settings["captioner"] / "config.json").read_text())
    del config["rope_theta"], config["partial_rotary_factor"], config["rope_scaling"]
    text = {name: config[name] for name in persimmon.FIELDS if name in config}

    def config_of(folder: Path) -> row_decoder.RowDecoderConfig:
        lm = parts_of(Case("fuyu", {"captioner": folder}, case.reference)).lm.config
        assert isinstance(lm, row_decoder.RowDecoderConfig)
        return lm

    def lm_with(theta: float, theta_of_text: float) -> row_decoder.RowDecoderConfig:
        ropes = [{"rope_theta": each, "partial_rotary_factor": 0.5, "rope_type": "default"}
                 for each in (theta, theta_of_text)]  # fmt: skip
        newer = {
            **config,
            "rope_parameters": ropes[0],
            "text_config": {"model_type": "persimmon", **text, "rope_parameters": ropes[1]},
            "transformers_version": "5.0.0",
        }
        (folder / "config.json").write_text(json.dumps(newer))
        return config_of(folder)

    right = config_of(case.settings["captioner"])
    assert lm_with(25000.0, 25000.0) == right
    assert lm_with(5000.0, 5000.0) == dataclasses.replace(right, rope_theta=5000.0)
    with pytest.raises(CheckpointError, match=r"rope_theta = 5000\.0, and 25000\.0 in text_config"):
        lm_with(5000.0, 25000.0)


def test_eight_bits_pass_the_gate(tmp_path: Path) -> None:
    """They are the default, and near."""
    from edgeprism.bundle.gguf import read_gguf_header

    calm = write_fuyu(tmp_path / "c", sharpness=0.3)
    convert_family("fuyu", tmp_path / "b", ConvertOptions(), calm.settings)
    manifest = manifest_from_bundle(tmp_path / "b")
    assert manifest.lm.quant == "Q8_0"
    assert 1e-5 < manifest.parity.figures["lm Q8_0"]["relative_error"] < 0.06
    import onnx

    graph = onnx.load(str(tmp_path / "b" / "lm.onnx"), load_external_data=False).graph
    assert {"MatMulNBits", "GroupQueryAttention"} <= {node.op_type for node in graph.node}
    assert not {"MatMul", "Gemm"} & {node.op_type for node in graph.node}
    types = read_gguf_header(tmp_path / "b" / "lm.gguf").tensor_types
    assert types == {"token_embd.weight": 8}  # GGUF's number of Q8_0
    with loaded(tmp_path / "b") as captioner:
        assert captioner.caption(pictures()[0], caption_tokens=8).tokens.generated > 0


def test_a_long_picture_goes_through_in_parts(
    case: Case, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowContext, "N_BATCH", 50)
    picture = pictures()[1]  # 260 rows
    with loaded(bundle) as captioner:
        ids = caption_ids(captioner, picture, instruction=INSTRUCTION, caption_tokens=12,
                          stop_at_end=False)  # fmt: skip
    assert ids == reference(case).greedy(picture, 12)


def test_a_folder_says_what_each_picture_says_alone(
    captioner: Captioner, bundle: Path, tmp_path: Path
) -> None:
    check_folder(captioner, bundle, tmp_path, pictures(), 12)


def test_fewer_visual_tokens_and_a_focus(captioner: Captioner) -> None:
    picture = pictures()[1]
    caption = captioner.caption(picture, visual_tokens=40, caption_tokens=4)
    assert caption.tokens.visual == 40
    plain = captioner.caption(picture, caption_tokens=8)
    focused = captioner.caption(picture, focus="the red box", caption_tokens=8)
    assert focused.tokens.prompt > plain.tokens.prompt


def test_the_largest_picture_is_planned_for(captioner: Captioner, manifest: Manifest) -> None:
    """As its rows take cells, each of two times 3 layers of 128 numbers of four bytes."""
    parts = {part.what: part.size for part in captioner.engines.memory_parts().parts}
    assert parts["picture's keys and values"] == (64 * 36 + 36) * 2 * 3 * 128 * 4
    assert captioner.cost((1920, 1080)).visual_tokens == 64 * 36 + 36
    assert captioner.cost((3840, 2160)).visual_tokens == 64 * 36 + 36


# ---- mistakes that the comparison must notice


def error_of(case: Case) -> float:
    """Return the relative error of two pictures' rows, of the graph as torch computes it."""
    parts = parts_of(case)
    module = parts.vision(torch.float32)
    state = {n: parts.vision_weights.read(n, torch.float32) for n, _ in module.named_parameters()}
    module.load_state_dict(state, assign=True)
    worst = 0.0
    for picture in (pictures()[0], pictures()[5]):
        pixels = picture_to_tiles(read_picture(picture), parts.manifest.image)
        with torch.inference_mode():
            tokens, newline = module(torch.from_numpy(pixels.copy()))
        rows = np.concatenate([tokens[0].numpy(), newline.numpy()])
        rows = rows[picture_to_layout(picture.size, parts.manifest).rows]
        expected = case.reference.visual_tokens(picture).numpy()
        if rows.shape != expected.shape:
            return float("inf")
        error = np.linalg.norm(rows - expected) / np.linalg.norm(expected)
        worst = max(worst, float(error))
    return worst


def _channels_first(patch: pytest.MonkeyPatch) -> None:
    right = patches.PatchGraph.forward

    def planted(self: patches.PatchGraph, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        p = self.config.patch_size
        weight = self.patch.weight
        mixed = weight.unflatten(0, (3, p, p)).permute(1, 2, 0, 3).flatten(0, 2)
        self.patch.weight = torch.nn.Parameter(mixed, requires_grad=False)
        made = right(self, pixels)
        self.patch.weight = weight
        return made

    patch.setattr(patches.PatchGraph, "forward", planted)


def _no_newline(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(layout, "_with_line_ends", lambda rows: rows)


def _row_of_the_placeholder(patch: pytest.MonkeyPatch) -> None:
    from edgeprism.convert.families import fuyu

    patch.setattr(fuyu, "_NEWLINE", tiny.SPEAKER)


def _white_padding(patch: pytest.MonkeyPatch) -> None:
    from edgeprism.convert.families import fuyu

    right = fuyu._pictures
    patch.setattr(fuyu, "_pictures", lambda *a: dataclasses.replace(right(*a), fill=255))


def test_without_a_mistake_the_error_is_small(case: Case) -> None:
    assert error_of(case) < 1e-5


@pytest.mark.parametrize(
    "plant", [_channels_first, _no_newline, _row_of_the_placeholder, _white_padding],
    ids=lambda plant: plant.__name__.strip("_"),
)  # fmt: skip
def test_planted_mistakes_of_the_rows_are_seen(
    plant: Plant, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert error_of(case) > 1e-3


def _whole_heads_turn(patch: pytest.MonkeyPatch) -> None:
    right = row_decoder.turns_of
    patch.setattr(
        row_decoder, "turns_of",
        lambda config: right(dataclasses.replace(config, rotary=config.head_dim)),
    )  # fmt: skip


def _heads_not_normalised(patch: pytest.MonkeyPatch) -> None:
    right = row_decoder.normed_heads
    # the exporter would miss norms that nothing uses
    patch.setattr(row_decoder, "normed_heads", lambda x, *rest: x + 1e-6 * right(x, *rest))


def _norms_changed_over(patch: pytest.MonkeyPatch) -> None:
    names = persimmon._HEAD_NORMS
    patch.setattr(persimmon, "_HEAD_NORMS", dict(zip(names, reversed(names.values()), strict=True)))


@pytest.mark.parametrize(
    "plant", [_whole_heads_turn, _heads_not_normalised, _norms_changed_over, thirds_of_the_matrix],
    ids=lambda plant: plant.__name__.strip("_"),
)  # fmt: skip
def test_planted_mistakes_of_the_decoder_fail_the_gate(
    plant: Plant, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    parts, verdict = parts_of(case), Verdict()
    assert isinstance(parts.lm, DecoderParts)
    write_decoder(parts.lm, parts.manifest, tmp_path, "F32", verdict, Progress())
    assert verdict.failed == ["lm F32"]


# ---- the tokenizer


def fuyu_ids(path: Path) -> Callable[[str], list[int]]:
    from edgeprism.convert.gate.fuyu import text_to_ids

    return text_to_ids(path)


def folder_ids(path: Path) -> Callable[[str], list[int]]:
    from edgeprism.convert.gate.language import text_to_ids

    return text_to_ids(path.parent)


def test_texts_are_cut_as_the_published_tokenizer_cuts_them(case: Case, bundle: Path) -> None:
    """Signs of ASCII that are no piece become bytes, as published; other characters do not."""
    from edgeprism.convert.gate.fuyu import text_to_ids

    vocabulary, path = Vocabulary.open(bundle / "lm.gguf"), case.settings["captioner"]
    published = text_to_ids(path / "tokenizer.json")
    rng = np.random.default_rng(3)
    alphabet = [*map(chr, range(5, 127)), *"éèàç图片中猫", " ", " ", " the", " picture"]
    texts = ["".join(rng.choice(alphabet, 30)) for _ in range(200)]
    texts += ["Generate a coco-style caption.\n", "\n\n two\tlines ", f"{tiny.NEWLINE} as text"]
    for text in texts:
        if text.strip() and not any(name in text for name in ("<s>", "</s>", "<0x")):
            assert vocabulary.tokenize(text) == published(text), text
    assert published("\n")[-1] == tiny.PIECES.index("<0x0A>")
    assert vocabulary.token_to_bytes(tiny.PIECES.index("<0x0A>")) == b"\n"
    assert vocabulary.token_to_bytes(tiny.PIECES.index("<0xE9>")) == b"\xe9"
    assert vocabulary.is_end(tiny.PIECES.index(tiny.END))
    assert vocabulary.tokenize("a<0x04>", parse_special=True)[-1] == tiny.ANSWER
    assert tiny.ANSWER not in vocabulary.tokenize("a<0x04>")  # a person's text
    assert vocabulary.tokenize("ж") == [tiny.PIECES.index("▁"), 0]  # the unknown token
    vocabulary.close()


@pytest.mark.parametrize("read", [fuyu_ids, folder_ids], ids=["fuyu", "language"])
def test_a_tokenizers_limits_of_a_training_are_passed_over(
    read: Callable[[Path], Callable[[str], list[int]]], case: Case, tmp_path: Path
) -> None:
    """As transformers does: it sets both anew for each call."""
    path = tmp_path / "tokenizer.json"
    data = json.loads((case.settings["captioner"] / path.name).read_text())
    path.write_text(json.dumps(data))
    text = "a picture of a dog near the street"
    expected = read(path)(text)
    data["truncation"] = {
        "max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
    }  # fmt: skip
    data["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip
    path.write_text(json.dumps(data))
    assert 3 < len(expected) < 64
    assert read(path)(text) == expected


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"model": {"type": "BPE"}}, "its model is not of unigrams"),
        ({"model": {"byte_fallback": False}}, "it does not fall back to bytes"),
        ({"model": {"unk_id": 10**6}}, "it has no unknown piece"),
        ({"model": {"vocab": [["a", -1.0], ["a", -2.0]]}}, "two pieces are alike"),
        ({"model": {"vocab": [["a", -1.0]]}}, "it lacks 256 of the 256 pieces for bytes"),
        ({"model": {"vocab": [["a", "-1"]]}}, "it holds no pieces with scores"),
        ({"normalizer": None}, "its normalizer is null"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "or it has a pre-tokenizer"),
        ({"added_tokens": [{"id": 3, "content": "x"}]}, "its added tokens are not among"),
        ({"added_tokens": 5}, "its added tokens are not among"),
    ],
)
def test_other_tokenizers_are_refused(
    change: dict[str, Any], fault: str, case: Case, tmp_path: Path
) -> None:
    data = json.loads((case.settings["captioner"] / "tokenizer.json").read_text())
    for name, value in change.items():
        data[name] = {**data[name], **value} if name == "model" else value
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="cannot be reproduced") as caught:
        byte_vocabulary(tmp_path, tiny.N_VOCAB, tiny.END, ["<s>"])
    assert fault in caught.value.message


def test_a_tokenizer_without_the_tokens_of_the_prompt_is_refused(case: Case) -> None:
    folder = case.settings["captioner"]
    with pytest.raises(CheckpointError, match="no token is named <im>"):
        byte_vocabulary(folder, tiny.N_VOCAB, tiny.END, ["<im>"])
    with pytest.raises(
        CheckpointError, match=f"the model's vocabulary {len(tiny.PIECES) - 1} rows"
    ):
        byte_vocabulary(folder, len(tiny.PIECES) - 1, tiny.END, [])


# ---- refusals


@pytest.mark.parametrize(
    ("file", "fields", "expected"),
    [
        ("config.json", {"hidden_act": "gelu"}, "hidden_act = 'gelu' (expected 'relu2')"),
        ("config.json", {"qk_layernorm": False}, "qk_layernorm = False (expected True)"),
        ("config.json", {"num_hidden_layers": 4}, "missing: language_model.model.layers.3."),
        ("config.json", {"num_hidden_layers": 2}, "language_model.model.layers.2."),
        ("config.json", {"vocab_size": 600}, "expected [600, 128]"),
        ("config.json", {"intermediate_size": 128}, "expected [128, 128]"),
        ("config.json", {"patch_size": 29}, "size = {'height': 1080, 'width': 1920}"),
        ("config.json", {"patch_size": 24}, "expected [128, 1728]"),
        ("config.json", {"num_attention_heads": 5}, "does not give each of 5 heads"),
        ("config.json", {"partial_rotary_factor": 0.25}, "turns 8 channels of a head"),
        ("config.json", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = "),
        ("config.json", {"max_position_embeddings": 2340}, "a picture alone has 2340 visual"),
        ("config.json", {"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ("config.json", {"num_channels": 4}, "num_channels = 4"),
        ("config.json", {"hidden_size": 0}, "hidden_size = 0"),
        ("config.json", {"resampler": 3}, "resampler = 3"),
        ("config.json", {"text_config": {"model_type": "llama"}}, "model_type = 'llama'"),
        ("config.json", {"text_config": {"num_hidden_layers": 7}}, "hidden_size = 128, and 4096"),
        ("config.json", {"model_type": "persimmon"}, "is not a checkpoint of fuyu"),
        ("preprocessor_config.json", {"do_pad": False}, "do_pad = False"),
        ("preprocessor_config.json", {"padding_mode": "reflect"}, "padding_mode = 'reflect'"),
        ("preprocessor_config.json", {"padding_value": 0.5}, "padding_value = 0.5"),
        ("preprocessor_config.json", {"target_width": 960}, "target_width = 960"),
        ("preprocessor_config.json", {"size": {"height": 300, "width": 7}}, "size = "),
        ("preprocessor_config.json", {"patch_size": 14}, "patch_size = 14, and 30"),
        ("preprocessor_config.json", {"image_std": 0}, "image_std = [0, 0, 0]"),
    ],
)  # fmt: skip
def test_what_contradicts_the_published_layout_is_refused(
    file: str, fields: dict[str, Any], expected: str, case: Case, tmp_path: Path
) -> None:
    folder = linked(case, tmp_path / "c", file)
    data = json.loads((case.settings["captioner"] / file).read_text())
    (folder / file).write_text(json.dumps({**data, **fields}))
    with pytest.raises(CheckpointError) as caught:
        convert_family("fuyu", tmp_path / "b", ConvertOptions(("fp32",), "F32"),
                       {"captioner": folder})  # fmt: skip
    text = " ".join([caught.value.message, *caught.value.details])
    assert expected in text
    assert not (tmp_path / "b").exists()


def test_weights_that_overflow_are_refused_by_the_checkpoints_name(
    case: Case, tmp_path: Path
) -> None:
    """They are finite, but no logit is: the file that is refused then is about to go."""
    folder = linked(
        case, tmp_path / "c", *(p.name for p in case.settings["captioner"].glob("*safe*"))
    )
    tensors: dict[str, torch.Tensor] = {}
    for path in case.settings["captioner"].glob("*.safetensors"):
        tensors |= load_file(path)
    tensors["language_model.model.layers.1.mlp.dense_4h_to_h.weight"][0, 0] = 3e38
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="gave values that are not finite") as caught:
        converted(Case("fuyu", {"captioner": folder}, case.reference), tmp_path / "b")
    assert caught.value.message.startswith(f"{folder}: what it makes cannot run: lm.onnx: ")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_tokenizer_that_would_end_the_process_is_refused(case: Case, tmp_path: Path) -> None:
    """llama.cpp calls itself for each byte of a piece of a unigram vocabulary."""
    folder = linked(case, tmp_path / "c", "tokenizer.json")
    data = json.loads((case.settings["captioner"] / "tokenizer.json").read_text())
    data["model"]["vocab"][-1][0] = "x" * 100_000
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"lm\.gguf: .* a token of 100000 bytes"):
        converted(Case("fuyu", {"captioner": folder}, case.reference), tmp_path / "b")


def test_a_smaller_canvas_is_kept(case: Case, tmp_path: Path) -> None:
    """As of models that others trained from it."""
    folder = linked(case, tmp_path / "c", "preprocessor_config.json")
    data = {**tiny.PREPROCESSOR, "size": {"height": 480, "width": 660}}
    del data["target_height"], data["target_width"]
    (folder / "preprocessor_config.json").write_text(json.dumps(data))
    parts = parts_of(Case("fuyu", {"captioner": folder}, case.reference))
    assert parts.manifest.image.free is not None
    assert parts.manifest.image.free.canvas == [660, 480]
    picture = read_picture(Image.new("RGB", (700, 700)))
    assert picture_to_tiles(picture, parts.manifest.image).shape == (1, 480, 480, 3)
