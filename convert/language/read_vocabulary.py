"""A published tokenizer, in any kind of file → the vocabulary of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from edgeprism.convert.language import (
    vocabulary_bpe,
    vocabulary_gpt2,
    vocabulary_spm,
    vocabulary_tiktoken,
    vocabulary_unigram,
)
from edgeprism.convert.language.vocabulary import TokenRules, Vocabulary
from edgeprism.errors import CheckpointError


def knows_token(folder: Path, n_vocab: object, name: str) -> bool:
    """Return whether the tokenizer of `folder` has a token of that name.

    `n_vocab` is as config.json has it. False if either cannot be read: opening the language model
    says what is wrong with it.
    """
    if type(n_vocab) is not int:
        return False
    try:
        return name.encode() in vocabulary_from_folder(folder, n_vocab, TokenRules()).pieces
    except CheckpointError:
        return False


def vocabulary_from_folder(folder: Path, n_vocab: int, rules: TokenRules) -> Vocabulary:
    """Read the tokenizer of `folder`, in the first kind of file that it holds, for `n_vocab` rows.

    Raises CheckpointError for a tokenizer that llama.cpp would not reproduce, or one without
    the special tokens that the prompt needs.
    """
    # T5's folder holds tokenizer.json, too
    files = (
        vocabulary_spm, vocabulary_unigram, vocabulary_bpe, vocabulary_tiktoken, vocabulary_gpt2,
    )  # fmt: skip
    kinds = [kind for kind in files if (folder / kind.FILE).is_file()]
    if not kinds:
        raise CheckpointError(
            f"{folder} holds no tokenizer: expected {vocabulary_spm.FILE}, "
            f"{vocabulary_unigram.FILE}, {vocabulary_bpe.FILE}, {vocabulary_tiktoken.FILE}, or "
            f"{vocabulary_gpt2.FILE} and {vocabulary_gpt2.MERGES}.",
            "Download the tokenizer with the language model.",
        )
    vocabulary: Vocabulary = kinds[0].vocabulary(folder, n_vocab, rules)
    missing = [name for name in rules.needed if name.encode() not in vocabulary.pieces]
    if missing:
        raise CheckpointError(
            f"{folder}: no token is named {' or '.join(missing)}, which the captioner's prompt "
            "needs.",
            "Use the tokenizer files of the language model that the captioner was trained with.",
        )
    return vocabulary
