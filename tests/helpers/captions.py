"""Captions with an option that users do not have: whether the model's end token ends them."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from edgeprism.perceive.captioner import Captioner
from edgeprism.perceive.options import CaptionOptions, Plan
from edgeprism.perceive.steps import Pictures
from edgeprism.perceive.stream import CaptionStream


def plan_of(
    captioner: Captioner, *, stop_at_end: bool = True, **options: Unpack[CaptionOptions]
) -> Plan:
    """Return a captioner's plan; without `stop_at_end`, captions have `caption_tokens` tokens."""
    plan = captioner.plan(**options)
    return replace(plan, sampling=replace(plan.sampling, stop_at_end=stop_at_end))


def stream(
    captioner: Captioner,
    image: Pictures,
    *,
    stop_at_end: bool = True,
    **options: Unpack[CaptionOptions],
) -> CaptionStream:
    """Start a caption and return its stream."""
    return captioner.start(image, plan_of(captioner, stop_at_end=stop_at_end, **options))


def caption_ids(
    captioner: Captioner,
    image: Pictures,
    *,
    stop_at_end: bool = True,
    **options: Unpack[CaptionOptions],
) -> list[int]:
    """Return the caption's token ids, for comparison with a reference implementation."""
    return stream(captioner, image, stop_at_end=stop_at_end, **options).finished().ids
