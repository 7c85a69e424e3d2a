"""Notices that a server cut the prompt to its context, from the tokens that it says it read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from edgeprism.language.chat import Message

PROMPT_CUT = "the reasoner's server cut the prompt"

_CHUNK = re.compile(r"\S*\w\S*")
_REPEATED = re.compile(r"(.)\1{3,}", re.DOTALL)
_LONGEST_MEAN = 12  # characters of a token on average, in any language

_WORDS_PER_TOKEN = 1.5  # of tokenizers whose tokens span blanks; 1 or less for all others


def least_tokens(messages: Sequence[Message]) -> int:
    """Return a number of tokens below which no tokenizer gets with the contents of `messages`.

    Tokens of a vocabulary are whole words at most, but for a few tokenizers whose tokens span
    blanks; those need more than two tokens for three words. In scripts without blanks a token has
    fewer than twelve characters on average. Long runs of one character may be a single token.
    """
    text = "\n".join(message.content for message in messages)
    words = len(_CHUNK.findall(text))
    characters = sum(map(str.isalnum, _REPEATED.sub(r"\1", text)))
    return max(int(words / _WORDS_PER_TOKEN), characters // _LONGEST_MEAN)


def cut_note(messages: Sequence[Message], read: int) -> str:
    """Return a note if a server that read `read` tokens cannot have read all of `messages`.

    It is "" for a count that is possible, and for a server that counts nothing (0).
    """
    least = least_tokens(messages)
    if not 0 < read < least:
        return ""
    return (
        f"{PROMPT_CUT}: it read {read} tokens of at least {least}; raise its context length "
        "(Ollama: OLLAMA_CONTEXT_LENGTH, llama.cpp: --ctx-size, vLLM: --max-model-len)"
    )
