"""Qwen-VL and Qwen-VL-Chat: ViT-bigG, one cross-attention of 256 queries, the first Qwen.

A picture is stretched to 448 × 448. The tower has no class row, and positions for a quarter of its
patches, so the table is resized. 256 visual tokens stand between <img> and </img>. The tokens that
the base model puts around what it grounds (<ref>, <box>) print as nothing, the numbers between them
remain; its default instruction does not ask for any.

Prompts end with 2048 tokens: behind them the published code changes attention and positions
(logarithmic attention, NTK), which llama.cpp does not do.

Sources: the code of the published repositories (`visual.py`, `modeling_qwen.py`,
`configuration_qwen.py`, `tokenization_qwen.py`, `qwen_generation_utils.py`) and their config.json
in public copies, and the README of QwenLM/Qwen-VL. The index of the published weights was not
available.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.config import TowerConfig
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

_PREFIX = "transformer.visual."
_IMAGE, _IMAGE_END, _END_OF_TEXT = "<img>", "</img>", "<|endoftext|>"
_START, _END = "<|im_start|>", "<|im_end|>"
_HEAD_DIM = 128  # of the cross-attention, which has as many heads as that gives
_N_QUERIES = 256  # the published class's default
# generation_config.json's chat_format → the conversation
_FORMATS = {"raw": "base", "chatml": "chat"}
_SIZES = ("width", "layers", "heads", "image_size", "patch_size", "output_dim")
_VISUAL = (*_SIZES, "mlp_ratio", "image_start_id", "n_queries")


def read(captioner: Path, conversation: str, progress: Progress) -> PublishedCaptioner:
    """Read the published folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_config
    from edgeprism.convert.read.sources import SourceFiles

    config, path = read_config(captioner), captioner / "config.json"
    if config.get("model_type") != "qwen" or not isinstance(config.get("visual"), dict):
        raise unknown_layout(captioner, FAMILY.name, "model_type qwen with the object visual")
    form = _conversation(conversation or _published_form(captioner))
    checkpoint = Checkpoint(captioner, "captioner")
    rules = TokenRules(form.eos, form.needed)
    lm = open_language_model(checkpoint, config, str(path), captioner, rules)
    tower = _tower(config["visual"], f"{path} (visual)", lm)
    return PublishedCaptioner(
        captioner,
        [SourceFiles("captioner", captioner, checkpoint.files)],
        _image(tower),
        _vision_side(
            tower, checkpoint, config["visual"].get("n_queries", _N_QUERIES), lm.config.n_embd
        ),
        lm,
        form,
    )


FAMILY = Family(
    name="qwen-vl",
    summary="Qwen-VL and Qwen-VL-Chat: ViT-bigG, 256 queries, the first Qwen",
    help="Convert Qwen-VL or Qwen-VL-Chat to the bundle OUT.",
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option(
            "conversation",
            "text",
            "Conversation template: chat or base.  [default: that of generation_config.json]",
            default="",
        ),
    ),
    read=read,
    model_types=("qwen",),
    signs=("visual", "qwen.tiktoken", "visual.py"),
)


def _published_form(captioner: Path) -> str:
    """Return the conversation that generation_config.json names; it alone tells the two apart."""
    from edgeprism.convert.read.checkpoint import read_json

    path = captioner / "generation_config.json"
    published = read_json(path).get("chat_format") if path.is_file() else None
    if not isinstance(published, str) or published not in _FORMATS:
        found = f"chat_format is {published!r}" if path.is_file() else "it is missing"
        raise CheckpointError(
            f"{path}: {found}, so nothing tells whether this is Qwen-VL or Qwen-VL-Chat.",
            "Download the file, or pass `conversation`: chat for Qwen-VL-Chat, base for Qwen-VL.",
        )
    return _FORMATS[published]


