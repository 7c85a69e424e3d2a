"""Examples as token ids, by the runtime's own chat template and tokenizer; batches of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from edgeprism.bundle.gguf import read_gguf_header
from edgeprism.language.chat import Message, chat_to_segments
from edgeprism.language.engine import LanguageEngine
from edgeprism.language.request import segments_to_parts
from edgeprism.language.vocabulary import Vocabulary
from edgeprism.models.reader.recipe.world.examples import sample_example

POOL = 8  # batches whose examples are sorted by length together
MOST_TOKENS = 420  # of an example; longer ones are left out


@dataclass(frozen=True)
class _VocabularyAlone:
    """What `segments_to_parts` asks of an engine."""

    vocabulary: Vocabulary
    n_embd: int = 0
    rows_apart: bool = False


class Tokens:
    """The runtime's tokens of chats and replies."""

    def __init__(self, gguf: Path) -> None:
        self.vocabulary = Vocabulary.open(gguf)
        self._template = read_gguf_header(gguf).chat_template
        self.end = self.vocabulary.tokenize("<|im_end|>", parse_special=True)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a chat up to the reasoner's turn, as `Reasoner.complete` has them."""
        segments = chat_to_segments(
            lambda turns: self.vocabulary.render_chat(turns, self._template), messages
        )
        engine = cast(LanguageEngine, _VocabularyAlone(self.vocabulary))
        bos = self.vocabulary.adds_bos()
        (ids,) = segments_to_parts(engine, segments, None, add_bos=bos)
        assert isinstance(ids, list)
        return ids

    def reply(self, text: str) -> list[int]:
        """Return the ids of a reply with its end."""
        return self.vocabulary.tokenize(text) + self.end


Pair = tuple[list[int], list[int]]  # prompt, reply


def pool_to_batches(tokens: Tokens, seed: int, number: int, batch: int) -> list[list[Pair]]:
    """Return the `POOL` batches of a pool: examples of like length together, in random order."""
    pairs: list[Pair] = []
    for index in range(POOL * batch):
        again = 0
        while True:
            example = sample_example(seed, (number * POOL * batch + index) + again * 10**9)
            pair = tokens.prompt(example.messages), tokens.reply(example.reply)
            if len(pair[0]) + len(pair[1]) <= MOST_TOKENS:
                break
            again += 1
        pairs.append(pair)
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = [pairs[i : i + batch] for i in range(0, len(pairs), batch)]
    random.Random(f"pool/{seed}/{number}").shuffle(batches)
    return batches


def batch_to_tensors(batch: Sequence[Pair], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids padded on the right, and the next ids where the reply is learnt, else -100."""
    longest = max(len(prompt) + len(reply) for prompt, reply in batch) - 1
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    targets = torch.full((len(batch), longest), -100)
    for row, (prompt, reply) in enumerate(batch):
        both = prompt + reply
        ids[row, : len(both) - 1] = torch.tensor(both[:-1])
        targets[row, len(prompt) - 1 : len(both) - 1] = torch.tensor(reply)
    return ids.to(device), targets.to(device)
