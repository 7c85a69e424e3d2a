"""What a caller may choose about a captioner's engines, and about one caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from edgeprism.language.request import Sampling
from edgeprism.machine.device import EngineOptions


class CaptionerOptions(EngineOptions, total=False):
    """Keywords of `Captioner.load`, beside those of every engine."""

    vision_quant: str | None  # "fp32", "fp16", "int8" or "int8-full"; None: the best for the device
    kv_type: str  # of the KV cache: "f16", "f32" or "q8_0"
    flash_attention: bool | None  # None: as llama.cpp chooses


class CaptionOptions(TypedDict, total=False):
    """Keywords of `Captioner.caption`, `stream` and `plan`."""

    instruction: str | None  # replaces the bundle's generic one
    focus: str | None  # what to observe: makes the instruction question-related
    caption_tokens: int | None  # the longest caption; None: as the bundle says
    temperature: float  # 0 gives the same text for the same picture
    seed: int  # of a temperature above 0


@dataclass(frozen=True)
class Plan:
    """What a caption is asked for: the words of the instruction and how tokens are chosen."""

    instruction: str
    sampling: Sampling
