"""Captions with a knob that users do not have: whether the model's own end of text ends them."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from edgeprism.perceive.captioner import Captioner, Pictures
from edgeprism.perceive.options import CaptionOptions, Plan
from edgeprism.perceive.stream import CaptionStream


def plan_of(
    captioner: Captioner, *, stop_at_end: bool = True, **options: Unpack[CaptionOptions]
) -> Plan:
    """A captioner's plan; without `stop_at_end` its caption has `caption_tokens` tokens."""
    plan = captioner.plan(**options)
    return replace(plan, sampling=replace(plan.sampling, stop_at_end=stop_at_end))


def stream(
    captioner: Captioner,
    image: Pictures,
    *,
    stop_at_end: bool = True,
    **options: Unpack[CaptionOptions],
) -> CaptionStream:
    """A caption under way."""
    return captioner.start(image, plan_of(captioner, stop_at_end=stop_at_end, **options))


def caption_ids(
    captioner: Captioner,
    image: Pictures,
    *,
    stop_at_end: bool = True,
    **options: Unpack[CaptionOptions],
) -> list[int]:
    """The caption's token ids, for comparison with a reference implementation."""
    return stream(captioner, image, stop_at_end=stop_at_end, **options).finished().ids
