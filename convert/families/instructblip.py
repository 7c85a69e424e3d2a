"""InstructBLIP: EVA-ViT-g → a Q-Former that reads the instruction → Vicuna 1.1 or FlanT5.

This file reads both published layouts:

- transformers' (Salesforce/instructblip-vicuna-7b and -13b, -flan-t5-xl and -xxl): one set of
  files, with the Q-Former's tokenizer in qformer_tokenizer/.
- LAVIS': instruct_blip_vicuna7b_trimmed.pth (13b, flanxl, flanxxl) holds the Q-Former, the norm
  before it and the projection; eva_vit_g.pth, the language model and BERT's vocabulary are
  published on their own.

The layouts differ in the epsilon of the norm behind the tower, and in how much of an instruction
the Q-Former reads. The prompt has no template: visual tokens, for Vicuna </s> as its beginning, the
instruction, for FlanT5 </s> as its end. FlanT5's GELU is the erf form here, as in no other FlanT5.
Sources: LAVIS' `blip2_vicuna_instruct.py`, `blip2_t5_instruct.py`, `blip2.py`, `eva_vit.py` and
`Qformer.py`, transformers' InstructBlipForConditionalGeneration and InstructBlipProcessor.
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
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.read.wordpiece import PublishedWordPiece
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.eva_side import QueryParts
    from edgeprism.progress import Progress

_KIND = "instructblip"
_TOKENIZER = "qformer_tokenizer"  # the folder in transformers' layout
_LAVIS_PROJECTIONS = {"llama": "llm_proj", "t5": "t5_proj"}  # by the language model's type
_LAVIS_IDS = 128  # of an instruction; LAVIS cuts a longer one on the left, for the Q-Former alone
_LANGUAGE_MODELS = {"llama": "Vicuna", "t5": "FlanT5"}


@dataclass(frozen=True)
class _Layout:
    """A checkpoint's parts, the same for both layouts."""

    preparation: Preparation
    parts: QueryParts
    tokenizer: PublishedWordPiece
    max_ids: int
    lm: LmParts
    sources: list[SourceFiles]


def read(
    captioner: Path,
    vision: Path | None,
    llm: Path | None,
    qformer_tokenizer: Path | None,
    progress: Progress,
) -> PublishedCaptioner:
    """Read the folder `captioner`, and the others if it is in LAVIS' layout."""
    from edgeprism.convert.discover import unknown_layout
    from edgeprism.convert.parts import PublishedCaptioner
    from edgeprism.convert.read.checkpoint import read_config
    from edgeprism.convert.read.conversations import Conversation
    from edgeprism.convert.vision.config import one_tile
    from edgeprism.convert.vision.instructed_side import instructed_side

    config = read_config(captioner)
    if config.get("model_type") == _KIND:
        layout = _transformers_layout(captioner, config)
    elif not config and any(captioner.glob("*.pth")):
        layout = _lavis_layout(captioner, vision, llm, qformer_tokenizer)
    else:
        raise unknown_layout(
            captioner,
            FAMILY.name,
            f"model_type {_KIND} with vision_config, qformer_config and text_config "
            "(transformers' layout), or LAVIS' .pth file without a config.json",
        )
    # the prompt's beginning stands behind the visual tokens, so the tokenizer must add none
    vocabulary = dataclasses.replace(layout.lm.vocabulary, add_bos=False)
    encodes = layout.lm.config.encoder is not None
    form = Conversation(
        "",
        "",
        picture_end="" if encodes else "</s>",
        before_caption="</s>" if encodes else "",
        needed=("</s>",),
        repetition_penalty=1.5,
        instruction="Write a detailed description.",
    )
    return PublishedCaptioner(
        captioner,
        layout.sources,
        one_tile("stretch", layout.preparation),
        instructed_side(layout.parts, layout.tokenizer, layout.max_ids, layout.lm.config.n_embd),
        dataclasses.replace(layout.lm, vocabulary=vocabulary),
        form,
    )


