"""Mini-Gemini (MGM): CLIP's patches mine a ConvNeXt's map → MLP → Gemma, Vicuna, Llama 3 or Yi.

The picture is padded to a square and shown to both towers from one file of pixels: 768 to the
ConvNeXt, and to CLIP made smaller. The HD models take 1536 pixels, of which CLIP sees the whole and
four parts. Both towers were left as published, so they come from folders of their own; where the
checkpoint holds one, that one counts.

Sources: the public repository dvlab-research/MGM (`mgm_arch.py`, `openclip_encoder.py`, `cli.py`,
`conversation.py` and the scripts for training), the paper (arXiv 2403.18814). The published
config.json of none of these models was seen: its fields are those that the repository's training
writes.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import CONVERSATION, Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.gate.mining_towers import MiningSource
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.vision.config import Preparation, TowerConfig
    from edgeprism.convert.vision.convnext import ConvNeXtNames
    from edgeprism.convert.vision.mining import MiningConfig
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

# model_type → the language model's; the repository's first commits have the longer names
LANGUAGE_MODELS = {
    "mgm": "llama", "mgm_gemma": "gemma", "mini_gemini": "llama", "mini_gemini_gemma": "gemma",
}  # fmt: skip
# What this file reads, and what only training read
_FIELDS = frozenset((
    "mm_hidden_size", "mm_hidden_size_aux", "mm_vision_tower", "mm_vision_tower_aux",
    "mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature",
    "mm_use_im_start_end", "mm_use_im_patch_token", "use_mm_proj", "image_aspect_ratio",
    "image_grid", "image_global", "image_grid_pinpoints", "image_size_aux",
    "optimize_vision_tower", "optimize_vision_tower_aux", "drop_path", "model_path",
))  # fmt: skip
_MLP = re.compile(r"mlp([1-9])x_gelu")
_OPEN_CLIP_STEMS = ("open_clip_pytorch_model", "open_clip_model")
_LEAD = "visual.trunk."  # open_clip's, before the ConvNeXt's tensors


def read(
    captioner: Path,
    vision: Path,
    vision_aux: Path | None,
    conversation: str,
    progress: Progress,
) -> PublishedCaptioner:
    """Read the folder `captioner`, CLIP in `vision` and the ConvNeXt in `vision_aux`."""
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import conversation_named
    from edgeprism.convert.read.sources import (
        SourceFiles,
        report_other_tower,
        source_without_weights,
    )
    from edgeprism.convert.vision.config import one_tile

    config, where = _config(captioner), str(captioner / "config.json")
    checkpoint = Checkpoint(captioner, "captioner")
    text = {name: value for name, value in config.items() if name not in _FIELDS}
    text["model_type"] = LANGUAGE_MODELS[config["model_type"]]
    form = conversation_named(conversation or _conversation(text, captioner))
    rules = TokenRules(eos=form.eos, needed=form.needed)
    lm = open_language_model(checkpoint, text, where, captioner, rules)
    tower = _tower(config, checkpoint, vision, where)
    detail = _detail(config, checkpoint, vision_aux, where)
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    if tower.checkpoint is not checkpoint:
        sources.append(SourceFiles("vision", tower.folder, tower.checkpoint.files))
        report_other_tower(tower.folder, str(config.get("mm_vision_tower", "")), where, progress)
    elif tower.folder != captioner:
        sources.append(source_without_weights("vision", tower.folder))
    if detail.checkpoint is not checkpoint:
        folder = detail.checkpoint.folder
        sources.append(SourceFiles("vision_aux", folder, detail.checkpoint.files))
    shown = dataclasses.replace(tower.preparation, size=config["image_size_aux"])
    return PublishedCaptioner(
        captioner,
        sources,
        one_tile("pad", shown),
        _vision_side(config, where, checkpoint, tower, detail, lm.config.n_embd),
        lm,
        form,
    )


FAMILY = Family(
    name="mini-gemini",
    summary="Mini-Gemini (MGM) 2B, 7B, 8B, 13B, 34B and HD: CLIP asks a ConvNeXt",
    help="""Convert Mini-Gemini (MGM) to the bundle OUT.

    Its towers are published on their own: openai/clip-vit-large-patch14-336, and
    laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup.
    """,
    options=(
        Option("captioner", "folder", "Folder of the Mini-Gemini checkpoint.", required=True),
        Option(
            "vision",
            "folder",
            "Folder of the CLIP that it names; its config.json counts even where the checkpoint "
            "holds the tower.",
            required=True,
        ),
        Option(
            "vision_aux",
            "folder",
            "Folder of the ConvNeXt that it names, as open_clip's. Left out where the checkpoint "
            "holds that tower.",
        ),
        CONVERSATION,
    ),
    read=read,
    model_types=tuple(LANGUAGE_MODELS),
    signs=("mm_vision_tower_aux", "mm_hidden_size_aux", "image_size_aux", "image_grid"),
)


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json; CheckpointError, with all faults, for settings that are not supported."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.checkpoint import read_config

    config = read_config(folder)
    if config.get("model_type") not in LANGUAGE_MODELS or "mm_vision_tower_aux" not in config:
        raise unknown_layout(
            folder,
            FAMILY.name,
            f"model_type one of {', '.join(LANGUAGE_MODELS)} with mm_vision_tower_aux",
        )
    usual = {
        "mm_vision_select_feature": "patch",
        "image_aspect_ratio": "pad",
        "mm_use_im_start_end": False,
    }
    faults = [
        f"{name} {config[name]!r} (expected {value!r})"
        for name, value in usual.items()
        if config.get(name, value) != value
    ]
    kind = config.get("mm_projector_type")
    if not isinstance(kind, str) or not _MLP.fullmatch(kind):
        faults.append(f"mm_projector_type {kind!r} (known: mlpNx_gelu)")
    for name, least in (("image_size_aux", 1), ("image_grid", 1)):
        value = config.setdefault(name, 1 if name == "image_grid" else None)
        if type(value) is not int or value < least:
            faults.append(f"{name} {value!r} (expected a whole number above 0)")
    if config.setdefault("image_global", False) not in (True, False):
        faults.append(f"image_global {config['image_global']!r}")
    if faults:
        raise CheckpointError(
            f"{folder / 'config.json'} is not understood: {'; '.join(faults)}.",
            "Use the published config.json.",
        )
    return config


def _conversation(text: dict[str, Any], folder: Path) -> str:
    """Return the conversation of the published model with such a language model."""
    from edgeprism.convert.language.read_vocabulary import knows_token

    if text["model_type"] == "gemma":
        return "gemma"
    # Vicuna's tokenizer has neither Llama 3's tokens nor those of ChatML, which Yi's has
    for token, name in (("<|start_header_id|>", "llama-3-system"), ("<|im_start|>", "chatml")):
        if knows_token(folder, text.get("vocab_size"), token):
            return name
    return "vicuna-user"


# ---- the towers


@dataclass(frozen=True)
class _Tower:
    """The CLIP that asks."""

    checkpoint: Checkpoint
    fields: dict[str, Any]  # its config.json
    folder: Path
    layer: int  # the feature is hidden_states[layer]
    preparation: Preparation
    config: TowerConfig
    prefix: str
    unused: tuple[str, ...]


def _tower(config: dict[str, Any], captioner: Checkpoint, folder: Path, where: str) -> _Tower:
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.vision.config import (
        n_used_layers,
        preparation_from_folder,
        tower_config_from_dict,
    )
    from edgeprism.convert.vision.weights import UNUSED, tower_prefix, unused_layers

    path = folder / "config.json"
    fields = read_json(path)
    if "clip" not in str(fields.get("model_type")):
        raise CheckpointError(
            f"{path}: model_type is {fields.get('model_type')!r}, expected 'clip' or "
            "'clip_vision_model'.",
            "Pass the folder of the CLIP that the captioner names.",
        )
    size = (fields.get("vision_config") or fields).get("image_size", 224)
    preparation = preparation_from_folder(folder, size if type(size) is int else 224, "clip")
    _, tower = tower_config_from_dict(fields, preparation, str(path))
    layer = config.get("mm_vision_select_layer", -2)
    n_used = n_used_layers(tower, layer, where)
    inside = any("embeddings.patch_embedding.weight" in name for name in captioner.names)
    checkpoint = captioner if inside else Checkpoint(folder, "vision model")
    prefix = tower_prefix(checkpoint.names)
    return _Tower(
        checkpoint,
        fields,
        folder,
        layer,
        preparation,
        dataclasses.replace(tower, n_layers=n_used),
        prefix,
        (*UNUSED, *unused_layers(prefix, n_used, tower.n_layers)),
    )


def _detail(
    config: dict[str, Any], captioner: Checkpoint, folder: Path | None, where: str
) -> ConvNeXtNames:
    """Return the ConvNeXt: the checkpoint's own, or that of the open_clip model in `folder`."""
    from edgeprism.convert.read.checkpoint import Checkpoint, read_json
    from edgeprism.convert.vision.convnext import ConvNeXtNames

    probe = "vision_tower_aux.vision_stem.0.weight"
    lead = next((name.removesuffix("stem.0.weight") for name in sorted(captioner.names)
                 if name.endswith(probe)), None)  # fmt: skip
    if lead is not None:
        return ConvNeXtNames(captioner, f"{lead}stem.", f"{lead}stages.")
    if folder is None:
        raise CheckpointError(
            f"{where}: the ConvNeXt is {config['mm_vision_tower_aux']!r}, which is published on "
            "its own.",
            "Download it and pass its folder as `vision_aux`.",
        )
    path = folder / "open_clip_config.json"
    fields = read_json(path) if path.is_file() else {}
    name = fields.get("model_cfg", {}).get("vision_cfg", {}).get("timm_model_name", "convnext")
    if not str(name).startswith("convnext") or "xxlarge" in str(name):
        raise CheckpointError(
            f"{path}: timm_model_name is {name!r}, expected a ConvNeXt up to convnext_large.",
            "Pass the folder of the ConvNeXt that the captioner names.",
        )
    checkpoint = Checkpoint(folder, "ConvNeXt", _OPEN_CLIP_STEMS)
    return ConvNeXtNames(checkpoint, f"{_LEAD}stem.", f"{_LEAD}stages.")


