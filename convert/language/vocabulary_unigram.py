"""T5's spiece.model, a unigram vocabulary of SentencePiece → the vocabulary of a GGUF file.

llama.cpp's `t5` tokenizer is SentencePiece's with its normalizer, whose table goes into the file.
It would match an UNUSED piece in any text, so ids without a piece are CONTROL here: reserved ones
as <extra_id_0>, and rows that fill up the table.
"""

from __future__ import annotations

from pathlib import Path

from edgeprism.convert.language.vocabulary import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    TokenRules,
    Vocabulary,
    eos_id,
)
from edgeprism.convert.language.vocabulary_spm import parse_sentencepiece, special_names
from edgeprism.convert.read.checkpoint import read_json
from edgeprism.errors import CheckpointError

FILE = "spiece.model"
_UNIGRAM = 1  # TrainerSpec.ModelType


def vocabulary(folder: Path, n_vocab: int, rules: TokenRules) -> Vocabulary:
    """Read spiece.model and the folder's other files about added tokens."""
    path = folder / FILE
    model = parse_sentencepiece(path, n_vocab)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    faults = []
    if trainer.model_type != _UNIGRAM:
        faults.append("its model type is not unigram")
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        faults.append("it does not mark spaces in front of words")
    if not {piece.type for piece in model.pieces} <= {NORMAL, UNKNOWN, CONTROL, UNUSED}:
        faults.append("it has pieces of bytes, or that are matched before all others")
    if trainer.unk_id < 0 or trainer.eos_id < 0:
        faults.append("it has no unknown piece, or none that ends a text")
    if faults:
        raise CheckpointError(
            f"{path} cannot be reproduced by llama.cpp: {'; '.join(faults)}.",
            "Use the spiece.model that was published with the language model.",
        )
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    names = special_names(folder, config, model, n_vocab, rules)
    pieces, types = [], []
    for i in range(n_vocab):
        piece = model.pieces[i] if i < len(model.pieces) else None
        pieces.append(names.get(i, piece.piece if piece else f"[PAD{i}]").encode())
        plain = piece is not None and i not in names and piece.type == NORMAL
        unknown = piece is not None and piece.type == UNKNOWN
        types.append(NORMAL if plain else UNKNOWN if unknown else CONTROL)
    scores = [piece.score for piece in model.pieces]
    return Vocabulary(
        model="t5",
        pre="default",
        pieces=pieces,
        types=types,
        bos=None,
        eos=eos_id(pieces, rules, trainer.eos_id),
        add_bos=False,
        unk=trainer.unk_id,
        scores=scores + [0.0] * (n_vocab - len(scores)),
        add_space_prefix=normalizer.add_dummy_prefix,
        charsmap=bytes(normalizer.precompiled_charsmap),
        merge_spaces=normalizer.remove_extra_whitespaces,
    )
