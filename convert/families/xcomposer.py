"""InternLM-XComposer and ShareCaptioner: EVA-ViT-g → Q-Former → InternLM with LoRA of all rows.

Sources: InternLM-XComposer's repository, whose history holds the configurations, the indexes of
tensors, the tokenizer and the code of internlm-xcomposer-7b, -vl-7b and -7b-4bit
(`modeling_InternLM_XComposer.py`, `modeling_InternLM.py`); ShareGPT4V's repository for
ShareCaptioner's prompt. ShareCaptioner's own configuration was not seen: the number of queries and
the size of pictures are those of the tensors.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import UsageError

if TYPE_CHECKING:
    import torch

    from edgeprism.bundle.manifest import ImagePolicy
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.read.lora import LoraHalves
    from edgeprism.convert.vision.side import VisionSide
    from edgeprism.progress import Progress

_MODEL_TYPE = "InternLMXComposer"
_LM_FIELDS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings", "rms_norm_eps", "hidden_act", "tie_word_embeddings",
)  # fmt: skip
# `bias` and `num_quant` are read by none of the published code
_OWN_FIELDS = (
    "bias", "kqvo_bias", "intern_converted_llm", "internlm_lora", "lora_cfg", "num_query_token",
    "num_quant", "device",
)  # fmt: skip
# what `learn_param` of a LoRA names → the matrices of a layer
_LEARNED = {
    "q": ("self_attn.q_proj",), "k": ("self_attn.k_proj",), "v": ("self_attn.v_proj",),
    "o": ("self_attn.o_proj",), "ffn": ("mlp.down_proj", "mlp.up_proj"),
}  # fmt: skip
_END_OF_TURN, _END_OF_ANSWER = "<TOKENS_UNUSED_0>", "<TOKENS_UNUSED_1>"
_META = (
    "meta instruction\nYou are an AI assistant whose name is 浦语.\n"
    "- 浦语 is a conversational language model that is developed by Shanghai AI Laboratory "
    "(上海人工智能实验室). It is designed to be helpful, honest, and harmless.\n"
    "- 浦语 can understand and communicate fluently in the language chosen by the user such as "
    "English and 中文.\nconversation\n"
)
# name → text before the picture and after the instruction
_PROMPTS = {
    "chat": (f"{_META} <|User|>:", f"\n{_END_OF_TURN} <|Bot|>:"),
    "plain": (" <|User|>:", f"\n{_END_OF_TURN} <|Bot|>:"),
    "sharecaptioner": ("<|User|>:", f"{_END_OF_TURN}\n<|Bot|>:"),
}
_ADDED_IN_VL = "<ITG_TOKEN>"  # to the vocabulary of internlm-xcomposer-vl-7b


def read(captioner: Path, conversation: str, progress: Progress) -> PublishedCaptioner:
    """Read the published folder."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint, read_config
    from edgeprism.convert.read.sources import SourceFiles

    if conversation and conversation not in _PROMPTS:
        raise UsageError(
            f"The conversation form {conversation} is not known.", f"Known: {', '.join(_PROMPTS)}."
        )
    config = read_config(captioner)
    if config.get("model_type") != _MODEL_TYPE:
        raise unknown_layout(captioner, FAMILY.name, f"model_type {_MODEL_TYPE}")
    checkpoint = Checkpoint(captioner, "captioner")
    _check(config, checkpoint, captioner / "config.json")
    lm, lora = _language_model(config, checkpoint)
    side, image = _vision_side(checkpoint, lm.config.n_embd)
    if lora is not None:
        unused = (checkpoint, tuple(lora.patterns()))
        side = dataclasses.replace(side, unused=[*side.unused, unused])
    return PublishedCaptioner(
        captioner,
        [SourceFiles("captioner", captioner, checkpoint.files)],
        image,
        side,
        lm,
        _conversation(conversation or _usual_prompt(captioner, lm)),
    )


FAMILY = Family(
    name="xcomposer",
    summary="InternLM-XComposer-7B and -VL-7B, ShareCaptioner: EVA-ViT-g, Q-Former, InternLM",
    help="Convert InternLM-XComposer or ShareCaptioner (not version 2) to the bundle OUT.",
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option(
            "conversation",
            "choice",
            "Prompt: with the chat model's introduction, without, or ShareCaptioner's.  [default: "
            "that of the published model]",
            default="",
            choices=tuple(_PROMPTS),
        ),
    ),
    read=read,
    model_types=(_MODEL_TYPE,),
    signs=("internlm_lora", "intern_converted_llm", "kqvo_bias", "num_query_token"),
)


