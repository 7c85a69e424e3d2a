"""Sequences in flight: admit, prefill, decode together, stop, turn tokens into UTF-8 text."""

from __future__ import annotations

import codecs
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeprism.errors import PromptTooLongError, UsageError
from edgeprism.lm import Context, LanguageModel, Sampler
from edgeprism.records import ImageRows, Segment, Text, TokenCounts

_CELLS_ROUND = 256  # llama.cpp pads the KV cache to this


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen and when to stop."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 0.95
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str = ""  # GBNF from `edgeprism.grammar`: only texts in it are written
    stop_at_end: bool = True  # False runs through the vocabulary's end tokens: for comparisons


@dataclass(frozen=True)
class Request:
    """A tokenised prompt: parts are token ids or float32 rows [n, n_embd], in order."""

    parts: tuple[list[int] | np.ndarray, ...]
    sampling: Sampling

    def __post_init__(self) -> None:
        # rows leave no logits behind, and llama.cpp ends the process when asked for them
        if not self.parts or not isinstance(self.parts[-1], list) or not self.parts[-1]:
            raise UsageError(
                "The prompt has no text after the picture.", "Give an instruction or a question."
            )

    def count(self) -> int:
        return sum(len(part) for part in self.parts)


@dataclass(frozen=True)
class Piece:
    """New text of request `index`: whole characters only."""

    index: int
    text: str


@dataclass(frozen=True)
class Finished:
    """Request `index` is done."""

    index: int
    text: str
    ids: list[int]
    finish_reason: str  # "stop" or "length"
    tokens: TokenCounts
    prefill_ms: float
    decode_ms: float


def segments_to_parts(
    lm: LanguageModel, segments: Sequence[Segment], rows: np.ndarray | None, *, add_bos: bool
) -> tuple[list[int] | np.ndarray, ...]:
    """Token ids and rows in order, neighbouring ids joined.

    Neighbouring pieces of one kind are tokenised together: a tokenizer may join across them.
    """
    parts: list[list[int] | np.ndarray] = [lm.bos() if add_bos else []]
    for kind, run in itertools.groupby(segments, _kind_of):
        if kind is ImageRows:
            for segment in run:
                if isinstance(segment, ImageRows) and rows is not None:
                    parts += [rows[segment.start : segment.stop], []]
        elif isinstance(parts[-1], list):
            text = "".join(segment.text for segment in run if isinstance(segment, Text))
            parts[-1] += lm.tokenize(text, parse_special=kind is True)
    return tuple(part for part in parts if len(part))


def _kind_of(segment: Segment) -> object:
    """Rows, text with special tokens (True) or plain text (False)."""
    return segment.template if isinstance(segment, Text) else ImageRows


