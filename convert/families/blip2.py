"""BLIP-2: EVA-ViT-g → a Q-Former → OPT or FlanT5.

This file reads both published layouts:

- transformers' (Salesforce/blip2-opt-2.7b, -6.7b, blip2-flan-t5-xl, -xxl, and -coco versions): one
  set of files.
- LAVIS': blip2_pretrained_opt2.7b.pth, blip2_caption_opt2.7b.pth (6.7b, flant5xl, flant5xxl) hold
  the Q-Former, the norm before it and the projection; the former's tower is eva_vit_g.pth, the
  latter hold their own. The language model is published on its own.

The layouts differ in the epsilon of the norm behind the tower. The prompt has no template: visual
tokens, for OPT </s> as its beginning, and the instruction, for FlanT5 </s> as its end; a line's end
is an OPT's caption's. Sources: LAVIS' `blip2_opt.py`, `blip2_t5.py`, `blip2.py`, `eva_vit.py`,
`Qformer.py` and configurations, transformers' Blip2ForConditionalGeneration and Blip2Processor.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.family import Family, Option
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    from edgeprism.convert.language.model import LmParts
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.eva_side import EvaSources, QueryParts
    from edgeprism.progress import Progress

_KIND = "blip-2"
_INNER_TOWER = "visual_encoder."  # in LAVIS' files of models whose tower was trained
# Captioners trained on COCO read larger pictures; they were trained with this instruction, the
# others with none
_COCO_SIZE, _COCO_INSTRUCTION = 364, "a photo of"
_FOCUS = " Question: what can be said about {focus}? Answer:"


@dataclass(frozen=True)
class _Language:
    """What differs between language models.

    Args:
        model_type: What its own configuration calls it.
        called: What people call it.
        projection: The name of the projection in LAVIS' layout.
        rules: What its tokenizer's files lack.
        stop: What ends a caption, beside the language model's own end.
        picture_end: The special token that stands behind the visual tokens.
        prompt_end: The special token that stands behind the instruction.
    """

    model_type: str
    called: str
    projection: str
    rules: TokenRules
    stop: tuple[str, ...]
    picture_end: str = ""
    prompt_end: str = ""


def _languages() -> dict[str, _Language]:
    """Return the language models that this family converts, by model_type of text_config."""
    from edgeprism.convert.language import opt
    from edgeprism.convert.language.vocabulary import TokenRules

    end = "</s>"
    known = (
        _Language("opt", "OPT", "opt_proj", opt.TOKENS, ("\n",), picture_end=opt.BEGIN),
        _Language("t5", "FlanT5", "t5_proj", TokenRules(needed=(end,)), (), prompt_end=end),
    )
    return {each.model_type: each for each in known}


@dataclass(frozen=True)
class _Layout:
    """A checkpoint's parts, the same for both layouts."""

    preparation: Preparation
    parts: QueryParts
    language: _Language
    lm: LmParts
    sources: list[SourceFiles]


