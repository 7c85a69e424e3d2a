"""Captioners published as one folder: from its reading to the bundle, the same for every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeprism.bundle.manifest import ImagePolicy, Manifest, Markers
from edgeprism.bundle.writer import BundleWriter
from edgeprism.convert.language.model import UNUSED, LmParts
from edgeprism.convert.options import ConvertOptions
from edgeprism.convert.parts import (
    FOCUS,
    INSTRUCTION,
    MAX_TOKENS,
    VisionSide,
    captioner_parts,
    source_of,
)
from edgeprism.convert.pipeline import check_options, write_bundle
from edgeprism.convert.read.card import card_from_folder
from edgeprism.convert.read.checkpoint import Checkpoint, Requirements, read_config
from edgeprism.convert.read.conversations import Conversation
from edgeprism.progress import Progress


@dataclass(frozen=True)
class Layout:
    """What a family reads from its folder."""

    checkpoint: Checkpoint
    image: ImagePolicy
    vision: VisionSide
    lm: LmParts
    conversation: Conversation
    markers: Markers
    unused: tuple[str, ...] = ()  # patterns of tensors beside the language model's that never run


# (folder, fields of its config.json) → Layout; CheckpointError for any other layout
Read = Callable[[Path, dict[str, Any]], Layout]


def convert_folder(
    family: str, read: Read, out: Path, options: ConvertOptions, progress: Progress, captioner: Path
) -> Manifest:
    """Convert the published folder `captioner` into the bundle `out`.

    Raises UsageError, CheckpointError (every fault of the tensors at once) and ParityError.
    """
    check_options(options)
    with BundleWriter(out, options.overwrite) as writer:
        progress.stage("Reading the checkpoint")
        card = card_from_folder(captioner, INSTRUCTION, FOCUS, MAX_TOKENS)
        found = read(captioner, read_config(captioner))
        requirements = Requirements()
        for source, shapes in found.vision.weights.requirements():
            requirements.add(source, shapes, found.unused)
        # a head that the configuration ties is a copy of the embedding
        copies = (r"(^|\.)lm_head\.weight$",) if found.lm.config.tied else ()
        unused = (*UNUSED[found.lm.config.model_type], *copies)
        requirements.add(found.checkpoint, found.lm.shapes, unused)
        requirements.check()
        parts = captioner_parts(
            family,
            options.name or card.name or captioner.resolve().name,
            [source_of("captioner", captioner, found.checkpoint.files)],
            found.image,
            found.vision,
            found.lm,
            found.conversation,
            card,
            found.markers,
        )
        return write_bundle(parts, writer, options, progress)
