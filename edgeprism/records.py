"""The values that stages hand to each other: frozen dataclasses that a caller may keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from edgeprism.segments import Segment

if TYPE_CHECKING:
    import numpy as np

RECORD_SCHEMA = 1


@dataclass(frozen=True)
class Timings:
    """Milliseconds spent in each stage; 0.0 for a stage that did not run."""

    load: float = 0.0
    decode_image: float = 0.0
    preprocess: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class ModelInfo:
    """The model that wrote a text: name, digest of its manifest (or its files), quantizations."""

    name: str
    digest: str
    vision_quant: str = ""
    lm_quant: str = ""


@dataclass(frozen=True)
class Pictured:
    """One of several pictures that share one prompt."""

    image: str
    image_sha256: str
    image_size: tuple[int, int]  # (width, height), upright


@dataclass(frozen=True)
class Reduction:
    """How a picture's visual tokens were made fewer, as `visual_tokens` asks."""

    limit: int | str  # as it was given: the most that stay, or "auto"
    encoded: int  # how many there were, of which `TokenCounts.visual` stayed
    method: str


@dataclass(frozen=True)
class Sampled:
    """Which frames of a video the model was shown, and by which rule they were chosen."""

    rule: str  # "uniform": at even distances; "per-second": at `frames_per_second`
    frames: tuple[int, ...]  # their places, from 0
    seconds: tuple[float, ...]  # their times from the first frame; empty: the file tells none
    of: int  # how many frames the video has
    frames_per_second: float | None = None  # as it was asked for


@dataclass(frozen=True)
class EncodedImage:
    """Visual tokens of one picture; it can be captioned many times without encoding it again.

    `visual_tokens` is [n_tokens, n_embd] float32 and belongs to the model with `model_digest`.
    `layout` says how they stand in the prompt: rows, and the model's own text between them.
    For several pictures in one prompt `together` lists each of them; `image` then holds their
    names, `image_sha256` is a digest of their digests, and `size` is (0, 0). `reduction` says how
    the visual tokens were made fewer; None: they are all there. `video` lists the frames that stand
    for a video; None: it is a picture.

    Few models read the instruction when they look at a picture. With them the visual tokens are
    those for `instruction`, and `features` [n_tiles, n_features, width] float32 are what others are
    made of for another one; with all other models both are None.
    """

    visual_tokens: np.ndarray
    image: str
    image_sha256: str
    size: tuple[int, int]  # (width, height) of the upright picture
    notes: tuple[str, ...]  # the reader's decisions, e.g. "first of 12 frames"
    model_digest: str
    layout: tuple[Segment, ...]
    timings: Timings = field(default_factory=Timings)
    together: tuple[Pictured, ...] = ()
    reduction: Reduction | None = None
    video: Sampled | None = None
    features: np.ndarray | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class PictureCost:
    """The tiles and tokens that a picture of one size costs, known before a pixel is decoded.

    For several pictures in one prompt `size` and `grid` are (0, 0).
    """

    size: tuple[int, int]  # (width, height), upright
    grid: tuple[int, int]  # tiles [down, across] without the overview; (0, 0): not cut
    tiles: int  # with the overview
    visual_tokens: int
    prompt_tokens: int  # visual tokens and text, with the instruction
    context_length: int
    left_for_caption: int  # tokens; 0 where the prompt does not fit
    pictures: int = 1


@dataclass(frozen=True)
class TokenCounts:
    """Tokens of one request: rows from the picture, text of the prompt, new text."""

    visual: int
    prompt: int
    generated: int


@dataclass(frozen=True)
class Caption:
    """A captioner's text about one picture, with everything needed to reproduce it."""

    text: str
    image: str
    image_sha256: str
    finish_reason: str  # "stop", "length" or "repetition"
    tokens: TokenCounts
    timings: Timings
    model: ModelInfo
    device: str
    instruction: str
    version: str
    image_size: tuple[int, int] = (0, 0)  # (width, height), upright
    notes: tuple[str, ...] = ()
    together: tuple[Pictured, ...] = ()  # each of several pictures, as in EncodedImage
    reduction: Reduction | None = None  # of the visual tokens, as in EncodedImage
    video: Sampled | None = None  # the frames that were shown, as in EncodedImage

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `edgeprism caption --json` prints."""
        reduction = {"reduction": asdict(self.reduction)} if self.reduction else {}
        video = {"video": _listed(self.video)} if self.video else {}
        return {
            "schema": RECORD_SCHEMA,
            "image": self.image,
            "image_sha256": self.image_sha256,
            "image_size": list(self.image_size),
            "caption": self.text,
            "finish_reason": self.finish_reason,
            "tokens": asdict(self.tokens),
            "timings_ms": rounded(self.timings),
            "model": asdict(self.model),
            "device": self.device,
            "instruction": self.instruction,
            "notes": list(self.notes),
            "together": [{**asdict(p), "image_size": list(p.image_size)} for p in self.together],
            **reduction,
            **video,
            "version": self.version,
        }


@dataclass(frozen=True)
class Evidence:
    """A sentence of a caption; picture and sentence count from 1."""

    picture: int
    captioner: str
    sentence: int
    text: str


@dataclass(frozen=True)
class Answer:
    """The reasoner's answer and the captions it rests on."""

    text: str
    question: str
    focus: str
    captions: tuple[Caption, ...]
    finish_reason: str
    tokens: TokenCounts
    timings: Timings
    model: ModelInfo
    version: str
    notes: tuple[str, ...] = ()
    instruction_mode: str = "generic"  # the captioner's instruction: "question" or "generic"
    options: Mapping[str, str] = field(default_factory=dict)  # by letter; empty: open question
    hint: str = ""
    thinking: str = ""  # a reasoning model's text before its answer
    # sentences that support the answer; empty: there are none; None: evidence was not requested
    evidence: tuple[Evidence, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `edgeprism ask --json` prints."""
        return {
            "schema": RECORD_SCHEMA,
            "question": self.question,
            "options": dict(self.options),
            "hint": self.hint,
            "answer": self.text,
            "thinking": self.thinking,
            "instruction_mode": self.instruction_mode,
            "focus": self.focus,
            "captions": [caption.to_dict() for caption in self.captions],
            "evidence": None if self.evidence is None else [asdict(e) for e in self.evidence],
            "finish_reason": self.finish_reason,
            "tokens": asdict(self.tokens),
            "timings_ms": rounded(self.timings),
            "reasoner": asdict(self.model),
            "notes": list(self.notes),
            "version": self.version,
        }


def _listed(sampled: Sampled) -> dict[str, Any]:
    """Return the record of a video's frames, as JSON holds it."""
    return {
        **asdict(sampled),
        "frames": list(sampled.frames),
        "seconds": list(sampled.seconds),
    }


def sampled_from_record(record: Mapping[str, Any]) -> Sampled:
    """Rebuild the frames of a video from a record's `video`."""
    places, seconds = tuple(record["frames"]), tuple(record["seconds"])
    return Sampled(**{**record, "frames": places, "seconds": seconds})


def rounded(timings: Timings) -> dict[str, float]:
    """Return {stage: milliseconds}, rounded to two decimals as records print them."""
    return {stage: round(value, 2) for stage, value in asdict(timings).items()}
