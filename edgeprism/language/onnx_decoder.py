"""A language model whose layers attend to a picture's rows beside the text, by ONNX Runtime.

Its graphs are those of the manifest's `Decoder` with `cross`; `row_decoder` has the other kind. The
vocabulary, the samplers and the grammars are llama.cpp's, over a GGUF file of the vocabulary alone.
Keys and values lie in numpy arrays, which a run of the graph reads and extends where they are
(`GroupQueryAttention` with one buffer for past and present). It runs on the CPU, where that
operator takes float32, whatever `kv_type` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.bundle.gguf_checks import WORDPIECE, vocabulary_faults
from edgeprism.bundle.manifest_language import Decoder, LanguageModelFile
from edgeprism.errors import COPY_AGAIN, Interrupted, ModelError, PromptTooLongError, UsageError
from edgeprism.language.kv_memory import check_kv_memory
from edgeprism.language.model import check_dimensions
from edgeprism.language.vocabulary import Vocabulary
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.device import CPU_PROVIDER
from edgeprism.machine.onnx_runtime import FLOATS, GraphSession

_LONGS, _INTS = "tensor(int64)", "tensor(int32)"
_FLOAT = 4  # bytes


class OnnxDecoder:
    """The two graphs and the vocabulary in memory."""

    row_axes = 1
    rows_apart = True
    tokenizers: tuple[str, ...] = (WORDPIECE,)

    def __init__(
        self,
        path: Path,
        graph: Path,
        cross: Path | None,
        *,
        expected: LanguageModelFile,
        row_width: int,
        threads: int = 1,
        cancel: Cancel | None = None,
    ) -> None:
        """Load the vocabulary at `path`, the decoder's `graph`, and the `cross` graph.

        Args:
            path: The GGUF file of the vocabulary.
            graph: The graph that writes text.
            cross: The graph that makes keys and values of a picture's rows, if there is one.
            expected: What the manifest says of them.
            row_width: The width of a picture's rows.
            threads: CPU threads of a run.
            cancel: Ends runs.

        Raises:
            ModelError: A file is damaged, or not what the manifest says.
        """
        if expected.decoder is None:
            raise ValueError("the manifest says nothing of a decoder")
        self.path, self.threads, self.shape = path, threads, expected.decoder
        self.cancel = cancel or Cancel()
        self.n_embd, self.n_ctx_train = expected.n_embd, expected.context_length
        self.n_embd_row, self.n_vocab = row_width, expected.n_vocab
        self.header = read_gguf_header(path, tokens=True)
        check_dimensions(path, self.header, expected)
        if faults := list(vocabulary_faults(self.header, self.tokenizers)):
            raise ModelError(f"{path}: cannot be run: it has {'; '.join(faults)}.", COPY_AGAIN)
        self.decoder = self._session(graph)
        self.decoder.check_interface(*self.interface())
        if cross is not None:
            self.cross = self._session(cross)
            self.cross.check_interface(*_cross_interface(self.shape, row_width))
        self.vocabulary = Vocabulary.open(path, self.shape.clean_up)

    def _session(self, path: Path) -> GraphSession:
        return GraphSession(
            path, provider=CPU_PROVIDER, threads=self.threads, cancel=self.cancel,
            what="language model's graph",
        )  # fmt: skip

    def interface(self) -> tuple[Interface, Interface]:
        """Return inputs and outputs of the decoder's graph, without the first length of each."""
        inputs, outputs = common_interface(self.shape, self.n_vocab)
        own: Interface = {
            "ids": (_LONGS, [None]),
            "positions": (_LONGS, [None]),
            "n_rows": (_LONGS, []),
        }
        return own | inputs | _heads(self.shape, "cross_"), outputs

    def embed(self, ids: Sequence[int]) -> np.ndarray | None:
        """Return None: a text's tokens never enter as rows."""
        return None

    def kv_bytes_per_token(self, kv_type: str = "f16") -> float:
        """Return the bytes of the KV cache for one position, or for one row of a picture."""
        return 2.0 * self.shape.n_layers * self.shape.n_heads * self.shape.head_dim * _FLOAT

    @property
    def context_kind(self) -> type[OnnxContext]:
        """The class of its contexts."""
        return OnnxContext

    def context(
        self,
        n_ctx: int,
        *,
        n_seq: int = 1,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        all_logits: bool = False,
        n_batch: int = 0,
    ) -> OnnxContext:
        """See `LanguageEngine.context`; the cells are float32, whatever `kv_type` says."""
        kind = self.context_kind
        return kind(self, n_ctx // n_seq, n_seq, max(n_batch, kind.N_BATCH))

    def close(self) -> None:
        """Free the vocabulary; ONNX Runtime frees a graph with its last reference."""
        self.vocabulary.close()
        del self.decoder
        if self.rows_apart:
            del self.cross


class OnnxContext:
    """Sequences: the keys and values of their tokens, and those of their pictures' rows."""

    N_BATCH = 512
    native = None
    form = ""

    def __init__(self, lm: OnnxDecoder, cells: int, n_seq: int, n_batch: int) -> None:
        self.lm, self.cells, self.n_seq, self.n_batch = lm, cells, n_seq, n_batch
        n_bytes = lm.kv_bytes_per_token() * cells * n_seq
        check_kv_memory(str(lm.path), n_bytes, cells * n_seq)
        self._names = _names(lm.shape)
        # pages that nothing was written to take no memory, so unused cells cost nothing
        self._keys = {name: self._zeros(cells) for name in self._names}
        self._rows = {f"cross_{name}": self._zeros(0) for name in self._names}
        self._n_rows = np.zeros(n_seq, np.int64)
        self._logits = np.empty((0, lm.n_vocab), np.float32)

    def _zeros(self, length: int) -> np.ndarray:
        shape = self.lm.shape
        return np.zeros((self.n_seq, shape.n_heads, length, shape.head_dim), np.float32)

    # ---- filling

    def prefill_tokens(
        self, seq: int, tokens: Sequence[int], start: int, *, logits: bool = True
    ) -> None:
        """See `LanguageContext.prefill_tokens`."""
        for i in range(0, len(tokens), self.n_batch):
            part = tokens[i : i + self.n_batch]
            made = self._run(seq, [part], [start + i], [len(part) - 1])
        if logits and len(tokens):
            self._logits = made[0]

    def prefill_rows(
        self,
        seq: int,
        rows: np.ndarray,
        start: int,
        *,
        causal: bool = True,
        positions: np.ndarray | None = None,
    ) -> None:
        """See `LanguageContext.prefill_rows`: they come behind the rows that `seq` has.

        They take no positions. All tokens of `seq` must come after them.
        """
        self._check_rows(rows)
        first = int(self._n_rows[seq])
        last = first + len(rows)
        if last > self._rows[f"cross_{self._names[0]}"].shape[2]:
            self._make_room(last)
        shape = (1, self.lm.shape.n_heads, len(rows), self.lm.shape.head_dim)
        made = self.lm.cross.run(
            {"rows": np.ascontiguousarray(rows[None], np.float32)}, dict.fromkeys(self._rows, shape)
        )
        for kept, values in zip(self._rows.values(), made, strict=True):
            kept[seq, :, first:last] = values[0]
        self._n_rows[seq] = last

    def _check_rows(self, rows: np.ndarray) -> None:
        """Raise ModelError for visual tokens that this model cannot take."""
        if rows.ndim != 2 or rows.shape[1] != self.lm.n_embd_row or not len(rows):
            raise ModelError(
                f"Visual tokens {list(rows.shape)} do not fit a language model that takes them at "
                f"a width of {self.lm.n_embd_row}.",
                "Encode the picture with this captioner.",
            )

    def _make_room(self, length: int) -> None:
        """Give every sequence room for `length` rows."""
        n_bytes = self.lm.kv_bytes_per_token() * length * self.n_seq
        check_kv_memory(str(self.lm.path), n_bytes, length * self.n_seq)
        for name, held in self._rows.items():
            wider = self._zeros(length)
            wider[:, :, : held.shape[2]] = held
            self._rows[name] = wider

    # ---- decoding

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """See `LanguageContext.step`.

        Neighbouring sequences run together, so `tokens` are best sorted.
        """
        logits = [
            self._run(run[0][0], [[token] for _, token, _ in run], [at for _, _, at in run], [0])
            for run in _neighbours(tokens)
        ]
        self._logits = np.concatenate(logits)[:, 0]

    def logits(self, index: int = -1) -> np.ndarray:
        """See `LanguageContext.logits`."""
        row: np.ndarray = self._logits[index]
        return row

    def logits_of_tokens(
        self, tokens: Sequence[int], *, seq: int = 0, start: int = 0
    ) -> np.ndarray:
        """See `LanguageContext.logits_of_tokens`."""
        parts = []
        for i in range(0, len(tokens), self.n_batch):
            part = tokens[i : i + self.n_batch]
            parts.append(self._run(seq, [part], [start + i], range(len(part)))[0])
        return np.concatenate(parts)

    def _run(
        self,
        first: int,
        tokens: Sequence[Sequence[int]],
        starts: Sequence[int],
        wanted: Sequence[int],
    ) -> np.ndarray:
        """Run tokens [batch, n] of the sequences `first`… from their positions `starts`.

        Returns logits [batch, m, n_vocab] at the places `wanted` of each.
        """
        return self._decode(first, np.array(tokens, np.int64), starts, wanted)

    def _decode(
        self, first: int, entering: np.ndarray, starts: Sequence[int], wanted: Sequence[int]
    ) -> np.ndarray:
        """Run what enters the graph [batch, n, …], as `_run` does."""
        if self.lm.cancel.is_set():
            raise Interrupted()
        n, sequences = entering.shape[1], slice(first, first + len(entering))
        ends = np.array(starts, np.int64) + n
        # the graph would write behind its buffers
        if ends.max() > min(self.cells, self.lm.n_ctx_train):
            raise PromptTooLongError(
                f"The context of {self.cells} tokens is full.",
                "Lower `caption_tokens` or `answer_tokens`.",
            )
        inputs = {
            **self._inputs(sequences, entering, ends),
            "last": (ends - 1).astype(np.int32),
            "total": np.array([ends.max()], np.int32),
            "wanted": np.array(wanted, np.int64),
        }
        states = {name: cells[sequences] for name, cells in self._keys.items()}
        logits = self.lm.decoder.run_in_place(inputs, states, "logits")
        expected = (len(entering), len(wanted), self.lm.n_vocab)
        if logits.shape != expected:
            raise ModelError(
                f"{self.lm.decoder.path}: gave logits {list(logits.shape)} in place of "
                f"{list(expected)}.",
                COPY_AGAIN,
            )
        return logits

    def _inputs(
        self, sequences: slice, entering: np.ndarray, ends: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the inputs that this kind of decoder has, for tokens that end before `ends`."""
        if not self._n_rows[sequences].all():
            raise UsageError("This model writes about a picture alone.", "Show one.")
        n = entering.shape[1]
        return {
            "ids": entering,
            "positions": np.ascontiguousarray(ends[:, None] - n + np.arange(n)),
            "n_rows": self._n_rows[sequences],
            **{name: rows[sequences] for name, rows in self._rows.items()},
        }

    # ---- forgetting

    def keep(self, seq: int, length: int, rows: int = 0) -> bool:
        """Forget `seq` from position `length` on, and its visual tokens from number `rows` on.

        Cells behind a sequence's end are never read, so nothing is moved.
        """
        self._n_rows[seq] = min(rows, int(self._n_rows[seq]))
        return True

    def clear(self) -> None:
        """Forget every sequence."""
        self._n_rows[:] = 0

    def state(self, seq: int, *, limit: int) -> None:
        """Return None: no state is kept."""

    def restore(self, seq: int, state: bytes) -> bool:
        """Return False, with `seq` empty: no state is kept."""
        return not self.keep(seq, 0)

    def close(self) -> None:
        """Free the keys and values."""
        self._keys, self._rows = {}, {}


def _neighbours(tokens: Sequence[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield runs of (seq, token, position) whose sequences are neighbours, in order."""
    run: list[tuple[int, int, int]] = []
    for each in tokens:
        if run and each[0] != run[-1][0] + 1:
            yield run
            run = []
        run.append(each)
    if run:
        yield run


# ---- names and shapes of the graphs


def _names(shape: Decoder) -> list[str]:
    return [f"{kind}_{i}" for i in range(shape.n_layers) for kind in ("key", "value")]


Interface = dict[str, tuple[str, list[int | None]]]


def _heads(shape: Decoder, lead: str = "") -> Interface:
    """Return keys and values of every layer, [batch, n_heads, any length, head_dim]."""
    lengths: list[int | None] = [shape.n_heads, None, shape.head_dim]
    return {f"{lead}{name}": (FLOATS, lengths) for name in _names(shape)}


def common_interface(shape: Decoder, n_vocab: int) -> tuple[Interface, Interface]:
    """Return inputs and outputs that the graph of every decoder has."""
    inputs: Interface = {"last": (_INTS, []), "total": (_INTS, []), "wanted": (_LONGS, [])}
    outputs: Interface = {"logits": (FLOATS, [None, n_vocab])}
    return inputs | _heads(shape), outputs | _heads(shape, "new_")


def _cross_interface(shape: Decoder, row_width: int) -> tuple[Interface, Interface]:
    return {"rows": (FLOATS, [None, row_width])}, _heads(shape, "cross_")
