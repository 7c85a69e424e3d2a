"""CogVLM and CogVLM2: EVA2-CLIP-E, and a Llama with an expert for text and one for pictures.

A picture is stretched to a square. Its rows, from the learned row before the patches on, go through
the vision expert; the learned row behind them goes through the language expert, as text does. The
patches stand at one position. CogVLM's tokenizer is that of Vicuna, which is published apart.
CogVLM2-Video and cogvlm2-llama3-caption have the vision half and the layout of CogVLM2, but no
vision expert: all rows go through the one for text. A picture is to them a video of one frame.

Sources: the code of the published repositories in public copies (`modeling_cogvlm.py` of
cogvlm2-llama3-chat-19B and of cogvlm2-llama3-caption, `visual.py`, `configuration_cogvlm.py`), the
configuration and the numbers of tensors of cogvlm2-llama3-caption. The list of tensors of the
others was not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.convert.language.config import LmConfig
    from edgeprism.convert.language.model import LmParts, RowExpert
    from edgeprism.convert.language.vocabulary import Vocabulary
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.config import TowerConfig
    from edgeprism.convert.vision.eva2_clip import GatedConfig
    from edgeprism.progress import Progress

_LEAD = "model.vision."
_PICTURES, _VIDEOS = "CogVLMForCausalLM", "CogVLMVideoForCausalLM"
# the rotation's base stands in the published code alone
_THETA, _THETA_OF_SECOND = 10000.0, 500000.0
_LM_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings",
)  # fmt: skip
_OWN_FIELDS = ("num_multi_query_heads", "template_version", "vision_config")
_VISION_SIZES = ("hidden_size", "image_size", "intermediate_size", "num_heads",
                 "num_hidden_layers", "num_positions", "patch_size")  # fmt: skip
_VISION_FIELDS = (*_VISION_SIZES, "in_channels", "hidden_act", "layer_norm_eps")
# template_version → plain text before and after the instruction
_PROMPTS = {
    "chat": ("Question: ", " Answer:"),
    "vqa": ("Question: ", " Short answer:"),
    "base": ("", ""),
}
_OWN_LAST = 1  # the learned row behind the patches


def read(
    captioner: Path, tokenizer: Path | None, conversation: str, progress: Progress
) -> PublishedCaptioner:
    """Read the published folders."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_config
    from edgeprism.convert.read.sources import SourceFiles, source_without_weights
    from edgeprism.convert.vision.eva2_clip import gated_side

    if conversation and conversation not in _PROMPTS:
        raise UsageError(
            f"The conversation form {conversation} is not known.", f"Known: {', '.join(_PROMPTS)}."
        )
    config, path = read_config(captioner), captioner / "config.json"
    kind = _kind(config)
    if not kind:
        raise unknown_layout(captioner, FAMILY.name, f"architectures [{_PICTURES}] or [{_VIDEOS}]")
    checkpoint = Checkpoint(captioner, "captioner")
    is_video = kind == _VIDEOS
    _check(config, checkpoint, is_video, path)
    words = tokenizer or captioner
    lm = _language_model(config, checkpoint, words, is_video, path)
    tower = _tower(config["vision_config"])
    side = gated_side(tower, _projector(config), checkpoint, _LEAD)
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    if tokenizer is not None:
        sources.append(source_without_weights("tokenizer", tokenizer))
    form = conversation or config.get("template_version", "chat")
    return PublishedCaptioner(
        captioner, sources, _image(tower, is_video), side, lm, _conversation(form, is_video)
    )


FAMILY = Family(
    name="cogvlm",
    summary="CogVLM, CogVLM2: EVA2-CLIP-E, a Llama with experts for text and pictures",
    help="Convert CogVLM, CogVLM2 or cogvlm2-llama3-caption to the bundle OUT.",
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option(
            "tokenizer",
            "folder",
            "Folder of the tokenizer: Vicuna 7B 1.5 for CogVLM.  [default: the checkpoint's]",
        ),
        Option(
            "conversation",
            "choice",
            "Prompt: a question, a question with a short answer, or the instruction alone.  "
            "[default: config.json's template_version]",
            default="",
            choices=tuple(_PROMPTS),
        ),
    ),
    read=read,
    signs=(
        "modeling_cogvlm.py",
        "configuration_cogvlm.py",
        "template_version",
        "num_multi_query_heads",
    ),
)


def _kind(config: dict[str, Any]) -> str:
    """Return the published class of the model; "" if it is none that is understood."""
    if not isinstance(config.get("vision_config"), dict):
        return ""
    classes = config.get("architectures")
    return next((kind for kind in (_PICTURES, _VIDEOS) if classes == [kind]), "")


