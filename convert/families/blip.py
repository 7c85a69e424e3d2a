"""BLIP's captioners: a ViT with its class row, and BERT as a decoder that attends to its rows.

A picture is stretched to a square. The decoder is told nothing but the beginning of the caption:
"a picture of", with which it was trained, or no text at all. It does not follow instructions, so a
focus has no effect.

Sources: transformers' `modeling_blip.py` and `modeling_blip_text.py`; salesforce/BLIP's
`models/blip.py`, `vit.py`, `med.py` and `configs/med_config.json`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.language.decoder import DecoderConfig, DecoderParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.wordpiece import PublishedWordPiece
    from edgeprism.convert.vision.config import Preparation, TowerConfig
    from edgeprism.convert.vision.eva_vit import EvaTensors
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

_KIND = "blip"
_PROMPT = "a picture of"
_TEXT = "text_decoder."
_HEAD = 64  # width of one of a layer's heads, in the original layout, which does not tell it
_ORIGINAL_EPS, _BERT_EPS = 1e-6, 1e-12
_ADDED = 2  # tokens that the original layout adds to BERT's: [DEC], [ENC]
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_VISION_SIZES = (*_SIZES, "image_size", "patch_size")
_TEXT_SIZES = (*_SIZES, "vocab_size", "max_position_embeddings")


@dataclass(frozen=True)
class _Layout:
    """What both layouts give: where the tensors lie, and transformers' fields of both halves."""

    tensors: EvaTensors
    norm: str  # behind the tower's last layer
    vision: dict[str, Any]
    text: dict[str, Any]
    preparation: Preparation
    tokenizer: PublishedWordPiece


def read(captioner: Path, tokenizer: Path | None, progress: Progress) -> PublishedCaptioner:
    """Read the published folder, and BERT's vocabulary beside the original layout."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import read_config
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.read.sources import SourceFiles, source_without_weights
    from edgeprism.convert.vision.config import one_tile

    config = read_config(captioner)
    if config.get("model_type") == _KIND:
        layout = _transformers_layout(captioner, config, tokenizer)
    elif not config and any(captioner.glob("*.pth")):
        layout = _original_layout(captioner, tokenizer)
    else:
        expected = (
            "model_type blip with vision_config and text_config (transformers' layout), or the "
            "original .pth file without a config.json"
        )
        raise unknown_layout(captioner, FAMILY.name, expected)
    tower = _tower(layout, captioner)
    checkpoint = layout.tensors.checkpoint
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    if tokenizer is not None:
        sources.append(source_without_weights("tokenizer", tokenizer))
    return PublishedCaptioner(
        captioner,
        sources,
        one_tile("stretch", layout.preparation),
        _vision_side(layout, tower),
        _decoder(layout, checkpoint, tower.n_embd, captioner),
        Conversation("", "", stop=(), instruction=_PROMPT, takes_focus=False),
    )


FAMILY = Family(
    name="blip",
    summary="BLIP image captioning, base and large: ViT, BERT as a decoder that attends to it",
    help="""Convert a captioner of BLIP to the bundle OUT.

    Reads transformers' layout, and the original .pth file (with --tokenizer).
    """,
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option("tokenizer", "folder", "Folder of BERT's vocab.txt, if it lies elsewhere."),
    ),
    read=read,
    model_types=(_KIND,),
    signs=(
        "image_text_hidden_size",
        "model_base_caption_capfilt_large.pth",
        "model_large_caption.pth",
    ),
    lm_quants=("Q8_0", "F32"),
)


def _transformers_layout(
    captioner: Path, config: dict[str, Any], tokenizer: Path | None
) -> _Layout:
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.wordpiece import read_wordpiece
    from edgeprism.convert.vision.config import preparation_from_folder
    from edgeprism.convert.vision.eva_vit import TRANSFORMERS, EvaTensors

    vision, text = _fields_of(captioner / "config.json", config)
    checkpoint = Checkpoint(captioner, "captioner")
    return _Layout(
        EvaTensors(checkpoint, "vision_model.", TRANSFORMERS),
        "vision_model.post_layernorm",
        vision,
        text,
        preparation_from_folder(captioner, vision["image_size"], "blip"),
        read_wordpiece(tokenizer or captioner),
    )


def _fields_of(path: Path, config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return vision_config and text_config with transformers' defaults, after checking both."""
    from transformers import BlipTextConfig, BlipVisionConfig

    from edgeprism.convert.read.fields import (
        number_faults,
        object_field,
        require_known,
        size_faults,
        variant_error,
    )

    require_known(config, (), str(path), _KIND)
    parts = {}
    for name, kind in (("vision_config", BlipVisionConfig), ("text_config", BlipTextConfig)):
        given = object_field(config, name, str(path))
        require_known(given, kind().to_dict(), f"{path} ({name})")
        parts[name] = kind(**given).to_dict()
    vision, text = parts["vision_config"], parts["text_config"]
    faults = size_faults({name: vision[name] for name in _VISION_SIZES}, "vision_config.")
    faults += size_faults({name: text[name] for name in _TEXT_SIZES}, "text_config.")
    for name, part in parts.items():
        faults += number_faults({f"{name}.layer_norm_eps": part["layer_norm_eps"]}, 1)
        if part["hidden_act"] != "gelu":
            faults.append(f"{name}.hidden_act = {part['hidden_act']!r} (expected 'gelu')")
    if not faults:
        faults = [
            f"{name}.hidden_size is no multiple of num_attention_heads"
            for name, part in parts.items()
            if part["hidden_size"] % part["num_attention_heads"]
        ]
    if type(text["bos_token_id"]) is not int:
        faults.append(f"text_config.bos_token_id = {text['bos_token_id']!r}")
    if faults:
        raise variant_error(path, faults, "Use the config.json that was published.")
    return vision, text


