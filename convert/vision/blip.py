"""The vision half of BLIP-2 and InstructBLIP in transformers' layout: EVA-ViT-g and a Q-Former.

Source: transformers' Blip2ForConditionalGeneration and InstructBlipForConditionalGeneration.
"""

from __future__ import annotations

import dataclasses

from edgeprism.convert.gate import instruct_blip as reference
from edgeprism.convert.read.blip_config import BlipConfig
from edgeprism.convert.read.checkpoint import Checkpoint
from edgeprism.convert.vision.config import Preparation, TowerConfig, preparation_from_folder
from edgeprism.convert.vision.eva_side import QueryParts
from edgeprism.convert.vision.eva_vit import (
    TRANSFORMERS,
    EvaTensors,
    eva_vit_config,
    eva_vit_weights,
)
from edgeprism.convert.vision.qformer import (
    Names,
    QFormerConfig,
    QFormerTensors,
    qformer_config,
    qformer_unused,
)
from edgeprism.convert.vision.weights import norm_weights, prefix_before
from edgeprism.errors import CheckpointError


def blip_parts(
    checkpoint: Checkpoint, config: BlipConfig, names: Names, reads_text: bool
) -> tuple[QueryParts, Preparation]:
    """Return the parts in `checkpoint`, and how pictures are prepared for them.

    Args:
        checkpoint: The whole model.
        config: Its configuration, checked.
        names: The Q-Former's names, without the prefix of all tensors.
        reads_text: Whether its queries attend to an instruction.

    Raises CheckpointError where the configuration contradicts the tensors or the processor.
    """
    vision = config.vision
    lead = prefix_before("query_tokens", checkpoint.names)
    tensors = EvaTensors(checkpoint, f"{lead}vision_model.", TRANSFORMERS)
    eps = float(vision["layer_norm_eps"])
    tower = eva_vit_config(tensors, eps, vision["num_attention_heads"])
    prepared = preparation_from_folder(checkpoint.folder, vision["image_size"], "blip")
    tower = dataclasses.replace(
        tower, eps=eps, rescale=prepared.rescale, mean=prepared.mean, std=prepared.std
    )
    names = dataclasses.replace(names, lead=f"{lead}{names.lead}", queries=f"{lead}{names.queries}")
    queries = QFormerTensors(checkpoint, names)
    former = qformer_config(queries, reads_text, config.qformer["num_attention_heads"])
    _require_agreement(config, tower, former)
    _require_square(checkpoint, prepared, tower)
    norm = norm_weights("norm_last", checkpoint, f"{lead}vision_model.post_layernorm", tower.n_embd)
    parts = QueryParts(
        tower,
        eva_vit_weights(tower, tensors) | norm,
        reference.published_tower(
            checkpoint.files, vision, prepared.rescale, prepared.mean, prepared.std
        ),
        queries,
        former,
        checkpoint,
        f"{lead}language_projection",
        [(checkpoint, qformer_unused(former))],
    )
    parts.require_fit()
    return parts, prepared


def _require_agreement(config: BlipConfig, tower: TowerConfig, former: QFormerConfig) -> None:
    sizes = {
        "num_query_tokens": former.n_queries,
        "vision_config.hidden_size": tower.n_embd,
        "vision_config.intermediate_size": tower.n_ffn,
        "vision_config.num_hidden_layers": tower.n_layers,
        "vision_config.image_size": tower.image_size,
        "vision_config.patch_size": tower.patch_size,
        "qformer_config.hidden_size": former.n_embd,
        "qformer_config.num_hidden_layers": former.n_layers,
        "qformer_config.intermediate_size": former.n_ffn,
        "qformer_config.encoder_hidden_size": former.n_image,
    }
    if former.reads_text:
        sizes |= {
            "qformer_config.vocab_size": former.n_vocab,
            "qformer_config.max_position_embeddings": former.n_positions,
        }
    config.require_sizes(sizes)


def _require_square(checkpoint: Checkpoint, prepared: Preparation, tower: TowerConfig) -> None:
    if (prepared.mode, prepared.size) != ("stretch", tower.image_size):
        raise CheckpointError(
            f"{checkpoint.folder / 'preprocessor_config.json'} prepares pictures in the mode "
            f"{prepared.mode} at {prepared.size} pixels; the vision model takes "
            f"{tower.image_size}, stretched.",
            "Use the preprocessor_config.json that was published with the model.",
        )