FAMILY = Family(
    name="instructblip",
    summary="InstructBLIP with Vicuna 7B, 13B or FlanT5 XL, XXL: a Q-Former reads the instruction",
    help="""Convert InstructBLIP with Vicuna or FlanT5 to the bundle OUT.

    Reads transformers' layout, in one folder, and LAVIS' (with --vision, --llm and
    --qformer-tokenizer).
    """,
    options=(
        Option("captioner", "folder", "Folder of the checkpoint.", required=True),
        Option("vision", "folder", "LAVIS' layout: folder of eva_vit_g.pth."),
        Option("llm", "folder", "LAVIS' layout: folder of Vicuna version 1.1, or of FlanT5."),
        Option("qformer_tokenizer", "folder", "LAVIS' layout: folder of BERT's vocab.txt."),
    ),
    read=read,
    model_types=(_KIND,),
    signs=(
        "qformer_config", _TOKENIZER, "instruct_blip_vicuna7b_trimmed.pth",
        "instruct_blip_vicuna13b_trimmed.pth", "instruct_blip_flanxl_trimmed.pth",
        "instruct_blip_flanxxl_trimmed.pth",
    ),
)  # fmt: skip


def _transformers_layout(captioner: Path, config: dict[str, Any]) -> _Layout:
    from edgeprism.convert.language.model import open_inner_language_model
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.blip_config import blip_config
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.sources import SourceFiles
    from edgeprism.convert.read.wordpiece import read_wordpiece
    from edgeprism.convert.vision.blip import blip_parts
    from edgeprism.convert.vision.qformer import INSTRUCT_BLIP

    checked = blip_config(captioner, config, _LANGUAGE_MODELS)
    checkpoint = Checkpoint(captioner, "captioner")
    parts, prepared = blip_parts(checkpoint, checked, INSTRUCT_BLIP, reads_text=True)
    lm = open_inner_language_model(checkpoint, config, TokenRules(needed=("</s>",)))
    tokenizer = read_wordpiece(captioner / _TOKENIZER)
    sources = [SourceFiles("captioner", captioner, checkpoint.files)]
    return _Layout(prepared, parts, tokenizer, parts.former.n_positions, lm, sources)


def _parts_missing(captioner: Path, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{captioner} holds LAVIS' layout of InstructBLIP, whose other parts are published on "
        "their own.",
        f"Pass their folders as {', '.join(f'`{name}`' for name in names)}.",
    )


def _lavis_layout(
    captioner: Path, vision: Path | None, llm: Path | None, qformer_tokenizer: Path | None
) -> _Layout:
    from edgeprism.convert.language.model import open_language_model
    from edgeprism.convert.language.t5_fields import fields_in_blip
    from edgeprism.convert.language.vocabulary import TokenRules
    from edgeprism.convert.read.checkpoint import Checkpoint
    from edgeprism.convert.read.pth import pth_checkpoint
    from edgeprism.convert.read.sources import SourceFiles, source_without_weights
    from edgeprism.convert.read.wordpiece import read_wordpiece
    from edgeprism.convert.vision.config import Preparation
    from edgeprism.convert.vision.eva_side import EvaSources, lavis_parts
    from edgeprism.convert.vision.eva_vit import MEAN, STD, EvaTensors
    from edgeprism.convert.vision.qformer import QFormerTensors

    if vision is None or llm is None or qformer_tokenizer is None:
        parts_named = {"vision": vision, "llm": llm, "qformer_tokenizer": qformer_tokenizer}
        raise _parts_missing(captioner, [n for n, folder in parts_named.items() if folder is None])
    text, where = fields_in_blip(llm), str(llm / "config.json")
    projection = _LAVIS_PROJECTIONS["t5" if text.get("model_type") == "t5" else "llama"]
    own = pth_checkpoint(captioner, "captioner", ["query_tokens", f"{projection}.weight"])
    eva = pth_checkpoint(vision, "vision model", ["patch_embed.proj.weight", "pos_embed"])
    language = Checkpoint(llm, "language model")
    eva_sources = EvaSources(EvaTensors(eva, ""), own, own, projection, whole_tower=True)
    parts = lavis_parts(eva_sources, QFormerTensors(own), reads_text=True)
    lm = open_language_model(language, text, where, llm, TokenRules(needed=("</s>",)))
    tokenizer = dataclasses.replace(read_wordpiece(qformer_tokenizer), truncation="left")
    sources = [
        SourceFiles("captioner", captioner, own.files),
        SourceFiles("vision", vision, eva.files),
        SourceFiles(
            "llm", llm, [*language.files, *llm.glob("tokenizer.model"), *llm.glob("spiece.model")]
        ),
        source_without_weights("tokenizer", qformer_tokenizer),
    ]
    prepared = Preparation("stretch", parts.tower.image_size, "bicubic", 1 / 255, MEAN, STD)
    max_ids = min(_LAVIS_IDS, parts.former.n_positions)
    return _Layout(prepared, parts, tokenizer, max_ids, lm, sources)
