"""The two engines of a captioner: where they run, how many threads they use, when they load."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.bundle.manifest import FileEntry, VisionVariant
from edgeprism.bundle.open import Bundle, choose_vision
from edgeprism.errors import UsageError
from edgeprism.files.in_use import FilesInUse
from edgeprism.language.generator import Generator
from edgeprism.language.llama import repacked_types, supports_offload
from edgeprism.language.open_language import language_files, open_language
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import (
    CPU_PROVIDER,
    choose_gpu_layers,
    choose_provider,
    choose_threads,
    device_name,
)
from edgeprism.machine.facts import has_int8_dot
from edgeprism.machine.fork import forget_natives_after_fork, keep_for_ever
from edgeprism.vision.connector import ConnectorFiles
from edgeprism.vision.engine import VisionEngine, open_vision, vision_providers
from edgeprism.vision.token_reduction import TokenLimit, limit_for
from edgeprism.vision.trial import Settings, try_captioner

if TYPE_CHECKING:
    from edgeprism.language.engine import LanguageEngine
    from edgeprism.memory.parts import ModelParts
    from edgeprism.perceive.footprint import CaptionerFootprint


class Engines:
    """The vision engine and the language model of a bundle; each loads when first needed."""

    def __init__(
        self,
        bundle: Bundle,
        cancel: Cancel,
        *,
        device: str = "auto",
        threads: int | None = None,
        gpu_layers: int | None = None,
        vision_quant: str | None = None,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        visual_tokens: TokenLimit | None = None,
        isolate_decoding: bool = True,
    ) -> None:
        self.bundle, self.kv_type = bundle, kv_type
        self.visual_tokens = limit_for(bundle.manifest, visual_tokens)
        self.isolate_decoding = isolate_decoding
        self._cancel, self._threads = cancel, threads
        self._requested = (device, gpu_layers)
        self._vision_quant, self._flash_attention = vision_quant, flash_attention
        self.load_ms = 0.0  # spent on loading so far
        self._placement: tuple[str, int] | None = None
        self._tried = False
        self._vision: VisionEngine | None = None
        self._lm: LanguageEngine | None = None
        self._in_use: dict[str, FilesInUse] = {}  # file that an engine loaded → what it opened
        self._generator: Generator | None = None
        self._threads_of: dict[str, int] = {}  # file → threads
        self._pins = 0
        self.encoding = threading.Lock()  # libmtmd's encoder can do one picture at a time
        forget_natives_after_fork(self)

    # ---- devices and threads

    def placement(self) -> tuple[str, int]:
        """Return ONNX Runtime's provider and the number of GPU layers; the first call decides.

        Raises DeviceError if the requested device does not start.
        """
        if self._placement is None:
            device, layers = self._requested
            # Trying a GPU takes time and may fail, so device="cpu" tries none.
            providers = {} if device == "cpu" else vision_providers(self.bundle.manifest)
            provider = choose_provider(device, providers)
            gpu_layers = 0
            if self.bundle.manifest.lm.decoder is None:
                gpu_layers = choose_gpu_layers(device, supports_offload(), layers)
            elif layers:
                raise UsageError(
                    f"{self.bundle.name}: its language model is an ONNX graph, which runs on the "
                    "CPU.",
                    "Leave out `gpu_layers`.",
                )
            if gpu_layers and layers is None:  # as many as the GPU has memory for
                from edgeprism.language.gpu import find_gpu

                gpu_layers = self._footprint(provider, gpu_layers).choose_layers(find_gpu())
            self._placement = (provider, gpu_layers)
        return self._placement

    def _footprint(self, provider: str, gpu_layers: int) -> CaptionerFootprint:
        # a plain caption needs none of this
        from edgeprism.memory.language import LanguageUse
        from edgeprism.perceive.footprint import CaptionerFootprint

        variant = self._variant_for(provider)
        use = LanguageUse(
            0,
            kv_type=self.kv_type,
            flash_attention=self._flash_attention is not False,
            gpu_layers=gpu_layers,
            repacked=repacked_types(),
        )
        return CaptionerFootprint(
            self.bundle,
            variant,
            use,
            vision_on_gpu=provider != CPU_PROVIDER,
            visual_tokens=self.visual_tokens,
        )

    def memory_parts(self) -> ModelParts:
        """Return what both engines take in memory for a caption, counted before they load."""
        return self._footprint(*self.placement()).parts()

    @property
    def device(self) -> str:
        """Where the engines run: "cpu", "cuda", "metal", or vision+language, e.g. "cuda+cpu"."""
        return device_name(*self.placement())

    def vision_variant(self) -> VisionVariant:
        """Return the vision graph to run on this device."""
        return self._variant_for(self.placement()[0])

    def _variant_for(self, provider: str) -> VisionVariant:
        on_cpu = provider == CPU_PROVIDER
        return choose_vision(
            self.bundle, self._vision_quant, on_cpu=on_cpu, int8_dot=has_int8_dot()
        )

    def vision_threads(self) -> int:
        """Return the number of CPU threads of the vision engine."""
        return self._threads_for(self.vision_variant().file)

    def lm_threads(self) -> int:
        """Return the number of CPU threads of the language model."""
        decoder = self.bundle.manifest.lm.decoder
        return self._threads_for(decoder.file if decoder else self.bundle.manifest.lm.file)

    def _threads_for(self, file: str) -> int:
        size = sum(entry.size for entry in self.bundle.opened_with(file).values())
        if file not in self._threads_of:  # once, because the choice looks at the machine's load
            self._threads_of[file] = choose_threads(self._threads, size)
        return self._threads_of[file]

    def model_bytes(self) -> int:
        """Return the size in bytes of the files that the two engines load."""
        variant = self.vision_variant()
        loaded = [variant.file, variant.connector, *language_files(self.bundle.manifest)]
        opened: dict[Path, FileEntry] = {}
        for name in filter(None, loaded):
            opened |= self.bundle.opened_with(name)
        return sum(entry.size for entry in opened.values())

    # ---- loading

    def try_first(self) -> None:
        """Run the files once in a child process before they are loaded into this one.

        Raises ModelError if a file is damaged or cannot be run, Interrupted if it was cancelled.
        """
        if self._tried:
            return
        start = time.perf_counter()
        provider, gpu_layers = self.placement()
        settings = Settings(provider, gpu_layers, self.kv_type, self._flash_attention)
        try_captioner(self.bundle, self.vision_variant(), settings, self._cancel)
        self._tried = True
        self.load_ms += (time.perf_counter() - start) * 1000

    def vision(self) -> VisionEngine:
        """The vision engine, loaded."""
        if self._vision is None:
            self.try_first()
            start, before = time.perf_counter(), self.load_ms
            self._vision = open_vision(
                self._file(self.vision_variant().file),
                self.bundle.manifest,
                self.lm,
                provider=self.placement()[0],
                threads=self.vision_threads(),
                flash_attention=self._flash_attention,
                cancel=self._cancel,
                connector=self._connector_files(),
            )
            # libmtmd makes `self.lm` load, which adds its own time to load_ms; the time measured
            # here contains it, so it replaces that sum.
            self.load_ms = before + (time.perf_counter() - start) * 1000
        return self._vision

    def _connector_files(self) -> ConnectorFiles | None:
        text = self.bundle.manifest.vision.text
        if text is None:
            return None
        graph = self._file(self.vision_variant().connector)
        return ConnectorFiles(graph, self._file(text.vocabulary))

    def lm(self) -> LanguageEngine:
        """The language model, loaded."""
        if self._lm is None:
            self.try_first()
            start = time.perf_counter()
            self._lm = open_language(
                self.bundle.manifest,
                self._file,
                gpu_layers=self.placement()[1],
                threads=self.lm_threads(),
                cancel=self._cancel,
            )
            self.load_ms += (time.perf_counter() - start) * 1000
        return self._lm

    def _file(self, name: str) -> Path:
        """Return the path of a file that an engine is about to load, after checking its digest."""
        opened = self.bundle.opened_with(name)
        self._in_use[name] = FilesInUse({path: entry.sha256 for path, entry in opened.items()})
        return self.bundle.file(name)

    def check_files(self) -> None:
        """Raise ModelError if a file of a loaded engine was changed since it was loaded."""
        for files in self._in_use.values():
            files.check()

    def generator(self) -> Generator:
        """The generator of single captions; it reuses the KV cache of the prompt before."""
        if self._generator is None:
            self._generator = self.new_generator(1)
        return self._generator

    def new_generator(self, parallel: int) -> Generator:
        """Create a generator over this language model, for `parallel` captions at a time."""
        return Generator(
            self.lm(),
            parallel=parallel,
            kv_type=self.kv_type,
            flash_attention=self._flash_attention,
        )

    def kv_bytes_per_token(self) -> float:
        """Return the bytes of KV cache for one token of one caption."""
        return self.lm().kv_bytes_per_token(self.kv_type)

    def is_loaded(self) -> bool:
        """Return whether either engine is loaded."""
        return self._vision is not None or self._lm is not None

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Inside the block, `close` raises UsageError: threads of a batch use the engines."""
        self._pins += 1
        try:
            yield
        finally:
            self._pins -= 1

    def forget_natives(self) -> None:
        """Free nothing, and load anew when needed: for a process that was forked."""
        if self._generator is not None:
            self._generator.forget_natives()
        keep_for_ever(self._vision, self._lm)
        # the locks may have been held by threads that the child does not have
        self.encoding = threading.Lock()
        self._cancel.start_anew()
        self._vision = self._lm = self._generator = None
        self._in_use = {}

    def close(self) -> None:
        """Free both engines; they load again when needed.

        Raises UsageError while a batch uses them.
        """
        if self._pins:
            raise UsageError(
                "The captioner is at work on a folder.", "Close it when the run has ended."
            )
        if self._generator is not None:
            self._generator.close()
        if self._vision is not None:
            self._vision.close()  # first, because libmtmd holds a pointer to the language model
        if self._lm is not None:
            self._lm.close()
        self._vision = self._lm = self._generator = None
        self._in_use = {}  # closes the files
