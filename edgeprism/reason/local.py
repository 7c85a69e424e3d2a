"""A reasoner on this machine: any chat model in a GGUF file, through llama.cpp."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from edgeprism.arguments import check_flag, check_integer, check_keywords, check_path, check_text
from edgeprism.bundle.adapter_checks import knows_prompts, read_adapter_header
from edgeprism.bundle.adapters import AdapterFile
from edgeprism.bundle.gguf_parts import model_bytes, model_digest, part_paths, parts_to_digest
from edgeprism.choices import is_reference
from edgeprism.files.digests import file_digest
from edgeprism.files.in_use import FilesInUse
from edgeprism.language.chat import Message, chat_to_segments
from edgeprism.language.generator import Finished, Generator, Piece
from edgeprism.language.llama import repacked_types, supports_offload
from edgeprism.language.model import LanguageModel
from edgeprism.language.prefix_states import PrefixStates
from edgeprism.language.repetition import REPETITION_NOTE
from edgeprism.language.request import Part, Request, Sampling, segments_to_parts
from edgeprism.language.trial import try_reasoner
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import (
    EngineOptions,
    check_engine_options,
    choose_gpu_layers,
    choose_threads,
)
from edgeprism.machine.fork import forget_natives_after_fork, keep_for_ever
from edgeprism.machine.load import LoadMeter
from edgeprism.machine.turns import Turns
from edgeprism.reason.base import BaseReasoner, Completion
from edgeprism.reason.find import find_reasoner
from edgeprism.reason.options import choose_text
from edgeprism.reason.shape import Shape
from edgeprism.reason.thinking import AnswerText, cut_thinking, opens_thinking
from edgeprism.records import ModelInfo, Timings
from edgeprism.segments import Segment, Text

if TYPE_CHECKING:
    from edgeprism.memory.parts import ModelParts

T = TypeVar("T")
DEFAULT_REASONER = "smollm2-135m"


class ReasonerOptions(EngineOptions, total=False):
    """Keywords of `Reasoner.load`, in addition to those of every engine."""

    chat_format: str | None
    """The format's name in llama.cpp, for a file whose own template llama.cpp does not know."""
    warm: bool
    """For chats: keep the KV cache for the next prompt, which begins like this one."""


