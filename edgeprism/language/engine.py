"""What every engine of a language model gives: its vocabulary, and contexts to run it in.

`model.LanguageModel` and `context.Context` do this by llama.cpp; the generator, the sampler and the
prompts know no engine but by these two protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from edgeprism.language.vocabulary import Vocabulary

# In parts of so many tokens a text is read several times faster than one by one.
_FEW_OUTPUTS = 8


def reserved_outputs(sequences: int) -> int:
    """Return how many tokens' logits a context of so many sequences has room for at once."""
    return max(sequences, _FEW_OUTPUTS)


class LanguageEngine(Protocol):
    """A language model in memory."""

    path: Path
    vocabulary: Vocabulary
    n_embd: int
    n_ctx_train: int  # the most tokens of a prompt and its answer
    n_embd_row: int  # the width of visual tokens
    row_axes: int  # positions per visual token: 1, or 4 with M-RoPE
    rows_apart: bool  # visual tokens stand beside the sequence and take none of its positions

    def embed(self, ids: Sequence[int]) -> np.ndarray | None:
        """Return the rows float32 [n, n_embd] as which `ids` enter the model.

        None if they are not known, or if the model treats a text's rows otherwise than a picture's.
        """

    def kv_bytes_per_token(self, kv_type: str = "f16") -> float:
        """Return the bytes of the KV cache for one position of one sequence."""

    def context(
        self,
        n_ctx: int,
        *,
        n_seq: int = 1,
        kv_type: str = "f16",
        flash_attention: bool | None = None,
        all_logits: bool = False,
        n_batch: int = 0,
    ) -> LanguageContext:
        """Return a context of `n_ctx` cells for `n_seq` sequences, n_ctx / n_seq for each.

        Parameters:
            flash_attention: None leaves the choice to the engine.
            all_logits: reserve memory for the logits of every prompt row.
            n_batch: the least number of rows that go through the model at once; it must hold the
                longest run that is not causal.
        """

    def close(self) -> None:
        """Free the weights; close all contexts first."""


class LanguageContext(Protocol):
    """Sequences and what the model has read of each; the caller chooses the positions."""

    n_batch: int  # the most rows that go through the model at once

    @property
    def native(self) -> object | None:
        """llama.cpp's context whose logits its samplers read, None if `logits` has them."""

    @property
    def form(self) -> str:
        """What decides the bytes of `state`, besides the weights and the tokens."""

    def prefill_tokens(
        self, seq: int, tokens: Sequence[int], start: int, *, logits: bool = True
    ) -> None:
        """Put `tokens` at positions `start`… of `seq`; `logits` keeps the last token's logits."""

    def prefill_rows(
        self,
        seq: int,
        rows: np.ndarray,
        start: int,
        *,
        causal: bool = True,
        positions: np.ndarray | None = None,
    ) -> None:
        """Put visual tokens, float32 [n, n_embd_row], into `seq`.

        They stand at positions `start`…, or at `positions`, which count from `start`. Raises
        ModelError for rows that do not fit the model.
        """

    def step(self, tokens: Sequence[tuple[int, int, int]]) -> None:
        """Decode one (seq, token, position) for each of several sequences; keep all logits."""

    def logits(self, index: int = -1) -> np.ndarray:
        """Return logits of the last call, float32 [n_vocab], at `index` of its batch."""

    def logits_of_tokens(
        self, tokens: Sequence[int], *, seq: int = 0, start: int = 0
    ) -> np.ndarray:
        """Return logits float32 [n, n_vocab] by teacher forcing: row i is after tokens[: i + 1]."""

    def keep(self, seq: int, length: int, rows: int = 0) -> bool:
        """Forget `seq` from position `length` on; return False if all of it had to be forgotten.

        Parameters:
            rows: of visual tokens that stand apart, which have no position, the first so many stay.
        """

    def clear(self) -> None:
        """Forget every sequence."""

    def state(self, seq: int, *, limit: int) -> bytes | None:
        """Return what the model has read of `seq`; None if that exceeds `limit` or is not kept."""

    def restore(self, seq: int, state: bytes) -> bool:
        """Replace `seq` by a `state` of the same form; return False, with `seq` empty, if not."""

    def close(self) -> None:
        """Free the context."""
