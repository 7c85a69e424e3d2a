"""A reasoner on an OpenAI-compatible server: llama.cpp's, Ollama, vLLM, LM Studio.

It uses `POST /chat/completions` and `GET /models`, at temperature 0. A request carries a shape as
a JSON schema (`response_format`, which all four take) or as a grammar (`grammar`, for llama.cpp's
and llama-cpp-python's servers), whichever the server obeys. The reply is checked in both cases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeprism.errors import ReplyError
from edgeprism.language.chat import Message
from edgeprism.machine.cancel import Cancel
from edgeprism.reason.base import BaseReasoner, Completion
from edgeprism.reason.http import Server, StatusError
from edgeprism.reason.shape import Shape
from edgeprism.reason.thinking import cut_thinking
from edgeprism.records import ModelInfo, Timings, TokenCounts

_CHAT = "/chat/completions"
SCHEMA, GRAMMAR, PLAIN = "schema", "grammar", "plain"
# Fields in which servers put a reasoning model's thoughts, if not into the text.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def is_url(reasoner: str) -> bool:
    """Return whether a reasoner's name is the address of a server."""
    return reasoner.lower().startswith(("http://", "https://"))


class ShapeError(ReplyError):
    """The server's reply does not have the requested shape."""


class RemoteReasoner(BaseReasoner):
    """A model that another program serves. Not thread-safe, except `cancel`."""

    def __init__(self, server: Server, name: str, cancel: Cancel) -> None:
        self.server, self.name = server, name
        self.cancel_token = cancel
        self._obeys: dict[str, bool] = {}  # way to send a shape → whether the server obeys it

    @classmethod
    def load(
        cls,
        url: str,
        model: str | None = None,
        *,
        allow_network: bool = False,
        timeout_s: float = 300.0,
        pause_s: float = 0.5,
    ) -> RemoteReasoner:
        """Connect to the server at `url`; its first model answers unless `model` names another.

        The server must be on this machine, unless `allow_network` is true. Its key, if it needs
        one, comes from the environment (EDGEPRISM_API_KEY). Each of three tries may take
        `timeout_s`; the pause between them begins with `pause_s` and doubles. Raises UsageError
        for an invalid address or one elsewhere, ServerError if no server answers.
        """
        cancel = Cancel()
        server = Server(
            url, cancel=cancel, allow_network=allow_network, timeout_s=timeout_s, pause_s=pause_s
        )
        return cls(server, model or _first_model(server), cancel)

    @property
    def model(self) -> ModelInfo:
        """The served model's name, without a digest: the server does not name its file."""
        return ModelInfo(self.name, "")

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        """As `BaseReasoner.complete`; raises ShapeError if a finished reply lacks its shape."""
        self.cancel_token.clear()
        chat = [{"role": message.role, "content": message.content} for message in messages]
        body = {"model": self.name, "messages": chat, "temperature": 0, "max_tokens": max_tokens}
        if shape is None:
            return self.server.ask(_CHAT, _to_completion, body)
        return self._shaped(body, shape)

    def draw_focus(
        self, question: str, *, options: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        """As `BaseReasoner.draw_focus`; without one where the server ignores grammars."""
        try:
            return super().draw_focus(question, options=options)
        except ShapeError:
            return "", "the reasoner's server ignored the words that a focus may use"

    def cancel(self) -> None:
        """Stop the request under way, from another thread; it raises Interrupted there."""
        self.cancel_token.set()

    def close(self) -> None:
        """Do nothing: each request has its own connection, which ends with it."""

    def _shaped(self, body: dict[str, Any], shape: Shape) -> Completion:
        """Send the shape in one way after another until the server obeys it."""
        ways = [GRAMMAR, PLAIN] if shape.schema is None else [SCHEMA, GRAMMAR, PLAIN]
        ways = [way for way in ways if self._obeys.get(way, True)]
        refused: list[str] = []

        def read(reply: Any) -> Completion:
            return _to_completion(reply, keep=shape.accepts)

        for way in ways:
            last = way == ways[-1]
            try:
                request = body | _shape_fields(shape, way, body["max_tokens"])
                reply = self.server.ask(_CHAT, read, request, patient=last)
            except StatusError:
                # The server does not know this way, or the request is at fault; in the second
                # case the last way fails as well and raises.
                if last:
                    raise
                refused.append(way)
                continue
            completion = _unwrapped(reply, shape, way)
            if completion.finish_reason == "length" or shape.accepts(completion.text):
                self._obeys |= dict.fromkeys(refused, False)
                return completion
            refused.append(way)
        raise ShapeError(
            f"{self.server.url} did not obey the form that the answer must have.",
            "Use a server with structured output (llama.cpp's, Ollama, vLLM, LM Studio).",
        )


def _first_model(server: Server) -> str:
    def read(listed: Any) -> str:
        try:
            name = listed["data"][0]["id"]
            if not isinstance(name, str) or not name.strip():
                raise TypeError
        except (TypeError, KeyError, IndexError) as error:
            raise ReplyError(
                f"{server.url} lists no model.",
                "Load one there, or name another as `served_model`.",
            ) from error
        return _encodable(name)

    return server.ask("/models", read)


def _shape_fields(shape: Shape, way: str, max_tokens: int) -> dict[str, Any]:
    """Return the fields of a request that bind its reply to `shape`."""
    if way == GRAMMAR:
        return {"grammar": shape.gbnf}
    if way == PLAIN:
        return {}
    schema = {"name": "answer", "strict": True, "schema": shape.schema}
    fields: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": schema}}
    if shape.unwrap is not None:  # JSON adds quotes, commas and the field's name to the answer
        fields["max_tokens"] = 3 * max_tokens + 16
    return fields


def _unwrapped(reply: Completion, shape: Shape, way: str) -> Completion:
    """Take the text out of a reply's JSON; the text is "" if the reply lacks its shape."""
    text = reply.text
    if way == SCHEMA and shape.unwrap is not None:
        try:
            text = shape.unwrap(json.loads(text))
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            # A server that ignores the schema may have answered with the bare text.
            text = text if shape.accepts(text) else ""
    if not shape.accepts(text):
        text = ""
    return Completion(text, reply.finish_reason, reply.tokens, reply.timings, reply.thinking)


def _to_completion(reply: Any, keep: Callable[[str], bool] | None = None) -> Completion:
    """Turn a chat completion's JSON into a Completion; raises ReplyError if it has no message.

    Thoughts are cut from the text, unless `keep` accepts the whole text.
    """
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        thoughts = next((t for name in _THOUGHTS if (t := message.get(name))), "")
        if not isinstance(text, str) or not isinstance(thoughts, str):
            raise TypeError
    except (TypeError, KeyError, IndexError, AttributeError) as error:
        raise ReplyError(
            "The reasoner's server sent a reply without a message.",
            "Is it an OpenAI-compatible server?",
        ) from error
    text, thoughts = _encodable(text), _encodable(thoughts)
    if keep is None or not keep(text):
        text, written = cut_thinking(text)
        thoughts = "\n".join(filter(None, (thoughts.strip(), written)))
    finish_reason = "length" if choice.get("finish_reason") == "length" else "stop"
    return Completion(text, finish_reason, _counts(reply), Timings(), thoughts)


def _counts(reply: dict[str, Any]) -> TokenCounts:
    usage = reply.get("usage")
    counts = [
        usage.get(name) if isinstance(usage, dict) else 0
        for name in ("prompt_tokens", "completion_tokens")
    ]
    prompt, generated = (n if isinstance(n, int) and n >= 0 else 0 for n in counts)
    return TokenCounts(0, prompt, generated)


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON may hold but UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