def read(
    captioner: Path, vision: Path | None, llm: Path | None, progress: Progress
) -> PublishedCaptioner:
    """Read the folder `captioner`, and the others if it is in LAVIS' layout."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import read_config
    from edgeprism.convert.vision.config import one_tile
    from edgeprism.convert.vision.eva_side import query_side

    config = read_config(captioner)
    if config.get("model_type") == _KIND:
        layout = _transformers_layout(captioner, config)
    elif not config and any(captioner.glob("*.pth")):
        layout = _lavis_layout(captioner, vision, llm)
    else:
        raise unknown_layout(
            captioner,
            FAMILY.name,
            f"model_type {_KIND} with vision_config, qformer_config and text_config "
            "(transformers' layout), or LAVIS' .pth file without a config.json",
        )
    # the prompt's beginning stands behind the visual tokens, so the tokenizer must add none
    vocabulary = dataclasses.replace(layout.lm.vocabulary, add_bos=False)
    return PublishedCaptioner(
        captioner,
        layout.sources,
        one_tile("stretch", layout.preparation),
        query_side(layout.parts, layout.lm.config.n_embd),
        dataclasses.replace(layout.lm, vocabulary=vocabulary),
        _conversation(layout.language, layout.parts.tower.image_size),
    )


FAMILY = Family(
    name="blip2",
    summary="BLIP-2 with OPT 2.7b, 6.7b or FlanT5 XL, XXL, and those trained on COCO",
    help="""Convert BLIP-2 with OPT or FlanT5 to the bundle OUT.

    Reads transformers' layout, in one folder, and LAVIS' (with --llm, and --vision for the models
    that were not trained on COCO).
    """,
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option("vision", "folder", "LAVIS' layout: folder of eva_vit_g.pth."),
        Option("llm", "folder", "LAVIS' layout: folder of OPT, or of FlanT5."),
    ),
    read=read,
    model_types=(_KIND,),
    signs=(
        "qformer_config", "image_text_hidden_size", "blip2_pretrained_opt2.7b.pth",
        "blip2_pretrained_opt6.7b.pth", "blip2_caption_opt2.7b.pth", "blip2_caption_opt6.7b.pth",
        "blip2_pretrained_flant5xl.pth", "blip2_pretrained_flant5xxl.pth",
        "blip2_caption_flant5xl.pth",
    ),
)  # fmt: skip


def _conversation(language: _Language, image_size: int) -> Conversation:
    from edgeprism.convert.read.conversations import Conversation

    return Conversation(
        "",
        "",
        stop=language.stop,
        picture_end=language.picture_end,
        before_caption=language.prompt_end,
        needed=(language.picture_end or language.prompt_end,),
        instruction=_COCO_INSTRUCTION if image_size >= _COCO_SIZE else "",
        focus=_FOCUS,
    )


def _transformers_layout(captioner: Path, config: dict[str, Any]) -> _Layout:
    from edgeprism.convert.language.model import open_inner_language_model
    from edgeprism.convert.read.blip_config import blip_config
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.blip import blip_parts
    from edgeprism.convert.vision.qformer import BLIP_2

    languages = _languages()
    checked = blip_config(captioner, config, {k: each.called for k, each in languages.items()})
    checkpoint = Checkpoint(captioner, "captioner")
    parts, prepared = blip_parts(checkpoint, checked, BLIP_2, reads_text=False)
    language = languages[checked.config["text_config"]["model_type"]]
    lm = open_inner_language_model(checkpoint, config, language.rules)
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    return _Layout(prepared, parts, language, lm, sources)


def _lavis_layout(captioner: Path, vision: Path | None, llm: Path | None) -> _Layout:
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.t5_fields import fields_in_blip
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.pth import pth_checkpoint
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.eva_side import lavis_parts
    from edgeprism.convert.vision.eva_vit import MEAN, STD
    from edgeprism.convert.vision.qformer import QFormerTensors

    own = pth_checkpoint(captioner, "captioner", ["query_tokens", "ln_vision.weight"])
    language = _language_of(own)
    eva = _eva_sources(own, language, vision)
    if llm is None:
        raise CheckpointError(
            f"{captioner} holds LAVIS' layout of BLIP-2, whose {language.called} is published on "
            "its own.",
            "Pass its folder as `llm`.",
        )
    parts = lavis_parts(eva, QFormerTensors(own), reads_text=False)
    fields, where = fields_in_blip(llm), str(llm / "config.json")
    if fields.get("model_type") != language.model_type:
        raise CheckpointError(
            f"{own.files[0]} was trained with {language.called}, but {where} names model_type "
            f"{fields.get('model_type')!r} (expected {language.model_type!r}).",
            f"Pass the folder of {language.called} as `llm`.",
        )
    inner = Checkpoint(llm, "language model")
    lm = open_language_model(inner, fields, where, llm, language.rules)
    tokenizer = [path for name in ("vocab.json", "merges.txt", "tokenizer.json", "spiece.model")
                 for path in llm.glob(name)]  # fmt: skip
    sources = [
        SourceFiles("captioner", captioner, own.files),
        SourceFiles("llm", llm, [*inner.files, *tokenizer]),
    ]
    if eva.whole_tower:
        tower = eva.tower.checkpoint
        sources.insert(1, SourceFiles("vision", tower.folder, tower.files))
    prepared = Preparation("stretch", parts.tower.image_size, "bicubic", 1 / 255, MEAN, STD)
    return _Layout(prepared, parts, language, lm, sources)


def _language_of(own: Checkpoint) -> _Language:
    """Return the language model that LAVIS' file was trained with, which its projection tells."""
    languages = _languages()
    for language in languages.values():
        if f"{language.projection}.weight" in own.names:
            return language
    known = " or ".join(f"{each.projection}.weight" for each in languages.values())
    raise CheckpointError(
        f"{own.files[0]} holds no {known}: its language model is none of those that can be "
        "converted.",
        f"BLIP-2 with {' and '.join(each.called for each in languages.values())} can be converted.",
    )


def _eva_sources(own: Checkpoint, language: _Language, vision: Path | None) -> EvaSources:
    """Return where the tower lies: in the file itself if it was trained, else with its publisher.

    Raises CheckpointError if it is in neither.
    """
    from edgeprism.convert.read.pth import pth_checkpoint
    from edgeprism.convert.vision.eva_side import EvaSources
    from edgeprism.convert.vision.eva_vit import EvaTensors

    holds_tower = f"{_INNER_TOWER}patch_embed.proj.weight" in own.names
    if holds_tower:
        return EvaSources(EvaTensors(own, _INNER_TOWER), own, own, language.projection)
    if vision is None:
        raise CheckpointError(
            f"{own.files[0]} holds no vision model, which is published on its own.",
            "Download eva_vit_g.pth and pass its folder as `vision`.",
        )
    eva = pth_checkpoint(vision, "vision model", ["patch_embed.proj.weight", "pos_embed"])
    return EvaSources(EvaTensors(eva, ""), own, own, language.projection, whole_tower=True)
