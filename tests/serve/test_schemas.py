"""JSON schemas of requests: they bind every answer, and hold nobody up."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from edgeprism.errors import UsageError
from tests.helpers.serving import Reply, Running, as_base64, as_data_url

COLOURS = {"enum": ["red", "green"]}


def chat_parts(data: bytes) -> list[dict[str, Any]]:
    """The turns of a chat in which an answer was given before."""
    picture = {"type": "image_url", "image_url": {"url": as_data_url(data)}}
    return [
        {"role": "user", "content": [picture, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": "Five."},
        {"role": "user", "content": "What colour?"},
    ]


def test_a_schema_binds_later_answers_of_a_chat(
    server: Running, scripted_gguf: Path, scenes: list[bytes]
) -> None:
    """Under each of the three names that the APIs have for it."""
    model = f"nano+{scripted_gguf}"
    chat = chat_parts(scenes[0])
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOURS}}
    body: dict[str, Any] = {"model": model, "messages": chat, "response_format": form}
    reply = server.post("/v1/chat/completions", body)
    assert reply.data["choices"][0]["message"]["content"] in ('"red"', '"green"')
    cut = server.post("/v1/chat/completions", {**body, "max_tokens": 1})
    assert (cut.status, cut.code) == (502, "answer_too_long")
    text = {"format": {"type": "json_schema", "name": "colour", "schema": COLOURS}}
    picture = {"type": "input_image", "image_url": as_data_url(scenes[0])}
    asked = {"role": "user", "content": [picture, {"type": "input_text", "text": "How many?"}]}
    reply = server.post(
        "/v1/responses", {"model": model, "input": [asked, *chat[1:]], "text": text}
    )
    assert reply.data["output"][0]["content"][0]["text"] in ('"red"', '"green"')
    first = {"role": "user", "content": "How many?", "images": [as_base64(scenes[0])]}
    body = {"model": model, "messages": [first, *chat[1:]], "format": COLOURS, "stream": False}
    assert server.post("/api/chat", body).data["message"]["content"] in ('"red"', '"green"')


def test_json_mode_and_an_empty_schema_allow_any_object(
    server: Running, scenes: list[bytes]
) -> None:
    """A model that was not made for JSON may go on to the limit; what it writes is an object's."""
    url = {"type": "image_url", "image_url": {"url": as_data_url(scenes[0])}}
    empty = {"type": "json_schema", "json_schema": {"name": "any", "schema": {}}}
    for form in ({"type": "json_object"}, empty):
        body = {"model": "nano", "messages": [{"role": "user", "content": [url]}],
                "response_format": form, "max_tokens": 60}  # fmt: skip
        (choice,) = server.post("/v1/chat/completions", body).data["choices"]
        text = choice["message"]["content"]
        assert text.startswith("{")
        assert text != "{}"  # which was all that was allowed once
        assert choice["finish_reason"] == "length" or isinstance(json.loads(text), dict)


def hostile_schemas() -> dict[str, dict[str, Any]]:
    return {
        "a long pattern": {"type": "string", "pattern": "|".join(f"a{i}b" for i in range(20_000))},
        "a long constant": {"const": "x" * 1_000_000},
        "long values": {"enum": [f"{i}" + "x" * 2000 for i in range(1000)]},
        "many names": {"type": "object", "properties": {f"p{i}": {"$comment": "x" * 99}
                                                        for i in range(900)}},
    }  # fmt: skip


@pytest.mark.parametrize("name", hostile_schemas())
def test_a_large_schema_is_refused_in_words(
    server: Running, scenes: list[bytes], name: str
) -> None:
    body = {"images": [as_base64(scenes[0])], "question": "?", "schema": hostile_schemas()[name]}
    reply = server.post("/v1/ask", body)
    assert (reply.status, reply.code) == (400, "invalid_value")
    assert "characters" in reply.data["error"]["message"]


def test_others_are_answered_while_a_schema_is_compiled(
    server: Running, scenes: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def compile_slowly(*_: object) -> None:
        begun.set()
        assert may_end.wait(30)
        raise UsageError("compiled", "")

    monkeypatch.setattr("edgeprism.serve.dialect.schema_to_shape", compile_slowly)
    body = {"images": [as_base64(scenes[0])], "question": "?", "schema": COLOURS}
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(server.post("/v1/ask", body)))
    thread.start()
    try:
        assert begun.wait(30)
        assert server.request("GET", "/healthz", timeout=10).status == 200
    finally:
        may_end.set()
        thread.join()
    assert "compiled" in replies[0].data["error"]["message"]