def _is_second(config: dict[str, Any]) -> bool:
    return "num_multi_query_heads" in config


def _check(config: dict[str, Any], checkpoint: Checkpoint, is_video: bool, path: Path) -> None:
    """Raise CheckpointError, with all faults, for what contradicts the published layouts."""
    from edgeprism.convert.read.fields import require_known, size_faults, variant_error

    require_known(config, (*_LM_FIELDS, *_OWN_FIELDS), str(path))
    require_known(config["vision_config"], _VISION_FIELDS, f"{path} (vision_config)")
    heads = {name: config[name] for name in ("num_multi_query_heads",) if name in config}
    faults = size_faults(heads) + _vision_faults(config["vision_config"])
    form = config.get("template_version", "chat")
    if not isinstance(form, str) or form not in _PROMPTS:
        faults.append(f"template_version = {form!r} (known: {', '.join(_PROMPTS)})")
    joins = f"{_LEAD}conv.weight" in checkpoint.names
    if joins != _is_second(config):
        faults.append(
            f"num_multi_query_heads is {'given' if not joins else 'missing'}, but the files hold "
            f"{'a' if joins else 'no'} convolution behind the tower"
        )
    elif not faults and joins and _grid(config["vision_config"]) % 2:
        faults.append("an odd number of patches along an edge, which cannot be joined by two")
    if is_video and not joins:
        faults.append(f"architectures = [{_VIDEOS!r}] (expected num_multi_query_heads with it)")
    if faults:
        raise variant_error(path, faults, "Use the config.json that was published.")


def _vision_faults(vision: dict[str, Any]) -> list[str]:
    from edgeprism.convert.read.fields import number_faults, size_faults

    part = "vision_config."
    faults = size_faults({name: vision.get(name) for name in _VISION_SIZES}, part)
    faults += [f"{part}{each}" for each in number_faults(
        {"layer_norm_eps": vision.get("layer_norm_eps")}, 1
    )]  # fmt: skip
    for name, expected in (("in_channels", 3), ("hidden_act", "gelu")):
        if vision.get(name) != expected:
            faults.append(f"{part}{name} = {vision.get(name)!r} (expected {expected!r})")
    if faults:
        return faults
    grid = _grid(vision)
    if vision["num_positions"] != grid**2 + 1:
        faults.append(f"{part}num_positions {vision['num_positions']}, but {grid**2 + 1} are seen")
    if vision["hidden_size"] % vision["num_heads"]:
        faults.append(
            f"{part}hidden_size {vision['hidden_size']} is no multiple of num_heads "
            f"{vision['num_heads']}"
        )
    return faults


def _grid(vision: dict[str, Any]) -> int:
    """Return the patches along an edge of a picture."""
    edge: int = vision["image_size"] // vision["patch_size"]
    return edge


# ---- the language model


def _language_model(
    config: dict[str, Any], checkpoint: Checkpoint, words: Path, is_video: bool, path: Path
) -> LmParts:
    from edgeprism.convert.gate import experts as reference
    from edgeprism.convert.gate.language import text_to_ids
    from edgeprism.convert.language import experts
    from edgeprism.convert.language.model import LmParts

    theta = _THETA_OF_SECOND if _is_second(config) else _THETA
    lm = experts.mrope_config(_llama(config, theta, path))
    published = {**config, "rope_theta": theta}
    return LmParts(
        checkpoint,
        lm,
        _vocabulary(words, config, lm.n_vocab),
        list(experts.gguf_tensors(lm, experts.LANGUAGE)),
        checkpoint.read_float32,
        lambda texts, tick: reference.logits(
            checkpoint.files, published, [reference.Prompt(text) for text in texts], tick
        ),
        text_to_ids(words),
        row_expert=(
            None if is_video else _vision_expert(lm, _is_second(config), checkpoint, published)
        ),
        image_positions="shared",
    )


def _llama(config: dict[str, Any], theta: float, path: Path) -> LmConfig:
    """Return the configuration as that of a Llama; raises CheckpointError for what it lacks."""
    from edgeprism.convert.language.config import lm_config_from_dict

    fields = {name: config[name] for name in _LM_FIELDS if name in config}
    missing = [name for name in _LM_FIELDS[:6] if name not in fields]
    if missing:
        raise CheckpointError(
            f"{path} lacks {', '.join(missing)}.", "Use the config.json that was published."
        )
    heads = {"num_key_value_heads": config.get("num_multi_query_heads")}
    lm = lm_config_from_dict(
        {**fields, **heads, "model_type": "llama", "rope_theta": theta}, str(path)
    )
    if lm.tied or lm.n_heads * lm.head_dim != lm.n_embd:
        raise CheckpointError(
            f"{path}: a language model with a head of its own is expected, and hidden_size as a "
            "multiple of num_attention_heads.",
            "Use the config.json that was published.",
        )
    return lm


