"""Merges several captioners' descriptions of a picture into one, with a reasoner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from edgeprism.errors import NoAnswerError
from edgeprism.reason.base import BaseReasoner, captions_by_picture
from edgeprism.reason.prompt import merge_messages
from edgeprism.records import Caption

MERGE_TOKENS = 320


def merge_captions(
    reasoner: BaseReasoner, captions: Sequence[Caption]
) -> tuple[tuple[Caption, ...], tuple[str, ...]]:
    """Merge the captions of each picture into one; return them with notes for the answer.

    Each merged caption keeps the texts it was merged from in its notes. If the reasoner cannot
    merge one of them, all captions stay as they are, and the note says why.
    """
    pictures = captions_by_picture(captions)
    if all(len(by_captioner) < 2 for by_captioner in pictures):
        return tuple(captions), ()
    merged = []
    # The captions are ordered by captioner, so zip pairs each picture with its first caption.
    for first, by_captioner in zip(captions, pictures, strict=False):
        start = time.perf_counter()
        messages = merge_messages(by_captioner)
        try:
            reply = reasoner.complete(messages, max_tokens=MERGE_TOKENS)
        except NoAnswerError as error:
            return tuple(captions), (f"the captions were not merged: {error.message}",)
        if not reply.text or reply.finish_reason != "stop":
            faults = {"length": f"exceeded {MERGE_TOKENS} tokens", "repetition": "repeats itself"}
            fault = faults.get(reply.finish_reason, "is none") if reply.text else "was empty"
            return tuple(captions), (f"the captions were not merged: the merged text {fault}",)
        spent = (time.perf_counter() - start) * 1000
        notes = [f"merged from {name}: {text}" for name, text in by_captioner.items()]
        merged.append(
            replace(
                first,
                text=reply.text,
                finish_reason=reply.finish_reason,
                tokens=reply.tokens,
                timings=replace(reply.timings, total=spent),
                model=reasoner.model,
                instruction=messages[-1].content,
                notes=(*first.notes, *notes),
            )
        )
    names = " and ".join(pictures[0])
    return tuple(merged), (f"the captions of {names} were merged by {reasoner.name}",)
