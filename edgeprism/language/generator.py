"""Run several requests at once: prefill each, decode them together, stop, return UTF-8 text."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from edgeprism.errors import PromptTooLongError, UsageError
from edgeprism.language.engine import LanguageContext, LanguageEngine
from edgeprism.language.kv_memory import fits_memory
from edgeprism.language.kv_reuse import Key, common_opening, part_to_key
from edgeprism.language.prefix_states import LARGEST, PrefixStates
from edgeprism.language.ranking import Ranking, rank
from edgeprism.language.repetition import repeats_at_limit, repeats_for_good
from edgeprism.language.request import Part, Request, advance, is_apart
from edgeprism.language.sampler import Sampler
from edgeprism.language.stop_text import StoppingText
from edgeprism.machine.fork import keep_for_ever
from edgeprism.records import TokenCounts

_CELLS_ROUND = 256  # llama.cpp pads the KV cache to this


@dataclass(frozen=True)
class Piece:
    """New text of request `index`, in whole characters."""

    index: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The result of request `index`, which has ended."""

    index: int
    text: str
    ids: list[int]
    finish_reason: str  # "stop", "length" or "repetition"
    tokens: TokenCounts
    prefill_ms: float
    decode_ms: float


class Generator:
    """Runs requests in one context, up to `parallel` at a time; a finished one makes room.

    A sequence keeps the beginning of its last request in the KV cache, up to and including the
    visual tokens. If the next request has the same beginning, it prefills only the rest, and its
    text is the same as without reuse. With `warm` a sequence keeps everything, including the
    answer, and a next request reuses all tokens that both have in common. That suits a
    conversation, but the text may differ by rounding.
    """

    def __init__(
        self,
        lm: LanguageEngine,
        *,
        parallel: int = 1,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        warm: bool = False,
        prefixes: PrefixStates | None = None,
    ) -> None:
        self.lm, self.parallel, self.warm, self._prefixes = lm, parallel, warm, prefixes
        self.kv_type, self.flash_attention = kv_type, flash_attention
        self._context: LanguageContext | None = None
        self._cells = 0  # KV cache cells of each sequence
        # for each sequence, keys of the parts that its KV cache certainly holds
        self._held: list[list[Key]] = [[] for _ in range(parallel)]
        self._active: list[_Sequence] = []
        self._events: list[Piece | Finished] = []
        self._free = list(range(parallel))
        self._runs = 0

    def close(self) -> None:
        """Free the context. A run that has not ended raises UsageError when it is read on."""
        self.drop()
        self._runs += 1
        self._free_context()

    def forget_natives(self) -> None:
        """As `close`, but free nothing: for a process that was forked (`machine.fork`)."""
        keep_for_ever(self._context, *self._active)
        self._active, self._free = [], list(range(self.parallel))
        self._context, self._events = None, []
        self.close()

    def _free_context(self) -> None:
        if self._context is not None:
            self._context.close()
        self._context, self._cells = None, 0
        self._held = [[] for _ in range(self.parallel)]

    @property
    def busy(self) -> bool:
        """Whether requests are running."""
        return bool(self._active)

    def run(self, requests: Iterable[Request]) -> Iterator[Piece | Finished]:
        """Yield events of all requests as they come; closing the iterator drops running requests.

        Only one run is active at a time: a new run ends the previous one, whose iterator then
        raises UsageError.
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
                yield from self.new_events()
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
                "A later request has ended this one.",
                "Read each to its end before the next, and before `close()`.",
            )

    def has_room(self, request: Request) -> bool:
        """Return whether `request` can begin now.

        One that needs a longer context can only begin when all others have ended.
        """
        return bool(self._free) and (not self.busy or self._fits(request))

    def sampler(self, request: Request) -> Sampler:
        """Return a request's sampler for `add`; whoever does not hand it there closes it.

        To read a long grammar takes a while, and nothing of the context. Raises ModelError for one
        that llama.cpp cannot read.
        """
        sampling = request.sampling
        return Sampler(
            sampling.temperature,
            seed=sampling.seed,
            grammar=sampling.grammar,
            vocabulary=self.lm.vocabulary,
            repetition_penalty=sampling.repetition_penalty,
            # llama.cpp reserves memory for them, and never draws more than the context holds
            max_tokens=min(sampling.max_tokens, self.lm.n_ctx_train),
        )

    def add(self, index: int, request: Request, sampler: Sampler | None = None) -> None:
        """Begin a request; its events carry `index`. Raises UsageError if there is no room."""
        start = time.perf_counter()
        cells = self._needs(request)
        if not self.has_room(request):
            raise UsageError(
                "There is no room for another request yet.", "Step until has_room() says so."
            )
        if not self._fits(request):
            self._make_context(cells, request.longest_whole_run())
        sampler = self.sampler(request) if sampler is None else sampler
        sequence = _Sequence(index, self._lowest_slot(), request, self.lm, cells, sampler)
        self._active.append(sequence)
        try:
            self._prefill(sequence.slot, request)
        except BaseException:
            # an interrupted prefill leaves cells in the cache that nothing else would remove
            self.drop()
            self._free_context()
            raise
        sequence.prefill_ms = (time.perf_counter() - start) * 1000
        sequence.began = time.perf_counter()
        self._take(sequence, sequence.sampler.sample(self._open))

    def rank(
        self, request: Request, continuations: Sequence[Sequence[Sequence[int]]]
    ) -> Ranking | None:
        """Return how likely each continuation is after a prompt; ends the run that is active.

        Each is given by its spellings (see `ranking.rank`).
        The request's `max_tokens` holds the longest continuation; else its sampling is not used.
        None for a model that cannot go back to the end of a prompt.
        """
        self.drop()
        self._runs += 1
        if not self._fits(request):
            self._make_context(self._needs(request), request.longest_whole_run())
        start = time.perf_counter()
        try:
            self._prefill(0, request)
            read = time.perf_counter()
            likelihoods = rank(
                self._open, 0, request.n_positions(), continuations, self.lm.vocabulary.ends()
            )
        except BaseException:
            self._free_context()
            raise
        if likelihoods is None:
            self._held[0] = []
            return None
        return Ranking(likelihoods, (read - start) * 1000, (time.perf_counter() - read) * 1000)

    def step(self) -> list[Piece | Finished]:
        """Decode one token for every running sequence; return the events since the last step."""
        # sorted by slot, because llama.cpp computes neighbouring sequences together
        active = sorted(self._active, key=lambda sequence: sequence.slot)
        if active:
            self._open.step([(s.slot, s.ids[-1], s.position()) for s in active])
            tokens = [s.sampler.sample(self._open, i) for i, s in enumerate(active)]
            for sequence, token in zip(active, tokens, strict=True):
                self._take(sequence, token)
        return self.new_events()

    def drop(self) -> None:
        """Drop all running requests and their events."""
        for sequence in list(self._active):
            self._release(sequence)
        self._events = []

    def discard(self, index: int) -> None:
        """Drop the running request `index` and its events; the others go on."""
        for sequence in [each for each in self._active if each.index == index]:
            self._release(sequence)
        self._events = [event for event in self._events if event.index != index]

    def _take(self, sequence: _Sequence, token: int) -> None:
        """Give a sampled token to its sequence; release the sequence if it has ended."""
        self._events += sequence.take(token)
        if sequence.finish_reason is not None:
            self._events.append(sequence.finished())
            self._release(sequence)

    def new_events(self) -> list[Piece | Finished]:
        """Return the events since they were last returned; `add` makes the first of a request."""
        events, self._events = self._events, []
        return events

    @property
    def _open(self) -> LanguageContext:
        assert self._context is not None  # `add` has made it
        return self._context

    def _needs(self, request: Request) -> int:
        """Return the cells for prompt and answer, limited to the model's training context."""
        prompt, limit = request.count(), self.lm.n_ctx_train
        if prompt >= limit:
            raise PromptTooLongError(
                f"The prompt has {prompt} tokens; the model reads at most {limit}.",
                "Shorten the instruction or question, or show fewer pictures at once.",
            )
        return min(prompt + request.sampling.max_tokens, limit)

    def _fits(self, request: Request) -> bool:
        context = self._context
        return (
            context is not None
            and self._needs(request) <= self._cells
            and request.longest_whole_run() <= context.n_batch
        )

    def _make_context(self, cells: int, whole_run: int) -> None:
        grown = min(2 * self._cells, self.lm.n_ctx_train) if self.warm else 0
        self._free_context()
        # a conversation gets longer and longer, so it gets more than it needs where there is room
        per_cell = self.parallel * self.lm.kv_bytes_per_token(self.kv_type)
        if fits_memory(per_cell * (grown + 2 * _CELLS_ROUND)):
            cells = max(cells, grown)
        # one block more than needed, because the next question may be a little longer
        self._cells = (-(-cells // _CELLS_ROUND) + 1) * _CELLS_ROUND
        self._context = self.lm.context(
            self._cells * self.parallel,
            n_seq=self.parallel,
            kv_type=self.kv_type,
            flash_attention=self.flash_attention,
            n_batch=whole_run,
        )

    def _prefill(self, slot: int, request: Request) -> None:
        parts, context = request.prompt, self._open
        keys = [part_to_key(part) for part in parts]
        same, tokens = common_opening(self._held[slot], keys, split=self.warm)
        position = sum(map(advance, parts[:same])) + tokens
        apart = sum(len(part) for part in parts[:same] if is_apart(part))
        if not context.keep(slot, position, apart):
            same = tokens = position = 0
        if same == 0 and self._prefixes is not None and request.keep_first:
            position = self._open_prefix(slot, parts[0], self._prefixes)
            same, tokens = int(position > 0), 0
        for i, part in enumerate(parts[same:], same):
            last = i == len(parts) - 1
            if isinstance(part, list):
                ids = part[tokens:] if i == same else part
                context.prefill_tokens(slot, ids, position, logits=last)
                position += len(ids)
            else:
                context.prefill_rows(
                    slot, part.values, position, causal=part.causal, positions=part.positions
                )
                position += advance(part)
        self._held[slot] = keys if self.warm else keys[:-1]

    def _open_prefix(self, slot: int, ids: Part, prefixes: PrefixStates) -> int:
        """Fill `slot` with the kept state after `ids`; return the position where it then ends."""
        context = self._open
        context.keep(slot, 0)
        if not isinstance(ids, list):
            return 0
        state = prefixes.find(context.form, ids)
        if state is None:
            context.prefill_tokens(slot, ids, 0, logits=False)
            state = context.state(slot, limit=LARGEST)
            if state is None:
                return len(ids)
            prefixes.keep(context.form, ids, state)
        # also where it was just computed: this run then goes on from what later ones find, and
        # its text is theirs even where a cache keeps less than it held (sliding windows)
        return len(ids) if context.restore(slot, state) else 0

    def _lowest_slot(self) -> int:
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def _release(self, sequence: _Sequence) -> None:
        sequence.sampler.close()
        held = self._held[sequence.slot]
        if self.warm and held and isinstance(held[-1], list):
            # the model has not processed the last token yet
            self._held[sequence.slot] = [*held[:-1], held[-1] + sequence.ids[:-1]]
        self._active.remove(sequence)
        self._free.append(sequence.slot)


@dataclass
class _Sequence:
    """A running request."""

    index: int
    slot: int
    request: Request
    lm: LanguageEngine
    cells: int
    sampler: Sampler
    ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prefill_ms: float = 0.0
    began: float = 0.0

    def __post_init__(self) -> None:
        self.text = StoppingText(self.request.sampling.stop, self.lm.vocabulary.clean_up)

    def position(self) -> int:
        """Return the position of the newest token."""
        return self.request.n_positions() + len(self.ids) - 1

    def take(self, token: int) -> Iterator[Piece]:
        """Accept a sampled token; yield new text once no stop string can begin in it."""
        sampling = self.request.sampling
        if sampling.stop_at_end and self.lm.vocabulary.is_end(token):
            self.finish_reason = "stop"
        else:
            self.ids.append(token)
            text = self.text.feed(self.lm.vocabulary.token_to_bytes(token))
            if text:
                yield Piece(self.index, text)
            if self.text.stopped and sampling.stop_at_end:
                self.finish_reason = "stop"
            elif self.request.count() + len(self.ids) >= self.cells:
                looped = self._may_loop() and repeats_at_limit(self.ids)
                self.finish_reason = "repetition" if looped else "length"
            elif self._may_loop() and repeats_for_good(self.ids, self._have_letters):
                self.finish_reason = "repetition"
        if self.finish_reason is not None and (rest := self.text.end()):
            yield Piece(self.index, rest)

    def _may_loop(self) -> bool:
        """Return whether repetition ends the text; what a grammar demands may repeat itself."""
        return self.request.sampling.stop_at_end and not self.request.sampling.grammar

    def _have_letters(self, ids: Sequence[int]) -> bool:
        text = b"".join(map(self.lm.vocabulary.token_to_bytes, ids)).decode("utf-8", "ignore")
        return any(map(str.isalpha, text))

    def finished(self) -> Finished:
        return Finished(
            index=self.index,
            text=self.text.whole,
            ids=self.ids,
            finish_reason=self.finish_reason or "stop",
            tokens=self.request.token_counts(len(self.ids)),
            prefill_ms=self.prefill_ms,
            decode_ms=(time.perf_counter() - self.began) * 1000,
        )
