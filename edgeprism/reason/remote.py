"""A reasoner on an OpenAI-compatible server: llama.cpp's, Ollama, vLLM, LM Studio.

It uses `POST /chat/completions` and `GET /models`, at temperature 0. A request carries a shape as
a JSON schema (`response_format`, which all four take) or as a grammar (`grammar`, for llama.cpp's
and llama-cpp-python's servers), whichever the server obeys. The reply is checked in both cases.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from edgeprism.arguments import check_flag, check_integer, check_number, check_text
from edgeprism.errors import ReplyError
from edgeprism.language.chat import Message
from edgeprism.language.markers import break_markers
from edgeprism.machine.cancel import Cancel
from edgeprism.machine.turns import Turns
from edgeprism.reason.base import BaseReasoner, Completion, no_answer
from edgeprism.reason.http import Server, StatusError
from edgeprism.reason.prompt_cut import cut_note
from edgeprism.reason.reply import encodable, prompt_tokens_read, reply_to_completion
from edgeprism.reason.shape import Shape
from edgeprism.records import ModelInfo

_CHAT = "/chat/completions"
SCHEMA, GRAMMAR, PLAIN = "schema", "grammar", "plain"


def is_url(reasoner: str) -> bool:
    """Return whether a reasoner's name is the address of a server."""
    return reasoner.lower().startswith(("http://", "https://"))


class ShapeError(ReplyError):
    """The server's reply does not have the requested shape."""


class RemoteReasoner(BaseReasoner):
    """A model that another program serves.

    Threads may share a reasoner: it asks the server for them one after another. A pickled reasoner
    holds the address and the model's name, never the key.
    """

    def __init__(self, server: Server, name: str, cancel: Cancel) -> None:
        self.server, self.name = server, name
        self.cancel_token = cancel
        self._turns = Turns()
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
        if model is not None:
            check_text("model", model)
        check_flag("allow_network", allow_network)
        check_number("timeout_s", timeout_s, least=0.001)
        check_number("pause_s", pause_s, least=0)
        cancel = Cancel()
        server = Server(
            url, cancel=cancel, allow_network=allow_network, timeout_s=timeout_s, pause_s=pause_s
        )
        return cls(server, model or _first_model(server), cancel)

    def __repr__(self) -> str:
        return f"<RemoteReasoner {self.name!r} at {self.server.url}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _connect_again, (self.server.url, self.name, self.server.settings)

    @property
    def model(self) -> ModelInfo:
        """The served model's name, without a digest: the server does not name its file."""
        return ModelInfo(self.name, "")

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int, shape: Shape | None = None
    ) -> Completion:
        """As `BaseReasoner.complete`; raises ShapeError if a finished reply lacks its shape.

        The server turns the chat into tokens, and would take a template's marker in a caption or a
        question for its own: a blank breaks each of them.
        """
        check_integer("max_tokens", max_tokens, least=1)
        chat = [
            {"role": message.role, "content": break_markers(message.content)}
            for message in messages
        ]
        body = {"model": self.name, "messages": chat, "temperature": 0, "max_tokens": max_tokens}
        read = partial(self._read, messages)
        with self._turns.turn():
            self.cancel_token.clear()
            if shape is None:
                return self.server.ask(_CHAT, read, body)
            return self._shaped(body, shape, read)

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

    def _read(
        self,
        messages: Sequence[Message],
        reply: Any,
        keep: Callable[[str], bool] | None = None,
    ) -> Completion:
        """Turn a reply's JSON into a Completion; note where the server cut the prompt."""
        completion = reply_to_completion(reply, self.server.quote, keep)
        if note := cut_note(messages, prompt_tokens_read(reply)):
            return replace(completion, notes=(*completion.notes, note))
        return completion

    def _shaped(
        self, body: dict[str, Any], shape: Shape, read: Callable[..., Completion]
    ) -> Completion:
        """Send the shape in one way after another until the server obeys it."""
        ways = [GRAMMAR, PLAIN] if shape.schema is None else [SCHEMA, GRAMMAR, PLAIN]
        ways = [way for way in ways if self._obeys.get(way, True)]
        refused: list[str] = []
        thoughts = ""
        for way in ways:
            last = way == ways[-1]
            try:
                request = body | _shape_fields(shape, way, body["max_tokens"])
                shaped_read = partial(read, keep=shape.accepts)
                reply = self.server.ask(_CHAT, shaped_read, request, patient=last)
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
            thoughts = completion.thinking if not reply.text else ""
        if thoughts:  # not even the bare request brought more than thoughts
            raise no_answer(self.name, completion)
        said = f" It answered {self.server.quote(reply.text)[:80]!r}."
        raise ShapeError(
            f"{self.server.url} did not obey the form that the answer must have.{said}",
            "Use a server with structured output (llama.cpp's, Ollama, vLLM, LM Studio).",
        )


def _connect_again(url: str, name: str, settings: dict[str, Any]) -> RemoteReasoner:
    """Open a reasoner that was pickled; the key is the environment's."""
    return RemoteReasoner.load(url, name, **settings)


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
        return encodable(name)

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
    return replace(reply, text=text)
