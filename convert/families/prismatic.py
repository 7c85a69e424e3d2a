"""Prismatic VLMs: one or two timm vision models, a projector, and a Llama-2, Vicuna or Mistral.

A published model is `config.json` and `checkpoints/latest-checkpoint.pt`, which holds the
projector and the language model; vision models (and the tokenizer) are published on their own.
The features are those of the second-to-last block; two models' stand side by side. The picture
comes right after BOS, before all text. Where it is letterboxed, each model sees it on its own mean
colour.

Sources: TRI-ML/prismatic-vlms (`load.py`, `base_vision.py`, `dinosiglip_vit.py`, `nn_utils.py`,
`prismatic.py`, the prompt builders) and the configurations published under that name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import ImagePolicy, Manifest
from edgeprism.bundle.writer import BundleWriter
from edgeprism.convert.families.layouts import unknown_layout
from edgeprism.convert.gate import towers as reference
from edgeprism.convert.language.model import UNUSED, LmParts, open_language_model
from edgeprism.convert.language.vocabulary import TokenRules
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import (
    FOCUS,
    INSTRUCTION,
    MAX_TOKENS,
    VisionSide,
    captioner_parts,
    one_tile,
    source_of,
)
from edgeprism.convert.pipeline import check_options, write_bundle
from edgeprism.convert.read.card import card_from_folder
from edgeprism.convert.read.checkpoint import Checkpoint, Requirements, read_json
from edgeprism.convert.read.conversations import conversation_named
from edgeprism.convert.vision.config import Preparation, ProjectorConfig
from edgeprism.convert.vision.timm import (
    CLIP_B,
    CLIP_L,
    DINOV2_L,
    SIGLIP_B,
    SIGLIP_SO,
    TimmArchitecture,
    timm_tower,
)
from edgeprism.convert.vision.weights import VisionWeights, projector_weights
from edgeprism.errors import CheckpointError, UsageError
from edgeprism.progress import Progress

FAMILY = "prismatic"
# vision_backbone_id → edge in pixels, and its models in order
BACKBONES: dict[str, tuple[int, list[TimmArchitecture]]] = {
    "clip-vit-b": (224, [CLIP_B]),
    "clip-vit-l": (224, [CLIP_L]),
    "clip-vit-l-336px": (336, [CLIP_L]),
    "siglip-vit-b16-224px": (224, [SIGLIP_B]),
    "siglip-vit-b16-256px": (256, [SIGLIP_B]),
    "siglip-vit-b16-384px": (384, [SIGLIP_B]),
    "siglip-vit-so400m": (224, [SIGLIP_SO]),
    "siglip-vit-so400m-384px": (384, [SIGLIP_SO]),
    "dinov2-vit-l": (224, [DINOV2_L]),
    # alone, CLIP runs with the activation that it was trained with; here with timm's own
    "dinoclip-vit-l-336px": (336, [DINOV2_L, dataclasses.replace(CLIP_L, activation="gelu")]),
    "dinosiglip-vit-so-224px": (224, [DINOV2_L, SIGLIP_SO]),
    "dinosiglip-vit-so-384px": (384, [DINOV2_L, SIGLIP_SO]),
}
_ASPECTS = {"resize-naive": "stretch", "resize-crop": "center-crop", "letterbox": "letterbox"}


def convert(
    out: Path,
    options: ConvertOptions,
    progress: Progress,
    captioner: Path,
    llm: Path,
    vision: Path,
    second_vision: Path | None = None,
    conversation: str = "",
) -> Manifest:
    """Convert a published model, with the vision models and the tokenizer that it names.

    `conversation` is one of CONVERSATIONS, by default what `llm_backbone_id` was trained with.
    Raises UsageError, CheckpointError (every fault of the tensors at once) and ParityError.
    """
    check_options(options)
    with BundleWriter(out, options.overwrite) as writer:
        progress.stage("Reading the checkpoints")
        config, weights_file = _read_config(captioner)
        card = card_from_folder(captioner, INSTRUCTION, FOCUS, MAX_TOKENS)
        talk = conversation_named(conversation or _conversation_of(config["llm_backbone_id"]))
        checkpoint = Checkpoint(captioner, "captioner", files=[weights_file])
        requirements = Requirements()
        lm = _language_model(checkpoint, config, llm, TokenRules(eos=talk.eos, needed=talk.needed))
        requirements.add(checkpoint, lm.shapes, UNUSED[lm.config.model_type])
        _, architectures = BACKBONES[config["vision_backbone_id"]]
        folders = [vision] if second_vision is None else [vision, second_vision]
        if len(folders) != len(architectures):
            raise UsageError(
                f"{config['vision_backbone_id']} is {len(architectures)} vision models, "
                f"{len(folders)} folders are given.",
                "Pass --vision, and --second-vision where there are two (DINOv2 is the first).",
            )
        towers = [Checkpoint(folder, "vision model") for folder in folders]
        side = _vision_side(checkpoint, config, towers, lm, requirements)
        requirements.check()
        parts = captioner_parts(
            FAMILY,
            options.name or card.name or str(config.get("model_id") or captioner.resolve().name),
            [
                source_of("captioner", captioner, checkpoint.files),
                *(source_of("vision", tower.folder, tower.files) for tower in towers),
            ],
            _image_policy(config),
            side,
            lm,
            talk,
            card,
        )
        return write_bundle(parts, writer, options, progress)


def _image_policy(config: dict[str, Any]) -> ImagePolicy:
    """Both models resize and cut alike; what they letterbox with is each one's own."""
    size, architectures = BACKBONES[config["vision_backbone_id"]]
    first, *others = (
        Preparation("stretch", size, "bicubic", 1 / 255, model.mean, model.std)
        for model in architectures
    )
    mode = _ASPECTS[config["image_resize_strategy"]]
    policy = one_tile(mode, first)
    if mode == "letterbox" and others:
        policy = dataclasses.replace(policy, second_fill=others[0].fill)
    return policy