def _original_layout(captioner: Path, tokenizer: Path | None) -> _Layout:
    """Read {"model": …}, whose sizes the tensors tell."""
    from edgeprism.convert.read.pth import pth_checkpoint
    from edgeprism.convert.read.wordpiece import VOCABULARY, read_wordpiece
    from edgeprism.convert.vision.config import CLIP_MEAN, CLIP_STD, Preparation
    from edgeprism.convert.vision.eva_vit import TIMM, EvaTensors, count_layers

    if tokenizer is None and not (captioner / VOCABULARY).is_file():
        raise CheckpointError(
            f"{captioner} holds BLIP's original layout, without a tokenizer.",
            "Pass the folder of BERT's vocab.txt (bert-base-uncased) as `tokenizer`.",
        )
    pieces = read_wordpiece(tokenizer or captioner)
    probes = [f"{_TEXT}cls.predictions.bias", "visual_encoder.cls_token"]
    checkpoint = pth_checkpoint(captioner, "captioner", probes)
    tensors = EvaTensors(checkpoint, "visual_encoder.", TIMM)
    embeddings = f"{_TEXT}bert.embeddings."
    n_vocab, e = checkpoint.sizes(f"{embeddings}word_embeddings.weight", 2)
    places, _ = checkpoint.sizes(f"{embeddings}position_embeddings.weight", 2)
    layers = f"{_TEXT}bert.encoder.layer."
    n_ffn, _ = checkpoint.sizes(f"{layers}0.intermediate.dense.weight", 2)
    text = {
        "vocab_size": n_vocab,
        "hidden_size": e,
        "intermediate_size": n_ffn,
        "num_hidden_layers": count_layers(checkpoint.names, layers),
        "num_attention_heads": max(1, e // _HEAD),
        "max_position_embeddings": places,
        "layer_norm_eps": _BERT_EPS,
        "bos_token_id": n_vocab - _ADDED,
    }
    width, *_ = checkpoint.sizes("visual_encoder.patch_embed.proj.weight", 4)
    vision = {"num_attention_heads": max(1, width // _HEAD), "layer_norm_eps": _ORIGINAL_EPS}
    size = _original_size(tensors)
    preparation = Preparation("stretch", size, "bicubic", 1 / 255, CLIP_MEAN, CLIP_STD)
    return _Layout(tensors, "visual_encoder.norm", vision, text, preparation, pieces)


def _original_size(tensors: EvaTensors) -> int:
    """Return the edge of the pictures that the tower's positions are for."""
    from edgeprism.convert.vision.eva_vit import eva_vit_config

    return eva_vit_config(tensors, _ORIGINAL_EPS, n_heads=1).image_size


def _tower(layout: _Layout, folder: Path) -> TowerConfig:
    """Return the tower; CheckpointError lists what config.json says otherwise than the tensors."""
    from edgeprism.convert.vision.eva_vit import eva_vit_config

    vision, prepared = layout.vision, layout.preparation
    eps = float(vision["layer_norm_eps"])
    found = eva_vit_config(layout.tensors, eps, vision["num_attention_heads"])
    sizes = {
        "hidden_size": found.n_embd,
        "intermediate_size": found.n_ffn,
        "num_hidden_layers": found.n_layers,
        "image_size": found.image_size,
        "patch_size": found.patch_size,
    }
    faults = [
        f"vision_config.{name} is {vision[name]!r}, the tensors have {size}"
        for name, size in sizes.items()
        if vision.get(name, size) != size
    ]
    if (prepared.mode, prepared.size) != ("stretch", found.image_size):
        faults.append(
            f"pictures are prepared in the mode {prepared.mode} at {prepared.size} pixels, the "
            f"tower takes {found.image_size}, stretched"
        )
    if faults:
        raise CheckpointError(
            f"{folder} contradicts itself: {'; '.join(faults)}.",
            "Use the files as they were published together.",
        )
    return dataclasses.replace(
        found, eps=eps, rescale=prepared.rescale, mean=prepared.mean, std=prepared.std
    )


def _vision_side(layout: _Layout, tower: TowerConfig) -> VisionSide:
    from edgeprism.convert.gate import blip as reference
    from edgeprism.convert.gate.data import N_PICTURES
    from edgeprism.convert.vision.config import ProjectorConfig
    from edgeprism.convert.vision.eva_vit import eva_vit_weights
    from edgeprism.convert.vision.graph import VisionGraph
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.convert.vision.weights import VisionWeights, norm_weights

    checkpoint = layout.tensors.checkpoint
    weights = eva_vit_weights(tower, layout.tensors)
    weights |= norm_weights("norm_last", checkpoint, layout.norm, tower.n_embd)
    fields = {
        "hidden_size": tower.n_embd,
        "intermediate_size": tower.n_ffn,
        "num_hidden_layers": tower.n_layers,
        "num_attention_heads": tower.n_heads,
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "layer_norm_eps": tower.eps,
    }
    colours = (tower.rescale, tower.mean, tower.std)
    # the rows are the decoder's as they are: there is no projector
    nothing = ProjectorConfig((tower.n_embd,))
    return VisionSide(
        lambda dtype: VisionGraph([tower], nothing, False, dtype),
        (1, 1 + tower.grid**2),
        VisionWeights({"towers.0": weights}),
        partial(reference.visual_tokens, checkpoint.files, fields, colours),
        N_PICTURES,
    )


def _decoder(layout: _Layout, checkpoint: Checkpoint, row_width: int, folder: Path) -> DecoderParts:
    from edgeprism.convert.gate import blip as reference
    from edgeprism.convert.gate.instruct_blip import bert_ids
    from edgeprism.convert.language.bert_decoder import (
        cross_weights,
        decoder_unused,
        decoder_weights,
    )
    from edgeprism.convert.language.decoder import CrossGraph, CrossParts, DecoderParts
    from edgeprism.convert.language.vocabulary_wordpiece import wordpiece_vocabulary

    config, text = _decoder_config(layout.text, row_width), layout.text
    pieces = layout.tokenizer.pieces
    to_ids = bert_ids(pieces)  # with the marks at both ends
    fields = {**text, "encoder_hidden_size": row_width}
    return DecoderParts(
        checkpoint,
        config,
        wordpiece_vocabulary(pieces, config.n_vocab, text["bos_token_id"], folder),
        decoder_weights(config, checkpoint, _TEXT),
        partial(reference.logits, checkpoint.files, fields),
        lambda text: to_ids(text)[1:-1],
        row_width,
        decoder_unused(_TEXT),
        CrossParts(CrossGraph(config), cross_weights(config, checkpoint, _TEXT)),
    )


def _decoder_config(text: dict[str, Any], row_width: int) -> DecoderConfig:
    from edgeprism.convert.language.decoder import DecoderConfig

    return DecoderConfig(
        n_layers=text["num_hidden_layers"],
        n_embd=text["hidden_size"],
        n_heads=text["num_attention_heads"],
        n_ffn=text["intermediate_size"],
        n_vocab=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        row_width=row_width,
        eps=float(text["layer_norm_eps"]),
    )
