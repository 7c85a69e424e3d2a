"""SentencePiece's tokenizer.model → the vocabulary of a GGUF file.

llama.cpp's `llama` tokenizer is SentencePiece's BPE without a normalizer. USER_DEFINED pieces keep
that type, except `[UNUSED_TOKEN_n]`: these ids are special tokens or reserved. A C string cannot
hold the piece that is a NUL character, so an UNUSED placeholder replaces it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeprism.convert.language.vocabulary import (
    CONTROL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    TokenRules,
    Vocabulary,
    eos_id,
)
from edgeprism.convert.read.checkpoint import MAX_TEXT_BYTES, read_json
from edgeprism.errors import CheckpointError
from edgeprism.files.regular import read_limited

FILE = "tokenizer.model"
_SPACE = "▁"  # how the file writes a space
_BPE = 2  # TrainerSpec.ModelType
# A piece that BPE can never produce: none of its prefixes is a piece.
_NUL_PLACEHOLDER = "[NUL piece of the published tokenizer]"


def vocabulary(folder: Path, n_vocab: int, rules: TokenRules) -> Vocabulary:
    """Read tokenizer.model and the folder's other files about added tokens."""
    model = _read_model(folder / FILE, n_vocab)
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else {}
    names = special_names(folder, config, model, n_vocab, rules)
    pieces, scores, types = [], [], []
    for i, piece in enumerate(model.pieces):
        text, kind = piece.piece, piece.type
        if "\0" in text:
            text, kind = _NUL_PLACEHOLDER, UNUSED
        elif i in names:
            text = names[i]
            kind = UNKNOWN if kind == UNKNOWN else CONTROL
        elif text.startswith("[UNUSED"):
            kind = UNUSED
        elif kind == USER_DEFINED:
            text = text.replace(_SPACE, " ")  # llama.cpp looks for such a piece in the text itself
        pieces.append(text.encode())
        scores.append(piece.score)
        types.append(kind)
    for i in range(len(pieces), n_vocab):
        pieces.append(names.get(i, f"[PAD{i}]").encode())
        scores.append(0.0)
        types.append(CONTROL if i in names else UNUSED)
    trainer = model.trainer_spec
    template = rules.chat_template or config.get("chat_template")
    return Vocabulary(
        model="llama",
        pre="default",
        pieces=pieces,
        types=types,
        bos=trainer.bos_id if trainer.bos_id >= 0 else None,
        eos=eos_id(pieces, rules, trainer.eos_id if trainer.eos_id >= 0 else None),
        add_bos=bool(config.get("add_bos_token", True)) and trainer.bos_id >= 0,
        unk=trainer.unk_id,
        scores=scores,
        add_space_prefix=model.normalizer_spec.add_dummy_prefix,
        chat_template=template if isinstance(template, str) else "",
    )


def parse_sentencepiece(path: Path, n_vocab: int) -> Any:
    """Return the parsed SentencePiece model of `path`, whose pieces fit `n_vocab` rows.

    Raises CheckpointError for any other file.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(read_limited(path, MAX_TEXT_BYTES))
    except (OSError, DecodeError) as error:
        raise CheckpointError(
            f"{path} is not a SentencePiece model.", "Download it again."
        ) from error
    faults = []
    if not all(isinstance(piece.piece, str) for piece in model.pieces):
        faults.append("a piece is no text")  # protobuf returns bytes that are not UTF-8 as they are
    if len(model.pieces) > n_vocab:
        faults.append(f"it has {len(model.pieces)} pieces, the model's vocabulary {n_vocab}")
    _refuse(path, faults)
    return model


def _read_model(path: Path, n_vocab: int) -> Any:
    model = parse_sentencepiece(path, n_vocab)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    faults = []
    if trainer.model_type != _BPE:
        faults.append("its model type is not BPE")
    if normalizer.precompiled_charsmap:
        faults.append("it rewrites characters (precompiled_charsmap)")
    if normalizer.remove_extra_whitespaces:
        faults.append("it removes extra whitespace")
    if not normalizer.escape_whitespaces or trainer.treat_whitespace_as_suffix:
        faults.append("it does not mark spaces in front of words")
    _refuse(path, faults)
    return model


def _refuse(path: Path, faults: list[str]) -> None:
    """Raise CheckpointError that lists `faults`, if there are any."""
    if faults:
        raise CheckpointError(
            f"{path} cannot be reproduced by llama.cpp: {'; '.join(faults)}.",
            f"Use the {path.name} that was published with the language model.",
        )


def special_names(
    folder: Path, config: dict[str, Any], model: Any, n_vocab: int, rules: TokenRules
) -> dict[int, str]:
    """Return {id: name} of the special tokens."""
    names: dict[int, str] = {}
    decoder, where = config.get("added_tokens_decoder") or {}, folder / "tokenizer_config.json"
    if not isinstance(decoder, dict):
        raise CheckpointError(
            f"{where}: added_tokens_decoder is {decoder!r}, no object.", "Download it again."
        )
    for key, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not key.isdecimal() or not isinstance(content, str) or not content:
            raise CheckpointError(
                f"{where}: added_tokens_decoder.{key} is not a token.", "Download it again."
            )
        number, pieces = int(key), model.pieces
        own = number < len(pieces) and pieces[number].type == USER_DEFINED
        if entry.get("special", True) or not own:  # else a piece like any other: runs of spaces
            names[number] = content
    older = folder / "added_tokens.json"
    for name, number in (read_json(older) if older.is_file() else {}).items():
        if type(number) is not int:
            raise CheckpointError(f"{older}: {name} has no number.", "Download it again.")
        names.setdefault(number, name)
    names = {number: name for number, name in names.items() if number < n_vocab}
    existing = set(names.values())
    for i, piece in enumerate(model.pieces):
        renamed = rules.renamed.get(piece.piece)
        if renamed and renamed not in existing and i not in names:
            names[i] = renamed
    return names
