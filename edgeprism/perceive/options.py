"""What a caller may choose about a captioner's engines, and about one caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from edgeprism.language.request import Sampling
from edgeprism.machine.device import EngineOptions


class CaptionerOptions(EngineOptions, total=False):
    """Keywords of `Captioner.load`, beside those of every engine."""

    vision_quant: str | None
    """One of fp32, fp16, int8, int8-full; None: the best for the device."""
    kv_type: str
    """Number type of the KV cache: f16, f32 or q8_0."""
    flash_attention: bool | None
    """None: as llama.cpp chooses."""


class CaptionOptions(TypedDict, total=False):
    """Keywords of `Captioner.caption`, `stream` and `plan`."""

    instruction: str | None
    """Replaces the bundle's generic one."""
    focus: str | None
    """What to observe: makes the instruction question-related."""
    caption_tokens: int | None
    """The longest caption; None: as the bundle says."""
    temperature: float
    """0 gives the same text for the same picture."""
    seed: int
    """Of a temperature above 0."""


@dataclass(frozen=True)
class Plan:
    """What a caption is asked for: the words of the instruction and how tokens are chosen."""

    instruction: str
    sampling: Sampling
