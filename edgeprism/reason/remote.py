"""A reasoner behind an OpenAI-compatible server: llama.cpp's, Ollama, vLLM, LM Studio.

`POST /chat/completions` and `GET /models`, at temperature 0. A shape goes as a JSON schema
(`response_format`, which all four take) or as a grammar (`grammar`, llama.cpp's and
llama-cpp-python's), whichever the server keeps to; the reply is checked either way.
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
# where servers put a reasoning model's thoughts, if not into the text
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


def is_url(reasoner: str) -> bool:
    """Whether a reasoner is named by the address of its server."""
    return reasoner.lower().startswith(("http://", "https://"))


class ShapeError(ReplyError):
    """A server that wrote what it was bound not to."""


class RemoteReasoner(BaseReasoner):
    """A model that another program serves. Not thread-safe, but for `cancel`."""

    def __init__(self, server: Server, name: str, cancel: Cancel) -> None:
        self.server, self.name = server, name
        self.cancel_token = cancel
        self._kept: dict[str, bool] = {}  # way to give a shape → whether the server kept to it

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
        """The server at `url`, its first model unless `model` names another.

        Only a server on this machine, unless `allow_network`. The key, if it wants one, comes
        from the environment (EDGEPRISM_API_KEY). `timeout_s` bounds each of three tries,
        `pause_s` stands between them and doubles. Raises UsageError for an address that is
        none or elsewhere, ServerError where no server answers.
        """
        cancel = Cancel()
        server = Server(
            url, cancel=cancel, allow_network=allow_network, timeout_s=timeout_s, pause_s=pause_s
        )
        return cls(server, model or _first_model(server), cancel)

    @property
    def model(self) -> ModelInfo:
        """The served model's name; what file it is, the server does not say."""
        return ModelInfo(self.name, "")

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        """As `BaseReasoner.complete`; raises ShapeError where a finished reply lacks its shape."""
        self.cancel_token.clear()
        asked = [{"role": message.role, "content": message.content} for message in messages]
        body = {"model": self.name, "messages": asked, "temperature": 0, "max_tokens": max_tokens}
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
            return "", "the reasoner's server did not keep to the words for one"

    def cancel(self) -> None:
        """Stop the request under way, from another thread; it raises Interrupted there."""
        self.cancel_token.set()

    def close(self) -> None:
        """Nothing is held: each request has a connection of its own."""

    def _shaped(self, body: dict[str, Any], shape: Shape) -> Completion:
        """Ask in one way after another until the server keeps to the shape."""
        ways = [GRAMMAR, PLAIN] if shape.schema is None else [SCHEMA, GRAMMAR, PLAIN]
        ways = [way for way in ways if self._kept.get(way, True)]
        refused: list[str] = []

        def read(reply: Any) -> Completion:
            return _to_completion(reply, keep=shape.accepts)

        for way in ways:
            last = way == ways[-1]
            try:
                bound = body | _bound(shape, way, body["max_tokens"])
                reply = self.server.ask(_CHAT, read, bound, patient=last)
            except StatusError:
                if last:
                    raise
                refused.append(way)  # or the request is at fault: then the last way says so
                continue
            said = _unwrapped(reply, shape, way)
            if said.finish_reason == "length" or shape.accepts(said.text):
                self._kept |= dict.fromkeys(refused, False)
                return said
            refused.append(way)
        raise ShapeError(
            f"{self.server.url} did not keep to the form that the answer must have.",
            "Take a server with structured output (llama.cpp's, Ollama, vLLM, LM Studio).",
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


def _bound(shape: Shape, way: str, max_tokens: int) -> dict[str, Any]:
    """What a request says of the shape."""
    if way == GRAMMAR:
        return {"grammar": shape.gbnf}
    if way == PLAIN:
        return {}
    schema = {"name": "answer", "strict": True, "schema": shape.schema}
    bound: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": schema}}
    if shape.unwrap is not None:  # quotes, commas and the field's name come on top
        bound["max_tokens"] = 3 * max_tokens + 16
    return bound


def _unwrapped(said: Completion, shape: Shape, way: str) -> Completion:
    """The text out of the JSON that a schema asked for; "" where that cannot be had."""
    text = said.text
    if way == SCHEMA and shape.unwrap is not None:
        try:
            text = shape.unwrap(json.loads(text))
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError):
            # a server that knows no schemas may have said it in plain words
            text = text if shape.accepts(text) else ""
    if not shape.accepts(text):
        text = ""  # half a shape is no answer
    return Completion(text, said.finish_reason, said.tokens, said.timings, said.thinking)


def _to_completion(reply: Any, keep: Callable[[str], bool] | None = None) -> Completion:
    """A chat completion's JSON as ours; raises ReplyError for one that lacks its text.

    A text that `keep` accepts is left as it is.
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
    """JSON can hold half a surrogate pair, which nothing can write down."""
    return text.encode("utf-8", "replace").decode()
