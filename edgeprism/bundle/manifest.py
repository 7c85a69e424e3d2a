"""The dataclasses of a bundle's manifest.json, which `convert` writes.

A bundle may come from a stranger, so it is only data: nothing in a manifest is executed, and
`read_manifest` checks that every field is present and has a valid type and value before an engine
gets it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass

from edgeprism.bundle.manifest_language import LATER, LanguageModelFile
from edgeprism.files.strict_json import record_to_data

SCHEMA = 1
FILE_NAME = "manifest.json"

RESAMPLINGS = ("bicubic", "bilinear", "lanczos", "nearest")
MODES = ("pad", "letterbox", "crop", "center-crop", "stretch", "shrink", "free")
MAX_EDGE = 4096  # pixels, of a tile; also the largest "longest-edge" of upstream models


@dataclass(frozen=True)
class FileEntry:
    """Digest and size in bytes of one file of the bundle."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Source:
    """One checkpoint that the bundle was made from."""

    role: str  # "captioner", "llm", "vision", "tokenizer", …
    name: str
    sha256: str  # over the digests of the checkpoint's files, in order of name
    license: str


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut into tiles, in addition to the overview, which shows the whole picture.

    `choose` says how the grid of tiles [down, across] is chosen and the picture fitted to it:

    - "best-fit": the one of `grids` that keeps the most pixels; the picture keeps its aspect ratio
      and is centred on `fill`.
    - "closest-ratio": the one of `grids` whose aspect ratio is closest to the picture's; the
      picture is stretched to it. If that is [1, 1], the picture is not cut.
    - "longest-edge": the picture's longer edge is resized to `longest_edge` pixels, then the
      picture is stretched to whole tiles; the overview is made from that.
    - "by-pixels": as many tiles as squares of `ImagePolicy.size` hold the picture's pixels, or one
      fewer or one more; of the `grids` of so many the one whose aspect ratio is closest, by its
      logarithm. All tiles of a picture have one shape, which `ImagePolicy.free` chooses for one of
      them, and the picture is stretched to them. A picture that one square holds is not cut.

    - "most-across": the longer edge gets the most tiles n with which [⌈n / ratio⌉, n], by its ratio
      to the shorter edge, is among `grids`. The picture is resized to the length of n tiles, keeps
      its aspect ratio, and is centred on `fill` in whole tiles.

    `order` is the order of the visual tokens: "tiles", one tile after another; "rows", one row of
    patches after another, each across all tiles; "rows-unpadded", the same without the rows and
    columns of patches that hold only padding.
    """

    choose: str
    grids: list[list[int]]  # empty for "longest-edge"
    longest_edge: int  # pixels; 0 for the other choices
    overview: str  # "first" or "last"
    order: str
    # with `ImagePolicy.free`: a picture is cut only if it has more pixels, after both edges were
    # rounded to whole units; 0: every picture is
    uncut_pixels: int = dataclasses.field(default=0, metadata=LATER)
    # how the overview is made of the canvas with the tiles, in place of how `mode` makes it of the
    # picture. "bicubic": by torch's filter of that name, which smooths nothing (a = -0.75), in
    # floating point: the graph's pixels then have fractions
    overview_filter: str = dataclasses.field(default="", metadata=LATER)
    # with `Vision.newline`: whether it ends the overview's rows of patches, too
    overview_lines: bool = dataclasses.field(default=False, metadata=LATER)


@dataclass(frozen=True)
class FreeShape:
    """How a tile gets a height and a width of its own, both multiples of `unit` pixels.

    `choose` says how: "smart-resize" rounds both edges to the nearest multiple. If the tile then
    has more than `most_pixels`, both edges are divided by the square root of the share that is too
    much and rounded down; if it has fewer than `least_pixels`, they are multiplied and rounded up.
    "equal-area" scales both edges by the same share, so that the tile has `least_pixels`, cuts off
    fractions of a pixel, and then rounds both edges to the nearest multiple. In both cases a
    picture so long that the tile has more than `most_pixels` loses length until it has not.
    "shrink-to-fit" enlarges no picture. It scales one that exceeds `canvas` to fit into it, cuts
    off fractions of a pixel, and completes units with `ImagePolicy.fill`, at the right and below.
    """

    choose: str
    unit: int  # pixels along an edge of what becomes one visual token, or one patch with `tokens`
    least_pixels: int
    most_pixels: int
    tokens: int = dataclasses.field(
        default=0, metadata=LATER
    )  # visual tokens of a tile, whatever its shape; 0: one for each unit
    # of "shrink-to-fit": width and height of the largest tile, which has `most_pixels`
    canvas: list[int] = dataclasses.field(default_factory=list, metadata=LATER)


@dataclass(frozen=True)
class ImagePolicy:
    """How an upright RGB picture becomes tiles of pixels.

    `mode` says how the whole picture becomes one tile:

    - "pad": centred on a square of `fill`, then resized.
    - "crop": resized so that its shorter edge fits, then its middle is cut out.
    - "stretch": resized without keeping its aspect ratio.
    - "shrink": it keeps its aspect ratio, for an engine that resizes and tiles it itself.
    - "center-crop": like "crop", but half of the pixels to cut off is rounded to even, as in
      torchvision's transforms.
    - "letterbox": equal borders of `fill` on both sides, so that the canvas is one pixel short of a
      square if the edges differ by an odd number; then "center-crop". Also as in torchvision.
    - "free": resized to a shape that depends on the picture's, as `free` says. With `tiling` that
      is the overview; the tiles that a picture is cut into are squares, but for "by-pixels".
    """

    mode: str
    # edge of a tile in pixels; with "shrink" the longest edge that the engine gets, with "free" the
    # edge of the largest square tile
    size: int
    fill: list[int]  # [r, g, b]
    resample: str
    max_tiles: int  # of one picture, with the overview
    tiling: Tiling | None = None
    # [r, g, b], the background of the picture for a second tower; empty without a second tower
    second_fill: list[int] = dataclasses.field(default_factory=list)
    free: FreeShape | None = dataclasses.field(default=None, metadata=LATER)

    @property
    def fills(self) -> list[list[int]]:
        """The fill of each view of the picture; the graph's pixels have three channels per view."""
        return [self.fill, self.second_fill] if self.second_fill else [self.fill]

    @property
    def has_fractions(self) -> bool:
        """Whether the graph's pixels have fractions: two bytes for each colour."""
        return self.tiling is not None and self.tiling.overview_filter != ""

    @property
    def channels(self) -> int:
        """The bytes of each pixel of the graph: three for each view, and three for fractions."""
        return 3 * (len(self.fills) + int(self.has_fractions))


