"""Options of a captioner's engines, and of one caption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict

from edgeprism.arguments import check_choice, check_flag, check_integer, check_number, check_text
from edgeprism.choices import KV_TYPES, VISION_QUANTS
from edgeprism.language.request import Sampling
from edgeprism.machine.device import EngineOptions, check_engine_options
from edgeprism.picture.sampling import check_frame_wishes
from edgeprism.vision.token_reduction import TokenLimit, check_token_limit

if TYPE_CHECKING:
    from edgeprism.records import EncodedImage


class CaptionerOptions(EngineOptions, total=False):
    """Keywords of `Captioner.load`, in addition to those of every engine."""

    vision_quant: str | None
    """One of fp32, fp16, int8, int8-full; None: the best for the device."""
    kv_type: str
    """Number type of the KV cache: f16, f32 or q8_0."""
    flash_attention: bool | None
    """None: as llama.cpp chooses."""
    visual_tokens: TokenLimit | None
    """The most visual tokens of a picture that the language model gets; "auto": a quarter of them,
    and 64 at least; None or "all": all. Fewer shorten the time to the first word and blur what is
    seen."""
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
    visual_tokens: TokenLimit | None
    """As of `Captioner.load`, for this caption; "all": every one; None: the captioner's own."""
    frames: int | None
    """The most frames of a video that are shown; None: the model's own number. They lie at even
    distances, the first and the last one among them."""
    frames_per_second: float | None
    """So many frames of each second of a video, if those are no more than `frames`."""


@dataclass(frozen=True)
class Plan:
    """The instruction of a caption, how its tokens are sampled, and what it is made from."""

    instruction: str
    sampling: Sampling
    visual_tokens: TokenLimit | None = None  # the most of a picture; None: all
    # of a video: the most that are taken, and how many of each second; None: as the model says
    frames: int | None = None
    frames_per_second: float | None = None
    video_instruction: str | None = None  # in place of `instruction` for a video; None: the same
    notes: tuple[str, ...] = ()  # what of the options has no effect on this model

    def for_video(self) -> Plan:
        """Return the plan of a video's caption."""
        if self.video_instruction is None:
            return self
        return replace(self, instruction=self.video_instruction, video_instruction=None)

    def for_source(self, encoded: EncodedImage) -> Plan:
        """Return the plan of the caption of what was encoded: a picture, or a video's frames."""
        return self if encoded.video is None else self.for_video()


def check_captioner_options(
    *,
    vision_quant: str | None = None,
    kv_type: str = "f16",
    flash_attention: bool | None = None,
    visual_tokens: TokenLimit | None = None,
    isolate_decoding: bool = True,
    device: str = "auto",
    threads: int | None = None,
    gpu_layers: int | None = None,
) -> None:
    """Refuse values of `CaptionerOptions` that no captioner can take.

    Raises DeviceError for an unknown device, UsageError for other values.
    """
    check_engine_options(device, threads, gpu_layers)
    if vision_quant is not None:
        check_choice("vision_quant", vision_quant, VISION_QUANTS)
    check_choice("kv_type", kv_type, KV_TYPES)
    if flash_attention is not None:
        check_flag("flash_attention", flash_attention)
    if visual_tokens is not None:
        check_token_limit(visual_tokens)
    check_flag("isolate_decoding", isolate_decoding)


def check_caption_options(
    *,
    instruction: str | None = None,
    focus: str | None = None,
    caption_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    visual_tokens: TokenLimit | None = None,
    frames: int | None = None,
    frames_per_second: float | None = None,
) -> None:
    """Refuse values of `CaptionOptions` of another type or out of range; raises UsageError."""
    for name, text in (("instruction", instruction), ("focus", focus)):
        if text is not None:
            check_text(name, text)
    if caption_tokens is not None:
        hint = "Leave it out for the model's own limit."
        check_integer("caption_tokens", caption_tokens, least=1, hint=hint)
    check_number("temperature", temperature, least=0)
    check_integer("seed", seed)
    if visual_tokens is not None:
        check_token_limit(visual_tokens)
    check_frame_wishes(frames, frames_per_second)