class Reasoner(BaseReasoner):
    """A chat model in a GGUF file, which loads at the first question.

    Threads may share a reasoner: it answers them one after another. A pickled reasoner opens the
    same file again.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        *,
        adapter: AdapterFile | None = None,
        device: str = "auto",
        threads: int | None = None,
        gpu_layers: int | None = None,
        chat_format: str | None = None,
        warm: bool = False,
    ) -> None:
        check_engine_options(device, threads, gpu_layers)
        check_flag("warm", warm)
        if chat_format is not None:
            check_text("chat_format", chat_format)
        self.path, self.name, self.adapter = path, name, adapter
        self._turns = Turns()
        self.chat_format, self.warm = chat_format, warm
        self.cancel_token = Cancel()
        self._threads, self._requested = threads, (device, gpu_layers)
        self._lm: LanguageModel | None = None
        # for prompts without worked examples, and for those that begin with them
        self._generators: tuple[Generator, Generator] | None = None
        self._in_use: FilesInUse | None = None
        self._prefixes: PrefixStates | None = None
        self._model: ModelInfo | None = None
        forget_natives_after_fork(self)

    def __repr__(self) -> str:
        state = "not loaded" if self._lm is None else "loaded"
        files = " + ".join(map(str, filter(None, (self.path, self._adapter_path))))
        return f"<Reasoner {self.name!r} of {files}, device={self._requested[0]!r}, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        device, gpu_layers = self._requested
        options = ReasonerOptions(
            device=device, threads=self._threads, gpu_layers=gpu_layers,
            chat_format=self.chat_format, warm=self.warm,
        )  # fmt: skip
        return _open_again, (self.path, self.name, self.adapter, options)

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] = DEFAULT_REASONER,
        **options: Unpack[ReasonerOptions],
    ) -> Reasoner:
        """Open a reasoner; its weights load at the first question.

        Args:
            model: The path of a chat model's GGUF file, an installed reasoner's name, or a
                reference to a model that another program keeps ("ollama:NAME:TAG"). Behind a +
                may follow the path of a LoRA adapter's GGUF file, or "none" to leave out the
                adapter that ships for a reasoner of the catalogue.
            **options: See `ReasonerOptions`: device, threads, gpu_layers, chat_format, warm.

        Returns:
            The reasoner. `close` frees its weights.

        Raises:
            ModelError: There is no such file or installed reasoner.
            UsageError: It is a server's address, or no name or path.
        """
        check_keywords("Reasoner.load", options, ReasonerOptions)
        check_path("model", model)
        found = find_reasoner(model)
        if options.get("chat_format") is None:
            options["chat_format"] = found.chat_format
        return cls(found.path, found.name, adapter=found.adapter, **options)

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        """As `BaseReasoner.complete`, by the model in this process."""
        check_integer("max_tokens", max_tokens, least=1)
        with self._turns.turn():
            return self._complete(messages, max_tokens, shape)

    def stream(
        self, messages: Sequence[Message], *, max_tokens: int, on_text: Callable[[str], object]
    ) -> Completion:
        """As `BaseReasoner.stream`, token by token, without thoughts."""
        check_integer("max_tokens", max_tokens, least=1)
        with self._turns.turn():
            return self._complete(messages, max_tokens, None, on_text)

    def choose(
        self, messages: Sequence[Message], texts: Sequence[str], *, max_tokens: int
    ) -> Completion:
        """As `BaseReasoner.choose`: the likeliest text, see `options.choose_text`."""
        check_integer("max_tokens", max_tokens, least=1)
        # in an order in which what begins alike stands together, since it is read once
        alike = groupby(sorted(texts, key=str.lower), str.lower)
        spelled = [list(spellings) for _, spellings in alike]
        with self._turns.turn():
            ready = self._ready(messages)
            tokenize = ready.lm.vocabulary.tokenize
            ids = [[tokenize(text) for text in spellings] for spellings in spelled]
            longest = max(len(spelling) for spellings in ids for spelling in spellings)
            request = ready.request(Sampling(max_tokens=longest))
            ranking = self._watched(lambda: ready.generator.rank(request, ids))
        if ranking is None:
            return super().choose(messages, texts, max_tokens=max_tokens)
        best = choose_text([text for text, *_ in spelled], ranking.likelihoods)
        timings = Timings(load=ready.load_ms, prefill=ranking.prefill_ms, decode=ranking.decode_ms)
        counts = request.token_counts(len(ids[best][0]))
        return Completion(spelled[best][0], "stop", counts, timings)

    def _complete(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        shape: Shape | None,
        on_text: Callable[[str], object] | None = None,
    ) -> Completion:
        ready = self._ready(messages)
        request = ready.request(
            Sampling(max_tokens=max_tokens, grammar=shape.gbnf if shape else "")
        )
        thinks = opens_thinking(ready.opening)
        take = _handing_on(on_text, thinks)
        done = self._watched(lambda: _hand_on(ready.generator.run([request]), take))
        text, thinking = cut_thinking(done.text) if shape is None else (done.text, "")
        timings = Timings(load=ready.load_ms, prefill=done.prefill_ms, decode=done.decode_ms)
        notes = (REPETITION_NOTE,) if done.finish_reason == "repetition" else ()
        return Completion(text, done.finish_reason, done.tokens, timings, thinking, notes)

    def _ready(self, messages: Sequence[Message]) -> _Ready:
        """Load the weights if need be, and write the prompt of a chat."""
        self.cancel_token.clear()
        with self._naming():
            generators, lm, load_ms = self._load()
            segments = chat_to_segments(
                lambda m: lm.vocabulary.render_chat(m, self.chat_format), messages
            )
        has_examples = len(messages) > 1 and all(m.is_example for m in messages[:-1])
        parts = _to_parts(lm, segments, split_last=has_examples or not self.warm)
        opening = "".join(s.text for s in segments[-1:] if isinstance(s, Text))
        keep_first = has_examples and len(parts) > 1
        return _Ready(generators[has_examples], lm, parts, keep_first, opening, load_ms)

    def _watched(self, run: Callable[[], T]) -> T:
        """Run a request. Raises ModelError if the model's files have changed meanwhile."""
        try:
            done = run()
            if self._in_use is not None:
                self._in_use.check()
        except BaseException:
            if self._prefixes is not None:
                self._prefixes.forget()  # nobody knows by which weights they were computed
            raise
        if self._prefixes is not None:
            self._prefixes.save()
        return done

    @property
    def model(self) -> ModelInfo:
        """The name, and the digest of the GGUF file, or of all its parts (`model_digest`).

        With an adapter it is that of both digests, a line each, the model's first.
        """
        if self._model is None:
            self._model = self._to_info(model_digest(self.path))
        return self._model

    def _to_info(self, digest: str) -> ModelInfo:
        if self.adapter is not None:
            digest = parts_to_digest([digest, self.adapter.digest()])
        return ModelInfo(self.name, digest)

    @property
    def knows_prompts(self) -> bool:
        """Whether the adapter was taught EdgePrism's prompts, as its header says."""
        return self.adapter is not None and knows_prompts(read_adapter_header(self.adapter.path))

    def model_bytes(self) -> int:
        """Return the size of the GGUF file, or of all its parts, and of the adapter, in bytes."""
        own = 0 if self.adapter is None else self.adapter.size
        return model_bytes(self.path) + own

    def memory_parts(self) -> ModelParts:
        """Return what the reasoner takes in memory for a question, counted before it loads."""
        from edgeprism.reason.footprint import reasoner_parts

        with self._naming():
            layers = self._gpu_layers()
            return reasoner_parts(
                self.path, self._adapter_path, self.name, layers, repacked_types()
            )

    def cancel(self) -> None:
        """Stop a call that runs in another thread; that call raises Interrupted."""
        self.cancel_token.set()

    def close(self) -> None:
        """Free the weights; they load again when needed. Waits for answers of other threads."""
        with self._turns.turn():
            for generator in self._generators or ():
                generator.close()
            if self._lm is not None:
                self._lm.close()
            self._lm = self._generators = self._in_use = self._prefixes = None

    def forget_natives(self) -> None:
        """Free nothing, and load anew when needed: for a process that was forked."""
        for generator in self._generators or ():
            generator.forget_natives()
        keep_for_ever(self._lm)
        self.cancel_token.start_anew()
        self._lm = self._generators = self._in_use = self._prefixes = None

    def _naming(self) -> AbstractContextManager[None]:
        """Let errors name the reference that the reasoner was named by, not its file."""
        if not is_reference(self.name):
            return nullcontext()
        from edgeprism.bundle.elsewhere.references import naming

        return naming(self.name, self.path)

    @property
    def _adapter_path(self) -> Path | None:
        return None if self.adapter is None else self.adapter.path

    def _gpu_layers(self) -> int:
        """Return the layers that go to the GPU: as asked for, or as many as it has memory for."""
        device, requested = self._requested
        layers = choose_gpu_layers(device, supports_offload(), requested)
        if layers and requested is None:
            from edgeprism.language.gpu import find_gpu
            from edgeprism.reason.footprint import reasoner_layers

            return reasoner_layers(self.path, self._adapter_path, find_gpu())
        return layers

    def _load(self) -> tuple[tuple[Generator, Generator], LanguageModel, float]:
        if self._generators is not None and self._lm is not None:
            return self._generators, self._lm, 0.0
        start = time.perf_counter()
        gpu_layers, adapter = self._gpu_layers(), self._adapter_path
        # an adapter that ships is compared with its digest before an engine opens it
        own = {} if self.adapter is None else {self.adapter.path: self.adapter.digest()}
        try_reasoner(self.path, adapter, gpu_layers=gpu_layers, cancel=self.cancel_token)
        digests = {part: file_digest(part) for part in part_paths(self.path)}
        self._in_use = FilesInUse({**digests, **own})
        self._model = self._to_info(parts_to_digest(list(digests.values())))
        meter = LoadMeter()  # looks at the cores while the model loads
        self._lm = LanguageModel(
            self.path, adapter=adapter, gpu_layers=gpu_layers, cancel=self.cancel_token
        )
        self._lm.threads = choose_threads(self._threads, self.model_bytes(), meter)
        self._prefixes = PrefixStates(self._model.digest)
        one = Generator(self._lm, warm=self.warm, prefixes=self._prefixes)
        # in one KV cache, examples would drive out a conversation, which is nowhere else
        other = Generator(self._lm, prefixes=self._prefixes) if self.warm else one
        self._generators = one, other
        return self._generators, self._lm, (time.perf_counter() - start) * 1000


