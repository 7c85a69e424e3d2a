"""InternVL: InternViT on tiles → pixel shuffle → MLP → InternLM2, Llama or Qwen2.

This file reads both published layouts:

- The original layout, of InternVL 1.5 with InternLM2. Source: OpenGVLab's InternVL-Chat-V1-5 and
  Mini-InternVL-Chat-2B-V1-5, with the code in their repositories (`modeling_internvl_chat.py`,
  `conversation.py`, the model card's `dynamic_preprocess`). InternVL-Chat-V1-1 has it too, with
  Llama 2 and one tile.
- transformers' layout, of later models with Qwen2. Sources: OpenGVLab's `-hf` repositories
  (InternVL3-1B-hf and others), transformers' InternVLForConditionalGeneration, InternVLProcessor
  and GotOcr2ImageProcessor, and the chat template that its conversion script writes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import ImagePolicy, Markers, Several, Tiling
from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

MARKERS = Markers("<img>", "", "", "", "", "</img>")
_START, _END = "<|im_start|>", "<|im_end|>"
_NEEDED = (_START, _END, "<img>", "</img>")
_CHAT, _CHINESE = "internlm2-chat", "internvl_zh"
# of the original layout: the template → the language model's type, and the feature layer where
# config.json names none
_TEMPLATES = {_CHAT: ("internlm2", -1), _CHINESE: ("llama", -4)}


def read(captioner: Path, progress: Progress) -> PublishedCaptioner:
    """Read the published folder, in either layout."""
    from edgeprism.convert.read.checkpoint import read_config

    config = read_config(captioner)
    if config.get("model_type") == "internvl":
        return _read_transformers(captioner, config)
    return _read_original(captioner, config)


FAMILY = Family(
    name="internvl",
    summary="InternVL 1.1 (Llama 2) and 1.5 (InternLM2), original; later -hf ones with Qwen2",
    help="Convert InternVL-Chat 1.1 or 1.5, or a later -hf InternVL (Qwen2), to the bundle OUT.",
    options=(Option("captioner", "folder", "Folder of the checkpoint.", required=True),),
    read=read,
    model_types=("internvl_chat", "internvl"),
    signs=("llm_config", "vision_config", "force_image_size", "downsample_ratio"),
)


def _captioner(checkpoint: Checkpoint, image: ImagePolicy, vision: VisionSide, lm: LmParts,
               conversation: Conversation) -> PublishedCaptioner:  # fmt: skip
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.sources import SourceFiles

    folder = checkpoint.folder
    sources = [SourceFiles("captioner", folder, checkpoint.files)]
    return PublishedCaptioner(folder, sources, image, vision, lm, conversation, MARKERS)


def _tile_policy(
    size: int, min_tiles: int, max_tiles: int, resample: str = "bicubic"
) -> ImagePolicy:
    """Return a policy of all grids with `min_tiles` to `max_tiles` tiles, then a thumbnail.

    Smaller grids come first. With one tile there is no thumbnail.
    """
    grids = [
        [down, across]
        for across in range(1, max_tiles + 1)
        for down in range(1, max_tiles + 1)
        if min_tiles <= down * across <= max_tiles
    ]
    grids.sort(key=lambda grid: grid[0] * grid[1])
    return ImagePolicy(
        mode="stretch",
        size=size,
        fill=[0, 0, 0],
        resample=resample,
        max_tiles=1 + max_tiles if max_tiles > 1 else 1,
        tiling=Tiling("closest-ratio", grids, 0, "last", "tiles") if max_tiles > 1 else None,
    )


# ---- the original layout


def _read_original(captioner: Path, config: dict[str, Any]) -> PublishedCaptioner:
    from edgeprism.convert.language import internlm2
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.checkpoint import Checkpoint

    path = captioner / "config.json"
    config = _complete_config(config, path)
    checkpoint = Checkpoint(captioner, "captioner")
    rules = dataclasses.replace(internlm2.TOKENS, eos=_END, needed=_NEEDED)
    if config["template"] == _CHINESE:
        rules = TokenRules(needed=("<img>", "</img>"))
    where = f"{path} (llm_config)"
    lm = open_language_model(checkpoint, config["llm_config"], where, captioner, rules)
    side = _original_vision_side(config, path, checkpoint, lm.config.n_embd)
    image = _tile_policy(
        config["force_image_size"],
        config["min_dynamic_patch"],
        config["max_dynamic_patch"] if config["dynamic_image_size"] else 1,
    )
    return _captioner(checkpoint, image, side, lm, _conversation(config["template"]))


def _conversation(template: str) -> Conversation:
    """Return a conversation of `conversation.py`."""
    from edgeprism.convert.read.conversations import Conversation

    if template == _CHINESE:
        return Conversation(
            "</s><human>: ",
            "\n",
            before_caption="</s><bot>:",
            needed=("<img>", "</img>"),
        )
    # no line feed after the end of a turn
    return Conversation(
        f"{_START}system\nYou are an AI assistant whose name is InternLM (书生·浦语).{_END}"
        f"{_START}user\n",
        "\n",
        before_caption=f"{_END}{_START}assistant\n",
        stop=(_END,),
        eos=_END,
        needed=_NEEDED,
        several=Several("Image-{number}: ", "\n"),
    )


def _complete_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return config.json with defaults; CheckpointError if it differs from the published models."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.fields import require_known, variant_error

    if config.get("model_type") != "internvl_chat":
        expected = "model_type internvl_chat with llm_config and vision_config (the original "
        expected += "layout), or internvl with text_config and vision_config (transformers')"
        raise unknown_layout(path.parent, FAMILY.name, expected)
    llm = config.get("llm_config")
    kind = llm.get("model_type") if isinstance(llm, dict) else None
    usual = _CHINESE if kind == "llama" else _CHAT
    template = config.get("template") or usual
    of_template, layer = _TEMPLATES.get(str(template), _TEMPLATES[_CHAT])
    defaults = {
        "llm_config": {}, "vision_config": {}, "downsample_ratio": 0.5, "select_layer": layer,
        "min_dynamic_patch": 1, "max_dynamic_patch": 6, "dynamic_image_size": False,
        "use_thumbnail": False, "ps_version": "v1", "pad2square": False,
        "template": usual,
    }  # fmt: skip
    config = {**defaults, **{name: value for name, value in config.items() if value is not None}}
    require_known(config, (*defaults, "force_image_size"), str(path))
    config.setdefault("force_image_size", config["vision_config"].get("image_size"))
    supported: dict[str, tuple[Any, ...]] = {
        "downsample_ratio": (0.5,), "ps_version": ("v1", "v2"), "pad2square": (False,),
        "template": tuple(_TEMPLATES), "dynamic_image_size": (True, False),
        "use_thumbnail": (config["dynamic_image_size"],),
    }  # fmt: skip
    faults = [
        f"{name} = {config[name]!r} (expected {' or '.join(map(repr, values))})"
        for name, values in supported.items()
        if config[name] not in values
    ]
    for name in ("force_image_size", "min_dynamic_patch", "max_dynamic_patch"):
        value = config[name]
        if type(value) is not int or not 1 <= value <= (4096 if "size" in name else 255):
            faults.append(f"{name} = {value!r} (expected a whole number above 0)")
    if not faults and config["min_dynamic_patch"] > config["max_dynamic_patch"]:
        faults.append("min_dynamic_patch is more than max_dynamic_patch")
    if not isinstance(config["llm_config"], dict) or not isinstance(config["vision_config"], dict):
        faults.append("llm_config and vision_config must be objects")
    elif kind != of_template:
        faults.append(f"llm_config.model_type = {kind!r} (expected {of_template!r})")
    if faults:
        raise variant_error(
            path,
            faults,
            "Supported are InternVL 1.1 with Llama 2, InternVL 1.5 with InternLM2, and "
            "transformers' layout with Qwen2.",
        )
    return config


def _original_vision_side(
    config: dict[str, Any], path: Path, checkpoint: Checkpoint, n_embd: int
) -> VisionSide:
    from edgeprism.convert.gate import tiling_towers
    from edgeprism.convert.vision.config import ProjectorConfig, n_used_layers
    from edgeprism.convert.vision.intern_side import intern_tower_and_mlp
    from edgeprism.convert.vision.intern_vit import (
        MEAN,
        STD,
        intern_vit_config,
        intern_vit_fields,
        intern_vit_weights,
    )
    from edgeprism.convert.vision.weights import unused_layers

    where, prefix = f"{path} (vision_config)", "vision_model."
    fields = intern_vit_fields(config["vision_config"], where)
    size = config["force_image_size"]
    whole = intern_vit_config(fields, size, fields["num_hidden_layers"])
    n_used = n_used_layers(whole, config["select_layer"], str(path))
    tower = intern_vit_config(fields, size, n_used)
    if size != fields["image_size"] or tower.grid % 2:
        raise CheckpointError(
            f"{where}: image_size is {fields['image_size']} in patches of {tower.patch_size}; "
            f"expected force_image_size {size} and an even number of patches.",
            "Use the published config.json.",
        )
    transposed = config["ps_version"] == "v1"
    widths = (4 * tower.n_embd, n_embd, n_embd)
    used = {**fields, "num_hidden_layers": n_used}
    side = intern_tower_and_mlp(
        tower,
        intern_vit_weights(tower, checkpoint, prefix),
        tiling_towers.intern_vit(checkpoint.files, used, list(MEAN), list(STD)),
        ProjectorConfig(widths, downsample=2, transposed=transposed),
        checkpoint,
        ["mlp1.1", "mlp1.3"],
        "mlp1.0",
        transposed,
    )
    unused = unused_layers(prefix, n_used, fields["num_hidden_layers"])
    return dataclasses.replace(side, unused=[(checkpoint, unused)])


# ---- transformers' layout


def _read_transformers(captioner: Path, config: dict[str, Any]) -> PublishedCaptioner:
    """Read a folder of model_type `internvl`; CheckpointError if it differs from the published."""
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation

    path = captioner / "config.json"
    checkpoint = Checkpoint(captioner, "captioner")
    vision, text = _check_config(config, path, checkpoint)
    rules = TokenRules(_END, _NEEDED)
    lm = open_language_model(checkpoint, text, f"{path} (text_config)", captioner, rules)
    prepared, image = _prepared(captioner, vision["image_size"])
    side = _transformers_vision_side(
        config["vision_config"], vision, prepared, path, checkpoint, lm.config.n_embd
    )
    conversation = Conversation(
        f"{_START}user\n",
        "\n",
        before_caption=f"{_END}\n{_START}assistant\n",
        stop=(_END,),
        eos=_END,
        needed=_NEEDED,
        several=Several("", "\n"),
    )
    return _captioner(checkpoint, image, side, lm, conversation)


def _transformers_vision_side(published: dict[str, Any], vision: dict[str, Any],
                              prepared: dict[str, Any], path: Path, checkpoint: Checkpoint,
                              n_embd: int) -> VisionSide:  # fmt: skip
    """Return the vision half; `vision` is the `published` vision_config, checked, with defaults."""
    from edgeprism.convert.gate import tiling_towers
    from edgeprism.convert.vision.config import ProjectorConfig
    from edgeprism.convert.vision.intern_side import intern_tower_and_mlp
    from edgeprism.convert.vision.intern_vit import (
        TRANSFORMERS,
        intern_vit_config,
        intern_vit_fields,
        intern_vit_weights,
    )
    from edgeprism.convert.vision.weights import prefix_before

    where = f"{path} (vision_config)"
    fields = intern_vit_fields(vision, where)
    whole = intern_vit_config(fields, vision["image_size"], fields["num_hidden_layers"])
    tower = dataclasses.replace(whole, **prepared)
    if tower.grid % 2:
        raise CheckpointError(
            f"{where}: {tower.grid} patches of {tower.patch_size} pixels per side; "
            "an even number is expected.",
            "Use the published config.json.",
        )
    lead = prefix_before("embeddings.cls_token", checkpoint.names, "vision_tower.")
    joint = "multi_modal_projector."
    joint = prefix_before(f"{joint}layer_norm.weight", checkpoint.names) + joint
    return intern_tower_and_mlp(
        tower,
        intern_vit_weights(tower, checkpoint, lead, TRANSFORMERS),
        tiling_towers.internvl_tower(checkpoint.files, published, prepared),
        ProjectorConfig((4 * tower.n_embd, n_embd, n_embd), 2),
        checkpoint,
        [f"{joint}linear_1", f"{joint}linear_2"],
        f"{joint}layer_norm",
    )


def _check_config(config: dict[str, Any], path: Path, checkpoint: Checkpoint
                  ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Return the vision_config, with the original layout's field names, and the text_config."""
    from edgeprism.convert.read.fields import require_known, text_fields, variant_error

    vision, text = config.get("vision_config"), config.get("text_config")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise CheckpointError(
            f"{path}: vision_config and text_config must be objects.",
            "Use the published config.json.",
        )
    require_known(config, (), str(path), "internvl")
    require_known(vision, (), f"{path} (vision_config)", "internvl_vision")
    expected: dict[str, tuple[dict[str, Any], Any]] = {
        "downsample_ratio": (config, 0.5), "projector_hidden_act": (config, "gelu"),
        "vision_feature_select_strategy": (config, "default"),
        "vision_feature_layer": (config, -1),  # transformers' class supports no other value
        "use_mean_pooling": (vision, True), "use_mask_token": (vision, False),
        "use_absolute_position_embeddings": (vision, True), "num_channels": (vision, 3),
    }  # fmt: skip
    faults = [
        f"{name} = {fields[name]!r} (expected {value!r})"
        for name, (fields, value) in expected.items()
        if fields.get(name, value) != value
    ]
    if text.get("model_type", "qwen2") != "qwen2":
        faults.append(f"text_config.model_type = {text['model_type']!r} (expected 'qwen2')")
    # transformers' defaults, for the small tower (the original code's are for the large one)
    defaults = {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "hidden_act": "gelu", "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6, "image_size": 448, "patch_size": 14,
    }  # fmt: skip
    translated = {name: vision.get(name, value) for name, value in defaults.items()}
    for name in ("image_size", "patch_size"):
        value = translated[name]
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            translated[name] = value[0]
        if type(translated[name]) is not int or not 1 <= translated[name] <= 4096:
            faults.append(f"{name} = {value!r} (expected two equal whole numbers above 0)")
    if faults:
        raise variant_error(
            path,
            faults,
            "Supported are InternViT with Qwen2 as they were published.",
        )
    translated["qkv_bias"] = bool(vision.get("attention_bias", False))
    translated["qk_normalization"] = bool(vision.get("use_qk_norm", False))
    return translated, text_fields(config, checkpoint.names, "qwen2")