def _conversation(name: str) -> Conversation:
    """Return the form `name`, or UsageError with the known ones."""
    from edgeprism.bundle.manifest import Several
    from edgeprism.convert.read.conversations import Conversation

    if name == "base":  # the only captions that it was trained to write on request
        return Conversation(
            "",
            "",
            stop=(_END_OF_TEXT,),
            eos=_END_OF_TEXT,
            needed=(_IMAGE, _IMAGE_END, _END_OF_TEXT),
            picture_begin=_IMAGE,
            picture_end=_IMAGE_END,
            instruction="Describe the image in English:",
        )
    if name == "chat":
        return Conversation(
            f"{_START}system\nYou are a helpful assistant.{_END}\n{_START}user\n",
            "\n",
            before_caption=f"{_END}\n{_START}assistant\n",
            stop=(_END, _END_OF_TEXT),
            eos=_END,
            needed=(_IMAGE, _IMAGE_END, _START, _END),
            picture_begin=f"Picture 1: {_IMAGE}",
            picture_end=_IMAGE_END,
            several=Several("", "\n", "Picture {number}: "),
        )
    raise UsageError(f"The conversation form {name} is not known.", "Known: chat, base.")


def _tower(visual: dict[str, Any], where: str, lm: LmParts) -> TowerConfig:
    """Return the tower that `visual` describes; CheckpointError lists every fault."""
    from edgeprism.convert.read.fields import number_faults, require_known, size_faults
    from edgeprism.convert.vision.config import CLIP_MEAN, CLIP_STD, TowerConfig

    require_known(visual, _VISUAL, where)
    sizes = {name: visual.get(name) for name in _SIZES}
    faults = size_faults({**sizes, "n_queries": visual.get("n_queries", _N_QUERIES)})
    faults += number_faults({"mlp_ratio": visual.get("mlp_ratio")}, 100)
    faults = faults or _contradictions(visual, lm)
    if faults:
        raise CheckpointError(
            f"{where} is not understood: {'; '.join(faults)}.", "Use the published config.json."
        )
    return TowerConfig(
        n_layers=visual["layers"],
        n_embd=visual["width"],
        n_heads=visual["heads"],
        n_ffn=int(visual["width"] * visual["mlp_ratio"]),
        image_size=visual["image_size"],
        patch_size=visual["patch_size"],
        eps=1e-6,
        activation="gelu",
        rescale=1 / 255,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        patch_bias=False,
        norm_first=True,
    )


def _contradictions(visual: dict[str, Any], lm: LmParts) -> list[str]:
    """Return what in `visual` contradicts itself, the language model or the tokenizer."""
    n_embd, faults = lm.config.n_embd, []
    if visual["width"] % visual["heads"]:
        faults.append(f"width {visual['width']} is no multiple of heads {visual['heads']}")
    if visual["image_size"] % visual["patch_size"]:
        faults.append(
            f"image_size {visual['image_size']} is no multiple of patch_size {visual['patch_size']}"
        )
    if visual["output_dim"] != n_embd:
        faults.append(f"output_dim {visual['output_dim']} is not the hidden_size {n_embd}")
    elif n_embd % _HEAD_DIM:
        faults.append(f"output_dim {n_embd} is no multiple of {_HEAD_DIM}, the width of a head")
    first = lm.vocabulary.pieces.index(_IMAGE.encode())
    if visual.get("image_start_id", first) != first:
        faults.append(
            f"image_start_id is {visual['image_start_id']!r}, but {first} in the tokenizer"
        )
    return faults


def _image(tower: TowerConfig) -> ImagePolicy:
    from edgeprism.convert.vision.config import Preparation, one_tile

    prepared = Preparation(
        "stretch", tower.image_size, "bicubic", tower.rescale, tower.mean, tower.std
    )
    return one_tile("stretch", prepared)


def _vision_side(
    tower: TowerConfig, checkpoint: Checkpoint, n_queries: int, n_embd: int
) -> VisionSide:
    from edgeprism.convert.vision.interleaved import QWEN_VL, interleaved_weights
    from edgeprism.convert.vision.resampler import (
        ResamplerConfig,
        ResamplerGraph,
        resampler_side,
        resampler_weights,
    )
    from edgeprism.convert.vision.weights import VisionWeights

    prefix = f"{_PREFIX}attn_pool."
    config = ResamplerConfig(
        n_queries, tower.n_embd, n_embd, n_embd // _HEAD_DIM, tower.grid, tower.eps
    )
    weights = VisionWeights(
        {
            "tower": interleaved_weights(tower, checkpoint, _PREFIX, QWEN_VL),
            "resampler": resampler_weights(
                config, checkpoint, prefix, table="pos_embed", behind=_PREFIX
            ),
        }
    )
    return resampler_side(lambda dtype: ResamplerGraph(tower, config, dtype), config, weights)