class Generator:
    """Runs requests in one context, up to `parallel` at a time; a finished one makes room.

    The token part that opens every prompt is prefilled once and shared.
    """

    def __init__(
        self,
        lm: LanguageModel,
        *,
        parallel: int = 1,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
    ) -> None:
        self.lm, self.parallel = lm, parallel
        self.kv_type, self.flash_attention = kv_type, flash_attention
        self._context: Context | None = None
        self._cells = 0  # of each sequence
        self._prefix: list[int] = []  # what the sequence behind the last holds
        self._active: list[_Sequence] = []
        self._events: list[Piece | Finished] = []
        self._free = list(range(parallel))
        self._runs = 0

    def close(self) -> None:
        if self._context is not None:
            self._context.close()
            self._context, self._cells, self._prefix = None, 0, []

    @property
    def busy(self) -> bool:
        """Whether requests are in flight."""
        return bool(self._active)

    def run(self, requests: Iterable[Request]) -> Iterator[Piece | Finished]:
        """Events of all requests as they come; closing the iterator drops what is in flight.

        One run at a time: a later one ends an earlier one, whose iterator then raises UsageError.
        """
        self.drop()
        self._runs += 1
        run = self._runs
        try:
            for index, request in enumerate(requests):
                while not self.has_room(request):
                    yield from self.step()
                    self._must_be_latest(run)
                self.add(index, request)
                yield from self._new_events()
                self._must_be_latest(run)
            while self.busy:
                yield from self.step()
                self._must_be_latest(run)
        finally:
            if run == self._runs:
                self.drop()

    def _must_be_latest(self, run: int) -> None:
        if run != self._runs:
            raise UsageError(
                "A later request has ended this one.", "Read each to its end before the next."
            )

    def has_room(self, request: Request) -> bool:
        """Whether `request` can begin now. One that needs a longer context waits for the others."""
        return bool(self._free) and (not self.busy or self._needs(request) <= self._cells)

    def add(self, index: int, request: Request) -> None:
        """Begin a request for which there is room; its events carry `index`."""
        start = time.perf_counter()
        cells = self._needs(request)
        if not self.has_room(request):
            raise UsageError(
                "There is no room for another request yet.", "Step until has_room() says so."
            )
        if cells > self._cells:
            self._make_context(cells)
        sequence = _Sequence(index, self._lowest_slot(), request, self.lm, cells)
        self._active.append(sequence)
        try:
            self._prefill(sequence)
        except BaseException:
            # an interrupted prefill leaves cells nobody would remove
            self.drop()
            self.close()
            raise
        sequence.prefill_ms = (time.perf_counter() - start) * 1000
        sequence.began = time.perf_counter()
        self._take(sequence, sequence.sampler.sample(self._open))

    def step(self) -> list[Piece | Finished]:
        """One token for every sequence in flight; the events since the last step."""
        # in order of slots: neighbours go through the model together
        active = sorted(self._active, key=lambda sequence: sequence.slot)
        if active:
            self._open.step([(s.slot, s.ids[-1], s.position()) for s in active])
            tokens = [s.sampler.sample(self._open, i) for i, s in enumerate(active)]
            for sequence, token in zip(active, tokens, strict=True):
                self._take(sequence, token)
        return self._new_events()

    def drop(self) -> None:
        """Forget what is in flight."""
        for sequence in list(self._active):
            self._release(sequence)
        self._events = []

    def _take(self, sequence: _Sequence, token: int) -> None:
        """Accept a sampled token; a sequence that has ended makes room."""
        self._events += sequence.take(token)
        if sequence.finish_reason is not None:
            self._events.append(sequence.finished())
            self._release(sequence)

    def _new_events(self) -> list[Piece | Finished]:
        events, self._events = self._events, []
        return events

    @property
    def _open(self) -> Context:
        assert self._context is not None  # _admit made it
        return self._context

    def _needs(self, request: Request) -> int:
        """Cells for the prompt and as much of the answer as the model was trained for."""
        prompt, longest = request.count(), self.lm.n_ctx_train
        if prompt >= longest:
            raise PromptTooLongError(
                f"The prompt has {prompt} tokens; the model reads at most {longest}.",
                "Shorten the instruction or question.",
            )
        return min(prompt + request.sampling.max_tokens, longest)

    def _make_context(self, cells: int) -> None:
        self.close()
        self._cells = -(-cells // _CELLS_ROUND) * _CELLS_ROUND
        # Several sequences have cells of their own: in shared ones each token would look past
        # everybody's. One more than run at a time holds the shared prefix.
        alone = self.parallel == 1
        prefix_cells = _CELLS_ROUND if alone else self._cells
        self._context = self.lm.context(
            self._cells * self.parallel + prefix_cells,
            n_seq=self.parallel + 1,
            unified=alone,
            kv_type=self.kv_type,
            flash_attention=self.flash_attention,
        )

    def _prefill(self, sequence: _Sequence) -> None:
        parts = sequence.request.parts
        context, slot, position = self._open, sequence.slot, 0
        if len(parts) > 1 and isinstance(parts[0], list) and len(parts[0]) <= _CELLS_ROUND:
            self._share(parts[0])
            context.copy_prefix(self.parallel, slot, len(self._prefix))
            position, parts = len(self._prefix), parts[1:]
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            if isinstance(part, list):
                context.prefill_tokens(slot, part, position, logits=last)
            else:
                context.prefill_rows(slot, part, position, logits=last)
            position += len(part)

    def _share(self, prefix: list[int]) -> None:
        """Hold `prefix` in the sequence behind the last, unless it is there already."""
        if prefix == self._prefix:
            return
        context = self._open
        context.remove(self.parallel)
        self._prefix = []
        context.prefill_tokens(self.parallel, prefix, 0, logits=False)
        self._prefix = prefix

    def _lowest_slot(self) -> int:
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def _release(self, sequence: _Sequence) -> None:
        sequence.sampler.close()
        if self._context is not None:
            self._context.remove(sequence.slot)
        self._active.remove(sequence)
        self._free.append(sequence.slot)


@dataclass
class _Sequence:
    """One request in flight."""

    index: int
    slot: int
    request: Request
    lm: LanguageModel
    cells: int
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prefill_ms: float = 0.0
    began: float = 0.0

    def __post_init__(self) -> None:
        s = self.request.sampling
        self.sampler = Sampler(s.temperature, s.top_p, s.seed, grammar=s.grammar, lm=self.lm)
        self.text = StoppingText(s.stop)

    def position(self) -> int:
        """Where the newest token stands."""
        return self.request.count() + len(self.ids) - 1

    def take(self, token: int) -> Iterator[Piece]:
        """Accept a sampled token; yields what new text is certain."""
        sampling = self.request.sampling
        if sampling.stop_at_end and self.lm.is_end(token):
            self.finish_reason = "stop"
        else:
            self.ids.append(token)
            text = self.text.feed(self.lm.token_to_bytes(token))
            if text:
                yield Piece(self.index, text)
            if self.text.stopped and sampling.stop_at_end:
                self.finish_reason = "stop"
            elif self.request.count() + len(self.ids) >= self.cells:
                self.finish_reason = "length"
        if self.finish_reason is not None and (rest := self.text.end()):
            yield Piece(self.index, rest)

    def finished(self) -> Finished:
        parts = self.request.parts
        visual = sum(len(p) for p in parts if isinstance(p, np.ndarray))
        return Finished(
            index=self.index,
            text=self.text.whole,
            ids=self.ids,
            finish_reason=self.finish_reason or "stop",
            tokens=TokenCounts(visual, self.request.count() - visual, len(self.ids)),
            prefill_ms=self.prefill_ms,
            decode_ms=(time.perf_counter() - self.began) * 1000,
        )


class StoppingText:
    """Bytes of tokens → text in whole characters, up to the first stop string.

    Text that may be the beginning of a stop string is held back until that is decided, and so
    is white space, which belongs to the text only between words: the pieces join to `whole`.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.stop = tuple(stop)
        self.whole = ""
        self.stopped = False
        self._held = ""
        self._blank = ""  # white space that stands behind `whole` if a word follows
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        if self.stopped:
            return ""
        self._held += self._decoder.decode(data)
        found = [at for s in self.stop if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._emit(min(found), drop_rest=True)
        longest = max((_overlap(self._held, s) for s in self.stop), default=0)
        return self._emit(len(self._held) - longest)

    def end(self) -> str:
        """What was held back; an unfinished character becomes U+FFFD."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._emit(len(self._held))

    def _emit(self, length: int, drop_rest: bool = False) -> str:
        text, rest = self._held[:length], self._held[length:]
        self._held = "" if drop_rest else rest
        text = self._blank + text if self.whole else text.lstrip()
        words = text.rstrip()
        self._blank = text[len(words) :]
        self.whole += words
        return words


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0
    )
