"""Prompts of a language model with an encoder: gathered, encoded at once, then answered.

Such a model (T5) reads a prompt whole, in both directions, before it writes. llama.cpp encodes a
prompt in one call, of rows or of tokens, and keeps one encoding for each of its contexts. So the
rows of a prompt are gathered here, tokens among them as their embeddings, and each sequence has a
context of llama.cpp of its own. (One of several sequences would also end the process, unless they
shared their cells: `GGML_ASSERT(n_stream == 1)`.)

Positions count as in every context, from the beginning of the prompt and on through the answer. The
decoder counts its own: the token that begins every answer stands at its position 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from edgeprism.errors import COPY_AGAIN, ModelError, PromptTooLongError, UsageError
from edgeprism.language.context import Context, check_rows

if TYPE_CHECKING:
    from edgeprism.language.model import LanguageModel


def require_kv_type(kv_type: str) -> None:
    """Raise UsageError for a quantized cache: llama.cpp turns its values without a word.

    Relative positions leave no use for flash attention, which alone reads quantized values.
    """
    if kv_type == "q8_0":
        raise UsageError(
            "A language model with an encoder has no KV cache of type q8_0.",
            "Use kv_type='f16', or 'f32'.",
        )


@dataclass
class _Sequence:
    """A prompt so far, and the context of llama.cpp that has encoded it, or an earlier one."""

    decoder: Context
    rows: np.ndarray  # [n, n_embd]
    encoded: np.ndarray | None = field(default=None)  # what the decoder looks at


class EncoderContext:
    """Sequences whose prompts are encoded; meets `engine.LanguageContext`.

    A prompt ends with `prefill_tokens(…, logits=True)`. It is encoded anew unless the sequence's
    last prompt was the same.
    """

    def __init__(self, lm: LanguageModel, decoders: Sequence[Context], start_token: int) -> None:
        """Take one context of llama.cpp for each sequence, made for one; `close` frees them."""
        self._lm, self._start_token = lm, start_token
        nothing = np.empty((0, lm.n_embd), np.float32)
        self._sequences = [_Sequence(decoder, nothing) for decoder in decoders]
        self.n_batch = min(decoder.n_batch for decoder in decoders)
        self._stepped: list[Context] = []  # those with logits of the last call, in its order

    @property
    def native(self) -> None:
        """None: each sequence has a context of its own, so that `logits` has what they hold."""
        return None

    @property
    def form(self) -> str:
        """What decides the encoding, besides the weights and the prompt; no state is kept."""
        return f"encoder {self._sequences[0].decoder.form}"

    def prefill_tokens(
        self, seq: int, tokens: Sequence[int], start: int, *, logits: bool = True
    ) -> None:
        """Put `tokens` at positions `start`… of the prompt of `seq`; `logits` ends the prompt."""
        rows = self._lm.embed(tokens)
        if rows is None:
            raise ModelError(f"{self._lm.path}: its embeddings cannot be read.", COPY_AGAIN)
        self._gather(seq, rows, start)
        if logits:
            self._encode(self._sequences[seq])

    def prefill_rows(
        self,
        seq: int,
        rows: np.ndarray,
        start: int,
        *,
        causal: bool = True,
        positions: np.ndarray | None = None,
    ) -> None:
        """Put visual tokens, float32 [n, n_embd], into the prompt of `seq`.

        The encoder lets all rows look at each other, whatever `causal` says. Raises ModelError for
        rows of another width, or with positions of their own.
        """
        check_rows(self._lm, rows)
        if positions is not None and not np.array_equal(positions, np.arange(len(rows))[None]):
            raise ModelError(
                "The visual tokens have positions of their own, and an encoder counts its rows.",
                "Encode the picture with this captioner.",
            )
        self._gather(seq, rows, start)

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Decode one (seq, token, position) for each of several sequences, one after another."""
        self._stepped = []
        for seq, token, position in tokens:
            sequence = self._sequences[seq]
            sequence.decoder.step([(0, token, self._decoder_position(seq, position))])
            self._stepped.append(sequence.decoder)

    def logits(self, index: int = -1) -> np.ndarray:
        """Return logits of the last call, float32 [n_vocab], at `index` of its batch."""
        return self._stepped[index].logits()

    def logits_of_tokens(
        self, tokens: Sequence[int], *, seq: int = 0, start: int = 0
    ) -> np.ndarray:
        """Return logits float32 [n, n_vocab] of an answer by teacher forcing.

        The prompt of `seq` has ended, and row i is after its answer's tokens[: i + 1], which stand
        at positions `start`…, behind the prompt.
        """
        place = self._decoder_position(seq, start)
        return self._sequences[seq].decoder.logits_of_tokens(tokens, start=place)

    def keep(self, seq: int, length: int, rows: int = 0) -> bool:
        """Forget the prompt of `seq` from position `length` on; return False if it was all of it.

        Of an answer nothing is kept, because another prompt's answer begins anew.
        """
        sequence = self._sequences[seq]
        held = length <= len(sequence.rows)
        sequence.rows = sequence.rows[: length if held else 0]
        return held

    def clear(self) -> None:
        """Forget every sequence."""
        for sequence in self._sequences:
            sequence.rows, sequence.encoded = sequence.rows[:0], None
            sequence.decoder.clear()

    def state(self, seq: int, *, limit: int) -> bytes | None:
        """Return None: part of a prompt has no state before the prompt is whole."""
        return None

    def restore(self, seq: int, state: bytes) -> bool:
        """Return False, with `seq` empty: there are no states."""
        self.keep(seq, 0)
        return False

    def close(self) -> None:
        """Free every sequence's context."""
        for sequence in self._sequences:
            sequence.decoder.close()

    def _gather(self, seq: int, rows: np.ndarray, start: int) -> None:
        """Put `rows` at positions `start`… of a prompt, in the place of what stood there."""
        sequence = self._sequences[seq]
        if start > len(sequence.rows):
            raise ValueError(f"position {start} leaves a gap behind {len(sequence.rows)} rows")
        if start + len(rows) > self.n_batch:  # llama.cpp would end the process
            raise PromptTooLongError(
                f"The prompt has {start + len(rows)} tokens or more; the encoder takes at most "
                f"{self.n_batch} at once here.",
                "Shorten the instruction or question, or show fewer pictures at once.",
            )
        sequence.rows = np.concatenate([sequence.rows[:start], rows], dtype=np.float32)

    def _encode(self, sequence: _Sequence) -> None:
        """Have the prompt encoded, and the decoder read the token that begins an answer."""
        decoder, rows = sequence.decoder, sequence.rows
        decoder.clear()  # first: llama.cpp would compare the prompt's positions with the answer's
        if sequence.encoded is None or not np.array_equal(sequence.encoded, rows):
            sequence.encoded = None  # until it is whole
            decoder.encode(rows)
            sequence.encoded = rows
        decoder.prefill_tokens(0, [self._start_token], 0)
        self._stepped = [decoder]

    def _decoder_position(self, seq: int, position: int) -> int:
        """Return where the decoder has what stands at `position`, counted from the prompt's."""
        return position - len(self._sequences[seq].rows) + 1
