"""Pictures → captions: the perceiving half of Prism, as programs use it.

`CaptionSteps.steps` (steps.py) lists what happens between a file and its caption, in order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

from edgeprism.arguments import check_keywords, check_path, check_text
from edgeprism.bundle.open import Bundle
from edgeprism.choices import DEFAULT_MODEL
from edgeprism.errors import UsageError
from edgeprism.machine.turns import Turns
from edgeprism.perceive.options import (
    CaptionerOptions,
    CaptionOptions,
    Plan,
    check_captioner_options,
)
from edgeprism.perceive.steps import CaptionSteps, Pictures
from edgeprism.perceive.stream import CaptionStream
from edgeprism.picture.read import ImageSource, unreadable
from edgeprism.records import Caption, EncodedImage, PictureCost
from edgeprism.vision.open_model import open_model


class Captioner(CaptionSteps):
    """A captioner bundle and its engines, which load when first needed.

    Threads may share a captioner: they use it one after another. A stream holds it until it is
    read to its end, closed or dropped. A pickled captioner opens the same files again.

    Examples:
        >>> from edgeprism import Captioner
        >>> with Captioner.load("nano") as captioner:
        ...     print(captioner.caption("photo.jpg").text)
    """

    def __init__(self, bundle: Bundle, **options: Unpack[CaptionerOptions]) -> None:
        check_captioner_options(**options)
        super().__init__(bundle, **options)
        self._options = options
        self._turns = Turns()

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        lm_chat_format: str | None = None,
        **options: Unpack[CaptionerOptions],
    ) -> Captioner:
        """Open a captioner; its engines load at the first picture.

        Args:
            model: A model's name; the path of a bundle's folder, or of a GGUF file beside its
                mmproj; or a reference to a pair that another program keeps ("ollama:NAME:TAG").
            lm_chat_format: For a pair of GGUF files: llama.cpp's name of its chat format, where
                llama.cpp does not know the file's own template.
            **options: See `CaptionerOptions`: device, threads, gpu_layers, vision_quant, kv_type,
                flash_attention, isolate_decoding.

        Returns:
            The captioner. Close it, or use it in a `with` block, to free its engines.

        Raises:
            ModelError: No such model, or files of it are missing.
            ManifestError: The bundle's manifest has faults; all of them are listed.
            TemplateError: llama.cpp does not know a pair's chat template, or `lm_chat_format`.
            DeviceError, UsageError: An option has a value that no machine can take.
        """
        check_keywords("Captioner.load", options, CaptionerOptions)
        check_path("model", model)
        if lm_chat_format is not None:
            check_text("lm_chat_format", lm_chat_format)
        return cls(open_model(model, lm_chat_format=lm_chat_format), **options)

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self._options.items())
        state = "loaded" if self.engines.is_loaded() else "not loaded"
        return f"<Captioner {self.bundle.name!r} of {self.bundle.path}{options}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.bundle, self._options)

    @property
    def takes_focus(self) -> bool:
        """Whether the model's captions follow a focus."""
        return bool(self.bundle.manifest.prompts.focus_instruction)

    # ---- perceiving

    def caption(self, image: Pictures, **options: Unpack[CaptionOptions]) -> Caption:
        """Describe a picture, or several together.

        Args:
            image: A path, a file's bytes, a binary file object, a PIL image, an array, or a value
                of `encode`. An array is uint8 (or uint16 for 0…65535): grey [height, width], or
                [height, width, 3 or 4] in RGB or RGBA order (OpenCV's are BGR). A list or tuple
                of pictures gets one caption for all, from a model made for several. A path, the
                bytes or a seekable file object of a video, for a model made for videos.
            **options: See `CaptionOptions`: instruction, focus, caption_tokens, temperature, seed,
                visual_tokens; of a video also frames and frames_per_second.

        Returns:
            The caption, with everything needed to make it again.

        Raises:
            ImageError: The picture cannot be read; the message names it.
            UsageError: The model takes one picture at a time, or an option is out of range.
            PromptTooLongError: Picture and instruction do not fit into the model's context.
            DeviceError: The requested device does not start.
            Interrupted: `cancel` was called.
        """
        check_keywords("Captioner.caption", options, CaptionOptions)
        return self.stream(image, **options).finished().caption

    def caption_many(
        self, images: Iterable[ImageSource | EncodedImage], **options: Unpack[CaptionOptions]
    ) -> Iterator[Caption]:
        """Describe pictures one after another, each by itself.

        Args:
            images: Pictures, each as for `caption`; they may come from a generator.
            **options: As for `caption`.

        Returns:
            An iterator over the captions, in the pictures' order. It makes each when it is asked
            for; other threads may use the captioner between two. `caption_folder` is faster for
            files: it works on several at a time, and goes on after one that fails.

        Raises:
            ImageError: A picture cannot be read; the message names it. The iterator ends.
            UsageError, DeviceError: As `caption`.
        """
        check_keywords("Captioner.caption_many", options, CaptionOptions)
        plan = self.plan(**options)
        if isinstance(images, (str, bytes, os.PathLike)):
            raise UsageError("caption_many needs several pictures.", "Use `caption()` for one.")
        return (self.start(image, plan).finished().caption for image in images)

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
        check_keywords("Captioner.stream", options, CaptionOptions)
        return self.start(image, self.plan(**options))

    def start(self, image: Pictures, plan: Plan) -> CaptionStream:
        """Stream a caption as `stream` does, from a plan instead of options."""
        stream = CaptionStream(self.steps(image, plan), self._turns)
        stream.begin()  # encodes the picture, so that a faulty one raises here
        return stream

    def encode(self, image: ImageSource) -> EncodedImage:
        """Turn a picture into visual tokens, which can be captioned again and again.

        Args:
            image: One picture, as for `caption`.

        Returns:
            The visual tokens, float32 [n_tokens, n_embd], and their layout in the prompt. Of a
            model that reads the instruction they are those for the generic one; another
            instruction then makes others of what this keeps.

        Raises:
            ImageError: The picture cannot be read. No engine was loaded for it.
        """
        if isinstance(image, (list, tuple)):
            raise unreadable(image)
        with self._turns.turn():
            return self._encode(image, self.plan())

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
        with self._turns.turn():
            return self._encode_together(images, self.plan())

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Hold the engines for a batch of pictures, which uses them from threads of its own."""
        with self._turns.turn(), self.engines.pinned():
            yield

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
        check_keywords("Captioner.cost", options, CaptionOptions)
        with self._turns.turn():
            return self._cost(sizes, self.plan(**options))

    # ---- ending

    def cancel(self) -> None:
        """Stop a call that runs in another thread; that call raises Interrupted."""
        self.cancel_token.set()

    def close(self) -> None:
        """Free both engines; they load again when needed.

        It waits for other threads that use the captioner. A stream of this thread ends: it raises
        UsageError when it is read on.
        """
        with self._turns.turn():
            self.engines.close()

    def __enter__(self) -> Captioner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_again(bundle: Bundle, options: CaptionerOptions) -> Captioner:
    """Open a captioner that was pickled; its files are checked again when they load."""
    return Captioner(bundle, **options)
