"""Draws the picture of the data path: `python docs/draw_data_path.py` writes both SVG files.

One file for light pages and one for dark ones. A test compares the files with what this draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
WIDTH, HEIGHT = 980, 430
FILES = {"light": HERE / "data-path-light.svg", "dark": HERE / "data-path-dark.svg"}

_SANS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_MONO = "ui-monospace, 'Cascadia Mono', Menlo, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Palette:
    """Colours of one picture."""

    ink: str
    faint: str
    line: str
    box: str
    end: str  # what goes in and what comes out
    band: str


PALETTES = {
    "light": Palette("#1d2b2a", "#4c625f", "#3f6f6a", "#ffffff", "#d8efe9", "#eef5f3"),
    "dark": Palette("#e6f1ef", "#a4bdb8", "#7fb8af", "#1d2826", "#1f4a44", "#25302e"),
}


@dataclass(frozen=True)
class Box:
    """A value on its way: a name, and its shape or a second line."""

    x: int
    y: int
    width: int
    title: str
    detail: str = ""
    is_end: bool = False

    HEIGHT = 52

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.HEIGHT

    @property
    def middle(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + self.HEIGHT // 2


@dataclass(frozen=True)
class Step:
    """An arrow from left to right: what is done, and the room that does it."""

    start: Box
    end: Box
    verb: str
    room: str


FILE = Box(24, 50, 96, "picture", is_end=True)
RGB = Box(234, 50, 118, "upright RGB")
TILES = Box(462, 50, 158, "tiles, uint8", "[n, size, size, 3]")
VISUAL = Box(770, 50, 186, "visual tokens, float32", "[n_tokens, n_embd]")
INSTRUCTION = Box(24, 176, 128, "instruction", "and a focus", is_end=True)
SEGMENTS = Box(270, 176, 150, "segments", "text and image rows")
KV = Box(540, 176, 110, "KV cache")
CAPTION = Box(800, 176, 156, "Caption", "text and its record", is_end=True)
QUESTION = Box(24, 346, 128, "question", is_end=True)
MESSAGES = Box(270, 346, 150, "chat messages", "captions in words")
KV_2 = Box(540, 346, 110, "KV cache", "or a server")
ANSWER = Box(800, 346, 156, "Answer", "text and its captions", is_end=True)

BOXES = (
    FILE,
    RGB,
    TILES,
    VISUAL,
    INSTRUCTION,
    SEGMENTS,
    KV,
    CAPTION,
    QUESTION,
    MESSAGES,
    KV_2,
    ANSWER,
)
STEPS = (
    Step(FILE, RGB, "read", "picture/"),
    Step(RGB, TILES, "lay out, cut", "picture/"),
    Step(TILES, VISUAL, "encode", "vision/"),
    Step(INSTRUCTION, SEGMENTS, "prompt", "perceive/"),
    Step(SEGMENTS, KV, "prefill", "language/"),
    Step(KV, CAPTION, "decode", "language/"),
    Step(QUESTION, MESSAGES, "prompt", "reason/"),
    Step(MESSAGES, KV_2, "prefill", "language/"),
    Step(KV_2, ANSWER, "decode", "language/"),
)


def draw(palette: Palette) -> str:
    """The whole picture as SVG."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="The data path: a picture becomes a caption, captions become an answer" '
        f'font-family="{_SANS}" font-size="14" fill="{palette.ink}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        f'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="{palette.line}"/>'
        "</marker></defs>",
        _band(8, 244, palette),
        _title(24, 32, "perceive: the captioner sees the picture", palette),
        _band(304, 118, palette),
        _title(540, 330, "reason: the reasoner sees words alone", palette),
        *(_step(step, palette) for step in STEPS),
        # visual tokens enter the prompt where the picture stands in it
        _path(
            [
                (VISUAL.middle[0], VISUAL.bottom),
                (VISUAL.middle[0], 138),
                (KV.middle[0], 138),
                (KV.middle[0], KV.y - 3),
            ],
            palette,
        ),
        _path(
            [
                (CAPTION.middle[0], CAPTION.bottom),
                (CAPTION.middle[0], 278),
                (MESSAGES.middle[0], 278),
                (MESSAGES.middle[0], MESSAGES.y - 3),
            ],
            palette,
        ),
        _text(
            (CAPTION.middle[0] + MESSAGES.middle[0]) // 2,
            272,
            "captions, and nothing else",
            palette.faint,
        ),
        _path(
            [(QUESTION.middle[0], QUESTION.y), (QUESTION.middle[0], INSTRUCTION.bottom + 3)],
            palette,
            dashed=True,
        ),
        _text(QUESTION.middle[0] + 10, 272, "focus, drawn by", palette.faint, "start"),
        _text(QUESTION.middle[0] + 10, 290, "the reasoner", palette.faint, "start"),
        *(_box(box, palette) for box in BOXES),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _band(y: int, height: int, palette: Palette) -> str:
    rect = f'<rect x="8" y="{y}" width="{WIDTH - 16}" height="{height}" rx="10"'
    return f'{rect} fill="{palette.band}"/>'


def _title(x: int, y: int, text: str, palette: Palette) -> str:
    return _text(x, y, text, palette.faint, "start", 'font-weight="600"')


def _box(box: Box, palette: Palette) -> str:
    x, y = box.middle
    fill = palette.end if box.is_end else palette.box
    rect = (
        f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.HEIGHT}" rx="6" '
        f'fill="{fill}" stroke="{palette.line}"/>'
    )
    if not box.detail:
        return rect + _text(x, y + 5, box.title, palette.ink)
    detail = _text(x, y + 17, box.detail, palette.faint, extra='font-size="12"')
    return rect + _text(x, y - 4, box.title, palette.ink) + detail


def _step(step: Step, palette: Palette) -> str:
    y = step.start.middle[1]
    x = (step.start.right + step.end.x) // 2
    room = _text(x, y + 18, step.room, palette.faint, extra=f'font-family="{_MONO}" font-size="12"')
    arrow = _path([(step.start.right, y), (step.end.x - 3, y)], palette)
    return arrow + _text(x, y - 8, step.verb, palette.ink) + room


def _path(points: list[tuple[int, int]], palette: Palette, *, dashed: bool = False) -> str:
    route = " ".join(f"{x} {y}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="M{route}" fill="none" stroke="{palette.line}" stroke-width="1.5"{dash} '
        'marker-end="url(#tip)"/>'
    )


def _text(x: int, y: int, text: str, colour: str, anchor: str = "middle", extra: str = "") -> str:
    tag = f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" {extra}>'
    return f"{tag}{escape(text)}</text>"


def main() -> None:
    for name, path in FILES.items():
        path.write_text(draw(PALETTES[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
