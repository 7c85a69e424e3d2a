"""Prismatic VLMs: one or two timm vision models, a projector, and a Llama-2, Vicuna or Mistral.

A published model is `config.json` and `checkpoints/latest-checkpoint.pt`, which holds the
projector and the language model; vision models and the tokenizer are published separately. The
features come from the second-to-last block; the features of two models are concatenated. The
picture comes right after BOS, before all text. A letterboxed picture has each model's own mean
colour as its border.

Sources: TRI-ML/prismatic-vlms (`load.py`, `base_vision.py`, `dinosiglip_vit.py`, `nn_utils.py`,
`prismatic.py`, the prompt builders) and the configurations published under that name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import ImagePolicy
from edgeprism.convert.family import CONVERSATION, Family, Option
from edgeprism.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

# vision_backbone_id → (edge in pixels, names of its models in ARCHITECTURES, in order)
BACKBONES: dict[str, tuple[int, tuple[str, ...]]] = {
    "clip-vit-b": (224, ("clip-b",)),
    "clip-vit-l": (224, ("clip-l",)),
    "clip-vit-l-336px": (336, ("clip-l",)),
    "siglip-vit-b16-224px": (224, ("siglip-b",)),
    "siglip-vit-b16-256px": (256, ("siglip-b",)),
    "siglip-vit-b16-384px": (384, ("siglip-b",)),
    "siglip-vit-so400m": (224, ("siglip-so",)),
    "siglip-vit-so400m-384px": (384, ("siglip-so",)),
    "dinov2-vit-l": (224, ("dinov2-l",)),
    # CLIP runs with timm's activation here, but as the only model with that of its training
    "dinoclip-vit-l-336px": (336, ("dinov2-l", "clip-l-gelu")),
    "dinosiglip-vit-so-224px": (224, ("dinov2-l", "siglip-so")),
    "dinosiglip-vit-so-384px": (384, ("dinov2-l", "siglip-so")),
}
_ASPECTS = {"resize-naive": "stretch", "resize-crop": "center-crop", "letterbox": "letterbox"}


def read(
    captioner: Path,
    llm: Path,
    vision: Path,
    second_vision: Path | None,
    conversation: str,
    progress: Progress,
) -> PublishedCaptioner:
    """Read a published model, with the vision models and the tokenizer that it names.

    `conversation` is one of CONVERSATIONS; "" stands for that of `llm_backbone_id`'s training.
    """
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import conversation_named
    from edgeprism.convert.read.sources import SourceFiles, source_without_weights

    config, weights_file = _read_config(captioner)
    form = conversation_named(conversation or _conversation_of(config["llm_backbone_id"]))
    checkpoint = Checkpoint(captioner, "captioner", files=[weights_file])
    lm = _language_model(checkpoint, config, llm, TokenRules(eos=form.eos, needed=form.needed))
    _, architectures = BACKBONES[config["vision_backbone_id"]]
    folders = [vision] if second_vision is None else [vision, second_vision]
    if len(folders) != len(architectures):
        raise UsageError(
            f"{config['vision_backbone_id']} has {len(architectures)} vision models, but "
            f"{len(folders)} folders are given.",
            "Pass `vision`, and `second_vision` where there are two (DINOv2 is the first).",
        )
    towers = [Checkpoint(folder, "vision model") for folder in folders]
    image = _image_policy(config)
    return PublishedCaptioner(
        captioner,
        [
            SourceFiles("captioner", captioner, checkpoint.files),
            source_without_weights("llm", llm),
            *(SourceFiles("vision", tower.folder, tower.files) for tower in towers),
        ],
        image,
        _vision_side(checkpoint, config, towers, lm.config.n_embd, len(image.fills)),
        lm,
        form,
        name=str(config.get("model_id") or ""),
    )


FAMILY = Family(
    name="prismatic",
    summary="Prismatic VLMs: one or two of DINOv2, SigLIP and CLIP (timm), MLP, a Llama or Mistral",
    help="Convert a Prismatic VLM with one or two vision models to the bundle OUT.",
    options=(
        Option(
            "captioner",
            "folder",
            "Folder with config.json and checkpoints/latest-checkpoint.pt.",
            required=True,
        ),
        Option(
            "llm",
            "folder",
            "Folder of the language model that it names, for the tokenizer.",
            required=True,
        ),
        Option("vision", "folder", "Folder of the timm vision model that it names.", required=True),
        Option(
            "second_vision",
            "folder",
            "Folder of the second vision model, if it names two (DINOv2 is the first).",
        ),
        CONVERSATION,
    ),
    read=read,
    signs=("checkpoints", "vision_backbone_id", "llm_backbone_id", "model"),
)


def _image_policy(config: dict[str, Any]) -> ImagePolicy:
    """Return the picture's policy: both models resize alike, but letterbox in their own colours."""
    from edgeprism.convert.vision.config import Preparation, one_tile
    from edgeprism.convert.vision.timm import ARCHITECTURES

    size, names = BACKBONES[config["vision_backbone_id"]]
    first, *others = (
        Preparation("stretch", size, "bicubic", 1 / 255, model.mean, model.std)
        for model in (ARCHITECTURES[name] for name in names)
    )
    mode = _ASPECTS[config["image_resize_strategy"]]
    policy = one_tile(mode, first)
    if mode == "letterbox" and others:
        policy = dataclasses.replace(policy, second_fill=others[0].fill)
    return policy