def _read_config(captioner: Path) -> tuple[dict[str, Any], Path]:
    weights = captioner / "checkpoints" / "latest-checkpoint.pt"
    path = captioner / "config.json"
    data = read_json(path).get("model") if path.is_file() else None
    if not weights.is_file() or not isinstance(data, dict):
        raise unknown_layout(
            captioner, FAMILY,
            "config.json with an object `model`, and checkpoints/latest-checkpoint.pt",
        )  # fmt: skip
    faults = []
    backbone, strategy = data.get("vision_backbone_id"), data.get("image_resize_strategy")
    if backbone not in BACKBONES:
        faults.append(f"vision_backbone_id {backbone!r} (known: {', '.join(BACKBONES)})")
    if strategy not in _ASPECTS:
        faults.append(f"image_resize_strategy {strategy!r} (known: {', '.join(_ASPECTS)})")
    elif strategy != "resize-naive" and backbone == "clip-vit-b":
        # timm resizes for this model to a size larger by a ninth, and cuts that off
        faults.append(f"image_resize_strategy {strategy!r} with clip-vit-b, never published")
    if not isinstance(data.get("llm_backbone_id"), str):
        faults.append(f"llm_backbone_id {data.get('llm_backbone_id')!r}")
    if _projector_kind(data) is None:
        faults.append(f"arch_specifier {data.get('arch_specifier')!r} (known: linear, …gelu-mlp)")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.", "Use a published Prismatic model."
        )
    return data, weights


def _projector_kind(config: dict[str, Any]) -> str | None:
    specifier = str(config.get("arch_specifier"))
    return next(
        (k for k in ("fused-gelu-mlp", "gelu-mlp", "linear") if specifier.endswith(k)), None
    )


def _conversation_of(llm_backbone_id: str) -> str:
    if llm_backbone_id.endswith("-pure"):
        return "prismatic-pure"
    if llm_backbone_id.startswith("vicuna"):
        return "prismatic-vicuna"
    raise UsageError(
        f"How {llm_backbone_id} is spoken to is not known.",
        "Pass --conversation prismatic-pure or prismatic-vicuna, whichever it was trained with.",
    )


def _language_model(
    checkpoint: Checkpoint, config: dict[str, Any], llm: Path, rules: TokenRules
) -> LmParts:
    """The language model in the checkpoint: its vocabulary was enlarged, its context may be cut."""
    path = llm / "config.json"
    data = dict(read_json(path))
    embedding = [n for n in checkpoint.names if n.endswith("embed_tokens.weight")]
    rows = checkpoint.shape(embedding[0])[0] if embedding else 0
    known = data.get("vocab_size", 32000)
    if isinstance(known, int) and rows > known:
        data["vocab_size"] = rows
    most, trained = config.get("llm_max_length", 2048), data.get("max_position_embeddings", 2048)
    if isinstance(most, int) and isinstance(trained, int):
        data["max_position_embeddings"] = min(most, trained)
    return open_language_model(checkpoint, data, str(path), llm, rules)


def _vision_side(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    checkpoints: list[Checkpoint],
    lm: LmParts,
    requirements: Requirements,
) -> VisionSide:
    size, architectures = BACKBONES[config["vision_backbone_id"]]
    pairs = list(zip(checkpoints, architectures, strict=True))
    towers = [timm_tower(tower, facts, size) for tower, facts in pairs]
    n_in, n_out = sum(tower.config.n_embd for tower in towers), lm.config.n_embd
    kind = _projector_kind(config)
    widths, numbers = {
        "linear": ((n_in, n_out), [""]),
        "gelu-mlp": ((n_in, n_out, n_out), [".0", ".2"]),
        "fused-gelu-mlp": ((n_in, 4 * n_in, n_out, n_out), [".0", ".2", ".4"]),
    }[str(kind)]
    projector = ProjectorConfig(widths)
    endings = [f"projector.projector{number}" for number in numbers]
    parts = {f"towers.{i}": tower.weights for i, tower in enumerate(towers)}
    parts["projector"] = projector_weights(
        projector, checkpoint, [f"model.{ending}" for ending in endings]
    )
    weights = VisionWeights(parts)
    for source, shapes in weights.requirements():
        requirements.add(source, shapes)
    for tower, source in zip(towers, checkpoints, strict=True):
        requirements.add(source, {}, tower.unused)
    grid = towers[0].config.grid
    features = [
        reference.timm_tower(
            tower.files, facts.n_heads, facts.eps, facts.activation, facts.mean, facts.std, grid
        )
        for tower, facts in pairs
    ]
    connector = reference.mlp(checkpoint.files, endings)
    return VisionSide(
        [tower.config for tower in towers],
        projector,
        weights,
        lambda pixels, tick: reference.visual_tokens(features, connector, pixels, tick),
    )
