"""A published tokenizer, in any kind of file → the vocabulary of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from edgeprism.convert.language import vocabulary_bpe, vocabulary_spm, vocabulary_tiktoken
from edgeprism.convert.language.vocabulary import TokenRules, Vocabulary
from edgeprism.errors import CheckpointError


def vocabulary_from_folder(folder: Path, n_vocab: int, rules: TokenRules) -> Vocabulary:
    """Read the tokenizer of `folder`, in the first kind of file that it holds, for `n_vocab` rows.

    Raises CheckpointError for a tokenizer that llama.cpp would not reproduce, or one without
    the special tokens that the prompt needs.
    """
    if (folder / vocabulary_spm.FILE).is_file():
        vocabulary = vocabulary_spm.vocabulary(folder, n_vocab, rules)
    elif (folder / vocabulary_bpe.FILE).is_file():
        vocabulary = vocabulary_bpe.vocabulary(folder, n_vocab, rules)
    elif (folder / vocabulary_tiktoken.FILE).is_file():
        vocabulary = vocabulary_tiktoken.vocabulary(folder, n_vocab, rules)
    else:
        raise CheckpointError(
            f"{folder} holds no tokenizer: expected {vocabulary_spm.FILE}, {vocabulary_bpe.FILE} "
            f"or {vocabulary_tiktoken.FILE}.",
            "Download the tokenizer with the language model.",
        )
    missing = [name for name in rules.needed if name.encode() not in vocabulary.pieces]
    if missing:
        raise CheckpointError(
            f"{folder}: no token is named {' or '.join(missing)}, which the captioner's prompt "
            "needs.",
            "Use the tokenizer files of the language model that the captioner was trained with.",
        )
    return vocabulary
