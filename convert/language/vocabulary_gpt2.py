"""GPT-2's older pair of files, vocab.json and merges.txt → the vocabulary of a GGUF file.

OPT publishes its tokenizer so, without a tokenizer.json. The files do not say how text is split
before merging; the class of the tokenizer does, which tokenizer_config.json names.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgeprism.convert.language.vocabulary import TokenRules, Vocabulary
from edgeprism.convert.language.vocabulary_bpe import vocabulary_of_pieces
from edgeprism.convert.read.checkpoint import MAX_TEXT_BYTES, read_json
from edgeprism.errors import CheckpointError
from edgeprism.files.regular import read_limited

FILE, MERGES = "vocab.json", "merges.txt"
_CONFIG = "tokenizer_config.json"
_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
_PRE = "gpt-2"  # llama.cpp's name of how these classes split text


def vocabulary(folder: Path, n_vocab: int, rules: TokenRules) -> Vocabulary:
    """Read both files, and the folder's other files about special tokens.

    Raises CheckpointError for files that are damaged, or of another class than GPT-2's.
    """
    config = read_json(folder / _CONFIG)
    kind = config.get("tokenizer_class")
    if kind not in _CLASSES or config.get("add_prefix_space"):
        raise CheckpointError(
            f"{folder / _CONFIG}: tokenizer_class is {kind!r} and add_prefix_space "
            f"{config.get('add_prefix_space')!r}; with {FILE} and {MERGES}, {_CLASSES[0]} without "
            "a space before each text is understood.",
            "Use the tokenizer that was published with the language model.",
        )
    merges = _merges(folder)
    model = {"type": "BPE", "vocab": read_json(folder / FILE), "merges": merges}
    data = {"model": model, "added_tokens": []}
    return dataclasses.replace(
        vocabulary_of_pieces(folder / FILE, data, lambda: _PRE, n_vocab, rules), merges=merges
    )


def _merges(folder: Path) -> list[str]:
    """Return the lines of merges.txt, behind the first, which tells a version."""
    path = folder / MERGES
    try:
        lines = read_limited(path, MAX_TEXT_BYTES).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", "Download it again.") from error
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    if damaged := [line for line in merges if len(line.split(" ")) != 2]:
        raise CheckpointError(
            f"{path}: {damaged[0]!r} is not a pair of pieces.", "Download it again."
        )
    return merges
