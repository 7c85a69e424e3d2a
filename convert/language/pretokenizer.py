"""Find llama.cpp's name (`pre` type) of the way in which a tokenizer.json pre-tokenizes text.

llama.cpp's converter encodes one fixed text and looks up the hash of the ids in a list, which
recognises only vocabularies exactly as published. This module first compares the tokenizer's own
pre-tokenization steps with the steps of each name, so it also recognises rebuilt and extended
vocabularies. Then it tries the list. It refuses everything else: a model with the wrong
pre-tokenizer runs and writes nonsense.

Sources: llama.cpp's `conversion/base.py` (text and hashes) and `src/llama-vocab.cpp` (what each
name does).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from edgeprism.errors import CheckpointError

_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫\ufe0f (multiple "
    "emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 "
    "3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= нещо на Български "
    "''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like "
    "some tea? We'Ve a'lL"
)
_HASHES = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "fcace8b9cac38ce847670c970cd5892031a753a1ef381abd1d9af00f713da085": "phi-2",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3": "stablelm2",
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",
}

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"\p{N}" + _REST
# (steps, ignore_merges: a whole word that is a piece is used without merging) → name
_STRUCTURES = {
    (((_LLAMA3, "Isolated"), "bytes"), True): "llama-bpe",
    (((_LLAMA3, "Isolated"), "bytes"), False): "smaug-bpe",
    (((_QWEN2, "Isolated"), "bytes"), False): "qwen2",
    (("digits", "words and bytes"), False): "smollm",
    (("words and bytes",), False): "gpt-2",
}
# llama.cpp does not normalise text. Qwen's NFC is accepted: it leaves usual typed text unchanged.
_NORMALIZERS = (None, "NFC")


def pretokenizer_name(path: Path, data: dict[str, Any]) -> str:
    """Return the `pre` type of the tokenizer.json at `path`, whose content is `data`.

    Raises CheckpointError, which names the tokenizer's steps, if llama.cpp has no equivalent.
    """
    steps = tuple(_steps(data.get("pre_tokenizer")))
    normalizer = data.get("normalizer")
    normalizer = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    whole_words = bool(data["model"].get("ignore_merges", False))
    name = _STRUCTURES.get((steps, whole_words)) if normalizer in _NORMALIZERS else None
    name = name or _HASHES.get(_hash(path))
    if name is None:
        raise CheckpointError(
            f"{path}: llama.cpp has no pre-tokenizer like this one: normalizer "
            f"{normalizer}, steps {steps}, ignore_merges {whole_words}.",
            f"Known: {', '.join(sorted({*_HASHES.values(), *_STRUCTURES.values()}))}. Use the "
            "tokenizer that was published with the language model.",
        )
    return name


def _hash(path: Path) -> str:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_truncation()  # a setting of a training
        tokenizer.no_padding()
        ids = tokenizer.encode(_TEXT).ids
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} cannot be read: {error}.", "Download it again.") from error
    return hashlib.sha256(str(ids).encode()).hexdigest()


def _steps(step: Any) -> list[Any]:
    """Reduce a pre-tokenizer to the settings that decide where it splits text."""
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence":
        parts = step.get("pretokenizers")
        return [short for part in parts for short in _steps(part)] if type(parts) is list else []
    if kind == "Split" and not step.get("invert") and isinstance(step.get("pattern"), dict):
        return [(str(step["pattern"].get("Regex")), str(step.get("behavior")))]
    if kind == "Digits" and step.get("individual_digits"):
        return ["digits"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return ["words and bytes" if step.get("use_regex", True) else "bytes"]
    return [str(step)]
