"""Logits → token, by llama.cpp's samplers."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from edgeprism.errors import ModelError
from edgeprism.language.engine import LanguageContext
from edgeprism.language.llama import import_llama, last_words
from edgeprism.language.vocabulary import Vocabulary

_LIKELIEST = (1, 32, 512)  # numbers of likeliest tokens to check with a grammar, before all


class Sampler:
    """llama.cpp's sampler chain: greedy at temperature 0, else top-p then a seeded draw.

    With a grammar (from `edgeprism.reason.shape`) it draws only tokens that the grammar allows.
    `repetition_penalty` makes each token less likely that is among the `max_tokens` drawn last; it
    does not count the prompt, as transformers' does not where a picture's rows are in the prompt.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        top_p: float = 0.95,
        seed: int = 0,
        *,
        grammar: str = "",
        vocabulary: Vocabulary | None = None,
        repetition_penalty: float = 1.0,
        max_tokens: int = 0,
    ) -> None:
        self._llama = llama = import_llama()
        greedy = temperature <= 0
        # a penalty may make another token than the likeliest come first
        self._takes_likeliest = greedy and repetition_penalty == 1
        self._grammar = (
            _grammar_sampler(llama, grammar, vocabulary) if grammar and vocabulary else None
        )
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if greedy:
            links = [llama.llama_sampler_init_greedy()]
        else:
            links = [
                llama.llama_sampler_init_top_p(top_p, 1),
                llama.llama_sampler_init_temp(temperature),
                # never 0xFFFFFFFF, which tells llama.cpp to take a seed from the clock
                llama.llama_sampler_init_dist(seed % 0xFFFFFFFF),
            ]
        if repetition_penalty != 1 and vocabulary:
            penalties = (vocabulary.size, max_tokens, repetition_penalty, 0.0, 0.0)
            links.insert(0, llama.llama_sampler_init_penalties(*penalties))
        for link in links:
            llama.llama_sampler_chain_add(self._chain, link)

    def sample(self, context: LanguageContext, index: int = -1) -> int:
        """Draw a token from the logits at `index` of the last batch.

        Raises ModelError if the vocabulary has no token that the grammar allows.
        """
        if self._grammar is None and context.native is not None:
            return int(self._llama.llama_sampler_sample(self._chain, context.native, index))
        logits = context.logits(index)
        # checking all tokens takes long, and usually the grammar allows one of the likeliest
        for count in _LIKELIEST if self._takes_likeliest else ():
            if count < len(logits):
                # include all tokens that are as likely as the last of these: which of them a
                # partition keeps depends on the processor
                ids = np.flatnonzero(logits >= np.partition(logits, -count)[-count])
                if (token := self._draw(ids, logits[ids])) is not None:
                    break
        else:
            token = self._draw(np.arange(len(logits)), logits)
        if token is None:
            raise ModelError(
                "The answer cannot go on: the model has no token for what must follow.",
                "Choose other words for `choices` or `schema`, or another reasoner.",
            )
        if self._grammar is not None:
            # only a token that the grammar allows: at any other llama.cpp ends the process
            self._llama.llama_sampler_accept(self._grammar, token)
        self._llama.llama_sampler_accept(self._chain, token)
        return token

    def _draw(self, ids: np.ndarray, logits: np.ndarray) -> int | None:
        """Draw one of `ids`, with a grammar one that it allows; None if it allows none."""
        llama = self._llama
        data = np.zeros(len(ids), dtype=[("id", "i4"), ("logit", "f4"), ("p", "f4")])
        data["id"], data["logit"] = ids, logits
        items = ctypes.cast(data.ctypes.data, llama.llama_token_data_p)
        array = llama.llama_token_data_array(items, len(data), -1, False)
        if self._grammar is not None:
            llama.llama_sampler_apply(self._grammar, ctypes.byref(array))
        if not np.isfinite(data["logit"]).any():
            return None
        llama.llama_sampler_apply(self._chain, ctypes.byref(array))
        chosen = data[array.selected]
        return int(chosen["id"]) if np.isfinite(chosen["logit"]) else None

    def close(self) -> None:
        """Free llama.cpp's sampler."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                self._llama.llama_sampler_free(sampler)
        self._chain = self._grammar = None


def _grammar_sampler(llama: Any, grammar: str, vocabulary: Vocabulary) -> Any:
    # llama.cpp takes an empty grammar, or one cut off at a NUL, without an error: it binds nothing
    readable = bool(grammar.strip()) and "\0" not in grammar
    sampler = readable and llama.llama_sampler_init_grammar(
        vocabulary.native, grammar.encode(), b"root"
    )
    if not sampler:
        raise ModelError(f"llama.cpp cannot read a grammar: {last_words()}.", "Simplify `schema`.")
    return sampler
