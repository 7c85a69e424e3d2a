"""A captioner as its family read it → the parts that the pipeline writes and measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgeprism.bundle.manifest import (
    SCHEMA,
    ImagePolicy,
    Manifest,
    Markers,
    Parity,
    Prompts,
    Video,
    Vision,
    VisionText,
)
from edgeprism.bundle.manifest_language import LanguageModelFile, RowWeights
from edgeprism.convert.gate import data
from edgeprism.convert.language.decoder import DecoderParts
from edgeprism.convert.language.model import LmParts, Tick
from edgeprism.convert.read.card import FOCUS, INSTRUCTION, CaptionerCard
from edgeprism.convert.read.checkpoint import Requirements
from edgeprism.convert.read.conversations import Conversation
from edgeprism.convert.read.sources import SourceFiles, require_whole, source_of
from edgeprism.convert.vision.graph import GraphModule
from edgeprism.convert.vision.instructed import TextSide
from edgeprism.convert.vision.quantize import FEATURES, IDS, INPUT, NEWLINE, OUTPUT, SEPARATOR
from edgeprism.convert.vision.side import VisionSide
from edgeprism.convert.vision.weights import VisionWeights
from edgeprism.errors import CheckpointError
from edgeprism.picture.layout import most_visual_tokens

ROWS_FILE = "lm.rows.gguf"  # the weights that a picture's rows go through
VOCABULARY_FILE = "vocab.txt"  # of the instruction, for the vision graph


@dataclass(frozen=True)
class PublishedCaptioner:
    """A captioner as its family read it: configurations, and weights that are not loaded yet."""

    folder: Path  # the captioner's own folder, where its card (edgeprism.json) may lie
    sources: Sequence[SourceFiles]
    image: ImagePolicy
    vision: VisionSide
    lm: LmParts | DecoderParts
    conversation: Conversation
    markers: Markers | None = None  # around tiles; None: the conversation's
    name: str = ""  # the published name, if the folder's name differs
    video: Video | None = None  # for captioners that take a video's frames, too

    def requirements(self) -> Requirements:
        """Return the tensors that the checkpoints must hold, and patterns of unused ones."""
        requirements = Requirements()
        for checkpoint, shapes in self.vision.weights.requirements():
            requirements.add(checkpoint, shapes)
        for checkpoint, patterns in self.vision.unused:
            requirements.add(checkpoint, {}, patterns)
        requirements.add(self.lm.checkpoint, self.lm.shapes, self.lm.unused)
        return requirements


@dataclass(frozen=True)
class FamilyParts:
    """The parts that the pipeline writes and measures; nothing runs before it calls them."""

    vision: Callable[[torch.dtype], GraphModule]
    vision_weights: VisionWeights
    n_vision_ticks: int  # how often the vision reference calls its Tick
    reference_visual_tokens: Callable[[np.ndarray, Tick], np.ndarray]
    lm: LmParts | DecoderParts
    gate_texts: Sequence[str]
    manifest: Manifest  # the pipeline adds the variants, the quantization, the files and parity
    text: TextSide | None = None  # what makes visual tokens of features and the instruction


def captioner_parts(
    family: str, name: str, captioner: PublishedCaptioner, card: CaptionerCard
) -> FamilyParts:
    """Return the parts of the bundle `name` (by default the captioner's); hashes all source files.

    In the manifest, the fields that the pipeline determines stay empty.
    """
    require_whole(published.folder for published in captioner.sources)
    sources = [source_of(published) for published in captioner.sources]
    licenses = list(dict.fromkeys(source.license for source in sources))
    vision, lm = captioner.vision, captioner.lm
    manifest = Manifest(
        schema=SCHEMA,
        name=name or card.name or captioner.name or captioner.folder.resolve().name,
        family=family,
        license=card.license or " and ".join(licenses),
        sources=sources,
        image=captioner.image,
        vision=_vision(vision, lm.row_width),
        lm=_language_model(lm),
        prompts=_prompts(captioner.conversation, card, captioner.markers, lm.vocabulary.add_bos),
        files={},
        parity=Parity(passed=False, forced=False, figures={}, failures=[]),
        notice=card.notice,
        photographs=card.photographs,
        video=captioner.video,
    )
    _require_room(captioner, manifest)
    return FamilyParts(
        vision=vision.graph,
        vision_weights=vision.weights,
        n_vision_ticks=vision.n_ticks,
        reference_visual_tokens=vision.reference,
        lm=lm,
        gate_texts=card.parity_texts or data.TEXTS,
        manifest=manifest,
        text=vision.text,
    )


def _language_model(lm: LmParts | DecoderParts) -> LanguageModelFile:
    """Return what the manifest says of a language model before it is written."""
    encodes = lm.config.encoder is not None
    said = LanguageModelFile(
        file="",
        quant="",
        architecture=lm.config.architecture,
        n_embd=lm.config.n_embd,
        n_vocab=lm.config.n_vocab,
        context_length=lm.config.context_length,
        image_attention="both-ways" if encodes else "causal",
        encodes=encodes,
    )
    if isinstance(lm, DecoderParts):
        return said
    expert = lm.row_expert
    rows = RowWeights("expert", ROWS_FILE, expert.own_last) if expert else None
    return dataclasses.replace(said, image_positions=lm.image_positions, rows=rows)


def _require_room(captioner: PublishedCaptioner, manifest: Manifest) -> None:
    """Raise CheckpointError if the visual tokens of a picture's one tile would fill the context."""
    n_rows = manifest.vision.tokens_per_tile
    if manifest.image.tiling is None:
        n_rows = most_visual_tokens(manifest)  # with the newlines between them
    if isinstance(captioner.lm, DecoderParts) and captioner.lm.cross is not None:
        return  # its layers attend to them beside the text
    if captioner.lm.config.context_length <= n_rows:
        raise CheckpointError(
            f"{captioner.lm.checkpoint.folder}: the language model takes "
            f"{captioner.lm.config.context_length} tokens (max_position_embeddings in config.json)"
            f", and a picture alone has {n_rows} visual tokens.",
            "Use the config.json that was published.",
        )


def _vision(vision: VisionSide, n_embd: int) -> Vision:
    down, across = vision.grid
    return Vision(
        variants=[],
        input=INPUT,
        output=OUTPUT if vision.text is None else FEATURES,
        grid=[down, across],
        drop_first_patch=vision.drop_first_patch,
        tokens_per_tile=vision.most_tokens or down * across - int(vision.drop_first_patch),
        n_embd=n_embd,
        newline=NEWLINE if vision.newline else "",
        separator=SEPARATOR if vision.separator else "",
        constant_rows=list(vision.constant_rows),
        text=None if vision.text is None else _vision_text(vision.text),
    )


def _vision_text(text: TextSide) -> VisionText:
    return VisionText(
        tokenizer="wordpiece",
        vocabulary=VOCABULARY_FILE,
        max_ids=text.max_ids,
        truncation=text.truncation,
        features=text.features,
        width=text.width,
        input=FEATURES,
        ids=IDS,
        output=OUTPUT,
    )


def _prompts(
    conversation: Conversation, card: CaptionerCard, markers: Markers | None, add_bos: bool
) -> Prompts:
    begin, end = conversation.picture_begin, conversation.picture_end
    if markers is None and (begin or end):
        markers = Markers(begin, "", "", "", "", end)
    usual = INSTRUCTION if conversation.instruction is None else conversation.instruction
    return Prompts(
        add_bos=add_bos,
        before_image=conversation.before_image,
        after_image=conversation.after_image,
        before_caption=conversation.before_caption,
        default_instruction=card.default_instruction or usual,
        focus_instruction=(
            card.focus_instruction or conversation.focus or FOCUS
            if conversation.takes_focus
            else ""
        ),
        stop=list(conversation.stop),
        max_tokens=card.max_tokens,
        after_instruction=conversation.after_instruction,
        repetition_penalty=conversation.repetition_penalty,
        markers=markers,
        several=conversation.several,
        unknown=list(card.unknown),
    )
