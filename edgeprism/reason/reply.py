"""A chat completion's JSON → Completion, in the forms that servers send."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from edgeprism.errors import NoAnswerError, ReplyError
from edgeprism.reason.base import Completion
from edgeprism.reason.thinking import cut_thinking
from edgeprism.records import Timings, TokenCounts

Quote = Callable[[str], str]

# Fields in which servers put a reasoning model's thoughts, if not into the text.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
# Types of a message's parts, by what they hold.
_TEXT_PARTS = ("text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning", "reasoning_text", "thought")
_REFUSAL_PARTS = ("refusal",)
# Values of `finish_reason`, as llama.cpp, Ollama, vLLM, LM Studio and gateways to others send them.
_FINISHED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn", "completed", "complete", "")
_AT_LIMIT = ("length", "max_tokens", "max_output_tokens", "model_length")
_WITHHELD = ("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content")
_CALLS = ("tool_calls", "function_call", "tool_use")
_BROKEN = ("error", "abort", "aborted", "cancelled", "canceled", "insufficient_system_resource")
_LOG = "See the server's own log."


def reply_to_completion(
    reply: Any, quote: Quote, keep: Callable[[str], bool] | None = None
) -> Completion:
    """Turn a chat completion's JSON into a Completion; its text is "" if it only holds thoughts.

    Thoughts are cut from the text, unless `keep` accepts the whole text. `quote` makes a server's
    words fit for an error. Raises ReplyError if the reply has no message, or if the server broke
    off; NoAnswerError if it declined, withheld the answer, or calls a tool instead.
    """
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        texts = _texts(message)
        reason = choice.get("finish_reason") or ""
        if not isinstance(reason, str):
            raise TypeError
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ReplyError(
            "The reasoner's server sent a reply without a message.",
            "Is it an OpenAI-compatible server?",
        ) from error
    text, thoughts = encodable(texts["text"]), encodable(texts["thoughts"])
    if keep is None or not keep(text):
        text, written = cut_thinking(text)
        thoughts = "\n".join(filter(None, (thoughts.strip(), written)))
    _check_ending(reason, message, text, texts["refusal"], quote)
    notes: tuple[str, ...] = ()
    if reason.lower() not in (*_FINISHED, *_AT_LIMIT, *_CALLS):
        notes = (f"the server ended the answer for a reason of its own: {quote(reason)}",)
    finish_reason = "length" if reason.lower() in _AT_LIMIT else "stop"
    return Completion(text, finish_reason, _counts(reply), Timings(), thoughts, notes)


def _check_ending(reason: str, message: Any, text: str, refusal: str, quote: Quote) -> None:
    """Raise an error for a reply that is no answer, in the server's words."""
    if refusal:
        raise NoAnswerError(
            f"The reasoner declined to answer: {quote(refusal)}",
            "Ask in other words, or use another reasoner.",
        )
    known = reason.lower()
    if known in _WITHHELD:
        raise NoAnswerError(
            f"The reasoner's server withheld the answer (finish_reason {quote(reason)}).",
            "Ask in other words, or use another reasoner.",
        )
    if known in _BROKEN:
        raise ReplyError(
            f"The reasoner's server broke the answer off (finish_reason {quote(reason)}).", _LOG
        )
    calls = message.get("tool_calls") or message.get("function_call")
    if not text and (calls or known in _CALLS):
        raise NoAnswerError(
            f"The reasoner called a tool{_tool_name(calls, quote)} instead of answering; "
            "EdgePrism offers none.",
            "Turn tools off at the server, or use another reasoner.",
        )


def _tool_name(calls: Any, quote: Quote) -> str:
    call = calls[0] if isinstance(calls, list) and calls else calls
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return f" ({quote(name)})" if isinstance(name, str) and name else ""


def _texts(message: Any) -> dict[str, str]:
    """Return what a message says, what it thinks and how it declines.

    Raises TypeError for a message in a form that is not known.
    """
    texts = {"text": [""], "thoughts": [""], "refusal": [""]}
    thoughts = next((t for name in _THOUGHTS if (t := message.get(name))), None)
    with contextlib.suppress(TypeError):  # thoughts in an unknown form do not spoil the answer
        texts["thoughts"] += _plain(thoughts)
    texts["refusal"] += _plain(message.get("refusal"))
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str) and not isinstance(content, list):
            texts["text"].append(part)
        elif part is not None:
            kind, said = _part(part)
            texts[kind] += said
    return {kind: "".join(said) for kind, said in texts.items()}


def _part(part: Any) -> tuple[str, list[str]]:
    """Return ("text" | "thoughts" | "refusal", texts) of one part of a content.

    Raises TypeError for a part without text, such as a picture.
    """
    if not isinstance(part, dict):
        raise TypeError
    kind = part.get("type", "text")
    for name, types in (
        ("text", _TEXT_PARTS),
        ("thoughts", _THOUGHT_PARTS),
        ("refusal", _REFUSAL_PARTS),
    ):
        if kind in types:
            fields = ("text", "content", kind) if name == "text" else (kind, "text", "content")
            return name, _plain(next((part[field] for field in fields if field in part), None))
    raise TypeError


def _plain(value: Any) -> list[str]:
    """Return the strings of a text, or of a list of parts, in order."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for part in value for text in _inner(part)]
    raise TypeError


def _inner(part: Any) -> Iterator[str]:
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise TypeError
    yield text


def prompt_tokens_read(reply: Any) -> int:
    """Return how many tokens of the prompt the server read, by its own count; 0 if it has none."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict) or not _is_count(usage.get("prompt_tokens")):
        return 0
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    # Most servers include the tokens of their cache in the count, some do not.
    return int(usage["prompt_tokens"]) + (int(cached) if cached and _is_count(cached) else 0)


def _counts(reply: dict[str, Any]) -> TokenCounts:
    usage = reply.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else 0
        for name in ("prompt_tokens", "completion_tokens")
    ]
    prompt, generated = (int(n) if n and _is_count(n) else 0 for n in counts)
    return TokenCounts(0, prompt, generated)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def encodable(text: str) -> str:
    """Replace lone surrogates, which JSON may hold but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
