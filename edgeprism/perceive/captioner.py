"""Images → captions: the perceiving half of Prism."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from edgeprism.bundle.manifest import VisionVariant
from edgeprism.bundle.open import DEFAULT_MODEL, Bundle, choose_vision, open_bundle
from edgeprism.errors import UsageError
from edgeprism.language.generator import Finished, Generator, Piece
from edgeprism.language.llama import supports_offload
from edgeprism.language.model import LanguageModel
from edgeprism.language.request import Request, Sampling, segments_to_parts
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import (
    CPU_PROVIDER,
    choose_gpu_layers,
    choose_provider,
    choose_threads,
    device_name,
)
from edgeprism.machine.facts import has_int8_dot
from edgeprism.perceive.prompt import caption_to_segments, instruction_for, pictures_to_segments
from edgeprism.perceive.several import pictures_together, several_of
from edgeprism.perceive.stream import CaptionStream
from edgeprism.picture.read import ImageSource, enough_for, read_picture
from edgeprism.picture.tile import picture_to_tiles
from edgeprism.records import Caption, EncodedImage, ModelInfo, PictureCost, Timings
from edgeprism.segments import ImageRows, Segment
from edgeprism.version import __version__
from edgeprism.vision.engine import (
    VisionEngine,
    open_vision,
    picture_rows,
    picture_segments,
    vision_providers,
)

Seen = ImageSource | EncodedImage | list[ImageSource] | tuple[ImageSource, ...]


@dataclass(frozen=True)
class Plan:
    """What a caption is asked for: the words of the instruction and how tokens are chosen."""

    instruction: str
    sampling: Sampling


class Captioner:
    """A captioner bundle, its engines loaded when first needed. Not thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        threads: int | None = None,
        gpu_layers: int | None = None,
        vision_quant: str | None = None,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
    ) -> None:
        self.bundle = bundle
        self.cancel_token = Cancel()
        self._threads = threads
        self._requested = (device, gpu_layers)
        self._vision_quant = vision_quant
        self.kv_type = kv_type
        self._kv: dict[str, Any] = {"kv_type": kv_type, "flash_attention": flash_attention}
        self._placed: tuple[str, int] | None = None
        self._vision: VisionEngine | None = None
        self._lm: LanguageModel | None = None
        self._generator: Generator | None = None

    @classmethod
    def load(cls, model: str | os.PathLike[str] = DEFAULT_MODEL, **settings: Any) -> Captioner:
        """Open a bundle by name or path; the engines load at the first picture.

        `settings`: device ("auto", "cpu", "cuda", "metal"), threads, gpu_layers, vision_quant,
        kv_type ("f16", "f32", "q8_0"), flash_attention. Raises ModelError or ManifestError.
        """
        return cls(open_bundle(model), **settings)

    # ---- perceiving

    def encode(self, image: ImageSource) -> EncodedImage:
        """Visual tokens of one picture; keep the value to caption it again without encoding.

        Raises ImageError, which names the picture, before any engine is loaded for it.
        """
        start = time.perf_counter()
        self.cancel_token.clear()  # an earlier request to stop was for earlier work
        manifest = self.bundle.manifest
        picture = read_picture(image, enough=enough_for(manifest.image))
        prepared = time.perf_counter()
        tiles = picture_to_tiles(picture, manifest.image)  # [n_tiles, size, size, 3] uint8
        preprocess_ms = _ms_since(prepared)
        load_ms = self.load_vision()[1]
        seen = self.tiles_to_encoded(
            tiles,
            image=picture.name,
            image_sha256=picture.sha256,
            size=picture.size,
            notes=picture.notes,
            timings=Timings(load=load_ms, decode_image=picture.decode_ms, preprocess=preprocess_ms),
        )
        return replace(seen, timings=replace(seen.timings, total=_ms_since(start)))

    def encode_together(self, images: Sequence[ImageSource]) -> EncodedImage:
        """Visual tokens of several pictures for one prompt, in the model's own arrangement.

        Raises UsageError where the model takes one at a time, and ImageError as `encode` does.
        """
        several = several_of(self.bundle.manifest)
        if not images:
            raise UsageError("No picture is given.", "Give two or more.")
        each = [self.encode(image) for image in images]
        return each[0] if len(each) == 1 else pictures_together(each, several)

    def tiles_to_encoded(
        self, tiles: np.ndarray, *, timings: Timings, **about: Any
    ) -> EncodedImage:
        """Visual tokens of a picture's tiles, uint8 [n_tiles, size, size, 3].

        `about` is what EncodedImage says of the picture; `timings` is what was spent so far.
        """
        vision = self.load_vision()[0]
        began = time.perf_counter()
        rows, segments = picture_rows(
            vision, tiles, about["size"], self.bundle.manifest, about["image"]
        )
        return EncodedImage(
            visual_tokens=rows,
            layout=segments,
            model_digest=self.bundle.digest,
            timings=replace(timings, encode=_ms_since(began)),
            **about,
        )

    def caption(self, image: Seen, **options: Any) -> Caption:
        """What the picture shows, or a list of pictures together; options as for `plan`."""
        return self.stream(image, **options).finished().caption

    def stream(self, image: Seen, **options: Any) -> CaptionStream:
        """Text as it comes, in whole characters; afterwards `.caption` holds the record.

        Options are those of `plan`.
        """
        plan = self.plan(**options)
        if isinstance(image, EncodedImage):
            self.cancel_token.clear()
            encoded = image
        elif isinstance(image, (list, tuple)):
            encoded = self.encode_together(image)
        else:
            encoded = self.encode(image)
        if encoded.model_digest != self.bundle.digest:
            raise UsageError(
                f"{encoded.image}: encoded by another model than {self.bundle.manifest.name}.",
                "Encode it with the captioner that describes it.",
            )
        # an EncodedImage that the caller kept was paid for by an earlier record
        spent = Timings() if encoded is image else encoded.timings

        def begin() -> tuple[Iterator[Piece | Finished], float]:
            generator, load_ms = self._load_generator()
            return generator.run([self.request(encoded, plan)]), load_ms

        return CaptionStream(begin, partial(self.record, encoded, plan), spent)

    def plan(
        self,
        *,
        instruction: str | None = None,
        focus: str | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        stop_at_end: bool = True,
    ) -> Plan:
        """`instruction` replaces the bundle's generic one, `focus` (contents to observe) makes
        it question-related. At temperature 0 the same picture gives the same text.
        """
        prompts = self.bundle.manifest.prompts
        most = prompts.max_tokens if max_tokens is None else max_tokens
        if most < 1:
            raise UsageError(f"{most} tokens are no caption.", "Give --max-tokens 1 or more.")
        sampling = Sampling(
            max_tokens=most,
            temperature=temperature,
            seed=seed,
            stop=tuple(prompts.stop),
            stop_at_end=stop_at_end,
        )
        return Plan(instruction_for(prompts, instruction, focus), sampling)

    def caption_ids(self, image: Seen, **options: Any) -> list[int]:
        """The caption's token ids: for comparison with a reference implementation."""
        return self.stream(image, **options).finished().ids

    def cost(self, *sizes: tuple[int, int], **options: Any) -> PictureCost:
        """What a picture of a size (width, height), upright, would cost; options as for `plan`.

        Of several sizes, what the pictures would cost in one prompt; UsageError as encode_together.
        """
        manifest = self.bundle.manifest
        vision = self.load_vision()[0] if manifest.vision.mmproj is not None else None
        grids, tiles, each = zip(
            *(picture_segments(vision, size, manifest) for size in sizes), strict=True
        )
        one = len(sizes) == 1
        segments = each[0] if one else pictures_to_segments(several_of(manifest), each)
        n_rows = sum(s.stop - s.start for s in segments if isinstance(s, ImageRows))
        context, plan = manifest.lm.context_length, self.plan(**options)
        prompt = self._request(np.empty((n_rows, 0)), segments, plan).count()
        left = min(context - prompt, plan.sampling.max_tokens)
        return PictureCost(
            size=sizes[0] if one else (0, 0),
            grid=grids[0] if one else (0, 0),
            tiles=sum(tiles),
            visual_tokens=n_rows,
            prompt_tokens=prompt,
            context_length=context,
            left_for_caption=max(0, left),
            pictures=len(sizes),
        )

    # ---- engines

    def placement(self) -> tuple[str, int]:
        """ONNX Runtime's provider and the language model's GPU layers; decided once."""
        if self._placed is None:
            requested, gpu_layers = self._requested
            # whoever wants the CPU does not wait for a GPU to be tried
            providers = {} if requested == "cpu" else vision_providers(self.bundle.manifest)
            self._placed = (
                choose_provider(requested, providers),
                choose_gpu_layers(requested, supports_offload(), gpu_layers),
            )
        return self._placed

    @property
    def device(self) -> str:
        """Where the engines run: "cpu", "cuda", "metal", or vision+language, e.g. "cuda+cpu"."""
        return device_name(*self.placement())

    @property
    def model(self) -> ModelInfo:
        """Name, digest and quantizations, as records carry them."""
        manifest = self.bundle.manifest
        return ModelInfo(
            manifest.name, self.bundle.digest, self.vision_variant().quant, manifest.lm.quant
        )

    def vision_variant(self) -> VisionVariant:
        """The vision graph that runs on this device."""
        on_cpu = self.placement()[0] == CPU_PROVIDER
        return choose_vision(
            self.bundle, self._vision_quant, on_cpu=on_cpu, int8_dot=has_int8_dot()
        )

    def vision_threads(self) -> int:
        """CPU threads of the vision engine."""
        return self._threads_for(self.vision_variant().file)

    def lm_threads(self) -> int:
        """CPU threads of the language model."""
        return self._threads_for(self.bundle.manifest.lm.file)

    def model_bytes(self) -> int:
        """Bytes of the files that the two engines load."""
        files = {self.vision_variant().file, self.bundle.manifest.lm.file}
        return sum(self.bundle.manifest.files[file].size for file in files)

    def _threads_for(self, file: str) -> int:
        return choose_threads(self._threads, self.bundle.manifest.files[file].size)

    def cancel(self) -> None:
        """Stop what is under way, from another thread; it raises Interrupted there."""
        self.cancel_token.set()

    def close(self) -> None:
        """Free both engines; they load again when needed."""
        if self._generator is not None:
            self._generator.close()
        if self._vision is not None:
            self._vision.close()  # before the language model, into which it may look
        if self._lm is not None:
            self._lm.close()
        self._vision = self._lm = self._generator = None

    def __enter__(self) -> Captioner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load_vision(self) -> tuple[VisionEngine, float]:
        """The vision engine, and the milliseconds that loading it took now."""
        if self._vision is not None:
            return self._vision, 0.0
        start = time.perf_counter()
        path = self.bundle.file(self.vision_variant().file)
        self._vision = open_vision(
            path,
            self.bundle.manifest,
            lambda: self._load_lm()[0],
            provider=self.placement()[0],
            threads=self.vision_threads(),
            flash_attention=self._kv["flash_attention"],
            cancel=self.cancel_token,
        )
        return self._vision, _ms_since(start)

    def new_generator(self, parallel: int) -> Generator:
        """A generator of its own width over this captioner's language model."""
        lm, _ = self._load_lm()
        return Generator(lm, parallel=parallel, **self._kv)

    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache for one position of one caption."""
        return self._load_lm()[0].kv_bytes_per_token(self.kv_type)

    def request(self, encoded: EncodedImage, plan: Plan) -> Request:
        """The tokenised prompt for one picture."""
        return self._request(np.asarray(encoded.visual_tokens), encoded.layout, plan)

    def _request(self, rows: np.ndarray, layout: Sequence[Segment], plan: Plan) -> Request:
        prompts = self.bundle.manifest.prompts
        lm, _ = self._load_lm()
        segments = caption_to_segments(prompts, plan.instruction, layout)
        return Request(
            segments_to_parts(lm, segments, rows, add_bos=prompts.add_bos), plan.sampling
        )

    def record(
        self, encoded: EncodedImage, plan: Plan, done: Finished, timings: Timings
    ) -> Caption:
        """A caption with everything needed to say it again."""
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

    def _load_generator(self) -> tuple[Generator, float]:
        lm_ms = self._load_lm()[1]
        if self._generator is None:
            self._generator = self.new_generator(1)
        return self._generator, lm_ms

    def _load_lm(self) -> tuple[LanguageModel, float]:
        if self._lm is not None:
            return self._lm, 0.0
        start = time.perf_counter()
        spec = self.bundle.manifest.lm
        self._lm = LanguageModel(
            self.bundle.file(spec.file),
            expected=spec,
            gpu_layers=self.placement()[1],
            threads=self.lm_threads(),
            cancel=self.cancel_token,
        )
        return self._lm, _ms_since(start)


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
