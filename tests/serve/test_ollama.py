"""Ollama's own client works against the server, as far as photo programs use it."""

from __future__ import annotations

import json

import ollama
import pytest

from tests.helpers.serving import Running, as_base64


@pytest.fixture
def client(server: Running) -> ollama.Client:
    return ollama.Client(host=server.address)


def test_generate(client: ollama.Client, scenes: list[bytes], texts: list[str]) -> None:
    reply = client.generate(model="nano:latest", prompt="", images=[scenes[0]])
    assert reply.response == texts[0]
    assert reply.done
    assert reply.done_reason == "stop"
    assert (reply.eval_count or 0) > 3
    assert (reply.total_duration or 0) > (reply.eval_duration or 0) > 0


def test_generate_streams(client: ollama.Client, scenes: list[bytes], texts: list[str]) -> None:
    parts = list(client.generate(model="nano", prompt="", images=[scenes[1]], stream=True))
    assert "".join(part.response or "" for part in parts) == texts[1]
    assert len(parts) > 4
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_chat_in_a_schema(client: ollama.Client, scenes: list[bytes]) -> None:
    schema = {"type": "object", "properties": {"labels": {"type": "array", "maxItems": 2,
              "items": {"enum": ["star", "car"]}}}, "required": ["labels"]}  # fmt: skip
    message = {"role": "user", "content": "Labels?", "images": [scenes[0]]}
    reply = client.chat(model="nano", messages=[message], format=schema, options={"seed": 1})
    assert set(json.loads(reply.message.content or "")["labels"]) <= {"star", "car"}


def test_chat_streams(client: ollama.Client, scenes: list[bytes], texts: list[str]) -> None:
    message = {"role": "user", "content": "", "images": [as_base64(scenes[0])]}
    parts = list(client.chat(model="nano", messages=[message], stream=True))
    assert "".join(part.message.content or "" for part in parts) == texts[0]


def test_models_are_found(client: ollama.Client, server: Running) -> None:
    names = [model.model for model in client.list().models]
    assert "nano" in names
    shown = client.show("nano")
    assert "vision" in (shown.capabilities or [])
    assert client.ps().models is not None
    assert server.get("/api/version").data["version"]


def test_errors_are_texts(client: ollama.Client, scenes: list[bytes]) -> None:
    with pytest.raises(ollama.ResponseError, match="no captioner 'llava'") as error:
        client.generate(model="llava", prompt="", images=[scenes[0]])
    assert error.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="holds none"):
        client.generate(model="nano", prompt="Hello")


def test_an_empty_request_loads_and_frees(server: Running) -> None:
    loaded = server.post("/api/generate", {"model": "nano"})
    assert loaded.data["done_reason"] == "load"
    assert "captioner nano" in [line.removeprefix("loaded ") for line in server.log]
