"""Pictures → captions: the perceiving half of Prism.

`Captioner._steps` lists what happens between a file and its caption, in order; each step calls
into the package that implements it.
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
from edgeprism.language.repetition import REPETITION_NOTE
from edgeprism.language.request import Request, Sampling, segments_to_parts
from edgeprism.machine.cancel import Cancel
from edgeprism.perceive.engines import Engines
from edgeprism.perceive.options import CaptionerOptions, CaptionOptions, Plan
from edgeprism.perceive.prompt import caption_to_segments, instruction_for, pictures_to_segments
from edgeprism.perceive.several import pictures_together, several_of
from edgeprism.perceive.stream import CaptionStream, Ended
from edgeprism.picture.layout import PictureLayout, picture_to_layout
from edgeprism.picture.read import ImageSource, enough_for, read_picture, unreadable
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
    """A captioner bundle and its engines, which load when first needed. Not thread-safe.

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
                flash_attention, isolate_decoding.

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
            image: A path, a file's bytes, a binary file object, a PIL image, an array, or a value
                of `encode`. An array is uint8 (or uint16 for 0…65535): grey [height, width], or
                [height, width, 3 or 4] in RGB or RGBA order (OpenCV's are BGR). A list or tuple
                of pictures gets one caption for all, from a model made for several.
            **options: See `CaptionOptions`: instruction, focus, caption_tokens, temperature, seed.

        Returns:
            The caption, with everything needed to make it again.

        Raises:
            ImageError: The picture cannot be read; the message names it.
            UsageError: The model takes one picture at a time, or an option is out of range.
            PromptTooLongError: Picture and instruction do not fit into the model's context.
            DeviceError: The requested device does not start.
            Interrupted: `cancel` was called.
        """
        return self.stream(image, **options).finished().caption

    def stream(self, image: Pictures, **options: Unpack[CaptionOptions]) -> CaptionStream:
        """Describe a picture piece by piece.

        Args:
            image: As for `caption`.
            **options: As for `caption`.

        Returns:
            An iterator over the text, in whole characters. `stream` reads and encodes the picture
            before it returns the iterator. After the last piece, the iterator's `caption` holds
            the record.

        Raises:
            ImageError, UsageError, DeviceError: As `caption`.
        """
        return self.start(image, self.plan(**options))

    def start(self, image: Pictures, plan: Plan) -> CaptionStream:
        """Stream a caption as `stream` does, from a plan instead of options."""
        steps = self._steps(image, plan)
        next(steps)  # encodes the picture, so that a faulty one raises here
        return CaptionStream(steps)

    def encode(self, image: ImageSource) -> EncodedImage:
        """Turn a picture into visual tokens, which can be captioned again and again.

        Args:
            image: One picture, as for `caption`.

        Returns:
            The visual tokens, float32 [n_tokens, n_embd], and their layout in the prompt.

        Raises:
            ImageError: The picture cannot be read. No engine was loaded for it.
        """
        if isinstance(image, (list, tuple)):
            raise unreadable(image)
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
        encoded = [self.encode(image) for image in images]
        return encoded[0] if len(encoded) == 1 else pictures_together(encoded, several)

    def _steps(self, image: Pictures, plan: Plan) -> Generator[EncodedImage | Piece, None, Ended]:
        """Run every step of a caption in order; yield the encoded picture, then pieces of text."""
        start, loaded = time.perf_counter(), self.engines.load_ms
        self.cancel_token.clear()  # an earlier `cancel` was for earlier work
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
            picture = read_picture(
                source,
                enough=enough_for(manifest.image),
                isolate=self.engines.isolate_decoding,
            )
            # 2. Lay out: its size decides its tiles, and where the prompt has its visual tokens.
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

    # ---- single steps, which a batch of pictures calls from several threads

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
        """Encode a picture's tiles, uint8 [n_tiles, size, size, 3], into visual tokens.

        `image`, `image_sha256`, `size` and `notes` go into the EncodedImage unchanged; `timings`
        holds the time spent before this step.
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

    def plan(
        self,
        *,
        instruction: str | None = None,
        focus: str | None = None,
        caption_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Plan:
        """Return the instruction and the sampling that `caption` uses for the same options.

        Raises UsageError where `caption_tokens` is below 1.
        """
        prompts = self.bundle.manifest.prompts
        if caption_tokens is None:
            caption_tokens = prompts.max_tokens
        if caption_tokens < 1:
            raise UsageError(
                f"caption_tokens must be at least 1, got {caption_tokens}.",
                "Leave it out for the model's own limit.",
            )
        sampling = Sampling(
            max_tokens=caption_tokens,
            temperature=temperature,
            seed=seed,
            stop=tuple(prompts.stop),
        )
        return Plan(instruction_for(prompts, instruction, focus), sampling)

    def request(self, encoded: EncodedImage, plan: Plan) -> Request:
        """Return the tokenised prompt for one encoded picture.

        Raises UsageError for a picture that another model encoded.
        """
        if encoded.model_digest != self.bundle.digest:
            raise UsageError(
                f"{encoded.image}: encoded by another model than {self.bundle.name}.",
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
        """Return the caption, with everything needed to make it again."""
        repeats = done.finish_reason == "repetition"
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
            notes=(*encoded.notes, REPETITION_NOTE) if repeats else encoded.notes,
            together=encoded.together,
        )

    # ---- before a caption is made

    def cost(self, *sizes: tuple[int, int], **options: Unpack[CaptionOptions]) -> PictureCost:
        """Count the tiles and tokens that pictures of these sizes need, without encoding any.

        Args:
            *sizes: (width, height) of each picture, upright; several share one prompt.
            **options: As for `caption`.

        Returns:
            Tiles, visual tokens, prompt tokens and the tokens left for the caption.

        Raises:
            UsageError: Several sizes for a model that takes one picture at a time.
        """
        manifest = self.bundle.manifest
        vision = self.engines.vision() if manifest.vision.mmproj is not None else None
        grids, tiles, layouts = zip(
            *(picture_segments(vision, size, manifest) for size in sizes), strict=True
        )
        one = len(sizes) == 1
        segments = layouts[0] if one else pictures_to_segments(several_of(manifest), layouts)
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
        """The model's name, digest and quantizations, as records hold them."""
        manifest, variant = self.bundle.manifest, self.engines.vision_variant()
        return ModelInfo(self.bundle.name, self.bundle.digest, variant.quant, manifest.lm.quant)

    # ---- ending

    def cancel(self) -> None:
        """Stop a call that runs in another thread; that call raises Interrupted."""
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
