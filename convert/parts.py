"""From what a family read to what the pipeline needs: the same for every family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprism.bundle.manifest import (
    SCHEMA,
    ImagePolicy,
    LanguageModel,
    Manifest,
    Markers,
    Parity,
    Prompts,
    Source,
    Vision,
)
from edgeprism.convert.gate import data
from edgeprism.convert.language.model import LmParts, Tick
from edgeprism.convert.pipeline import FamilyParts
from edgeprism.convert.read.card import CaptionerCard
from edgeprism.convert.read.checkpoint import digest_of_files, license_of, read_json
from edgeprism.convert.read.conversations import Conversation
from edgeprism.convert.vision.config import Preparation, ProjectorConfig, TowerConfig
from edgeprism.convert.vision.export import INPUT, NEWLINE, OUTPUT
from edgeprism.convert.vision.graph import VisionGraph
from edgeprism.convert.vision.weights import VisionWeights

# What a captioner is asked unless its folder's edgeprism.json says otherwise: our own wording
INSTRUCTION = (
    "Describe this picture in fine detail. Name the scene and every object in it, with its "
    "colour, shape, number and condition. Say where each one is and how the objects relate to "
    "one another. Copy any text, numbers and symbols exactly as they are written."
)
FOCUS = " Pay special attention to the following: {focus}"
MAX_TOKENS = 512


@dataclass(frozen=True)
class VisionSide:
    """Towers whose features stand side by side, and the projector behind them."""

    towers: Sequence[TowerConfig]
    projector: ProjectorConfig
    weights: VisionWeights
    reference: Callable[[np.ndarray, Tick], np.ndarray]  # pixels → visual tokens, by the gate's way
    drop_first_patch: bool = False
    newline: bool = False  # the weights hold a "newline_row"


def captioner_parts(
    family: str,
    name: str,
    sources: list[Source],
    image: ImagePolicy,
    vision: VisionSide,
    lm: LmParts,
    conversation: Conversation,
    card: CaptionerCard,
    markers: Markers | None = None,
) -> FamilyParts:
    """Everything in its place; what the pipeline finds out is left empty."""
    licenses = list(dict.fromkeys(source.license for source in sources))
    manifest = Manifest(
        schema=SCHEMA,
        name=name,
        family=family,
        license=card.license or " and ".join(licenses),
        sources=sources,
        image=image,
        vision=_vision(vision, lm.config.n_embd),
        lm=LanguageModel(
            file="",
            quant="",
            architecture=lm.config.architecture,
            n_embd=lm.config.n_embd,
            n_vocab=lm.config.n_vocab,
            context_length=lm.config.context_length,
            image_attention="causal",
        ),
        prompts=_prompts(conversation, card, markers, lm.vocabulary.add_bos),
        files={},
        parity=Parity(passed=False, forced=False, figures={}, failures=[]),
        notice=card.notice,
    )
    return FamilyParts(
        vision=lambda dtype: VisionGraph(
            vision.towers,
            vision.projector,
            vision.drop_first_patch,
            dtype,
            vision.newline,
            len(image.fills),
        ),
        vision_weights=vision.weights,
        n_vision_layers=sum(tower.n_layers for tower in vision.towers),
        reference_visual_tokens=vision.reference,
        lm=lm,
        gate_texts=card.parity_texts or data.TEXTS,
        manifest=manifest,
    )


def _vision(vision: VisionSide, n_embd: int) -> Vision:
    side = vision.projector.side(vision.towers[0].grid)
    return Vision(
        variants=[],
        input=INPUT,
        output=OUTPUT,
        grid=[side, side],
        drop_first_patch=vision.drop_first_patch,
        tokens_per_tile=side**2 - int(vision.drop_first_patch),
        n_embd=n_embd,
        newline=NEWLINE if vision.newline else "",
    )


def _prompts(
    conversation: Conversation, card: CaptionerCard, markers: Markers | None, add_bos: bool
) -> Prompts:
    begin, end = conversation.picture_begin, conversation.picture_end
    if markers is None and (begin or end):
        markers = Markers(begin, "", "", "", "", end)
    return Prompts(
        add_bos=add_bos,
        before_image=conversation.before_image,
        after_image=conversation.after_image,
        before_caption=conversation.before_caption,
        default_instruction=card.default_instruction,
        focus_instruction=card.focus_instruction,
        stop=list(conversation.stop),
        max_tokens=card.max_tokens,
        after_instruction=conversation.after_instruction,
        markers=markers,
        several=conversation.several,
    )


def one_tile(mode: str, preparation: Preparation) -> ImagePolicy:
    """The whole picture as one tile, prepared as published."""
    return ImagePolicy(
        mode=mode,
        size=preparation.size,
        fill=preparation.fill,
        resample=preparation.resample,
        max_tiles=1,
    )


def source_of(role: str, folder: Path, files: Iterable[Path]) -> Source:
    """Name, digest and licence of one checkpoint, for the manifest."""
    return Source(role, _name_of(folder), digest_of_files(files), license_of(folder))


def _name_of(folder: Path) -> str:
    """`_name_or_path` of the configuration where it names a published model, else the folder.

    In a hub's cache (models--OWNER--NAME/snapshots/COMMIT) the path says more: OWNER/NAME@COMMIT.
    """
    place = folder.resolve()
    store = place.parent.parent.name
    if place.parent.name == "snapshots" and store.startswith("models--"):
        return f"{store.removeprefix('models--').replace('--', '/', 1)}@{place.name}"
    config = folder / "config.json"
    named = str(read_json(config).get("_name_or_path", "")) if config.is_file() else ""
    # an absolute path there tells of somebody's disk, not of a model
    return named if named and not Path(named).is_absolute() else place.name
