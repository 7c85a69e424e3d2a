"""nano's vocabulary: a SentencePiece model of 512 pieces, and the prompt it is trained with.

Words of the grammar are whole pieces, bytes are the fallback, so any instruction tokenises.
Like InternLM2's, the file holds ``[UNUSED_TOKEN_n]`` pieces whose names (``<|im_start|>``,
``<|im_end|>``) stand in ``tokenizer_config.json`` only.
"""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as pb

from .grammar import scene_to_caption
from .scene import sample_scene

VOCAB = 512
UNK, BOS, EOS = 0, 1, 2
SPECIALS = ("<|im_end|>", "<|im_start|>")  # names of the last ids, in order
IM_END, IM_START = VOCAB - 2, VOCAB - 1

DEFAULT_INSTRUCTION = "Describe the picture."
INSTRUCTIONS = (
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
FOCUS = " Pay special attention to the following: "  # what a question-related instruction adds
# Words for made-up instructions: any text in this place must leave the caption as it is.
_WORDS = (
    "please describe look at the picture image photo scene in detail and tell me what you see"
    " which objects are there where how many colours shapes sizes pay special attention to"
    " people text number left right top bottom of a is on with for give short long answer"
    " question following carefully all every thing background position red star between"
)
WORDS = tuple(_WORDS.split())


def random_instruction(rng: random.Random) -> str:
    """Mostly a listed instruction, else one with a focus, or only made-up words."""
    kind = rng.random()
    if kind < 0.5:
        return DEFAULT_INSTRUCTION
    if kind < 0.7:
        return rng.choice(INSTRUCTIONS)
    made_up = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 12)))
    if kind < 0.9:
        return rng.choice((*INSTRUCTIONS[:6], DEFAULT_INSTRUCTION)) + FOCUS + made_up
    return made_up.capitalize()


def _corpus() -> list[str]:
    rng = random.Random("nano/tokenizer")
    captions = [scene_to_caption(sample_scene(rng, unseen=rng.random() < 0.5)) for _ in range(4000)]
    # Template words and the fixed instructions often enough to become pieces.
    asked = [*INSTRUCTIONS, FOCUS.strip()]
    return captions + ["user", "assistant"] * 2000 + asked * 40 + list(WORDS) * 20


def train_tokenizer() -> bytes:
    """A serialized SentencePiece model; the same bytes every time."""
    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()),
        model_writer=target,
        model_type="bpe",
        vocab_size=VOCAB - len(SPECIALS),
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,  # so a segment's tokens do not depend on what stands before it
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
    """The committed tokenizer.model, else (while there is none) a fresh one."""
    path = Path(__file__).with_name("tokenizer.model")
    data = path.read_bytes() if path.exists() else train_tokenizer()
    return sentencepiece.SentencePieceProcessor(model_proto=data)


def text_to_ids(text: str) -> list[int]:
    """Plain text: no special token is parsed."""
    return list(tokenizer().encode(text))


def ids_to_text(ids: list[int]) -> str:
    return str(tokenizer().decode([i for i in ids if i < IM_END]))


def prompt_to_ids(instruction: str) -> tuple[list[int], list[int]]:
    """Token ids before and after the image rows, segment by segment as the runtime builds them."""
    before = [BOS, IM_START, *text_to_ids("user\n")]
    after = [*text_to_ids("\n"), *text_to_ids(instruction), IM_END]
    after += [*text_to_ids("\n"), IM_START, *text_to_ids("assistant\n")]
    return before, after
