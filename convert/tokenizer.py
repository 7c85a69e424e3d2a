"""SentencePiece's tokenizer.model → the vocabulary of a GGUF file.

llama.cpp's `llama` tokenizer is SentencePiece's BPE without a normalizer. What it looks at, and
why each piece gets its type:

- CONTROL pieces are matched in text only where special tokens are parsed, i.e. in the template's
  own pieces, never in what a person or a picture wrote. So every named special token is CONTROL.
- USER_DEFINED pieces are matched in any text. SentencePiece does the same, so pieces keep that
  type, except the `[UNUSED_TOKEN_n]` ones: their ids are the special tokens or reserved.
- UNUSED pieces never match and print as nothing: reserved pieces, padding, and the piece that is
  a NUL character, whose text cannot pass through C strings and is replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprism.convert.checkpoint import read_json
from edgeprism.errors import CheckpointError

if TYPE_CHECKING:
    import gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # as in GGUF
IM_START, IM_END = "<|im_start|>", "<|im_end|>"

_BPE = 2  # TrainerSpec.ModelType
# No text can be cut into this piece: it would need every longer and longer beginning of it.
_NUL_PLACEHOLDER = "[NUL piece of the published tokenizer]"
# The names that InternLM2's chat models give to reserved pieces; used for the plain base model,
# whose tokenizer_config.json does not name them though the captioner was trained with them.
_CHAT_NAMES = {
    "[UNUSED_TOKEN_141]": "<|plugin|>",
    "[UNUSED_TOKEN_142]": "<|interpreter|>",
    "[UNUSED_TOKEN_143]": "<|action_end|>",
    "[UNUSED_TOKEN_144]": "<|action_start|>",
    "[UNUSED_TOKEN_145]": IM_END,
    "[UNUSED_TOKEN_146]": IM_START,
}
# Understood by llama.cpp's built-in recogniser and, as Jinja, by everything else.
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Vocabulary:
    """What the GGUF's tokenizer fields hold; the lists are by token id."""

    pieces: list[bytes]
    scores: list[float]
    types: list[int]
    bos: int
    eos: int
    unk: int
    add_space_prefix: bool


def vocabulary_from_folder(folder: Path, n_vocab: int) -> Vocabulary:
    """Read tokenizer.model and tokenizer_config.json of a language model's folder.

    Raises CheckpointError for a tokenizer that llama.cpp would not reproduce, or one without
    the chat markers.
    """
    model = _read_model(folder / "tokenizer.model", n_vocab)
    names = _special_names(folder, model, n_vocab)
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
        pieces.append(text.encode())
        scores.append(piece.score)
        types.append(kind)
    for i in range(len(pieces), n_vocab):
        pieces.append(names.get(i, f"[PAD{i}]").encode())
        scores.append(0.0)
        types.append(CONTROL if i in names else UNUSED)
    return Vocabulary(
        pieces,
        scores,
        types,
        bos=model.trainer_spec.bos_id,
        eos=pieces.index(IM_END.encode()),
        unk=model.trainer_spec.unk_id,
        add_space_prefix=model.normalizer_spec.add_dummy_prefix,
    )


def _read_model(path: Path, n_vocab: int) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing.", "Download the tokenizer with the language model."
        ) from error
    except DecodeError as error:
        raise CheckpointError(
            f"{path} is not a SentencePiece model.", "Download it again."
        ) from error
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
    if len(model.pieces) > n_vocab:
        faults.append(f"it has {len(model.pieces)} pieces, the model's vocabulary {n_vocab}")
    if faults:
        raise CheckpointError(
            f"{path} cannot be reproduced by llama.cpp: {'; '.join(faults)}.",
            "Use the tokenizer.model that was published with InternLM2.",
        )
    return model


def _special_names(folder: Path, model: Any, n_vocab: int) -> dict[int, str]:
    """{id: name} of the special tokens."""
    path = folder / "tokenizer_config.json"
    added = read_json(path).get("added_tokens_decoder", {}) if path.is_file() else {}
    names: dict[int, str] = {}
    for key, entry in added.items():
        if not key.isdigit() or not isinstance(entry, dict) or not entry.get("content"):
            raise CheckpointError(
                f"{path}: added_tokens_decoder.{key} is not a token.", "Download it again."
            )
        if int(key) < n_vocab:
            names[int(key)] = str(entry["content"])
    given = set(names.values())
    for i, piece in enumerate(model.pieces):
        name = _CHAT_NAMES.get(piece.piece)
        if name and name not in given and i not in names:
            names[i] = name
    lost = [name for name in (IM_START, IM_END) if name not in names.values()]
    if lost:
        raise CheckpointError(
            f"{path}: no token is named {' or '.join(lost)}, which the captioner's prompt needs.",
            "Use the tokenizer files of the InternLM2 chat model.",
        )
    return names


def write_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    """Put the vocabulary into the GGUF's header."""
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_unk_token_id(vocabulary.unk)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_chat_template(_CHATML)