@dataclass(frozen=True)
class VisionVariant:
    """One quantization of the vision graph."""

    file: str
    # fp32 | fp16 | int8 (reduced range, safe without VNNI) | int8-full; an mmproj: any text
    quant: str
    connector: str = dataclasses.field(
        default="", metadata=LATER
    )  # the file of the second graph, with `Vision.text`


@dataclass(frozen=True)
class Mmproj:
    """A vision file that llama.cpp's libmtmd runs, with the facts that a trial run showed.

    libmtmd resizes, cuts and places the picture itself, so it decides how many rows there are.
    """

    projector: str  # its name in the file
    multi_axis: bool  # rows have positions in time, down and across (M-RoPE)
    tiles_together: bool  # the encoder takes several tiles of one size at once


@dataclass(frozen=True)
class VisionText:
    """How the instruction reaches the visual tokens: through a second graph, the connector.

    The first graph then makes features, float32 [n, features, width], which no text changes. The
    connector makes visual tokens of them and of the instruction's ids, int64 [1, length]. A picture
    that is described again with another instruction therefore runs through the connector alone.
    """

    tokenizer: str  # "wordpiece": BERT's, in lower case and without accents
    vocabulary: str  # its file: a piece in each line
    max_ids: int  # of an instruction, with the marks at both ends
    truncation: str  # the end at which a longer instruction is cut: "left" or "right"
    features: int  # rows that the first graph makes of a tile
    width: int  # of such a row
    input: str  # the connector's names
    ids: str
    output: str


@dataclass(frozen=True)
class Vision:
    """The graph: uint8 pixels [n, size, size, 3 or 6] → float32 visual tokens [n, tokens, n_embd].

    With `ImagePolicy.free` the pixels are [n, height, width, 3], and a tile has a visual token for
    each unit [height / unit, width / unit]. Then `grid` is that of the largest square tile, and
    tokens_per_tile counts the most that any tile has. With `FreeShape.tokens` all tiles have that
    many, in no order of place: `grid` is [1, tokens]; so it is too where tiles are squares and
    their visual tokens have no places.

    With `ImagePolicy.has_fractions` a pixel has six bytes: a colour is (256 · c + f) / 128 - 128,
    of which c is its byte among the first three and f its byte among the others.

    With `text` the graph's output is features, and a second graph makes the visual tokens of them.

    With `mmproj` there is no graph: input, output and grid are empty; n_embd may be several times
    the language model's, if the rows also carry values that later layers add; and tokens_per_tile
    counts the tokens of a whole picture of 1024 × 768 pixels.
    """

    variants: list[VisionVariant]
    input: str
    output: str
    grid: list[int]  # visual tokens of a tile [down, across]
    drop_first_patch: bool  # the graph itself drops it; stated because it changes tokens_per_tile
    tokens_per_tile: int
    n_embd: int
    # name of a further output [n, n_embd] of the graph: the learned row that ends each row of
    # patches, the same for every tile; it needs tiles in rows, or one with a token for each unit
    newline: str = ""
    # name of a further output [n, n_embd], too: the learned row between the overview and the tiles
    separator: str = dataclasses.field(default="", metadata=LATER)
    mmproj: Mmproj | None = None
    # how many of a tile's visual tokens, at its beginning and at its end, are learned rows, which
    # are the same for all pictures: none of these is left out where fewer are asked for
    constant_rows: list[int] = dataclasses.field(default_factory=lambda: [0, 0], metadata=LATER)
    text: VisionText | None = dataclasses.field(default=None, metadata=LATER)


