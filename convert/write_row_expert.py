"""The second language model that a picture's rows go through: written, and measured with the first.

The gate cannot judge it alone, for it writes no text. So a prompt's rows go through it, as at run
time, and the logits of the text after them tell whether keys and values are right. The embeddings
of other texts stand for a picture's rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeprism.convert.gate import judge
from edgeprism.convert.language.model import LmParts, RowExpert, RowPrompt
from edgeprism.convert.language.write_gguf import write_gguf
from edgeprism.convert.parts import FamilyParts
from edgeprism.language.engine import LanguageContext
from edgeprism.language.open_language import open_language
from edgeprism.machine.facts import available_cores
from edgeprism.progress import Progress

_MOST_ROWS = 256  # of a prompt; more would only take longer


def write_row_expert(
    lm: LmParts, expert: RowExpert, path: Path, quant: str, name: str, progress: Progress
) -> None:
    """Write the expert's GGUF with the quantization of the language model."""
    own = dataclasses.replace(
        lm,
        config=expert.config,
        vocabulary=expert.vocabulary,
        tensors=expert.tensors,
        row_expert=None,
    )
    write_gguf(path, quant, own, f"{name}, rows of pictures", progress)


def measure_rows(parts: FamilyParts, lm: LmParts, expert: RowExpert, lm_path: Path, quant: str,
                 verdict: judge.Verdict, progress: Progress) -> None:  # fmt: skip
    """Compare texts that follow rows with the reference; `lm_path` has the expert beside it."""
    prompts = _prompts(lm, parts.gate_texts)
    progress.stage("Computing the reference of a picture's rows", expert.config.n_layers)
    reference = expert.reference(prompts, progress.advance)
    progress.stage(f"Measuring a picture's rows at {quant}", len(prompts))
    written = dataclasses.replace(parts.manifest.lm, file=lm_path.name)
    manifest = dataclasses.replace(parts.manifest, lm=written)
    model = open_language(manifest, lm_path.with_name, gpu_layers=0, threads=available_cores())
    logits = []
    try:
        cells = max(len(p.before) + len(p.rows) + len(p.after) for p in prompts)
        context = model.context(cells, kv_type="f32", flash_attention=False, all_logits=True)
        for prompt, (rows, _) in zip(prompts, reference, strict=True):
            logits.append(_logits_after(context, prompt, rows))
            progress.advance()
        context.close()
    finally:
        model.close()
    figures = judge.judge_lm(quant, logits, [of_text for _, of_text in reference])
    verdict.add(f"rows {quant}", *figures)


def _logits_after(context: LanguageContext, prompt: RowPrompt, rows: np.ndarray) -> np.ndarray:
    """Return the logits of the text after rows, of which all but the ends share a position."""
    context.clear()
    context.prefill_tokens(0, prompt.before, 0, logits=False)
    start = len(prompt.before)
    positions = np.array([[0, *[1] * (len(rows) - 2), 2]], np.int32)
    context.prefill_rows(0, rows, start, positions=positions)
    return context.logits_of_tokens(prompt.after, start=start + 3)


def _prompts(lm: LmParts, texts: Sequence[str]) -> list[RowPrompt]:
    """Return two prompts in which other texts stand for a picture."""
    half = max(1, lm.config.context_length // 2 - 1)
    ids = [lm.reference_ids(text) for text in texts]
    whole = [token for text in ids for token in text]
    first = [] if lm.vocabulary.bos is None else [lm.vocabulary.bos]
    rows = [whole[:_MOST_ROWS], whole[::-1][:_MOST_ROWS]]
    after = [max(ids, key=len), min(ids, key=len)]
    return [
        RowPrompt(first, shown[:half], text[:half]) for shown, text in zip(rows, after, strict=True)
    ]
