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
from edgeprism.picture.layout import PictureLayout, tiles_by_shape
from edgeprism.picture.read import Picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.progress import Progress
from edgeprism.segments import Segment, Text

N_TOKENS = 32


def compare_text(
    lm: LanguageModel,
    manifest: Manifest,
    layout: PictureLayout,
    rows: tuple[np.ndarray, np.ndarray],
) -> dict[str, float]:
    """Caption a picture twice; return how many tokens the captions have in common.

    Parameters:
        manifest: says what stands around the picture.
        rows: [n_rows, n_embd], the float32 graph's and those of the variant that is used.
    """
    prompts = manifest.prompts
    segments: list[Segment] = [
        Text(prompts.before_image, template=True),
        *layout.segments,
        Text(prompts.after_image + prompts.default_instruction + prompts.after_instruction),
        Text(prompts.before_caption, template=True),
    ]
    said = [_greedy(lm, segments, each, prompts.add_bos) for each in rows]
    same = 0
    while same < min(map(len, said)) and said[0][same] == said[1][same]:
        same += 1
    return {"tokens": float(max(map(len, said))), "same_from_the_start": float(same)}


def picture_rows(
    graph: Path, manifest: Manifest, rgb: Picture, layout: PictureLayout
) -> np.ndarray:
    """Return a graph's rows [n_rows, n_embd] of a picture."""
    tiles = picture_to_tiles(rgb, manifest.image, layout.grid)
    # one at a time, as a caption has them encoded
    parts = [tile[None] for part in tiles_by_shape(tiles, layout.shapes) for tile in part]
    tokens = judge.run_vision(graph, parts, False, Progress()).tokens
    rows: np.ndarray = tokens.reshape(-1, tokens.shape[-1])[layout.rows]
    return rows


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
