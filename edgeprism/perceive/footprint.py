"""What a captioner takes in memory, counted from its manifest and the headers of its files."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

from edgeprism.bundle.adapter_checks import read_adapter_header
from edgeprism.bundle.gguf import GgufHeader, read_gguf_header
from edgeprism.bundle.gguf_parts import model_bytes, part_names, read_model_header
from edgeprism.bundle.manifest import Manifest, VisionVariant
from edgeprism.bundle.manifest_language import Decoder
from edgeprism.bundle.open import Bundle
from edgeprism.language.gpu import Gpu
from edgeprism.language.llama import repacked_types
from edgeprism.language.open_language import decoder_graphs
from edgeprism.machine.device import ALL_LAYERS
from edgeprism.memory.decoder import DecoderUse, decoder_parts
from edgeprism.memory.language import (
    ROWS_AT_ONCE,
    LanguageUse,
    adapter_parts,
    cells_for,
    expert_parts,
    language_parts,
)
from edgeprism.memory.layers import choose_layers
from edgeprism.memory.parts import GPU, ModelParts, Part, parts_size
from edgeprism.memory.remembered_parts import remembered_parts
from edgeprism.memory.vision import EncoderUse, graph_parts, mmproj_parts
from edgeprism.picture.layout import picture_to_layout
from edgeprism.segments import ImageRows, Text
from edgeprism.vision.graph_memory import TEXT_LENGTH, working_bytes
from edgeprism.vision.token_reduction import TokenLimit, most_rows

# the picture that a plan is made for where all tiles are alike: width and height in pixels
PICTURE = (1024, 768)
# bytes of a pixel: Pillow keeps four of each picture, a tile has three, and both are copied
_READ_PIXEL, _CUT_PIXEL = 8, 13
_SCORE = 4  # bytes of what attention computes for a row and a cell
_CHARACTERS = 3  # of a token of a prompt, at the least
# visual tokens of `PICTURE` for a pair that nobody ran here; the catalogue's captioners make 256 to
# about 1,100 of it
_PAIR_ROWS = 1000
_PAIR_TEXT = 40  # tokens of a pair's template and instruction


class CaptionerFootprint:
    """The memory of a bundle's two engines, with the options that they run with."""

    def __init__(
        self,
        bundle: Bundle,
        variant: VisionVariant,
        use: LanguageUse,
        *,
        vision_on_gpu: bool = False,
        visual_tokens: TokenLimit | None = None,
    ) -> None:
        """Keep what the count follows from; headers are read when they are needed.

        Args:
            bundle: The bundle.
            variant: The vision graph that runs.
            use: How the language model runs; its cells and rows are replaced by the bundle's.
            vision_on_gpu: Whether the vision encoder runs on the GPU.
            visual_tokens: The most that the language model gets of a picture; None: all.
        """
        self._bundle, self._variant, self._on_gpu = bundle, variant, vision_on_gpu
        manifest = bundle.manifest
        self._lm_bytes = sum(manifest.files[part].size for part in part_names(manifest.lm.file))
        rows, text = _prompt(manifest)
        self._rows = rows = most_rows(rows, visual_tokens)
        cells = cells_for(rows + text, manifest.prompts.max_tokens, manifest.lm.context_length)
        whole = rows if manifest.lm.image_attention == "both-ways" else 0
        self._use = replace(
            use, cells=cells, rows_at_once=max(whole, ROWS_AT_ONCE), prompt=rows + text
        )

    def parts(self) -> ModelParts:
        """Return what the captioner takes."""
        graphs = filter(None, [self._variant.file, self._variant.connector])
        lm = self._bundle.manifest.lm
        names = (*lm.files, *graphs, *decoder_graphs(lm))
        use = (self._bundle.digest, self._variant.file, self._on_gpu, self._use)
        parts = remembered_parts(map(self._bundle.path_of, names), use, self._count)
        return ModelParts(self._bundle.name, "captioner", parts)

    def _count(self) -> tuple[Part, ...]:
        if self._bundle.manifest.lm.decoder is not None:
            return (*self._vision(), *self._decoder(self._bundle.manifest.lm.decoder))
        language = language_parts(self._header, self._lm_bytes, self._use)
        return (*self._vision(), *language, *self._row_weights(self._use))

    def _row_weights(self, use: LanguageUse) -> tuple[Part, ...]:
        """Return what the weights of a picture's rows take beside a model that is used so."""
        rows = self._bundle.manifest.lm.rows
        if rows is None:
            return ()
        path = self._bundle.path_of(rows.file)
        if rows.by == "adapter":
            why = "matrices that only a picture's rows go through"
            return adapter_parts(read_adapter_header(path), self._header, use, "row adapter", why)
        size = self._bundle.manifest.files[rows.file].size
        return expert_parts(read_model_header(path), size, use)

    def _decoder(self, decoder: Decoder) -> tuple[Part, ...]:
        """Return what the graphs take that write the text, for the longest caption."""
        lm, prompts = self._bundle.manifest.lm, self._bundle.manifest.prompts
        text = self._use.prompt - self._rows
        tokens = min(text + prompts.max_tokens, lm.context_length)
        use = DecoderUse(self._rows, tokens, lm.n_vocab)
        names = decoder_graphs(lm)
        lengths = {"rows": self._rows, "cells": tokens, "n": max(1, text)}
        scores = 0
        if not decoder.cross:  # the rows stand among the tokens
            n, cells = min(ROWS_AT_ONCE, self._rows + text), self._rows + tokens
            lengths = {"cells": cells, "n": n}
            scores = decoder.n_heads * n * cells * _SCORE  # inside an operator
        working = max(working_bytes(self._bundle.path_of(name), lengths) for name in names)
        graphs = [self._graph(name) for name in names]
        return decoder_parts(graphs, decoder, working + scores, use)

    @functools.cached_property
    def _header(self) -> GgufHeader:
        return read_model_header(self._bundle.path_of(self._bundle.manifest.lm.file))

    def choose_layers(self, gpu: Gpu | None) -> int:
        """Return the layers of the language model that fit on the GPU beside the encoder."""
        use = replace(self._use, gpu_layers=ALL_LAYERS)
        taken = parts_size(self._vision(), GPU)
        return choose_layers(self._header, self._lm_bytes, use, gpu, taken, self._row_weights)

    def _vision(self) -> tuple[Part, ...]:
        name = self._variant.file
        path, manifest = self._bundle.path_of(name), self._bundle.manifest
        vision = manifest.vision
        if vision.mmproj is not None:
            use = EncoderUse(
                vision.tokens_per_tile,
                together=vision.mmproj.tiles_together,
                in_one=vision.mmproj.multi_axis,
                flash_attention=self._use.flash_attention,
            )
            return mmproj_parts(name, read_gguf_header(path), use, on_gpu=self._on_gpu)
        tower = graph_parts(
            *self._graph(name),
            working_bytes(path, _largest_lengths(manifest)),
            _picture_bytes(manifest),
            on_gpu=self._on_gpu,
            largest=manifest.image.free is not None,
        )
        return (*tower, *self._connector())

    def _graph(self, name: str) -> tuple[str, int, int]:
        """Return a graph's name, its bytes, and those of the weights beside it."""
        files = self._bundle.manifest.files
        beside = files.get(f"{name}.data")
        return name, files[name].size, beside.size if beside else 0

    def _connector(self) -> tuple[Part, ...]:
        """Return what the second graph takes for the longest instruction, if there is one."""
        text, name = self._bundle.manifest.vision.text, self._variant.connector
        if text is None:
            return ()
        working = working_bytes(self._bundle.path_of(name), {TEXT_LENGTH: text.max_ids})
        parts = graph_parts(*self._graph(name), working, 0, on_gpu=self._on_gpu)
        return tuple(
            replace(part, what=part.what.replace("vision", "connector"))
            for part in parts
            if part.size
        )


