"""Options of a captioner's engines, and of one caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from edgeprism.language.request import Sampling
from edgeprism.machine.device import EngineOptions


class CaptionerOptions(EngineOptions, total=False):
    """Keywords of `Captioner.load`, in addition to those of every engine."""

    vision_quant: str | None
    """One of fp32, fp16, int8, int8-full; None: the best for the device."""
    kv_type: str
    """Number type of the KV cache: f16, f32 or q8_0."""
    flash_attention: bool | None
    """None: as llama.cpp chooses."""
    isolate_decoding: bool
    """Decode a picture in a process of its own, within a minute and 4 GB, where its header does
    not show that it takes less. False: decode every picture in this process, without limits."""


class CaptionOptions(TypedDict, total=False):
    """Keywords of `Captioner.caption`, `stream` and `plan`."""

    instruction: str | None
    """Replaces the bundle's generic instruction."""
    focus: str | None
    """What to observe; it is added to the instruction."""
    caption_tokens: int | None
    """Length limit of the caption; None: the bundle's own."""
    temperature: float
    """0 gives the same text for the same picture."""
    seed: int
    """Random seed; has an effect at a temperature above 0."""


@dataclass(frozen=True)
class Plan:
    """The instruction of a caption, and how its tokens are sampled."""

    instruction: str
    sampling: Sampling
