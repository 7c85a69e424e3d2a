"""Several captioners' descriptions of a picture → one, by the reasoner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from edgeprism.reason.base import BaseReasoner, captions_by_picture
from edgeprism.reason.prompt import merge_messages
from edgeprism.records import Caption

MERGE_TOKENS = 320


def merge_captions(
    reasoner: BaseReasoner, captions: Sequence[Caption]
) -> tuple[tuple[Caption, ...], tuple[str, ...]]:
    """A caption a picture, and notes on it; what was merged stands in each caption's notes.

    Where one of them cannot be had, all captions stay as they are, and the note says why.
    """
    pictures = captions_by_picture(captions)
    if all(len(by_captioner) < 2 for by_captioner in pictures):
        return tuple(captions), ()
    merged = []
    # captioner after captioner: the first of them described every picture
    for first, by_captioner in zip(captions, pictures, strict=False):
        start = time.perf_counter()
        messages = merge_messages(by_captioner)
        said = reasoner.complete(messages, max_tokens=MERGE_TOKENS)
        if not said.text or said.finish_reason != "stop":
            why = "it did not come to an end" if said.text else "it was empty"
            return tuple(captions), (f"the captions stand side by side: of merging them, {why}",)
        spent = (time.perf_counter() - start) * 1000
        notes = [f"merged from {name}: {text}" for name, text in by_captioner.items()]
        merged.append(
            replace(
                first,
                text=said.text,
                finish_reason=said.finish_reason,
                tokens=said.tokens,
                timings=replace(said.timings, total=spent),
                model=reasoner.model,
                instruction=messages[-1].content,
                notes=(*first.notes, *notes),
            )
        )
    names = " and ".join(pictures[0])
    return tuple(merged), (f"the captions of {names} were merged by {reasoner.name}",)