@dataclass(frozen=True)
class _Ready:
    """A prompt, and what it is run by."""

    generator: Generator
    lm: LanguageModel
    parts: tuple[Part, ...]
    keep_first: bool
    opening: str  # the template's text that begins the reply
    load_ms: float

    def request(self, sampling: Sampling) -> Request:
        return Request(self.parts, sampling, keep_first=self.keep_first)


def _open_again(
    path: Path, name: str, adapter: AdapterFile | None, options: ReasonerOptions
) -> Reasoner:
    """Open a reasoner that was pickled."""
    return Reasoner(path, name, adapter=adapter, **options)


def _hand_on(events: Iterable[Piece | Finished], on_piece: Callable[[str], object]) -> Finished:
    """Call `on_piece` for the pieces of one request; return its result."""
    for event in events:
        if isinstance(event, Finished):
            return event
        on_piece(event.text)
    raise RuntimeError("a request ended without its result")


def _handing_on(on_text: Callable[[str], object] | None, thinks: bool) -> Callable[[str], object]:
    """Return what takes a reply's pieces, and hands on those of its answer."""
    if on_text is None:
        return lambda _: None
    answer = AnswerText(thinks=thinks)

    def take(piece: str) -> None:
        if text := answer.feed(piece):
            on_text(text)

    return take


def _to_parts(
    lm: LanguageModel, segments: Sequence[Segment], *, split_last: bool
) -> tuple[Part, ...]:
    """Tokenise `segments`.

    With `split_last`, the last of several turns is a part of its own: the generator keeps the KV
    cache of the parts before it for the next prompt.
    """
    contents = [i for i, s in enumerate(segments) if isinstance(s, Text) and not s.template]
    last = contents[-1] if split_last and len(contents) > 1 else 0
    before = (
        segments_to_parts(lm, segments[:last], None, add_bos=lm.vocabulary.adds_bos())
        if last
        else ()
    )
    bos = lm.vocabulary.adds_bos() and not last
    return (*before, *segments_to_parts(lm, segments[last:], None, add_bos=bos))
