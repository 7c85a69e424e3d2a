"""The torch reference of InternLM-XComposer2 is right: against stock parts and recorded sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers import tiled
from tests.helpers.tiny_captioners import pictures
from tests.helpers.tiny_xcomposer2 import KINDS, TILE, recorded_layouts, write_checkpoint
from tests.helpers.xcomposer2_reference import (
    END,
    START,
    HdLayout,
    PartialLoraLinear,
    XComposer2,
    XComposer2Reference,
    hd_canvas,
    hd_layout,
    n_rows,
)

# {(width, height, hd_num): layout} worked out from the rule in `ixc_utils.py`. 8400 / (300 / 9) is
# just below 252 in floating point, and upstream truncates.
LAYOUTS = {
    (336, 336, 16): HdLayout((1344, 1344), 0, 0, 4, 4),
    (640, 480, 25): HdLayout((1680, 1260), 0, 42, 5, 4),
    (480, 640, 25): HdLayout((1260, 1680), 42, 0, 4, 5),
    (3840, 1600, 55): HdLayout((3696, 1540), 0, 70, 11, 5),
    (300, 9, 25): HdLayout((8400, 251), 0, 42, 25, 1),
    (10, 4000, 9): HdLayout((7, 3024), 164, 0, 1, 9),
}
# 4KHD's report and its code: tiles, rows
ROWS = {(1, 1): 313, (4, 4): 2509, (5, 5): 3817, (1, 25): 3769, (25, 1): 4057, (55, 1): 8737}


def _reference(folder: Path, kind: str, **changes: Any) -> XComposer2Reference:
    reference = write_checkpoint(folder / kind, kind, 5, **changes).reference
    assert isinstance(reference, XComposer2Reference)
    return reference


def _stock(model: XComposer2, *, lora: bool) -> LlamaForCausalLM:
    """Return transformers' Llama with the same weights; with `lora` merged into every matrix."""
    layers: list[Any] = list(model.model.layers)
    first = layers[0].attention
    width = len(first.wo.weight)
    config = LlamaConfig(
        vocab_size=model.output.out_features, hidden_size=width, num_hidden_layers=len(layers),
        num_attention_heads=width // first.head_dim, num_key_value_heads=first.groups,
        rms_norm_eps=1e-5, intermediate_size=len(layers[0].feed_forward.w1.weight), rope_theta=1e6,
    )  # fmt: skip
    llama: LlamaForCausalLM = LlamaForCausalLM(config).eval()

    def matrix(linear: PartialLoraLinear) -> torch.Tensor:
        if not lora:
            return linear.weight
        return linear.weight + linear.Plora_B.weight @ linear.Plora_A.weight

    state = {
        "model.embed_tokens.weight": model.model.tok_embeddings.weight,
        "model.norm.weight": model.model.norm.weight, "lm_head.weight": model.output.weight,
    }  # fmt: skip
    for i, layer in enumerate(layers):
        lead = f"model.layers.{i}."
        a = layer.attention
        packed = matrix(a.wqkv).view(a.groups, -1, a.head_dim, width)
        feed = layer.feed_forward
        state |= {
            f"{lead}self_attn.q_proj.weight": packed[:, :-2].reshape(-1, width),
            f"{lead}self_attn.k_proj.weight": packed[:, -2].reshape(-1, width),
            f"{lead}self_attn.v_proj.weight": packed[:, -1].reshape(-1, width),
            f"{lead}self_attn.o_proj.weight": matrix(a.wo),
            f"{lead}mlp.gate_proj.weight": matrix(feed.w1),
            f"{lead}mlp.up_proj.weight": matrix(feed.w3),
            f"{lead}mlp.down_proj.weight": matrix(feed.w2),
            f"{lead}input_layernorm.weight": layer.attention_norm.weight,
            f"{lead}post_attention_layernorm.weight": layer.ffn_norm.weight,
        }
    llama.load_state_dict(state)
    return llama


