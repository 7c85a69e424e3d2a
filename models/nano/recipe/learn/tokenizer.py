"""nano's vocabulary, a SentencePiece model, and the prompt of its training.

Words of the grammar are whole pieces. Printed text is spelt letter by letter: no two capitals ever
merge, because the training text never has two in a row. Bytes are the fallback.
"""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb

from edgeprism.models.nano.recipe.learn.model import NanoConfig
from edgeprism.models.nano.recipe.world.grammar import (
    SHORT,
    WORDINGS,
    sample_query,
    scene_to_long,
    scene_to_short,
)
from edgeprism.models.nano.recipe.world.scene import CHARS, COLOURS, SHAPES, Sampling
from edgeprism.models.nano.recipe.world.sheets import sample_scene
from edgeprism.models.nano.recipe.world.things import THINGS, to_plural

VOCAB = NanoConfig.vocab
UNK, BOS, EOS = 0, 1, 2
SPECIALS = ("<|im_end|>", "<|im_start|>")  # names of the last ids, in order
IM_END, IM_START = VOCAB - 2, VOCAB - 1
DEFAULT_INSTRUCTION = "Describe the picture."
FOCUS = " Pay special attention to the following: "  # an instruction with a focus adds this
# Words for made-up instructions: a text without meaning must leave the caption unchanged.
_WORDS = (
    "please describe look at the picture image photo scene in detail and tell me what you see"
    " which objects are there where how many colours shapes sizes pay special attention to"
    " people text number left right top bottom of a is on with for give short long answer"
    " question following carefully all every thing background position red star between"
)
WORDS = tuple(_WORDS.split())
LONG_INSTRUCTIONS = (
    DEFAULT_INSTRUCTION,
    "Describe the image.",
    "Describe this picture in detail.",
    "What is in the picture?",
    "What do you see?",
    "Caption this image.",
    "Describe this picture in fine detail. Name the scene and every object in it, with its"
    " colour, shape, number and condition. Say where each one is and how the objects relate to"
    " one another. Copy any text, numbers and symbols exactly as they are written.",
    "List every object with its size, colour, shape and place, and how they stand to each other.",
)
SHORT_INSTRUCTIONS = (
    SHORT,
    "Briefly, what is this?",
    "Describe the image in short.",
    "A short caption, please.",
    "In short: what is there?",
)


def _corpus() -> list[str]:
    rng = random.Random("nano-wide/tokenizer")
    texts: list[str] = []
    for _ in range(3000):
        scene = sample_scene(rng, Sampling(texts=0.0, unseen=rng.random() < 0.5))
        query = sample_query(scene, rng)
        texts += [scene_to_long(scene), scene_to_short(scene)]
        texts += [query.sentence, rng.choice(query.focuses)] if query else []
    words = [w for name in THINGS for w in (name, to_plural(name))]
    words += [w for name in (*SHAPES, *COLOURS) for w in (name, name + "s")]
    instructions = [*LONG_INSTRUCTIONS, *SHORT_INSTRUCTIONS, FOCUS.strip()]
    instructions += [w for wordings in WORDINGS.values() for w in wordings]
    letters = [f'the word "{c}" is {c} {c}' for c in CHARS] * 20
    return (
        texts
        + [f"the {w}" for w in words] * 40
        + ["user", "assistant"] * 2000
        + instructions * 30
        + letters
    )


def train_tokenizer() -> bytes:
    """Train the SentencePiece model; return it serialized, always the same bytes."""
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()),
        model_writer=target,
        model_type="bpe",
        vocab_size=VOCAB - len(SPECIALS),
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,  # so that a segment's tokens do not depend on the text before it
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        unk_id=UNK, bos_id=BOS, eos_id=EOS, pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    model = pb.ModelProto()
    model.ParseFromString(target.getvalue())
    while len(model.pieces) < VOCAB:
        number = len(model.pieces)
        model.pieces.add(
            piece=f"[UNUSED_TOKEN_{number}]", score=0.0, type=pb.ModelProto.SentencePiece.UNUSED
        )
    model.trainer_spec.vocab_size = VOCAB
    return bytes(model.SerializeToString(deterministic=True))


@cache
def tokenizer() -> sentencepiece.SentencePieceProcessor:
    """Return the committed tokenizer.model, or train one if there is none."""
    path = Path(__file__).with_name("tokenizer.model")
    data = path.read_bytes() if path.exists() else train_tokenizer()
    return sentencepiece.SentencePieceProcessor(model_proto=data)


def text_to_ids(text: str) -> list[int]:
    """Tokenize plain text, without parsing special tokens."""
    return list(tokenizer().encode(text))


def ids_to_text(ids: list[int]) -> str:
    """The text of token ids."""
    return str(tokenizer().decode([i for i in ids if i < IM_END]))


def prompt_to_ids(instruction: str) -> tuple[list[int], list[int]]:
    """Return the token ids before and after the picture's rows, in the runtime's segments."""
    before = [BOS, IM_START, *text_to_ids("user\n")]
    after = [*text_to_ids("\n"), *text_to_ids(instruction), IM_END]
    after += [*text_to_ids("\n"), IM_START, *text_to_ids("assistant\n")]
    return before, after