def pair_parts(name: str, lm: Path, mmproj: Path) -> ModelParts:
    """Return what two GGUF files take on the CPU as a captioner, from their headers alone.

    How many visual tokens a picture becomes shows only when the pair runs, which makes it a
    bundle; until then a usual number stands for it.
    """
    from edgeprism.vision.pair import MAX_TOKENS  # a bundle's plan needs none of that module

    header, prompt = read_model_header(lm), _PAIR_ROWS + _PAIR_TEXT
    context = header.metadata.get(f"{header.architecture}.context_length")
    cells = cells_for(prompt, MAX_TOKENS, context if isinstance(context, int) else 0)
    use = LanguageUse(cells, prompt=prompt, repacked=repacked_types())
    vision = mmproj_parts(mmproj.name, read_gguf_header(mmproj), EncoderUse(_PAIR_ROWS))
    language = language_parts(header, model_bytes(lm), use)
    return ModelParts(name, "captioner", (*vision, *language))


def planned_picture(manifest: Manifest) -> tuple[int, int]:
    """Return the size (width, height) of the picture that a plan is made for.

    Where a picture is one tile of its own shape, it is the largest one, as most photographs make.
    """
    edge, image = manifest.image.size, manifest.image
    if image.free is None or image.tiling is not None:
        return PICTURE
    return (image.free.canvas[0], image.free.canvas[1]) if image.free.canvas else (edge, edge)


def _largest_lengths(manifest: Manifest) -> dict[str, int]:
    """Return what a graph's lengths are for the largest tile, where tiles have free shapes."""
    free = manifest.image.free
    if free is None:
        return {}
    width, height = free.canvas or (manifest.image.size, manifest.image.size)
    patches, tokens = free.most_pixels // free.unit**2, manifest.vision.tokens_per_tile
    return {"height": height, "width": width, "tokens": tokens, "patches": patches}


def _picture_bytes(manifest: Manifest) -> int:
    """Return the bytes of the picture that is planned for, as it is read, resized and cut."""
    picture = planned_picture(manifest)
    pixels = sum(math.prod(shape) for shape in picture_to_layout(picture, manifest).shapes)
    tiles = pixels * manifest.image.channels // 3
    return tiles * _CUT_PIXEL + picture[0] * picture[1] * _READ_PIXEL


def _prompt(manifest: Manifest) -> tuple[int, int]:
    """Return the visual tokens and about the text tokens of a prompt with the planned picture."""
    prompts = manifest.prompts
    text = "".join(
        (prompts.before_image, prompts.after_image, prompts.default_instruction,
         prompts.after_instruction, prompts.before_caption)
    )  # fmt: skip
    if manifest.vision.mmproj is not None:
        rows = manifest.vision.tokens_per_tile
    else:
        segments = picture_to_layout(planned_picture(manifest), manifest).segments
        rows = sum(s.stop - s.start for s in segments if isinstance(s, ImageRows))
        text += "".join(s.text for s in segments if isinstance(s, Text))
    return rows, -(-len(text) // _CHARACTERS)