@torch.inference_mode()
def test_partial_lora_acts_on_the_rows_of_pictures_alone(tmp_path: Path) -> None:
    model = _reference(tmp_path, "vl").whole
    rows = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    first = torch.arange(20) < 12
    for mask, lora in ((torch.zeros(20, dtype=torch.bool), False), (first | ~first, True)):
        expected = _stock(model, lora=lora)(inputs_embeds=rows[None]).logits[0]
        torch.testing.assert_close(model.logits(rows, mask), expected, rtol=1e-4, atol=1e-4)
    mixed = model.logits(rows, first)
    every, none = (model.logits(rows, mask) for mask in (first | ~first, first & ~first))
    torch.testing.assert_close(mixed[:12], every[:12])  # no later row reaches them
    assert (mixed[12:] - none[12:]).abs().max() > 0.1  # through keys and values
    assert (mixed[12:] - every[12:]).abs().max() > 0.1
    for layer in model.model.layers:
        for part in layer.modules():
            if isinstance(part, PartialLoraLinear):
                part.Plora_B.weight.zero_()
    torch.testing.assert_close(model.logits(rows, first), none)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_depends_on_its_picture(tmp_path: Path, kind: str) -> None:
    captioner = _reference(tmp_path, kind)
    images = tiled.pictures() if KINDS[kind].hd else pictures()
    texts = {tuple(captioner.greedy(image, 12)) for image in images}
    assert len(texts) == len(images)
    assert all(len(set(text)) >= 4 for text in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_holds_the_published_tensors(tmp_path: Path, kind: str) -> None:
    reference = _reference(tmp_path, kind)
    (index,) = reference.tokenizer.glob("*.index.json")
    names = json.loads(index.read_text())["weight_map"]
    tower = "vit.vision_tower.vision_model."
    parts = ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2"]
    expected = {
        f"model.layers.1.{p}.{w}weight" for p in parts for w in ("", "Plora_A.", "Plora_B.")
    }
    expected |= {f"{tower}embeddings.position_embedding.weight", f"{tower}pre_layrnorm.bias"}
    expected |= {f"{tower}encoder.layers.3.mlp.fc2.bias", "model.tok_embeddings.weight"}
    expected |= {f"vision_proj.{i}.{w}" for i in (0, 2) for w in ("weight", "bias")}
    expected |= {"output.weight", "model.norm.weight"}
    assert expected <= names.keys()
    assert ({"plora_glb_GN", "plora_sub_GN"} <= names.keys()) is (kind == "4khd")
    assert not any("position_ids" in name or "inv_freq" in name for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_marks_of_a_turn_are_the_last_two_pieces(tmp_path: Path, kind: str) -> None:
    reference = _reference(tmp_path, kind)
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(reference.tokenizer / "tokenizer.model")
    )
    n_vocab = json.loads((reference.tokenizer / "config.json").read_text())["vocab_size"]
    assert model.encode(f"{START}user\n")[0] == n_vocab - 1 == len(model) - 1
    assert model.encode(f"x{END}\n")[-2] == n_vocab - 2
    before, _, after = reference.prompt_ids()
    assert before[:2] == [1, n_vocab - 1]
    assert 1 not in after
    assert before.count(n_vocab - 2) == 1
    reference.bos_again = True
    assert reference.prompt_ids() == [before, [], [1, *after]]


@pytest.mark.parametrize(("width", "height", "hd_num"), LAYOUTS)
def test_a_picture_is_laid_out_as_recorded(width: int, height: int, hd_num: int) -> None:
    assert hd_layout(width, height, hd_num) == LAYOUTS[width, height, hd_num]


def test_500_pictures_are_laid_out_as_recorded() -> None:
    recorded = recorded_layouts()
    assert len(recorded) == 500
    for (width, height, most), (layout, rows) in recorded.items():
        assert (hd_layout(width, height, most), n_rows(layout)) == (layout, rows)
        assert layout.n_tiles <= most


def test_a_ribbon_that_would_vanish_is_refused_as_upstream_does() -> None:
    with pytest.raises(ValueError, match="no row of pixels"):
        hd_layout(9000, 1, 25)


@pytest.mark.parametrize(("down", "across"), ROWS)
def test_rows_are_counted_as_upstream_asserts(down: int, across: int) -> None:
    assert n_rows(HdLayout((0, 0), 0, 0, across, down)) == ROWS[down, across]


def test_rows_stand_where_their_patches_do(tmp_path: Path) -> None:
    captioner = _reference(tmp_path, "4khd")
    model = captioner.whole
    for image in tiled.pictures():
        layout = hd_layout(*image.size, captioner.hd_num, TILE)
        side = TILE // 14 // 2
        rows = captioner.visual_tokens(image)
        assert len(rows) == n_rows(layout, side)
        with torch.inference_mode():
            end = model.vision_proj(model.plora_sub_GN[0, 0])[0]
            seam = model.vision_proj(model.plora_glb_GN[0])[0]
            start = side * (side + 1)
            torch.testing.assert_close(rows[side], end)
            torch.testing.assert_close(rows[start], seam)
            # the last tile's last row of merged patches, computed from that tile alone
            features = model.features(captioner.views(image)[-1:])[0].unflatten(0, (4, 4))
            last = model.vision_proj(features[2:, 2:].reshape(-1))
        torch.testing.assert_close(rows[-1], end)
        torch.testing.assert_close(rows[-2], last, rtol=1e-4, atol=1e-4)


def test_a_tall_picture_is_the_wide_one_transposed() -> None:
    wide = tiled.pictures()[1]
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    canvas = hd_canvas(tall, 9, TILE)
    assert canvas.size == hd_canvas(wide, 9, TILE).size[::-1]
    assert canvas.getpixel((0, 0)) == (255, 255, 255)
    assert canvas == hd_canvas(wide, 9, TILE).transpose(Image.Transpose.TRANSPOSE)


def test_the_overview_is_not_antialiased(tmp_path: Path) -> None:
    reference = _reference(tmp_path, "4khd")
    image = tiled.pictures()[4]
    canvas = hd_canvas(image, reference.hd_num, TILE)
    views = reference.views(image)
    assert len(views) == 1 + hd_layout(*image.size, reference.hd_num, TILE).n_tiles
    smooth = canvas.resize((TILE, TILE), Image.Resampling.BICUBIC)
    rough = views[0].permute(1, 2, 0) * torch.tensor([0.26862954, 0.26130258, 0.27577711])
    rough = (rough + torch.tensor([0.48145466, 0.4578275, 0.40821073])) * 255
    difference = rough - torch.tensor(np.asarray(smooth, np.float32))
    assert difference.abs().mean() > 2
