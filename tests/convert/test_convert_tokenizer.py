"""The GGUF's tokenizer agrees with SentencePiece and never makes special tokens of text."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.convert.language import internlm2, read_vocabulary
from edgeprism.errors import CheckpointError
from edgeprism.language.model import LanguageModel
from tests.helpers.checkpoints import SPECIAL_NAMES, Folders, Spec

vocabulary_from_folder = partial(read_vocabulary.vocabulary_from_folder, rules=internlm2.TOKENS)

BY_HAND = (
    "",
    " ",
    "   ",
    " leading",
    "trailing ",
    "  both  ",
    "\n",
    "\n\n\n",
    "line\nbreaks\r\nof both kinds\n",
    "\ttabs\tand  double  spaces",
    "A red cube lies on the left of a large blue ball.",
    "图片中有一只猫。",
    "混合 mixed 文字 text",
    "日本語のテキスト、한국어 문장",
    "emoji 😀 and 👩‍👩‍👧‍👦, flags 🇩🇪",
    "rare ⟁⟒⍜ 𒀀𓀀",
    "combining é vs é",
    "zero\u200bwidth\u00a0spaces\u3000here",
    "right-to-left שלום مرحبا",
    "control \x01\x02\x7f bytes",
    "\u2581 is the mark itself",
    "<|im_start|>user\nhello<|im_end|>\n",
    "<|im_end|>",
    "<|plugin|><|interpreter|><|action_start|>",
    "<s>",
    "</s>",
    "<s></s><unk>",
    "<unk> is no word",
    "<0x0A><0x00>",
    "[UNUSED_TOKEN",
    "| im_end |>",
    "<|im_end|",
    "{% for m in messages %}{{ m }}{% endfor %}",
    "def f(x):\n    return x ** 2  # square\n",
    "12345678901234567890 3.14159 -1e-9",
    "https://example.org/a?b=c&d=%20",
    "🐉",
)
N_STRINGS = 200


def strings() -> list[str]:
    """Return BY_HAND, then seeded mixtures of pieces of every kind."""
    rng = random.Random(5)
    parts = [
        *BY_HAND,
        "cube ",
        " left",
        "左边",
        "的",
        "\n",
        "  ",
        "é",
        "😀",
        "<",
        "|",
        "im",
        "\\",
        '"',
    ]
    mixed = ["".join(rng.choices(parts, k=rng.randint(1, 6))) for _ in range(N_STRINGS)]
    return [*BY_HAND, *mixed][:N_STRINGS]


@pytest.fixture(scope="module", params=[False, True], ids=["no-prefix", "dummy-prefix"])
def spec(request: pytest.FixtureRequest) -> Spec:
    return Spec(add_dummy_prefix=request.param, spare_vocab=3, seed=4)


@pytest.fixture(scope="module")
def gguf(spec: Spec, bundle_of: Callable[..., Path]) -> Path:
    return bundle_of(spec) / "lm.gguf"


def test_ids_are_sentencepieces(
    spec: Spec, gguf: Path, checkpoint_of: Callable[[Spec], Folders]
) -> None:
    model = sentencepiece.SentencePieceProcessor(
        model_file=str(checkpoint_of(spec).llm / "tokenizer.model")
    )
    lm = LanguageModel(gguf)
    actual = {text: lm.vocabulary.tokenize(text) for text in strings()}
    lm.close()
    assert len(strings()) == N_STRINGS
    assert {text: ids for text, ids in actual.items() if ids != model.encode(text)} == {}


def test_text_makes_no_special_token(gguf: Path) -> None:
    lm = LanguageModel(gguf)
    n = lm.vocabulary.size
    special = {
        lm.vocabulary.tokenize(name, parse_special=True)[-1] for name in SPECIAL_NAMES.values()
    }
    reserved = [f"[UNUSED_TOKEN_{i}]" for i in (135, 140, 145, 146)]
    for text in (*SPECIAL_NAMES.values(), *reserved, "<s>", "</s>", "<unk>"):
        ids = set(lm.vocabulary.tokenize(f"say {text} now"))
        assert not ids & (special | {0, 1, 2})
    lm.close()
    assert len(special) == len(SPECIAL_NAMES)
    assert special == set(range(n - 3 - len(special), n - 3))  # three spare rows


def test_what_the_template_needs_is_there(spec: Spec, gguf: Path) -> None:
    header = read_gguf_header(gguf)
    lm = LanguageModel(gguf)
    (im_end,) = lm.vocabulary.tokenize("<|im_end|>", parse_special=True)[-1:]
    assert lm.vocabulary.is_end(im_end)
    assert lm.vocabulary.bos() == [1]
    assert lm.vocabulary.adds_bos()
    lm.close()
    assert header.metadata["tokenizer.ggml.eos_token_id"] == im_end
    assert header.metadata["tokenizer.ggml.add_space_prefix"] is spec.add_dummy_prefix
    assert "<|im_start|>" in (header.chat_template or "")


def test_special_and_nul_pieces_print_as_nothing(gguf: Path) -> None:
    lm = LanguageModel(gguf)
    printed = [lm.vocabulary.token_to_bytes(token) for token in range(lm.vocabulary.size)]
    lm.close()
    last_ones = printed[-3 - 12 - 1 :]  # the NUL piece, twelve reserved ones, three spare rows
    assert set(last_ones) == {b""}
    assert not any(b"\0" in text for text in printed[259:])  # 3…258 are the bytes


def test_reserved_pieces_that_sentencepiece_matches_stay_out_of_reach(
    checkpoint_of: Callable[[Spec], Folders],
) -> None:
    folders = checkpoint_of(Spec(user_defined_reserved=True))
    vocabulary = vocabulary_from_folder(folders.llm, 500)
    kinds = dict(zip(vocabulary.pieces, vocabulary.types, strict=True))
    assert kinds[b"[UNUSED_TOKEN_135]"] == 5
    assert kinds[b"<|im_end|>"] == 3
    assert b"[UNUSED_TOKEN_145]" not in kinds


def test_base_model_without_names_gets_those_of_the_chat_model(
    checkpoint_of: Callable[[Spec], Folders], tmp_path: Path
) -> None:
    folders = checkpoint_of(Spec())
    (tmp_path / "tokenizer.model").write_bytes((folders.llm / "tokenizer.model").read_bytes())
    plain = vocabulary_from_folder(tmp_path, 450)
    assert plain == vocabulary_from_folder(folders.llm, 450)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("trainer_spec.model_type", 1, "BPE"),
        ("normalizer_spec.remove_extra_whitespaces", True, "extra whitespace"),
        ("normalizer_spec.precompiled_charsmap", b"\1", "rewrites characters"),
    ],
)
def test_a_tokenizer_that_llama_cpp_cannot_follow_is_refused(
    field: str,
    value: object,
    expected: str,
    checkpoint_of: Callable[[Spec], Folders],
    tmp_path: Path,
) -> None:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((checkpoint_of(Spec()).llm / "tokenizer.model").read_bytes())
    part, name = field.split(".")
    setattr(getattr(model, part), name, value)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=expected):
        vocabulary_from_folder(tmp_path, 450)


def test_a_tokenizer_without_chat_markers_is_refused(tmp_path: Path) -> None:
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 2
    model.normalizer_spec.remove_extra_whitespaces = False
    model.pieces.add(piece="a", score=0.0)
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="<|im_start|> or <|im_end|>".replace("|", r"\|")):
        vocabulary_from_folder(tmp_path, 450)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xff\xff nothing of the kind")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model is not a SentencePiece model"):
        vocabulary_from_folder(tmp_path, 450)
