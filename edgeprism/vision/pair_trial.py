"""Try a language model and its mmproj file in a child process.

libmtmd builds its graph from the mmproj file, and ggml ends the process if shapes do not fit. So a
child first loads the pair and encodes one small picture. If the child dies, that becomes an error;
if not, it reports facts about the pair, which need not be guessed then.

The child is `main`: it reads one JSON object from standard input and answers with one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprism.errors import EdgePrismError, ModelError, TemplateError
from edgeprism.machine import child

TYPICAL_SIZE = (1024, 768)
_SMALL = (64, 48)
_MARKER = "\x1etrial:"
_QUIET = {"GGML_NO_BACKTRACE": "1"}
_LAST_CHARS = 400  # of a dead child's standard error, for the message


@dataclass(frozen=True)
class PairFacts:
    """Facts about a pair that a trial run showed."""

    n_embd_row: int  # width of a visual token
    multi_axis: bool
    causal: bool
    typical_tokens: int  # rows of a picture of TYPICAL_SIZE
    tiles_together: bool
    add_bos: bool
    before_image: str
    after_instruction: str


def try_pair(lm: Path, mmproj: Path, chat_format: str | None) -> PairFacts:
    """Run a pair in a child process and return the facts about it.

    Raises ModelError if the pair does not run, TemplateError if its chat template cannot be used.
    """
    request = json.dumps({"lm": str(lm), "mmproj": str(mmproj), "chat_format": chat_format})
    command = child.edgeprism_command("edgeprism.vision.pair_trial")
    ended = child.run(command, request, environment=_QUIET)
    _, _, line = ended.output.rpartition(_MARKER)
    if ended.code == 0 and line:
        answer = json.loads(line)
        if "error" not in answer:
            return PairFacts(**answer)
        kind = TemplateError if answer["template"] else ModelError
        raise kind(answer["error"], answer["hint"])
    what = "ends llama.cpp's process" if ended.by_signal else "cannot be tried"
    words = ended.last_words(_LAST_CHARS) or "no reason given"
    raise ModelError(
        f"{mmproj}: with {lm} it {what} ({ended.how}): {words}.",
        "Use the mmproj file that was made for this language model.",
    )


def _run_pair(lm_path: Path, mmproj: Path, chat_format: str | None) -> PairFacts:
    import numpy as np

    from edgeprism.language.chat import Message, chat_to_segments
    from edgeprism.language.model import LanguageModel
    from edgeprism.machine.facts import available_cores
    from edgeprism.segments import ImageRows, Text
    from edgeprism.vision.mtmd import MtmdEncoder

    lm = LanguageModel(lm_path, threads=available_cores())
    mark = "\x02"
    pieces = chat_to_segments(
        lambda messages: lm.render_chat(messages, chat_format), [Message("user", mark)]
    )
    texts = [piece.text if isinstance(piece, Text) else "" for piece in pieces]
    if texts.count(mark) != 1:
        raise TemplateError(f"{lm_path}: its chat template does not hold one question.")
    question = texts.index(mark)
    encoder = MtmdEncoder(mmproj, lm, threads=available_cores())
    runs = [s for s in encoder.layout(TYPICAL_SIZE) if isinstance(s, ImageRows)]
    together = encoder.together(TYPICAL_SIZE)
    pixels = np.random.default_rng(0).integers(0, 256, (1, *_SMALL[::-1], 3), dtype=np.uint8)
    encoder.encode_picture(pixels)
    return PairFacts(
        n_embd_row=lm.n_embd_row,
        multi_axis=encoder.multi_axis,
        causal=encoder.causal,
        typical_tokens=runs[-1].stop,
        tiles_together=together > 1,
        add_bos=lm.adds_bos(),
        before_image="".join(texts[:question]),
        after_instruction="".join(texts[question + 1 :]),
    )


def main() -> None:
    """Run the trial in the child process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, even in native code
    request = json.loads(sys.stdin.read())
    lm, mmproj = Path(request["lm"]), Path(request["mmproj"])
    answer: dict[str, Any]
    try:
        answer = asdict(_run_pair(lm, mmproj, request["chat_format"]))
    except EdgePrismError as error:
        answer = {
            "error": error.message,
            "hint": error.hint,
            "template": isinstance(error, TemplateError),
        }
    sys.stdout.write(_MARKER + json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # without freeing the engines, which could still fail
