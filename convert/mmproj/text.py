"""The same language model after the float32 rows and after a variant's: how long is the text one?

A figure for the manifest, not a limit: where two tokens are nearly as likely, a difference that
the gate allows may decide between them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeprism.bundle.manifest import Manifest
from edgeprism.convert.gate import judge
from edgeprism.language.generator import Finished, Generator
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling, segments_to_parts
from edgeprism.picture.layout import picture_to_layout, tiles_by_shape
from edgeprism.picture.read import Picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.progress import Progress
from edgeprism.segments import Segment, Text

N_TOKENS = 32


def compare_text(
    lm: LanguageModel, manifest: Manifest, graphs: tuple[Path, Path], rgb: Picture
) -> dict[str, float]:
    """Caption `rgb` with the rows of both graphs; return how many tokens they have in common.

    Parameters:
        manifest: says how the picture is cut and what stands around it.
        graphs: the float32 graph and the variant that is used.
    """
    layout = picture_to_layout(rgb.size, manifest)
    tiles = picture_to_tiles(rgb, manifest.image, layout.grid)
    prompts = manifest.prompts
    segments: list[Segment] = [
        Text(prompts.before_image, template=True),
        *layout.segments,
        Text(prompts.after_image + prompts.default_instruction + prompts.after_instruction),
        Text(prompts.before_caption, template=True),
    ]
    said = []
    for graph in graphs:
        # one at a time, as a caption has them encoded
        parts = [tile[None] for part in tiles_by_shape(tiles, layout.shapes) for tile in part]
        rows = judge.run_vision(graph, parts, False, Progress())
        rows = rows.reshape(-1, rows.shape[-1])[layout.rows]
        said.append(_greedy(lm, segments, rows, prompts.add_bos))
    same = 0
    while same < min(map(len, said)) and said[0][same] == said[1][same]:
        same += 1
    return {"tokens": float(max(map(len, said))), "same_from_the_start": float(same)}


def _greedy(
    lm: LanguageModel, segments: list[Segment], rows: np.ndarray, add_bos: bool
) -> list[int]:
    request = Request(
        segments_to_parts(lm, segments, rows, add_bos=add_bos),
        Sampling(max_tokens=N_TOKENS, stop_at_end=False),
    )
    generator = Generator(lm)
    try:
        return next(e.ids for e in generator.run([request]) if isinstance(e, Finished))
    finally:
        generator.close()
