"""Pictures → captions: the perceiving half of Prism.

`Captioner._steps` lists what happens between a file and its caption, in order; each step is a call
into the room that owns it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Unpack, cast

import numpy as np

from edgeprism.bundle.open import DEFAULT_MODEL, Bundle, open_bundle
from edgeprism.errors import UsageError
from edgeprism.language.generator import Finished, Piece
from edgeprism.language.request import Request, Sampling, segments_to_parts
from edgeprism.machine.cancel import Cancel
from edgeprism.perceive.engines import Engines
from edgeprism.perceive.options import CaptionerOptions, CaptionOptions, Plan
from edgeprism.perceive.prompt import caption_to_segments, instruction_for, pictures_to_segments
from edgeprism.perceive.several import pictures_together, several_of
from edgeprism.perceive.stream import CaptionStream, Ended
from edgeprism.picture.layout import PictureLayout, picture_to_layout
from edgeprism.picture.read import ImageSource, enough_for, read_picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.records import (
    Caption,
    EncodedImage,
    ModelInfo,
    PictureCost,
    Timings,
)
from edgeprism.segments import ImageRows, Segment
from edgeprism.version import __version__
from edgeprism.vision.engine import picture_segments, tiles_to_rows

Pictures = ImageSource | EncodedImage | Sequence[ImageSource]


class Captioner:
    """A captioner bundle, its engines loaded when first needed. Not thread-safe.

    Examples:
        >>> from edgeprism import Captioner
        >>> with Captioner.load("nano") as captioner:
        ...     print(captioner.caption("photo.jpg").text)
    """

    def __init__(self, bundle: Bundle, **options: Unpack[CaptionerOptions]) -> None:
        self.bundle = bundle
        self.cancel_token = Cancel()
        self.engines = Engines(bundle, self.cancel_token, **options)

    @classmethod
    def load(
        cls, model: str | os.PathLike[str] = DEFAULT_MODEL, **options: Unpack[CaptionerOptions]
    ) -> Captioner:
        """Open a captioner; its engines load at the first picture.

        Args:
            model: A model's name, or the path of a bundle's folder.
            **options: See `CaptionerOptions`: device, threads, gpu_layers, vision_quant, kv_type,
                flash_attention.

        Returns:
            The captioner. Close it, or use it in a `with` block, to free its engines.

        Raises:
            ModelError: No such model, or files of it are missing.
            ManifestError: The bundle's manifest has faults; all of them are listed.
        """
        return cls(open_bundle(model), **options)

    # ---- perceiving

    def caption(self, image: Pictures, **options: Unpack[CaptionOptions]) -> Caption:
        """Describe a picture, or several together.

        Args:
            image: A path, a file's bytes, a binary file object, a PIL image, a uint8 array
                [height, width, 3] in RGB, or what `encode` gave; a list or tuple of pictures is
                described as a whole, by models made for several.
            **options: See `CaptionOptions`: instruction, focus, caption_tokens, temperature, seed.

        Returns:
            The caption with everything that is needed to make it again.

        Raises:
            ImageError: The picture cannot be read; the message names it.
            UsageError: The model takes one picture at a time, or an option is out of range.
            PromptTooLongError: Picture and instruction do not fit into the model's context.
            DeviceError: The device that was asked for does not start.
            Interrupted: `cancel` was called.
        """
        return self.stream(image, **options).finished().caption

    def stream(self, image: Pictures, **options: Unpack[CaptionOptions]) -> CaptionStream:
        """Describe a picture piece by piece.

        Args:
            image: As for `caption`.
            **options: As for `caption`.

        Returns:
            An iterator over the text, in whole characters. The picture is read and encoded before
            it is returned; when it has ended, its `caption` holds the record.

        Raises:
            ImageError, UsageError, DeviceError: As `caption`.
        """
        return self.start(image, self.plan(**options))

    def start(self, image: Pictures, plan: Plan) -> CaptionStream:
        """`stream`, for a plan that exists already."""
        steps = self._steps(image, plan)
        next(steps)  # up to the visual tokens: what is wrong with a picture is raised here
        return CaptionStream(steps)

    def encode(self, image: ImageSource) -> EncodedImage:
        """Turn a picture into visual tokens: keep the value to caption it again without encoding.

        Args:
            image: One picture, as for `caption`.

        Returns:
            The visual tokens, float32 [n_tokens, n_embd], and how they stand in the prompt.

        Raises:
            ImageError: The picture cannot be read, before any engine is loaded for it.
        """
        steps = self._steps(image, self.plan())
        encoded = next(steps)
        steps.close()
        if not isinstance(encoded, EncodedImage):
            raise TypeError("the first step yields the encoded picture")
        return encoded

    def encode_together(self, images: Sequence[ImageSource]) -> EncodedImage:
        """Turn several pictures into the visual tokens of one prompt, in the model's arrangement.

        Args:
            images: One picture or more, each as for `caption`.

        Returns:
            One value for all of them; its `together` lists each.

        Raises:
            ImageError: As `encode`.
            UsageError: The model takes one picture at a time, or `images` is empty.
        """
        several = several_of(self.bundle.manifest)
        if not images:
            raise UsageError("No picture is given.", "Give two or more.")
        each = [self.encode(image) for image in images]
        return each[0] if len(each) == 1 else pictures_together(each, several)

    def _steps(self, image: Pictures, plan: Plan) -> Generator[EncodedImage | Piece, None, Ended]:
        """Every step of a caption, in order: yields the encoded picture, then the text's pieces."""
        start, loaded = time.perf_counter(), self.engines.load_ms
        self.cancel_token.clear()  # an earlier request to stop was for earlier work
        manifest = self.bundle.manifest
        if isinstance(image, EncodedImage):
            # its encoding time was already reported by the caption that encoded it
            encoded, spent = image, Timings()
        elif isinstance(image, (list, tuple)):
            encoded = self.encode_together(image)
            spent = encoded.timings
        else:
            source = cast("ImageSource", image)  # a str is a sequence too, so mypy cannot tell
            # 1. Read: the file becomes an upright RGB picture.
            picture = read_picture(source, enough=enough_for(manifest.image))
            # 2. Lay out: its size says how it is cut, and how its visual tokens will stand.
            prepared = time.perf_counter()
            layout = picture_to_layout(picture.size, manifest)
            # 3. Tile: pixels as the vision engine takes them, uint8 [n_tiles, size, size, 3].
            tiles = picture_to_tiles(picture, manifest.image, layout.grid)
            preprocess_ms = _ms_since(prepared)
            # 4. Encode: visual tokens, float32 [n_tokens, n_embd].
            encoded = self.tiles_to_encoded(
                tiles,
                layout,
                image=picture.name,
                image_sha256=picture.sha256,
                size=picture.size,
                notes=picture.notes,
                timings=Timings(decode_image=picture.decode_ms, preprocess=preprocess_ms),
            )
            load_ms = self.engines.load_ms - loaded
            spent = replace(encoded.timings, load=load_ms, total=_ms_since(start))
            encoded = replace(encoded, timings=spent)
        yield encoded
        # 5. Prompt: the chat template and the instruction around the visual tokens.
        start, loaded = time.perf_counter(), self.engines.load_ms
        request, generator = self.request(encoded, plan), self.engines.generator()
        # 6. Prefill and 7. decode: the prompt goes into the KV cache, then token after token.
        for event in generator.run([request]):
            if isinstance(event, Piece):
                yield event
                continue
            # 8. Record: the text with everything that is needed to make it again.
            load_ms = spent.load + self.engines.load_ms - loaded
            timings = replace(spent, load=load_ms, total=spent.total + _ms_since(start))
            return Ended(self.record(encoded, plan, event, timings), event.ids)
        raise RuntimeError("the generator ended without a caption")

    # ---- the steps that folders take one by one

    def tiles_to_encoded(
        self,
        tiles: np.ndarray,
        layout: PictureLayout,
        *,
        image: str,
        image_sha256: str,
        size: tuple[int, int],
        notes: tuple[str, ...],
        timings: Timings,
    ) -> EncodedImage:
        """Visual tokens of a picture's tiles, uint8 [n_tiles, size, size, 3].

        `image`, `image_sha256`, `size` and `notes` are those of EncodedImage; `timings` is what
        was spent so far.
        """
        vision = self.engines.vision()
        start = time.perf_counter()
        rows, segments = tiles_to_rows(vision, tiles, layout, image)
        return EncodedImage(
            visual_tokens=rows,
            image=image,
            image_sha256=image_sha256,
            size=size,
            notes=notes,
            model_digest=self.bundle.digest,
            layout=segments,
            timings=replace(timings, encode=_ms_since(start)),
        )

    def plan(self, **options: Unpack[CaptionOptions]) -> Plan:
        """What `caption` asks of the model for the same options.

        Raises UsageError where `caption_tokens` is below 1.
        """
        prompts = self.bundle.manifest.prompts
        caption_tokens = options.get("caption_tokens")
        if caption_tokens is None:
            caption_tokens = prompts.max_tokens
        if caption_tokens < 1:
            raise UsageError(
                f"`caption_tokens` must be at least 1, not {caption_tokens}.",
                "Leave it out for the model's own limit.",
            )
        sampling = Sampling(
            max_tokens=caption_tokens,
            temperature=options.get("temperature", 0.0),
            seed=options.get("seed", 0),
            stop=tuple(prompts.stop),
        )
        instruction = instruction_for(prompts, options.get("instruction"), options.get("focus"))
        return Plan(instruction, sampling)

    def request(self, encoded: EncodedImage, plan: Plan) -> Request:
        """The tokenised prompt for one picture.

        Raises UsageError for a picture that another model encoded.
        """
        if encoded.model_digest != self.bundle.digest:
            raise UsageError(
                f"{encoded.image}: encoded by another model than {self.bundle.manifest.name}.",
                "Encode it with the captioner that describes it.",
            )
        return self._request(np.asarray(encoded.visual_tokens), encoded.layout, plan)

    def _request(self, rows: np.ndarray, layout: Sequence[Segment], plan: Plan) -> Request:
        prompts = self.bundle.manifest.prompts
        segments = caption_to_segments(prompts, plan.instruction, layout)
        parts = segments_to_parts(self.engines.lm(), segments, rows, add_bos=prompts.add_bos)
        return Request(parts, plan.sampling)

    def record(
        self, encoded: EncodedImage, plan: Plan, done: Finished, timings: Timings
    ) -> Caption:
        """A caption with everything needed to make it again."""
        return Caption(
            text=done.text,
            image=encoded.image,
            image_sha256=encoded.image_sha256,
            finish_reason=done.finish_reason,
            tokens=done.tokens,
            timings=replace(timings, prefill=done.prefill_ms, decode=done.decode_ms),
            model=self.model,
            device=self.device,
            instruction=plan.instruction,
            version=__version__,
            image_size=encoded.size,
            notes=encoded.notes,
            together=encoded.together,
        )

    # ---- what can be known beforehand

    def cost(self, *sizes: tuple[int, int], **options: Unpack[CaptionOptions]) -> PictureCost:
        """Count what pictures of these sizes would take; nothing is encoded.

        Args:
            *sizes: (width, height) of each picture, upright; several stand in one prompt.
            **options: As for `caption`.

        Returns:
            Tiles, visual tokens, prompt tokens and what is left of the context for the caption.

        Raises:
            UsageError: Several sizes for a model that takes one picture at a time.
        """
        manifest = self.bundle.manifest
        vision = self.engines.vision() if manifest.vision.mmproj is not None else None
        grids, tiles, each = zip(
            *(picture_segments(vision, size, manifest) for size in sizes), strict=True
        )
        one = len(sizes) == 1
        segments = each[0] if one else pictures_to_segments(several_of(manifest), each)
        n_rows = sum(s.stop - s.start for s in segments if isinstance(s, ImageRows))
        plan = self.plan(**options)
        prompt = self._request(np.empty((n_rows, 0)), segments, plan).count()
        left = min(manifest.lm.context_length - prompt, plan.sampling.max_tokens)
        return PictureCost(
            size=sizes[0] if one else (0, 0),
            grid=grids[0] if one else (0, 0),
            tiles=sum(tiles),
            visual_tokens=n_rows,
            prompt_tokens=prompt,
            context_length=manifest.lm.context_length,
            left_for_caption=max(0, left),
            pictures=len(sizes),
        )

    @property
    def device(self) -> str:
        """Where the engines run: "cpu", "cuda", "metal", or vision+language, e.g. "cuda+cpu"."""
        return self.engines.device

    @property
    def model(self) -> ModelInfo:
        """Name, digest and quantizations, as records carry them."""
        manifest, variant = self.bundle.manifest, self.engines.vision_variant()
        return ModelInfo(manifest.name, self.bundle.digest, variant.quant, manifest.lm.quant)

    # ---- ending

    def cancel(self) -> None:
        """Stop what is under way, from another thread; it raises Interrupted there."""
        self.cancel_token.set()

    def close(self) -> None:
        """Free both engines; they load again when needed."""
        self.engines.close()

    def __enter__(self) -> Captioner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
