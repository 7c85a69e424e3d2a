"""The modules EVA-ViT-g and Q-Former in both published layouts, against transformers' classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
)

from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision import eva_vit, qformer
from edgeprism.convert.vision.graph import Tower
from edgeprism.convert.vision.weights import Weights, norm_weights
from edgeprism.errors import CheckpointError
from tests.helpers.tiny_captioners import make, tensors_of

WIDTH, HEADS, QUERIES, VOCABULARY = 48, 4, 5, 90


def tower() -> InstructBlipVisionModel:
    config = InstructBlipVisionConfig(
        hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=HEADS,
        image_size=42, patch_size=14, layer_norm_eps=1e-6,
    )  # fmt: skip
    return make(InstructBlipVisionModel(config), 1)


def former() -> InstructBlipQFormerModel:
    config = InstructBlipQFormerConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=HEADS,
        intermediate_size=100, max_position_embeddings=40, encoder_hidden_size=32, pad_token_id=0,
        cross_attention_frequency=2, layer_norm_eps=1e-12,
    )  # fmt: skip
    return make(InstructBlipQFormerModel(config), 2)


def lavis_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the Q-Former's tensors as LAVIS names them."""
    renamed = {}
    for name, tensor in tensors.items():
        changed = name.replace("qformer.", "Qformer.bert.").replace("layernorm", "LayerNorm")
        renamed[changed.replace("attention.attention.", "attention.self.")] = tensor
    return renamed


def filled(module: nn.Module, weights: Weights) -> nn.Module:
    """Give `module` its parameters; each must be among `weights`, and each of these be needed."""
    state = {}
    for name, parameter in module.named_parameters():
        weight = weights.pop(name)
        tensors = [weight.checkpoint.read(source) for source in weight.shapes]
        assert [tuple(t.shape) for t in tensors] == list(weight.shapes.values())
        state[name] = weight.turn(*tensors).contiguous()
        assert state[name].shape == parameter.shape
    assert not weights
    module.load_state_dict(state, assign=True)
    return module


@pytest.mark.parametrize("names", [qformer.INSTRUCT_BLIP, qformer.LAVIS])
@torch.inference_mode()
def test_queries_read_the_instruction_and_the_features(
    names: qformer.Names, tmp_path: Path
) -> None:
    model = former()
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(1, QUERIES, WIDTH, generator=generator)
    features = torch.randn(2, 10, 32, generator=generator)
    tensors = {**tensors_of(model, "qformer."), "query_tokens": queries}
    save_file(tensors if names is qformer.INSTRUCT_BLIP else lavis_names(tensors),
              tmp_path / "model.safetensors")  # fmt: skip
    published = qformer.QFormerTensors(Checkpoint(tmp_path, "captioner"), names)
    config = qformer.qformer_config(published, reads_text=True, n_heads=HEADS)
    assert (config.n_layers, config.n_queries, config.n_vocab) == (3, QUERIES, VOCABULARY)
    ours = filled(
        qformer.QFormer(config, torch.float32), qformer.qformer_weights(config, published)
    )
    rows = []
    for ids in ([[2, 7, 11, 5, 3]], [[2, 9, 3]]):
        text = torch.tensor(ids)
        expected = model(
            input_ids=text.expand(2, -1),
            query_embeds=queries.expand(2, -1, -1),
            encoder_hidden_states=features,
        ).last_hidden_state[:, :QUERIES]
        rows.append(ours(features, text))
        torch.testing.assert_close(rows[-1], expected, atol=1e-5, rtol=1e-4)
    assert float((rows[0] - rows[1]).abs().max()) > 1e-2  # the instruction matters


@torch.inference_mode()
def test_the_tower_of_transformers_layout(tmp_path: Path) -> None:
    model = tower()
    save_file(tensors_of(model, "vision_model."), tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path, "captioner")
    tensors = eva_vit.EvaTensors(checkpoint, "vision_model.", eva_vit.TRANSFORMERS)
    config = eva_vit.eva_vit_config(tensors, eps_last=1e-6, n_heads=HEADS)
    assert (config.n_layers, config.n_embd, config.image_size) == (3, 32, 42)
    weights = eva_vit.eva_vit_weights(config, tensors)
    weights |= norm_weights("norm_last", checkpoint, "vision_model.post_layernorm", 32)
    ours = filled(Tower(config, torch.float32), weights)
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (2, 42, 42, 3), dtype=torch.uint8, generator=generator)
    mean, std = torch.tensor(eva_vit.MEAN), torch.tensor(eva_vit.STD)
    values = ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    # transformers' tower has a bias of keys here, too: attention does not change with it
    bias = model.state_dict()["encoder.layers.0.self_attn.qkv.bias"]
    assert float(bias[32:64].abs().max()) > 0.1
    expected = model(pixel_values=values).last_hidden_state
    torch.testing.assert_close(ours(pixels), expected, atol=1e-4, rtol=1e-4)


def test_files_without_the_parts_are_refused(tmp_path: Path) -> None:
    queries = {**tensors_of(former(), "qformer."), "query_tokens": torch.zeros(1, 5, WIDTH)}
    textless = {name: tensor for name, tensor in queries.items() if "word_emb" not in name}
    save_file(textless, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path, "captioner")
    tower = eva_vit.EvaTensors(checkpoint, "visual_encoder.")
    with pytest.raises(CheckpointError, match=r"visual_encoder\.patch_embed\.proj.* is missing"):
        eva_vit.eva_vit_config(tower, 1e-5)
    with pytest.raises(CheckpointError, match=r"Qformer\.bert\.encoder\..* is missing"):
        qformer.qformer_config(qformer.QFormerTensors(checkpoint), reads_text=False)
    published = qformer.QFormerTensors(checkpoint, qformer.INSTRUCT_BLIP)
    with pytest.raises(CheckpointError, match=r"word_embeddings\.weight is missing"):
        qformer.qformer_config(published, reads_text=True, n_heads=HEADS)
    textless["query_tokens"] = torch.zeros(5)
    save_file(textless, tmp_path / "model.safetensors")
    published = qformer.QFormerTensors(Checkpoint(tmp_path, "captioner"), qformer.INSTRUCT_BLIP)
    with pytest.raises(CheckpointError, match=r"query_tokens is of shape \[5\]"):
        qformer.qformer_config(published, reads_text=False, n_heads=HEADS)


def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path) -> None:
    save_file({**tensors_of(former(), "qformer."), "query_tokens": torch.zeros(1, 5, WIDTH)},
              tmp_path / "model.safetensors")  # fmt: skip
    published = qformer.QFormerTensors(Checkpoint(tmp_path, "captioner"), qformer.INSTRUCT_BLIP)
    with pytest.raises(CheckpointError, match="width 48 with 7 heads"):
        qformer.qformer_config(published, reads_text=True, n_heads=7)
