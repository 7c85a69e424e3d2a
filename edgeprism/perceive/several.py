"""Several pictures for one prompt: joins their visual tokens and layouts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from edgeprism.errors import UsageError
from edgeprism.perceive.prompt import pictures_to_segments
from edgeprism.records import EncodedImage, Pictured, Timings

if TYPE_CHECKING:
    from edgeprism.bundle.manifest import Manifest, Several


def several_of(manifest: Manifest) -> Several:
    """Return how the prompt arranges several pictures.

    Raises UsageError for a model that takes one picture at a time.
    """
    if manifest.prompts.several is None:
        raise UsageError(
            f"{manifest.name} takes one picture at a time.",
            "Show each on its own, or use a model made for several (its manifest has "
            "prompts.several).",
        )
    return manifest.prompts.several


def pictures_together(each: Sequence[EncodedImage], several: Several) -> EncodedImage:
    """Join pictures that one model encoded; the rows [n, n_embd] keep the pictures' order."""
    spent = [asdict(picture.timings) for picture in each]
    digests = "\n".join(picture.image_sha256 for picture in each)
    reductions = [picture.reduction for picture in each if picture.reduction]
    encoded = sum(reduction.encoded for reduction in reductions)
    return EncodedImage(
        visual_tokens=np.concatenate([picture.visual_tokens for picture in each]),
        image=", ".join(picture.image for picture in each),
        image_sha256=hashlib.sha256(digests.encode()).hexdigest(),
        size=(0, 0),
        notes=tuple(f"{picture.image}: {note}" for picture in each for note in picture.notes),
        model_digest=each[0].model_digest,
        layout=tuple(pictures_to_segments(several, [picture.layout for picture in each])),
        timings=Timings(**{stage: sum(times[stage] for times in spent) for stage in spent[0]}),
        together=tuple(
            Pictured(picture.image, picture.image_sha256, picture.size) for picture in each
        ),
        reduction=replace(reductions[0], encoded=encoded) if reductions else None,
    )