# ---- the vision half


def _vision_side(
    config: dict[str, Any],
    where: str,
    captioner: Checkpoint,
    tower: _Tower,
    detail: ConvNeXtNames,
    n_out: int,
) -> VisionSide:
    from edgeprism.convert.gate.data import N_PICTURES
    from edgeprism.convert.gate.mining_towers import mined_tokens
    from edgeprism.convert.gate.towers import mlp
    from edgeprism.convert.vision.config import ProjectorConfig
    from edgeprism.convert.vision.convnext import convnext_config, convnext_weights
    from edgeprism.convert.vision.mining import (
        MiningConfig,
        MiningGraph,
        mining_weights,
        unused_mining,
    )
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.convert.vision.weights import (
        VisionWeights,
        prefix_before,
        projector_weights,
        stock_tower_weights,
    )

    shape, width = convnext_config(detail), tower.config.n_embd
    n_layers = int(config["mm_projector_type"].removeprefix("mlp")[0])
    layers = [f"mm_projector.{2 * i}" for i in range(n_layers)]
    projector = ProjectorConfig((width, *[n_out] * n_layers))
    size, cut = config["image_size_aux"], config["image_grid"]
    mining = MiningConfig(tower.config, shape, projector, size, cut, config["image_global"])
    _require_fit(config, mining, where)
    lead = prefix_before(f"{layers[0]}.weight", captioner.names, "model.")
    weights = VisionWeights(
        {
            "tower": stock_tower_weights(tower.config, tower.checkpoint, tower.prefix),
            "detail": convnext_weights(shape, detail),
            "mining": mining_weights(captioner, f"{lead}vlm_uni_", width, sum(shape.widths)),
            "projector": projector_weights(projector, captioner, [lead + name for name in layers]),
        }
    )
    unused = [(tower.checkpoint, tower.unused), (captioner, unused_mining(f"{lead}vlm_uni_"))]
    if detail.checkpoint is not captioner:
        kept = "|".join(map(re.escape, (detail.stem, detail.stages)))
        unused.append((detail.checkpoint, (rf"^(?!{kept})",)))
    side = tower.config.grid
    return VisionSide(
        lambda dtype: MiningGraph(mining, dtype),
        (side, side) if mining.n_tokens == side**2 else (1, mining.n_tokens),
        weights,
        mined_tokens(_source(config, captioner, tower, detail), mlp(captioner.files, layers)),
        N_PICTURES,
        unused,
    )


def _require_fit(config: dict[str, Any], mining: MiningConfig, where: str) -> None:
    """Raise CheckpointError if the towers contradict config.json or each other."""
    faults = mining.faults()
    for name, width in (
        ("mm_hidden_size", mining.tower.n_embd),
        ("mm_hidden_size_aux", sum(mining.detail.widths)),
    ):
        if config.get(name, width) != width:
            faults.append(f"{name} is {config[name]!r}, but the tower given has {width}")
    if faults:
        raise CheckpointError(
            f"{where} does not fit the towers: {'; '.join(faults)}.",
            "Pass the towers that the captioner names, as they were published.",
        )


def _source(
    config: dict[str, Any], captioner: Checkpoint, tower: _Tower, detail: ConvNeXtNames
) -> MiningSource:
    from edgeprism.convert.gate.mining_towers import MiningSource

    return MiningSource(
        captioner=captioner.files,
        tower=tower.checkpoint.files,
        tower_config=tower.fields,
        tower_folder=tower.folder,
        layer=tower.layer,
        detail=detail.checkpoint.files,
        stem=detail.stem,
        stages=detail.stages,
        grid=config["image_grid"],
        whole=config["image_global"],
    )
