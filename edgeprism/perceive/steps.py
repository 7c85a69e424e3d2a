"""What happens between a picture and its caption, step by step.

`CaptionSteps.steps` lists the steps in order; each calls into the package that implements it. The
class knows nothing of threads: `Captioner` lets them take turns.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Unpack, cast

import numpy as np

from edgeprism.bundle.open import Bundle
from edgeprism.errors import UsageError
from edgeprism.language.generator import Finished, Piece
from edgeprism.language.repetition import ending_notes
from edgeprism.language.request import Request, Sampling, segments_to_parts
from edgeprism.machine.cancel import Cancel
from edgeprism.perceive.engines import Engines
from edgeprism.perceive.options import CaptionerOptions, Plan, check_caption_options
from edgeprism.perceive.prompt import (
    caption_to_segments,
    focus_notes,
    instruction_for,
    pictures_to_segments,
    video_instruction_for,
)
from edgeprism.perceive.several import pictures_together, several_of
from edgeprism.perceive.stream import Ended
from edgeprism.perceive.video import check_frames_have_effect, encode_video
from edgeprism.picture.layout import PictureLayout, picture_to_layout
from edgeprism.picture.read import ImageSource, enough_for, read_picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.picture.video_source import is_video, source_name
from edgeprism.records import (
    Caption,
    EncodedImage,
    ModelInfo,
    PictureCost,
    Reduction,
    Timings,
)
from edgeprism.segments import ImageRows, Segment
from edgeprism.version import __version__
from edgeprism.vision.engine import (
    Encoding,
    features_to_rows,
    picture_segments,
    tiles_to_rows,
)
from edgeprism.vision.token_reduction import (
    METHOD,
    TokenLimit,
    limit_for,
    reduce_rows,
    rows_to_tiles,
)

Pictures = ImageSource | EncodedImage | Sequence[ImageSource]


class CaptionSteps:
    """The steps of captions with one bundle's engines. Not thread-safe, except where it says so."""

    def __init__(self, bundle: Bundle, **options: Unpack[CaptionerOptions]) -> None:
        self.bundle = bundle
        self.cancel_token = Cancel()
        self.engines = Engines(bundle, self.cancel_token, **options)

    def steps(self, image: Pictures, plan: Plan) -> Generator[EncodedImage | Piece, None, Ended]:
        """Run every step of a caption in order; yield the encoded picture, then pieces of text."""
        self.cancel_token.clear()  # an earlier `cancel` was for earlier work
        # 1 to 4: from the picture to its visual tokens
        encoded, spent = self._encoded(image, plan)
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

    def _encoded(self, image: Pictures, plan: Plan) -> tuple[EncodedImage, Timings]:
        """Run the steps up to the visual tokens; return them and the time that they took now."""
        start, loaded = time.perf_counter(), self.engines.load_ms
        manifest = self.bundle.manifest
        if isinstance(image, EncodedImage):
            check_frames_have_effect(plan, image.image, encoded=True)
            encoded, spent = self._again(image, plan, loaded, start)
        elif isinstance(image, (list, tuple)):
            encoded = self._encode_together(image, plan)
            spent = encoded.timings
        elif is_video(image):
            video = cast("ImageSource", image)
            encoded = encode_video(video, self.engines, manifest, self.bundle.digest, plan)
            encoded = self._timed(encoded, loaded, start)
            spent = encoded.timings
        else:
            source = cast("ImageSource", image)  # a str is a sequence too, so mypy cannot tell
            check_frames_have_effect(plan, source_name(source))
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
                plan=plan,
            )
            encoded = self._timed(encoded, loaded, start)
            spent = encoded.timings
        return encoded, spent

    def _again(
        self, image: EncodedImage, plan: Plan, loaded: float, start: float
    ) -> tuple[EncodedImage, Timings]:
        """Return an encoded picture for a plan's instruction, and the time that this took."""
        encoded = self._for_instruction(image, plan)
        # its encoding time was already reported by the caption that encoded it
        more = encoded.timings.encode - image.timings.encode
        load_ms = self.engines.load_ms - loaded
        total = _ms_since(start) if more else 0.0
        return encoded, Timings(load=load_ms, encode=more, total=total)

    def _timed(self, encoded: EncodedImage, loaded: float, start: float) -> EncodedImage:
        """Return `encoded` with the time of loading engines and that of all its steps."""
        load_ms = self.engines.load_ms - loaded
        spent = replace(encoded.timings, load=load_ms, total=_ms_since(start))
        return replace(encoded, timings=spent)

    def _encode_together(self, images: Sequence[ImageSource], plan: Plan) -> EncodedImage:
        if not images:
            raise UsageError("No picture is given.", "Give two or more.")
        if len(images) == 1:
            return self._encode(images[0], plan)
        several = several_of(self.bundle.manifest)
        for image in images:
            if is_video(image):
                raise UsageError(
                    f"{source_name(image)}: a video is described by itself.",
                    "Name it alone, or give stills of it.",
                )
        return pictures_together([self._encode(image, plan) for image in images], several)

    def _encode(self, image: ImageSource | EncodedImage, plan: Plan) -> EncodedImage:
        if isinstance(image, EncodedImage):
            return image
        steps = self.steps(image, plan)
        encoded = next(steps)
        steps.close()
        if not isinstance(encoded, EncodedImage):
            raise TypeError("the first step yields the encoded picture")
        return encoded

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
        plan: Plan,
    ) -> EncodedImage:
        """Encode a picture's tiles, uint8 [n_tiles, size, size, 3], into visual tokens.

        `image`, `image_sha256`, `size` and `notes` go into the EncodedImage unchanged; `timings`
        holds the time spent before this step. At most as many visual tokens stay as `plan` says.
        """
        with self.engines.encoding:
            vision = self.engines.vision()
            start = time.perf_counter()
            encoding = tiles_to_rows(vision, tiles, layout, image, plan.instruction)
            encoding, reduction = self._reduced(encoding, layout, plan)
            encode_ms = _ms_since(start)
        return EncodedImage(
            visual_tokens=encoding.rows,
            image=image,
            image_sha256=image_sha256,
            size=size,
            notes=notes,
            model_digest=self.bundle.digest,
            layout=encoding.segments,
            timings=replace(timings, encode=encode_ms),
            reduction=reduction,
            features=encoding.features,
            instruction=None if encoding.features is None else plan.instruction,
        )

    def _reduced(
        self, encoding: Encoding, layout: PictureLayout, plan: Plan
    ) -> tuple[Encoding, Reduction | None]:
        """Leave out visual tokens as `plan` says; return those that stay, and how they were."""
        limit = plan.visual_tokens
        if limit is None:
            return encoding, None
        tile_of_row = rows_to_tiles(self.bundle.manifest, layout, encoding.segments)
        rows, segments = reduce_rows(encoding.rows, encoding.segments, tile_of_row, limit)
        reduction = Reduction(limit, len(encoding.rows), METHOD)
        return replace(encoding, rows=rows, segments=segments), reduction

    def _for_instruction(self, encoded: EncodedImage, plan: Plan) -> EncodedImage:
        """Return `encoded` with the visual tokens for a plan's instruction.

        Where the instruction has a part in them they are made anew of the features, so the graph of
        the picture does not run again. Raises UsageError for a picture that another model encoded.
        """
        self._require_own(encoded)
        made_for = (encoded.instruction, encoded.reduction and encoded.reduction.limit)
        if encoded.features is None or made_for == (plan.instruction, plan.visual_tokens):
            return encoded
        layout = picture_to_layout(encoded.size, self.bundle.manifest)
        with self.engines.encoding:
            vision = self.engines.vision()
            start = time.perf_counter()
            features = np.asarray(encoded.features)
            encoding = features_to_rows(vision, features, layout, plan.instruction)
            encoding, reduction = self._reduced(encoding, layout, plan)
            encode_ms = encoded.timings.encode + _ms_since(start)
        return replace(
            encoded,
            visual_tokens=encoding.rows,
            layout=encoding.segments,
            timings=replace(encoded.timings, encode=encode_ms),
            reduction=reduction,
            instruction=plan.instruction,
        )

    def _require_own(self, encoded: EncodedImage) -> None:
        if encoded.model_digest != self.bundle.digest:
            raise UsageError(
                f"{encoded.image}: encoded by another model than {self.bundle.name}.",
                "Encode it with the captioner that describes it.",
            )

    def plan(
        self,
        *,
        instruction: str | None = None,
        focus: str | None = None,
        caption_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        visual_tokens: TokenLimit | None = None,
        frames: int | None = None,
        frames_per_second: float | None = None,
    ) -> Plan:
        """Return the instruction and the sampling that `caption` uses for the same options.

        Raises UsageError where a value has another type or is out of range, and for a limit of
        visual tokens where the model needs all of them.
        """
        prompts = self.bundle.manifest.prompts
        check_caption_options(
            instruction=instruction,
            focus=focus,
            caption_tokens=caption_tokens,
            temperature=temperature,
            seed=seed,
            visual_tokens=visual_tokens,
            frames=frames,
            frames_per_second=frames_per_second,
        )
        if caption_tokens is None:
            caption_tokens = prompts.max_tokens
        sampling = Sampling(
            max_tokens=caption_tokens,
            temperature=temperature,
            seed=seed,
            stop=tuple(prompts.stop),
            repetition_penalty=prompts.repetition_penalty,
        )
        own = self.engines.visual_tokens
        limit = own if visual_tokens is None else limit_for(self.bundle.manifest, visual_tokens)
        return Plan(
            instruction_for(prompts, instruction, focus),
            sampling,
            limit,
            None if frames is None else operator.index(frames),
            None if frames_per_second is None else float(frames_per_second),
            video_instruction_for(prompts, self.bundle.manifest.video, instruction, focus),
            focus_notes(prompts, focus),
        )

    def request(self, encoded: EncodedImage, plan: Plan) -> Request:
        """Return the tokenised prompt for one encoded picture.

        Raises UsageError for a picture that another model encoded, or with other `visual_tokens`.
        """
        encoded = self._for_instruction(encoded, plan := plan.for_source(encoded))
        limit = encoded.reduction.limit if encoded.reduction else None
        if limit != plan.visual_tokens:
            raise UsageError(
                f"{encoded.image}: encoded with visual_tokens={limit!r}, but the caption needs "
                f"visual_tokens={plan.visual_tokens!r}.",
                "Encode it with a captioner that was loaded with this `visual_tokens`, or give the "
                "picture itself.",
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
        """Return the caption, with everything needed to make it again.

        Raises ModelError if a file of the model was changed while it was in use.
        """
        self.engines.check_files()
        return Caption(
            text=done.text,
            image=encoded.image,
            image_sha256=encoded.image_sha256,
            finish_reason=done.finish_reason,
            tokens=done.tokens,
            timings=replace(timings, prefill=done.prefill_ms, decode=done.decode_ms),
            model=self.model,
            device=self.device,
            instruction=plan.for_source(encoded).instruction,
            version=__version__,
            image_size=encoded.size,
            notes=(*encoded.notes, *plan.notes, *ending_notes(done.finish_reason)),
            together=encoded.together,
            reduction=encoded.reduction,
            video=encoded.video,
        )

    # ---- before a caption is made

    def _cost(self, sizes: Sequence[tuple[int, int]], plan: Plan) -> PictureCost:
        manifest = self.bundle.manifest
        vision = self.engines.vision() if manifest.vision.mmproj is not None else None
        grids, tiles, layouts = zip(
            *(picture_segments(vision, size, manifest, plan.visual_tokens) for size in sizes),
            strict=True,
        )
        one = len(sizes) == 1
        segments = layouts[0] if one else pictures_to_segments(several_of(manifest), layouts)
        n_rows = sum(s.stop - s.start for s in segments if isinstance(s, ImageRows))
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


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