def _vision_expert(
    lm: LmConfig, has_bias: bool, checkpoint: Checkpoint, published: dict[str, Any]
) -> RowExpert:
    from edgeprism.convert.gate import experts as reference
    from edgeprism.convert.language import experts
    from edgeprism.convert.language.model import RowExpert, RowPrompt, Tick

    vocabulary = experts.stand_in_vocabulary()
    config = experts.mrope_config(
        dataclasses.replace(lm, n_vocab=len(vocabulary.pieces), tied=True), qkv_bias=has_bias
    )

    def run(prompts: Sequence[RowPrompt], tick: Tick) -> list[tuple[np.ndarray, np.ndarray]]:
        whole = [
            reference.Prompt(
                [*p.before, *p.rows, *p.after], (len(p.before), len(p.before) + len(p.rows))
            )
            for p in prompts
        ]
        logits = reference.logits(checkpoint.files, published, whole, tick)
        return [
            (reference.embeddings(checkpoint.files, prompt.rows), all_rows[-len(prompt.after) :])
            for prompt, all_rows in zip(prompts, logits, strict=True)
        ]

    tensors = list(experts.gguf_tensors(config, experts.VISION))
    return RowExpert(config, vocabulary, tensors, _OWN_LAST, run)


def _vocabulary(words: Path, config: dict[str, Any], n_vocab: int) -> Vocabulary:
    """Return the tokenizer of the folder `words`, with the published model's marks of both ends."""
    from edgeprism.convert.language.read_vocabulary import vocabulary_from_folder
    from edgeprism.convert.language.vocabulary import TokenRules

    if not any((words / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise UsageError(
            f"{words} holds no tokenizer.",
            "Pass `tokenizer`: CogVLM is published without one and uses that of "
            "lmsys/vicuna-7b-v1.5.",
        )
    vocabulary = vocabulary_from_folder(words, n_vocab, TokenRules())
    begin, end = (config.get(f"{name}_token_id") for name in ("bos", "eos"))
    if begin != vocabulary.bos or type(end) is not int or not 0 <= end < n_vocab:
        raise CheckpointError(
            f"{words}: the tokenizer's first token is {vocabulary.bos}, but config.json has "
            f"bos_token_id {begin!r} and eos_token_id {end!r}.",
            "Pass the tokenizer that belongs to the checkpoint.",
        )
    return dataclasses.replace(vocabulary, eos=end, add_bos=True)


# ---- pictures and prompts


def _tower(vision: dict[str, Any]) -> TowerConfig:
    from edgeprism.convert.vision.config import CLIP_MEAN, CLIP_STD, TowerConfig

    return TowerConfig(
        n_layers=vision["num_hidden_layers"],
        n_embd=vision["hidden_size"],
        n_heads=vision["num_heads"],
        n_ffn=vision["intermediate_size"],
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        eps=float(vision["layer_norm_eps"]),
        activation="gelu",
        rescale=1 / 255,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        n_prefix=1,
        norm_after=True,
    )


def _projector(config: dict[str, Any]) -> GatedConfig:
    from edgeprism.convert.vision.eva2_clip import GatedConfig

    return GatedConfig(
        config["vision_config"]["hidden_size"], config["hidden_size"], config["intermediate_size"],
        joins=_is_second(config),
    )  # fmt: skip


def _image(tower: TowerConfig, is_video: bool) -> ImagePolicy:
    """Return how a picture becomes the tower's square; of a frame the middle is kept."""
    from edgeprism.convert.vision.config import Preparation, one_tile

    mode, resample = ("crop", "bilinear") if is_video else ("stretch", "bicubic")
    prepared = Preparation(mode, tower.image_size, resample, tower.rescale, tower.mean, tower.std)
    return one_tile(mode, prepared)


def _conversation(form: str, is_video: bool) -> Conversation:
    """Return the prompt; of a video's frames the chat template tells the number, from 0."""
    from edgeprism.convert.read.conversations import Conversation

    before, after = _PROMPTS[form]
    return Conversation(
        "",
        before,
        after,
        stop=(),
        picture_end="0" if is_video and form == "chat" else "",
        instruction="Please describe this image in detail." if is_video else "",
    )