@dataclass(frozen=True)
class Markers:
    """The text around a picture's rows, in which special tokens are parsed; each may be empty.

    A picture that is not cut: begin · before_overview · rows · after_overview · end. If it is cut,
    before_tile precedes the rows of each tile, after_tile follows them, after_row follows each row
    of tiles, between_rows separates these, after_tiles follows all, and `between` separates the
    tiles from the overview.
    """

    begin: str
    before_overview: str
    before_tile: str  # {row} and {column} are replaced by the tile's place, counted from 1
    after_row: str
    between: str
    end: str
    after_overview: str = dataclasses.field(default="", metadata=LATER)
    after_tile: str = dataclasses.field(default="", metadata=LATER)
    between_rows: str = dataclasses.field(default="", metadata=LATER)
    after_tiles: str = dataclasses.field(default="", metadata=LATER)


@dataclass(frozen=True)
class Several:
    """The text around several pictures in one prompt; special tokens are parsed, all may be empty.

    before · picture · between · before · picture … replaces the one picture of `Prompts`.
    """

    before: str  # {number} is replaced by the picture's place, counted from 1
    between: str
    # what `Markers.begin` begins with, where it tells the picture's place: {index} counts from 0,
    # {number} from 1; a picture alone has the first place
    index: str = dataclasses.field(default="", metadata=LATER)


@dataclass(frozen=True)
class Prompts:
    """The text around the picture and the instruction.

    The prompt is: BOS? · before_image · picture · after_image + instruction + after_instruction ·
    before_caption. Special tokens are parsed in `before_image` and `before_caption`. The text
    directly around the instruction is plain and tokenised in one piece with it, as upstream does.
    The picture stands for its rows and the `markers` between them.
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
    # captions by which the model says that it recognises nothing in a picture
    unknown: list[str] = dataclasses.field(default_factory=list, metadata=LATER)
    # by which the logit of a token that the caption holds already is divided if it is positive, and
    # multiplied if it is negative, as in transformers; 1: not at all
    repetition_penalty: float = dataclasses.field(default=1.0, metadata=LATER)


@dataclass(frozen=True)
class Video:
    """How a model that sees pictures sees a video, too: some of its frames, all in one prompt.

    The frames' visual tokens take the place of a picture's rows, one frame after another:
    before · frame · between · before · frame … Without any text, all rows are one block.
    `Prompts.markers` are for pictures alone.
    """

    # name of a further output [n, tokens, n_embd] of the graph: the visual tokens of a tile as a
    # frame; it has the same input as a picture's tile
    output: str
    grid: list[int]  # visual tokens of a frame [down, across]
    # as of `ImagePolicy`: how a frame becomes its one tile, a square of `ImagePolicy.size`
    mode: str
    fill: list[int]
    resample: str
    frames: int  # as many are taken of a video, unless the caller says otherwise
    # "uniform": at even distances, with the first and the last frame
    sampling: str = "uniform"
    # in which special tokens are parsed; {number} is replaced by the frame's place, counted from 1
    before: str = ""
    between: str = ""
    # in place of `Prompts.default_instruction` for a video; "": the same
    instruction: str = dataclasses.field(default="", metadata=LATER)

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one frame."""
        return self.grid[0] * self.grid[1]

    def frame_policy(self, size: int) -> ImagePolicy:
        """Return how a frame becomes its tile, of `size` pixels along an edge."""
        return ImagePolicy(self.mode, size, self.fill, self.resample, max_tiles=1)


@dataclass(frozen=True)
class Parity:
    """The result of `convert`'s gate; `figures` is {check: {figure: number}}."""

    passed: bool
    forced: bool
    figures: dict[str, dict[str, float]]
    failures: list[str]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json; each part's own class describes its fields.

    A field with a default belongs to a mechanism that few models need; a manifest may omit it.
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
    # the model describes photographs
    photographs: bool = dataclasses.field(default=True, metadata=LATER)
    # None: the model describes pictures alone
    video: Video | None = dataclasses.field(default=None, metadata=LATER)

    @property
    def asked_quants(self) -> tuple[str, ...]:
        """The quantizations of the vision graphs as a conversion was asked for them.

        That is "auto" for a graph whose number of int8 matrices followed from a bound of the error.
        """
        figures = self.parity.figures
        return tuple(
            "auto" if "error_bound" in figures.get(f"vision {variant.quant}", {}) else variant.quant
            for variant in self.vision.variants
        )

    def has_quants(self, asked: Iterable[str]) -> bool:
        """Return whether the vision graphs that are asked for are there."""
        there = {variant.quant for variant in self.vision.variants}
        return set(asked) <= {*self.asked_quants, *there}

    def says_nothing(self, caption: str) -> bool:
        """Return whether a caption says nothing of its picture."""
        return caption.strip() in ("", *self.prompts.unknown)

    def to_json(self) -> str:
        """Return the text of manifest.json."""
        data = record_to_data(self, LATER)
        return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
