"""manifest.json of a bundle: read strictly, all faults at once; written by `convert`.

A bundle from a stranger is data: nothing in a manifest is executed, and every field is checked
for presence, type and value before an engine sees it.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

SCHEMA = 1
FILE_NAME = "manifest.json"

VISION_QUANTS = ("fp32", "fp16", "int8", "int8-full")
RESAMPLINGS = ("bicubic", "bilinear", "lanczos", "nearest")
MODES = ("pad", "letterbox", "crop", "center-crop", "stretch", "shrink")
MOST_EDGE = 4096  # of a tile, and where "longest-edge" ends upstream


@dataclass(frozen=True)
class FileEntry:
    """Digest and size in bytes of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Source:
    """One checkpoint that the bundle was made from."""

    role: str  # "captioner", "llm", "vision"
    name: str
    sha256: str  # over the digests of the checkpoint's files, in order of name
    license: str


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut into tiles besides the overview, which shows it whole.

    `choose` says how the grid of tiles [down, across] is found and the picture fitted to it:
    "best-fit", of `grids` the one that keeps most pixels, ratio kept, centred on `fill`;
    "closest-ratio", of `grids` the one shaped most like the picture, stretched to it, and not cut
    where that is [1, 1]; "longest-edge", the picture's longer edge at `longest_edge` pixels, then
    stretched to whole tiles, and the overview made of that.
    `order` says how visual tokens stand: "tiles", one tile after another; "rows", row of patches
    by row of patches across all tiles; "rows-unpadded", the same without those of padding.
    """

    choose: str
    grids: list[list[int]]  # empty for "longest-edge"
    longest_edge: int  # pixels; 0 for the others
    overview: str  # "first" or "last"
    order: str


@dataclass(frozen=True)
class ImagePolicy:
    """How an upright RGB picture becomes tiles of pixels.

    `mode` says how the whole picture becomes one tile: "pad", centred on a square of `fill`, then
    resized; "crop", its shorter edge resized, the middle kept; "stretch", resized as it is;
    "shrink", of its own shape, for an engine that resizes and tiles it itself. As torchvision's
    transforms do it: "letterbox", equal borders of `fill`, so that the canvas is one pixel short of
    a square where the edges differ by an odd number, then "center-crop"; this one, as "crop", but
    half of what is cut off is rounded to even.
    """

    mode: str
    size: int  # edge of a tile in pixels; with "shrink" the longest that is handed on
    fill: list[int]  # [r, g, b]
    resample: str
    max_tiles: int  # of one picture, the overview counted
    tiling: Tiling | None = None
    # [r, g, b] on which a second tower sees the picture; empty where there is no such view
    second_fill: list[int] = dataclasses.field(default_factory=list)

    @property
    def fills(self) -> list[list[int]]:
        """Of each view of the picture that the graph's pixels hold, three channels a view."""
        return [self.fill, self.second_fill] if self.second_fill else [self.fill]


@dataclass(frozen=True)
class VisionVariant:
    """One form of the vision graph."""

    file: str
    quant: str  # fp32 | fp16 | int8 (reduced range, safe without VNNI) | int8-full; mmproj: any


@dataclass(frozen=True)
class Mmproj:
    """A vision side that llama.cpp's libmtmd runs; what was found when it was tried.

    libmtmd resizes, cuts and places the picture itself: the shape of what comes is its own.
    """

    projector: str  # as the file names it
    multi_axis: bool  # rows have positions in time, down and across (M-RoPE)
    tiles_together: bool  # tiles of one size go through the encoder at once


@dataclass(frozen=True)
class Vision:
    """The graph: uint8 pixels [n, size, size, 3 or 6] → float32 visual tokens [n, tokens, n_embd].

    With `mmproj` it is no graph: input, output and grid are empty, n_embd may be several times
    the language model's (rows that also carry what later layers add), and tokens_per_tile are
    those of a whole picture of 1024 × 768 pixels.
    """

    variants: list[VisionVariant]
    input: str
    output: str
    grid: list[int]  # visual tokens of a tile [down, across]
    drop_first_patch: bool  # done inside the graph; here so that a reader can count
    tokens_per_tile: int
    n_embd: int
    # a further output [n, n_embd] of the graph: the learned row that ends each row of patches,
    # the same for every tile
    newline: str = ""
    mmproj: Mmproj | None = None


@dataclass(frozen=True)
class LanguageModelFile:
    """The GGUF file and the dimensions it must have."""

    file: str
    quant: str
    architecture: str
    n_embd: int
    n_vocab: int
    context_length: int
    image_attention: str  # "causal": image rows see only what stands before them; or "both-ways"


@dataclass(frozen=True)
class Markers:
    """Text among a picture's rows, special tokens parsed; any may be empty.

    begin · before_overview · rows · end, and where the picture is cut: before_tile · rows of each
    tile, after_row behind each row of tiles, `between` the tiles and the overview.
    """

    begin: str
    before_overview: str
    before_tile: str  # {row} and {column} become the tile's place, counted from 1
    after_row: str
    between: str
    end: str


@dataclass(frozen=True)
class Several:
    """How several pictures stand in one prompt, special tokens parsed; either may be empty.

    before · picture · between · before · picture …: what stands for one picture otherwise.
    """

    before: str  # {number} becomes the picture's place, counted from 1
    between: str


@dataclass(frozen=True)
class Prompts:
    """Pieces around picture and instruction.

    The prompt is: BOS? · before_image · picture · after_image + instruction + after_instruction ·
    before_caption. In `before_image` and `before_caption` special tokens are parsed; what stands
    around the instruction is plain text and tokenised in one piece with it, as upstream does. The
    picture is its rows, with `markers` among them.
    """

    add_bos: bool
    before_image: str
    after_image: str
    before_caption: str
    default_instruction: str
    focus_instruction: str  # appended for a question-related caption; holds "{focus}" once
    stop: list[str]
    max_tokens: int
    markers: Markers | None = None
    after_instruction: str = ""
    several: Several | None = None  # None: the model was made for one picture at a time


@dataclass(frozen=True)
class Parity:
    """What `convert`'s gate measured; `figures` is {check: {figure: number}}."""

    passed: bool
    forced: bool
    figures: dict[str, dict[str, float]]
    failures: list[str]


@dataclass(frozen=True)
class Manifest:
    """A bundle's description. Field by field in docs of each part.

    A field with a default is a mechanism that few models need; it may be left out.
    """

    schema: int
    name: str
    family: str
    license: str
    sources: list[Source]
    image: ImagePolicy
    vision: Vision
    lm: LanguageModelFile
    prompts: Prompts
    files: dict[str, FileEntry]
    parity: Parity
    notice: str  # one line shown with the model, e.g. what it is not made for; may be empty

    def to_json(self) -> str:
        """The manifest as the file holds it."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