def _prepared(folder: Path, image_size: int) -> tuple[dict[str, Any], ImagePolicy]:
    """Return the image processor's normalisation and tiles.

    The function ignores `crop_to_patches`: the models' processor always sets it.
    """
    from edgeprism.convert.read.fields import image_processor_fields
    from edgeprism.convert.vision.config import PREPARATION_FIELDS, RESAMPLINGS, normalisation
    from edgeprism.convert.vision.intern_vit import MEAN, STD

    known = (*PREPARATION_FIELDS, "crop_to_patches", "min_patches", "max_patches")
    data, path = image_processor_fields(folder, known)
    faults = [
        f"{name} {data[name]!r}"
        for name in ("do_resize", "do_rescale", "do_normalize")
        if data.get(name, True) is not True
    ]
    side = {"height": image_size, "width": image_size}
    if data.get("size", side) != side:
        faults.append(f"size {data['size']!r} (the vision model takes {image_size})")
    number = data.get("resample", 3)
    if number not in RESAMPLINGS:
        faults.append(f"resample {number!r}")
    low, high = data.get("min_patches", 1), data.get("max_patches", 12)
    if type(low) is not int or type(high) is not int or not 1 <= low <= high <= 255:
        faults.append(f"min_patches {low!r} and max_patches {high!r}")
    if faults:
        raise CheckpointError(
            f"{path} is not understood: {'; '.join(faults)}.",
            "Use the preprocessor_config.json that was published with the model.",
        )
    rescale, mean, std = normalisation(data, path, MEAN, STD)
    prepared = {"rescale": rescale, "mean": mean, "std": std}
    return prepared, _tile_policy(image_size, low, high, RESAMPLINGS[number])