def _read_config(captioner: Path) -> tuple[dict[str, Any], Path]:
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.checkpoint import read_json

    weights = captioner / "checkpoints" / "latest-checkpoint.pt"
    path = captioner / "config.json"
    data = read_json(path).get("model") if path.is_file() else None
    if not weights.is_file() or not isinstance(data, dict):
        raise unknown_layout(
            captioner, FAMILY.name,
            'config.json with an object "model", and checkpoints/latest-checkpoint.pt',
        )  # fmt: skip
    faults = []
    backbone, strategy = data.get("vision_backbone_id"), data.get("image_resize_strategy")
    if backbone not in BACKBONES:
        faults.append(f"vision_backbone_id {backbone!r} (known: {', '.join(BACKBONES)})")
    if strategy not in _ASPECTS:
        faults.append(f"image_resize_strategy {strategy!r} (known: {', '.join(_ASPECTS)})")
    elif strategy != "resize-naive" and backbone == "clip-vit-b":
        # for this model, timm resizes to a size larger by a ninth and crops the excess
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
        f"The conversation template of {llm_backbone_id} is unknown.",
        "Name the one that it was trained with as `conversation`: prismatic-pure or "
        "prismatic-vicuna.",
    )


def _language_model(
    checkpoint: Checkpoint, config: dict[str, Any], llm: Path, rules: TokenRules
) -> LmParts:
    """Open the checkpoint's language model.

    Its training enlarged the base model's vocabulary and may have shortened its context.
    """
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.read.checkpoint import read_json

    path = llm / "config.json"
    data = dict(read_json(path))
    embedding = [n for n in checkpoint.names if n.endswith("embed_tokens.weight")]
    rows = checkpoint.sizes(embedding[0], 2)[0] if embedding else 0
    base_rows = data.get("vocab_size", 32000)
    if isinstance(base_rows, int) and rows > base_rows:
        data["vocab_size"] = rows
    limit, context = config.get("llm_max_length", 2048), data.get("max_position_embeddings", 2048)
    if isinstance(limit, int) and isinstance(context, int):
        data["max_position_embeddings"] = min(limit, context)
    return open_language_model(checkpoint, data, str(path), llm, rules)


def _vision_side(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    checkpoints: list[Checkpoint],
    n_out: int,
    n_views: int,
) -> VisionSide:
    from edgeprism.convert.gate import towers as reference
    from edgeprism.convert.vision.config import ProjectorConfig
    from edgeprism.convert.vision.side import tower_side
    from edgeprism.convert.vision.timm import ARCHITECTURES, timm_tower
    from edgeprism.convert.vision.weights import VisionWeights, projector_weights

    size, names = BACKBONES[config["vision_backbone_id"]]
    pairs = list(zip(checkpoints, (ARCHITECTURES[name] for name in names), strict=True))
    towers = [timm_tower(tower, facts, size) for tower, facts in pairs]
    n_in = sum(tower.config.n_embd for tower in towers)
    widths, numbers = {
        "linear": ((n_in, n_out), [""]),
        "gelu-mlp": ((n_in, n_out, n_out), [".0", ".2"]),
        "fused-gelu-mlp": ((n_in, 4 * n_in, n_out, n_out), [".0", ".2", ".4"]),
    }[str(_projector_kind(config))]
    projector = ProjectorConfig(widths)
    endings = [f"projector.projector{number}" for number in numbers]
    parts = {f"towers.{i}": tower.weights for i, tower in enumerate(towers)}
    parts["projector"] = projector_weights(
        projector, checkpoint, [f"model.{ending}" for ending in endings]
    )
    grid = towers[0].config.grid
    features = [
        reference.timm_tower(
            tower.files, facts.n_heads, facts.eps, facts.activation, facts.mean, facts.std, grid
        )
        for tower, facts in pairs
    ]
    connector = reference.mlp(checkpoint.files, endings)
    return tower_side(
        [tower.config for tower in towers],
        projector,
        VisionWeights(parts),
        lambda pixels, tick: reference.visual_tokens(features, connector, pixels, tick),
        [(source, tower.unused) for source, tower in zip(checkpoints, towers, strict=True)],
        n_views=n_views,
    )
