"""Try a language model and its mmproj file in a child process, and learn what a manifest needs.

libmtmd builds its graph from the mmproj file, and ggml ends the process if shapes do not fit. If
the pair runs, the child reports facts about it, which need not be guessed then.

The child is `main`, which `edgeprism.bundle.trial` starts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeprism.bundle.gguf_parts import model_bytes, model_digest
from edgeprism.bundle.trial import Trial, answer_trial, try_once
from edgeprism.errors import ManifestError, TemplateError
from edgeprism.files.digests import file_digest
from edgeprism.files.strict_json import record_from_data
from edgeprism.vision.trial import Settings, prompt_of_mmproj

TYPICAL_SIZE = (1024, 768)


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
    """Run a pair in a child process and return the facts about it, or those of an earlier trial.

    Raises ModelError if the pair does not run, TemplateError if its chat template cannot be used.
    """
    trial = Trial(
        subject=f"{mmproj} with {lm}",
        module="edgeprism.vision.pair_trial",
        request={"lm": str(lm), "mmproj": str(mmproj), "chat_format": chat_format},
        identity=[model_digest(lm), file_digest(mmproj), chat_format],
        n_bytes=model_bytes(lm) + model_bytes(mmproj),
    )
    try:
        return record_from_data(PairFacts, try_once(trial), "tried.json")
    except ManifestError:  # the remembered facts were changed
        return record_from_data(PairFacts, try_once(trial, again=True), "the trial")


# ---- inside the child


def main() -> None:
    """Run the trial in the child process."""
    answer_trial(_run_pair)


def _run_pair(request: dict[str, Any]) -> dict[str, Any]:
    from edgeprism.language.chat import Message, chat_to_segments
    from edgeprism.language.model import LanguageModel
    from edgeprism.language.trial import exercise
    from edgeprism.segments import ImageRows, Text
    from edgeprism.vision.mtmd import MtmdEncoder

    lm_path, mmproj = Path(request["lm"]), Path(request["mmproj"])
    threads = request["threads"]
    lm = LanguageModel(lm_path, threads=threads)
    mark = "\x02"
    try:
        pieces = chat_to_segments(
            lambda messages: lm.vocabulary.render_chat(messages, request["chat_format"]),
            [Message("user", mark)],
        )
    except TemplateError as error:
        # a pair's keyword; that of a reasoner, which may be named beside it, is `chat_format`
        hint = error.hint.replace("`chat_format`", "`lm_chat_format`")
        raise TemplateError(error.summary, hint) from error
    texts = [piece.text if isinstance(piece, Text) else "" for piece in pieces]
    if texts.count(mark) != 1:
        raise TemplateError(f"{lm_path}: its chat template does not hold one question.")
    question = texts.index(mark)
    encoder = MtmdEncoder(mmproj, lm, threads=threads)
    runs = [s for s in encoder.layout(TYPICAL_SIZE) if isinstance(s, ImageRows)]
    together = encoder.together(TYPICAL_SIZE)
    facts = PairFacts(
        n_embd_row=lm.n_embd_row,
        multi_axis=encoder.multi_axis,
        causal=encoder.causal,
        typical_tokens=runs[-1].stop,
        tiles_together=together > 1,
        add_bos=lm.vocabulary.adds_bos(),
        before_image="".join(texts[:question]),
        after_instruction="".join(texts[question + 1 :]),
    )
    encoder.close()
    exercise(lm, prompt_of_mmproj(mmproj, lm, Settings()))
    return asdict(facts)
