"""Try a language model once in a child process: what a reasoner does, in small.

The child is `main`, which `edgeprism.bundle.trial` starts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.bundle.gguf_parts import model_bytes, model_digest
from edgeprism.bundle.trial import (
    SMALL_MODEL_BYTES,
    Trial,
    answer_trial,
    comes_with_package,
    remember_trial,
    try_once,
)
from edgeprism.files.digests import file_digest
from edgeprism.machine.cancel import Cancel

if TYPE_CHECKING:
    from edgeprism.language.engine import LanguageEngine
    from edgeprism.language.request import Part

# more tokens than go through a model at once; a large model would take long for them
_LONG_PROMPT, _SHORT_PROMPT = 700, 24
_STEPS = 4
_GRAMMAR = 'root ::= [a-zA-Z ]+ | "é"'
# letters of several alphabets, signs of up to four bytes, white space, and what may be a marker
_TEXT = (
    "Describe the picture.\n\n\t 0123456789 "
    + "".join(map(chr, range(0x20, 0x7F)))
    + "äß±€ Ωλ жщ שלום سلام 图片 かな 한국 😀👩‍🚀\u00a0\u200b\ufeff"
    + "<|im_start|><|im_end|><s></s>[INST]<bos><unk>"
)


def try_reasoner(
    path: Path, adapter: Path | None = None, *, gpu_layers: int, cancel: Cancel
) -> None:
    """Run the language model at `path` in a child process, unless it went well before.

    An adapter that comes with the package is trusted as the package is, and not tried.
    Raises ModelError if the model cannot be run, or Interrupted if `cancel` is set meanwhile.
    """
    if adapter is not None and comes_with_package(adapter):
        adapter = None
    if adapter is not None or not comes_with_package(path):
        try_once(_trial(path, gpu_layers, adapter), cancel)


def remember_reasoner(path: Path) -> None:
    """Note that the language model at `path` runs well: this project has run the same file."""
    remember_trial(_trial(path, 0), None)


def _trial(path: Path, gpu_layers: int, adapter: Path | None = None) -> Trial:
    own = [] if adapter is None else [file_digest(adapter)]
    return Trial(
        subject=str(path) if adapter is None else f"{path}+{adapter}",
        module="edgeprism.language.trial",
        request={"lm": str(path), "gpu_layers": gpu_layers, "adapter": adapter and str(adapter)},
        identity=[model_digest(path), gpu_layers, *own],
        n_bytes=model_bytes(path),
        on_gpu=gpu_layers > 0,
    )


def main() -> None:
    """Run the trial in the child process."""
    answer_trial(_run)


def _run(request: dict[str, Any]) -> None:
    from edgeprism.errors import TemplateError
    from edgeprism.language.chat import Message
    from edgeprism.language.model import LanguageModel

    path = Path(request["lm"])
    adapter = Path(request["adapter"]) if request["adapter"] else None
    lm = LanguageModel(
        path, adapter=adapter, gpu_layers=request["gpu_layers"], threads=request["threads"]
    )
    with contextlib.suppress(TemplateError):  # the reasoner's caller may name another format
        lm.vocabulary.render_chat([Message("system", _TEXT), Message("user", _TEXT)])
    long = model_bytes(path) < SMALL_MODEL_BYTES
    exercise(lm, [text_to_ids(lm, _LONG_PROMPT if long else _SHORT_PROMPT)])


def text_to_ids(lm: LanguageEngine, most: int) -> list[int]:
    """Tokenise texts of many kinds; return up to `most` ids, at least one."""
    ids = lm.vocabulary.bos()
    for special in (False, True):
        ids += lm.vocabulary.tokenize(_TEXT, parse_special=special)
    ids = (ids or [0]) * (1 + most // max(1, len(ids)))
    return ids[: max(1, min(most, lm.n_ctx_train - 2 * _STEPS))]


def exercise(
    lm: LanguageEngine,
    prompt: Sequence[Part],
    *,
    kv_type: str = "f16",
    flash_attention: bool | None = None,
) -> None:
    """Answer `prompt` as captioners and reasoners do: alone, then two at a time by a grammar."""
    from edgeprism.language.generator import Generator
    from edgeprism.language.request import Request, Sampling

    vocabulary = lm.vocabulary
    for token in range(0, vocabulary.size, max(1, vocabulary.size // 1000)):
        vocabulary.token_to_bytes(token)
        vocabulary.is_end(token)
    alone = Sampling(max_tokens=_STEPS, stop_at_end=False)
    by_grammar = Sampling(max_tokens=_STEPS, temperature=0.7, grammar=_GRAMMAR)
    for parallel, sampling in ((1, alone), (2, by_grammar)):
        generator = Generator(
            lm, parallel=parallel, kv_type=kv_type, flash_attention=flash_attention
        )
        for _ in generator.run([Request(tuple(prompt), sampling)] * parallel):
            pass
        generator.close()
