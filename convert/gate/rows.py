"""The gate of an adapter that a picture's rows alone go through.

A gate's text stands in for a prompt: the first half of its tokens enters as their embeddings, as a
picture's rows would, and the second half as tokens. The scores of the second half depend on what
each half went through.
"""

from __future__ import annotations

import numpy as np

from edgeprism.convert.language.model import LmParts, Tick
from edgeprism.language.model import LanguageModel


def logits_after_rows(
    model: LanguageModel, lm: LmParts, texts: list[list[int]], n_first: int, tick: Tick
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the logits [tokens after the rows, n_vocab] of each text: measured, and the reference.

    Parameters:
        texts: token ids, the first `n_first` of which are no text of their own.
        tick: is called after each layer of the reference.
    """
    adapter = lm.row_adapter
    assert adapter is not None
    runs = [range(n_first, n_first + (len(text) - n_first) // 2) for text in texts]
    reference = adapter.reference_logits(texts, runs, tick)
    # mapped into memory, so that only the rows of these tokens are read
    table = lm.checkpoint.read(adapter.embedding)
    measured = []
    context = model.context(
        n_ctx=max(map(len, texts)), kv_type="f32", flash_attention=False, all_logits=True
    )
    try:
        for text, run in zip(texts, runs, strict=True):
            context.clear()
            if run.start:
                context.prefill_tokens(0, text[: run.start], 0, logits=False)
            context.prefill_rows(0, table[text[run.start : run.stop]].float().numpy(), run.start)
            measured.append(context.logits_of_tokens(text[run.stop :], start=run.stop))
    finally:
        context.close()
    return measured, [rows[run.stop :] for rows, run in zip(reference, runs, strict=True)]
