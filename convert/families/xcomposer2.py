"""InternLM-XComposer2: CLIP-L → MLP → InternLM2 with a LoRA that a picture's rows alone go through.

4KHD cuts a picture into tiles, whose patches it joins in twos, and has learned rows besides.

Sources: the published folders internlm-xcomposer2-vl-7b, -vl-1_8b, -7b and -4khd-7b
(`modeling_internlm_xcomposer2.py`, `modeling_internlm2.py`, `build_mlp.py`, `ixc_utils.py`) as
copies of them hold them, a test of PaddleMIX with their configuration, and the engines that load
them (lmdeploy, MindIE). Their config.json itself was not seen.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.manifest import Several
from edgeprism.convert.family import Family, Option

if TYPE_CHECKING:
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.clip_l import InnerClip
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

_MODEL_TYPE = "internlmxcomposer2"
# as another version of their code writes it; the code that `auto_map` names tells them apart
_OTHER_TYPES = ("internlm2", "internlm")
_CODE = "internlm_xcomposer2."
_LM_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta",
    "rope_scaling", "hidden_act", "bias", "tie_word_embeddings",
)  # fmt: skip
# `max_length` and the two of the tower tell other programs what the tensors tell here
_OWN_FIELDS = ("img_size", "max_length", "vision_tower", "vision_projector")
_TOWER = "vit.vision_tower.vision_model."
_PROJECTOR = ["vision_proj.0", "vision_proj.2"]
_META = (
    "You are an AI assistant whose name is InternLM-XComposer (浦语·灵笔).\n"
    "- InternLM-XComposer (浦语·灵笔) is a multi-modality conversational language model that is "
    "developed by Shanghai AI Laboratory (上海人工智能实验室). It is designed to be helpful, "
    "honest, and harmless.\n"
    "- InternLM-XComposer (浦语·灵笔) can understand and communicate fluently in the language "
    "chosen by the user such as English and 中文.\n"
    "- InternLM-XComposer (浦语·灵笔) is capable of comprehending and articulating responses "
    "effectively based on the provided image."
)
_USER = "<|im_start|>user\n"
# name → text before the picture: with the introduction that `chat` gives, or as evaluations have it
_PROMPTS = {"chat": f"<|im_start|>system\n{_META}<|im_end|>\n{_USER}", "plain": _USER}
_PENALTY = 1.005  # of repetitions, by which `chat` samples


def read(captioner: Path, conversation: str, tiles: str, progress: Progress) -> PublishedCaptioner:
    """Read the published folder."""
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.clip_l import inner_clip
    from edgeprism.convert.vision.config import one_tile
    from edgeprism.convert.vision.hd import BETWEEN, LINE_END, hd_policy, hd_side

    config = _config(captioner)
    checkpoint = Checkpoint(captioner, "captioner")
    lm = _language_model(config, checkpoint)
    if {LINE_END, BETWEEN} & checkpoint.names:
        # what `img_size` says is of no effect there: tiles have the size of the tower's positions
        tower = inner_clip(checkpoint, _TOWER)
        side = hd_side(tower, _PROJECTOR, lm.config.n_embd)
        image = hd_policy(tower.config.image_size, int(tiles))
    else:
        tower = inner_clip(checkpoint, _TOWER, config["img_size"])
        side = _vision_side(tower, lm.config.n_embd)
        image = one_tile("stretch", tower.preparation)
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    return PublishedCaptioner(captioner, sources, image, side, lm, _conversation(conversation))


FAMILY = Family(
    name="xcomposer2",
    summary="InternLM-XComposer2-VL-7B, -VL-1.8B, -7B, -4KHD-7B: CLIP-L, InternLM2, partial LoRA",
    help="Convert InternLM-XComposer2 (VL-7B, VL-1.8B, 7B or 4KHD-7B) to the bundle OUT.",
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option(
            "conversation",
            "choice",
            "Prompt: with the chat model's introduction (chat), or without it (plain).",
            default="chat",
            choices=tuple(_PROMPTS),
        ),
        Option(
            "tiles",
            "choice",
            "Of 4KHD: tiles of a picture at most, besides the overview.",
            default="25",
            choices=("9", "16", "25", "55"),
        ),
    ),
    read=read,
    model_types=(_MODEL_TYPE,),
    signs=("img_size", "modeling_internlm_xcomposer2.py", "tokenization_internlm_xcomposer2.py"),
)


def _config(folder: Path) -> dict[str, Any]:
    """Return config.json; CheckpointError, with all faults, for another model or variant."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.read.checkpoint import read_config
    from edgeprism.convert.read.fields import require_known, size_faults, variant_error

    config, path = read_config(folder), folder / "config.json"
    kind = config.get("model_type")
    ours = kind == _MODEL_TYPE or (kind in _OTHER_TYPES and _CODE in str(config.get("auto_map")))
    if not ours:
        raise unknown_layout(folder, FAMILY.name, f"model_type {_MODEL_TYPE}")
    require_known(config, (*_LM_FIELDS, *_OWN_FIELDS), str(path))
    if faults := size_faults({"img_size": config.get("img_size")}):
        raise variant_error(path, faults, "Use the published config.json.")
    return config


def _language_model(config: dict[str, Any], checkpoint: Checkpoint) -> LmParts:
    """Return InternLM2 with the adapter of a picture's rows."""
    from edgeprism.convert.gate import language as reference
    from edgeprism.convert.language import internlm2
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.row_adapter import HALF, RowAdapter, partial_lora

    folder = checkpoint.folder
    text = {name: config[name] for name in _LM_FIELDS if name in config}
    text["model_type"] = "internlm2"
    where = str(folder / "config.json")
    lm = open_language_model(checkpoint, text, where, folder, internlm2.TOKENS)
    halves, rank = partial_lora(checkpoint, lm.tensors)
    adapter = RowAdapter(
        halves,
        alpha=rank,  # its factor is 1
        embedding=lm.tensors[0].source,
        reference_logits=lambda texts, rows, tick: reference.logits(
            checkpoint.files, text, texts, tick, inner=reference.InnerLora("", 1.0, HALF, rows)
        ),
    )
    return dataclasses.replace(lm, row_adapter=adapter)


def _vision_side(tower: InnerClip, n_out: int) -> VisionSide:
    from edgeprism.convert.gate import towers as reference
    from edgeprism.convert.vision.clip_l import UNUSED
    from edgeprism.convert.vision.config import ProjectorConfig
    from edgeprism.convert.vision.side import tower_side
    from edgeprism.convert.vision.weights import VisionWeights, projector_weights

    checkpoint = tower.checkpoint
    projector = ProjectorConfig((tower.config.n_embd, n_out, n_out))
    connector = reference.mlp(checkpoint.files, _PROJECTOR)
    return tower_side(
        [tower.config],
        projector,
        VisionWeights(
            {
                "towers.0": tower.weights(),
                "projector": projector_weights(projector, checkpoint, _PROJECTOR),
            }
        ),
        partial(reference.visual_tokens, [tower.reference()], connector),
        unused=[(checkpoint, UNUSED)],
    )


def _conversation(name: str) -> Conversation:
    from edgeprism.convert.language.internlm2 import IM_END
    from edgeprism.convert.read.conversations import Conversation

    return Conversation(
        _PROMPTS[name],
        "",
        before_caption=f"{IM_END}\n<|im_start|>assistant\n",
        stop=(IM_END, "</s>"),
        several=Several("", ""),
        repetition_penalty=_PENALTY,
    )