def _check(config: dict[str, Any], checkpoint: Checkpoint, path: Path) -> None:
    """Raise CheckpointError, with all faults, for settings that differ from the published ones."""
    from edgeprism.convert.read.fields import require_known, variant_error

    require_known(config, (*_LM_FIELDS, *_OWN_FIELDS), str(path))
    faults = [
        f"{name} = {config.get(name)!r} (expected True)"
        for name in ("kqvo_bias", "intern_converted_llm")
        if config.get(name, True) is not True
    ]
    lora = config.get("internlm_lora")
    if config.get("lora_cfg", lora) != lora:
        faults.append("internlm_lora and lora_cfg differ")
    faults += _lora_faults(lora)
    queries = checkpoint.shape("query_tokens") if "query_tokens" in checkpoint.names else ()
    given = config.get("num_query_token")
    if len(queries) == 3 and given is not None and given != queries[1]:
        faults.append(f"num_query_token = {given!r}, and query_tokens has {queries[1]} rows")
    if faults:
        raise variant_error(
            path,
            faults,
            "Use the published config.json.",
        )


def _lora_faults(lora: object) -> list[str]:
    if lora is None:
        return []
    if not isinstance(lora, dict):
        return [f"internlm_lora = {lora!r} (expected an object or null)"]
    faults = []
    known = {"learn_param", "lora_r", "lora_alpha", "lora_dropout", "freeze"}
    faults += [
        f"internlm_lora.{name} (a field that is not understood)" for name in lora.keys() - known
    ]
    learned = lora.get("learn_param")
    if not isinstance(learned, list) or not _LEARNED.keys() >= set(map(str, learned)):
        faults.append(f"internlm_lora.learn_param = {learned!r} (known: {', '.join(_LEARNED)})")
    for name in ("lora_r", "lora_alpha"):
        value = lora.get(name)
        if type(value) is not int or value < 1:
            faults.append(f"internlm_lora.{name} = {value!r} (expected a whole number above 0)")
    return faults


def _language_model(
    config: dict[str, Any], checkpoint: Checkpoint
) -> tuple[LmParts, LoraHalves | None]:
    """Return InternLM, which is a Llama with biases in its attention, and its LoRA, if any."""
    from edgeprism.convert.gate import language as reference
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.lora import LoraHalves

    folder = checkpoint.folder
    text = {name: config[name] for name in _LM_FIELDS if name in config}
    text |= {"model_type": "llama", "attention_bias": True}
    rules = TokenRules(needed=(_END_OF_TURN, _END_OF_ANSWER))
    lm = open_language_model(checkpoint, text, str(folder / "config.json"), folder, rules)
    settings = config.get("internlm_lora")
    if settings is None:
        return lm, None
    matrices = [matrix for part in settings["learn_param"] for matrix in _LEARNED[part]]
    pairs = {
        name: (f"{stem}.lora_A.weight", f"{stem}.lora_B.weight")
        for name in lm.shapes
        if (stem := name.removesuffix(".weight")).endswith(tuple(matrices)) and stem != name
    }
    scale = settings["lora_alpha"] / settings["lora_r"]
    lora = LoraHalves(checkpoint, pairs, settings["lora_r"], scale)
    lora.require(lm.shapes)

    def merged(name: str) -> torch.Tensor:
        return lora.merge(name, checkpoint.read_float32(name))

    inner = reference.InnerLora("", scale)
    return dataclasses.replace(
        lm,
        read=merged,
        reference_logits=lambda texts, tick: reference.logits(
            checkpoint.files, text, texts, tick, inner=inner
        ),
    ), lora


def _vision_side(checkpoint: Checkpoint, n_embd: int) -> tuple[VisionSide, ImagePolicy]:
    from edgeprism.convert.vision.eva_side import (
        EvaSources,
        image_policy,
        lavis_parts,
        query_side,
    )
    from edgeprism.convert.vision.eva_vit import EvaTensors
    from edgeprism.convert.vision.qformer import QFormerTensors

    tower = EvaTensors(checkpoint, "visual_encoder.")
    sources = EvaSources(tower, checkpoint, checkpoint, "internlm_proj")
    ends = ("flag_image_start", "flag_image_end")
    parts = lavis_parts(sources, QFormerTensors(checkpoint), reads_text=False)
    return query_side(parts, n_embd, ends), image_policy(parts.tower)


def _usual_prompt(captioner: Path, lm: LmParts) -> str:
    """Return the prompt of the published model, which its vocabulary or its name tells."""
    from edgeprism.convert.read.sources import published_name

    # config.json's own name is that of a folder of its makers
    names = (published_name(captioner), captioner.resolve().name)
    if any("sharecaptioner" in name.lower() for name in names):
        return "sharecaptioner"
    return "plain" if _ADDED_IN_VL.encode() in lm.vocabulary.pieces else "chat"


def _conversation(name: str) -> Conversation:
    from edgeprism.convert.read.conversations import Conversation

    before, end = _PROMPTS[name]
    return Conversation(
        before,
        "",
        before_caption=end,
        stop=(_END_OF_TURN, _END_OF_ANSWER, "</s>"),
        needed=(_END_OF_TURN,),
        repetition_penalty=1.5,
    )
