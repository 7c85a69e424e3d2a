"""The faults of a manifest's `video`, each with its field's path."""

from __future__ import annotations

from edgeprism.bundle.manifest import RESAMPLINGS, Manifest
from edgeprism.choices import MAX_FRAMES

# one square tile of the graph's size; the other modes leave a tile's shape to the picture or to
# another engine
_MODES = ("pad", "letterbox", "crop", "center-crop", "stretch")
SAMPLINGS = ("uniform",)
_MAX_INSTRUCTION = 1000  # characters


def video_faults(m: Manifest, max_grid: int, max_marker: int) -> list[str]:
    """Return the faults of how a model sees a video; none for a model of pictures alone.

    Parameters:
        max_grid: the most visual tokens along an edge of a frame.
        max_marker: the most characters of a text that a prompt repeats.
    """
    video = m.video
    if video is None:
        return []
    names = (m.vision.output, m.vision.input, m.vision.newline, m.vision.separator)
    checks = [
        ("", m.vision.mmproj is None, "needs a graph; vision.mmproj takes pictures alone"),
        ("", m.image.free is None, "needs tiles of one shape, and image.free gives them many"),
        ("", not m.image.second_fill, "not with image.second_fill"),
        ("", m.lm.image_positions == "one-by-one", "needs lm.image_positions one-by-one"),
        (".output", bool(video.output) and video.output not in names, "needs a name of its own"),
        (
            ".grid",
            len(video.grid) == 2 and all(1 <= v <= max_grid for v in video.grid),
            f"must be two numbers in 1…{max_grid}",
        ),
        (".frames", 1 <= video.frames <= MAX_FRAMES, f"must lie in 1…{MAX_FRAMES}"),
        (
            ".sampling",
            video.sampling in SAMPLINGS,
            f"{video.sampling!r}; known: {', '.join(SAMPLINGS)}",
        ),
        (".mode", video.mode in _MODES, f"{video.mode!r}; known: {', '.join(_MODES)}"),
        (
            ".resample",
            video.resample in RESAMPLINGS,
            f"{video.resample!r}; known: {', '.join(RESAMPLINGS)}",
        ),
        (
            ".fill",
            len(video.fill) == 3 and all(0 <= v <= 255 for v in video.fill),
            "must be three numbers in 0…255",
        ),
        (".before", len(video.before) <= max_marker, f"longer than {max_marker} characters"),
        (
            ".instruction",
            len(video.instruction) <= _MAX_INSTRUCTION,
            f"longer than {_MAX_INSTRUCTION} characters",
        ),
        (".between", len(video.between) <= max_marker, f"longer than {max_marker} characters"),
    ]
    return [f"video{path}: {text}" for path, holds, text in checks if not holds]
