"""Sequences in flight: admit, prefill, decode together, stop, turn tokens into UTF-8 text."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeprism.errors import PromptTooLongError, UsageError
from edgeprism.lm import Context, LanguageModel
from edgeprism.records import ImageRows, Segment, Text, TokenCounts, Tokens
from edgeprism.sampler import Sampler
from edgeprism.stopping import StoppingText

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
class Rows:
    """Visual tokens [n, n_embd] float32 that enter the language model together (see ImageRows)."""

    values: np.ndarray
    causal: bool = True
    positions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.values)


Part = list[int] | Rows


@dataclass(frozen=True)
class Request:
    """A tokenised prompt: parts are token ids or visual tokens, in order.

    A bare array [n, n_embd] stands for rows in one causal run.
    """

    parts: tuple[Part | np.ndarray, ...]
    sampling: Sampling
    prompt: tuple[Part, ...] = field(init=False)

    def __post_init__(self) -> None:
        # rows leave no logits behind, and llama.cpp ends the process when asked for them
        if not self.parts or not isinstance(self.parts[-1], list) or not self.parts[-1]:
            raise UsageError(
                "The prompt has no text after the picture.", "Give an instruction or a question."
            )
        object.__setattr__(self, "prompt", tuple(_part(part) for part in self.parts))

    def count(self) -> int:
        """Cells of the KV cache that the prompt takes."""
        return sum(len(part) for part in self.prompt)

    def n_positions(self) -> int:
        """Positions that the prompt takes: fewer than cells where rows stand side by side."""
        return sum(_advance(part) for part in self.prompt)

    def longest_whole_run(self) -> int:
        """Rows of the longest run that must go through the model in one piece."""
        runs = [part for part in self.prompt if isinstance(part, Rows) and not part.causal]
        return max(map(len, runs), default=0)


def _part(part: Part | np.ndarray) -> Part:
    return Rows(part) if isinstance(part, np.ndarray) else part


def _advance(part: Part) -> int:
    """How far the position moves on behind `part`."""
    if isinstance(part, list) or part.positions is None:
        return len(part)
    return int(part.positions.max(initial=-1)) + 1


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
) -> tuple[Part, ...]:
    """Token ids and rows in order, neighbouring ids joined.

    Neighbouring pieces of one kind are tokenised together: a tokenizer may join across them.
    """
    parts: list[Part] = [lm.bos() if add_bos else []]
    for kind, run in itertools.groupby(segments, _kind_of):
        if isinstance(kind, bool):
            text = "".join(segment.text for segment in run if isinstance(segment, Text))
            _last_ids(parts).extend(lm.tokenize(text, parse_special=kind))
            continue
        for segment in run:
            if isinstance(segment, Tokens):
                _last_ids(parts).extend(segment.ids)
            elif isinstance(segment, ImageRows) and rows is not None:
                values = rows[segment.start : segment.stop]
                parts.append(Rows(values, segment.causal, segment.positions))
    return tuple(part for part in parts if len(part))


def _last_ids(parts: list[Part]) -> list[int]:
    """The ids that end `parts`: new ones behind rows."""
    last = parts[-1]
    if isinstance(last, list):
        return last
    ids: list[int] = []
    parts.append(ids)
    return ids


def _kind_of(segment: Segment) -> bool | type:
    """Text with special tokens (True) or plain text (False), or another kind of segment."""
    return segment.template if isinstance(segment, Text) else type(segment)


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
        return bool(self._free) and (not self.busy or self._fits(request))

    def add(self, index: int, request: Request) -> None:
        """Begin a request for which there is room; its events carry `index`."""
        start = time.perf_counter()
        cells = self._needs(request)
        if not self.has_room(request):
            raise UsageError(
                "There is no room for another request yet.", "Step until has_room() says so."
            )
        if not self._fits(request):
            self._make_context(cells, request.longest_whole_run())
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

    def _fits(self, request: Request) -> bool:
        context = self._context
        return (
            context is not None
            and self._needs(request) <= self._cells
            and request.longest_whole_run() <= context.n_batch
        )

    def _make_context(self, cells: int, whole_run: int) -> None:
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
            n_batch=whole_run,
        )

    def _prefill(self, sequence: _Sequence) -> None:
        parts = sequence.request.prompt
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
                context.prefill_rows(
                    slot, part.values, position, causal=part.causal, positions=part.positions
                )
            position += _advance(part)

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
        return self.request.n_positions() + len(self.ids) - 1

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
        visual = sum(len(p) for p in self.request.prompt if isinstance(p, Rows))
        return Finished(
            index=self.index,
            text=self.text.whole,
            ids=self.ids,
            finish_reason=self.finish_reason or "stop",
            tokens=TokenCounts(visual, self.request.count() - visual, len(self.ids)),
            prefill_ms=self.prefill_ms,
            decode_ms=(time.perf_counter() - self.began) * 1000,
        )
