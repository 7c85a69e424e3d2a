"""Examples as token ids, by the runtime's own chat template and tokenizer; batches of them."""

from __future__ import annotations

import itertools
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
from edgeprism.models.reader.recipe.world.corpora import Corpora
from edgeprism.models.reader.recipe.world.examples import sample_group

POOL = 8  # batches whose groups are sorted by length together
MOST_TOKENS = 400  # of a group


@dataclass(frozen=True)
class _VocabularyAlone:
    """What `segments_to_parts` asks of an engine."""

    vocabulary: Vocabulary
    n_embd: int = 0
    rows_apart: bool = False


class Tokens:
    """The runtime's tokens of chats and replies."""

    def __init__(self, gguf: Path, corpora: Corpora | None = None) -> None:
        self.vocabulary, self.corpora = Vocabulary.open(gguf), corpora
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


@dataclass(frozen=True)
class Group:
    """Examples that begin alike: the ids of the beginning, and how each goes on."""

    start: list[int]
    branches: list[Pair]

    def __len__(self) -> int:
        return len(self.start) + sum(len(prompt) + len(reply) for prompt, reply in self.branches)


def pairs_to_group(pairs: Sequence[Pair]) -> Group:
    """Find what the prompts have in common; each keeps at least its last token."""
    first, shared = pairs[0][0], 0
    longest = min(len(prompt) for prompt, _ in pairs) - 1
    while shared < longest and all(prompt[shared] == first[shared] for prompt, _ in pairs):
        shared += 1
    return Group(first[:shared], [(prompt[shared:], reply) for prompt, reply in pairs])


def sample_tokens(tokens: Tokens, seed: int, number: int) -> Group:
    """Return a group of examples as token ids, without examples that would make it too long."""
    for again in itertools.count():
        examples = sample_group(seed, number + again * 10**9, tokens.corpora)
        pairs = [(tokens.prompt(e.messages), tokens.reply(e.reply)) for e in examples]
        while pairs:
            group = pairs_to_group(pairs)
            if len(group) <= MOST_TOKENS:
                return group
            pairs.pop()
    raise AssertionError("itertools.count ends")


def pool_to_batches(tokens: Tokens, seed: int, number: int, batch: int) -> list[list[Group]]:
    """Return the `POOL` batches of a pool: groups of like length together, in random order."""
    first = number * POOL * batch
    groups = [sample_tokens(tokens, seed, first + i) for i in range(POOL * batch)]
    groups.sort(key=len)
    batches = [groups[i : i + batch] for i in range(0, len(groups), batch)]
    random.Random(f"pool/{seed}/{number}").shuffle(batches)
    return batches


@dataclass(frozen=True)
class Batch:
    """Groups as tensors [groups, tokens], padded on the right.

    `branches` is 0 in a group's beginning, then the number of the branch; a token attends to the
    beginning and to its own branch. `positions` go on from the beginning in every branch. `targets`
    are the next ids where a reply is learnt, else -100.
    """

    ids: Tensor
    targets: Tensor
    positions: Tensor
    branches: Tensor


def groups_to_batch(groups: Sequence[Group], device: torch.device) -> Batch:
    """Return the tensors of some groups."""
    longest = max(map(len, groups))
    shape = len(groups), longest
    ids, positions, branches = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    targets = torch.full(shape, -100)
    for row, group in enumerate(groups):
        length = len(group.start)
        ids[row, :length] = torch.tensor(group.start)
        positions[row, :length] = torch.arange(length)
        at = length
        for number, (prompt, reply) in enumerate(group.branches, 1):
            both = prompt + reply
            end = at + len(both)
            ids[row, at:end] = torch.tensor(both)
            positions[row, at:end] = torch.arange(length, length + len(both))
            branches[row, at:end] = number
            targets[row, at + len(prompt) - 1 : end - 1] = torch.tensor(reply)
            at = end
        branches[row, at:] = -1
    return Batch(*(t.to(device) for t in (ids, targets, positions, branches)))
