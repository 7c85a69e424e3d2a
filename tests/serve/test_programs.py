"""Requests of the form that photo programs send, and what they read of the answers.

The forms follow the programs' sources as they were in 2026 (PhotoPrism: internal/ai/vision/,
LLM Vision: custom_components/llmvision/providers.py); prompts and schemas here are our own.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.bundles import SAID_TEXT
from tests.helpers.serving import Running, as_base64, as_data_url

LABELS = {
    "type": "object",
    "properties": {
        "labels": {
            "type": "array",
            "maxItems": 2,
            "items": {
                "type": "object",
                "properties": {
                    "name": {"enum": ["star", "car"]},
                    "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "required": ["name", "confidence"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["labels"],
    "additionalProperties": False,
}


@pytest.fixture
def both(scripted_gguf: Path) -> str:
    """The name of a captioner with a reasoner."""
    return f"nano+{scripted_gguf}"


# ---- PhotoPrism


def photoprism(scene: bytes, **fields: Any) -> dict[str, Any]:
    """Its request to Ollama's /api/generate."""
    return {
        "id": "b0db2187-7a09-438c-8649-a9c6c0f7b8a1",
        "model": "nano:latest",
        "prompt": "",
        "suffix": "",
        "think": "false",
        "options": {"temperature": 0.1},
        "stream": False,
        "images": [as_base64(scene)],
        **fields,
    }


def last_of(body: bytes) -> dict[str, Any]:
    """The last of the values that an answer holds: it reads them one after another."""
    text, decoder, start = body.decode().strip(), json.JSONDecoder(), 0
    value: dict[str, Any] = {}
    while start < len(text):
        value, start = decoder.raw_decode(text, start)
    return value


def test_photoprism_gets_a_caption(server: Running, scenes: list[bytes]) -> None:
    reply = server.post("/api/generate", photoprism(scenes[0], prompt="Describe the picture."))
    assert reply.status == 200
    read = last_of(reply.body)
    assert read["model"] == "nano:latest"
    assert read["response"].strip()
    assert read["done"] is True
    assert datetime.fromisoformat(read["created_at"]).tzinfo is not None
    for number in ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration",
                   "eval_count", "eval_duration"):  # fmt: skip
        assert isinstance(read[number], int), number


def test_photoprism_gets_labels_in_json(server: Running, scenes: list[bytes]) -> None:
    options = {"temperature": 0.1, "top_p": 0.9, "stop": ["\n\n"], "num_predict": 256}
    body = photoprism(scenes[0], system="You name things.", prompt="Labels as JSON.",
                      format="json", options=options)  # fmt: skip
    reply = server.post("/api/generate", body)
    assert reply.status == 200, reply.body
    read = last_of(reply.body)
    assert read["response"].startswith("{")
    if read["done_reason"] == "stop":  # nano was not made for it, and may go on to the limit
        assert isinstance(json.loads(read["response"]), dict)


def test_photoprism_speaks_openais_responses_too(
    server: Running, scenes: list[bytes], texts: list[str]
) -> None:
    picture = {"type": "input_image", "image_url": as_data_url(scenes[0]), "detail": "low"}
    body = {
        "model": "nano",
        "input": [{"role": "user", "type": "message", "content": [picture]}],
        "max_output_tokens": 512,
    }
    read = server.post("/v1/responses", body).data
    assert read["error"] is None
    assert read["output"][0]["content"][0]["text"] == texts[0]
    words = {"type": "input_text", "text": "Name the things."}
    system = {"role": "system", "type": "message", "content": [words]}
    user = {"role": "user", "type": "message", "content": [words, picture]}
    form = {"type": "json_schema", "name": "labels_v1", "schema": LABELS}
    more = {"input": [system, user], "text": {"format": form}, "top_p": 0.9}
    read = server.post("/v1/responses", {**body, **more, "reasoning": {"effort": "low"}}).data
    labels = json.loads(read["output"][0]["content"][0]["text"])["labels"]
    assert {label["name"] for label in labels} <= {"star", "car"}


def test_photoprism_reads_why_it_gets_none(server: Running) -> None:
    reply = server.post("/api/generate", photoprism(b"no picture"))
    assert reply.status == 400
    assert "not a picture" in last_of(reply.body)["error"]


# ---- LLM Vision


def llm_vision(model: str, scenes: list[bytes], message: str, **fields: Any) -> dict[str, Any]:
    """Its request to Ollama's /api/chat: each picture has a message of its own."""
    pictures = [
        {"role": "user", "content": f"Image {number}:", "images": [as_base64(scene)]}
        for number, scene in enumerate(scenes, 1)
    ]
    return {
        "model": model,
        "messages": [*pictures, {"role": "user", "content": message}],
        "stream": False,
        "keep_alive": 300,
        "options": {"num_predict": 100, "temperature": 0.0, "num_ctx": 2048},
        "system": "You watch a camera.",
        **fields,
    }


def test_llm_vision_finds_the_server(server: Running) -> None:
    assert server.get("/api/tags").status == 200


def test_llm_vision_gets_every_frame_described(
    server: Running, scenes: list[bytes], both: str
) -> None:
    reply = server.post("/api/chat", llm_vision("nano", scenes[:2], "Describe it."))
    read = reply.data["message"]["content"]
    assert len(read.split("\n\n")) == 2
    captions = reply.data["edgeprism"]["captions"]
    assert [each["instruction"] for each in captions] == ["Describe it."] * 2
    assert len({each["image_sha256"] for each in captions}) == 2
    reply = server.post("/api/chat", llm_vision(both, scenes[:2], "Is there a star?"))
    assert reply.data["message"]["content"] == SAID_TEXT
    assert len(reply.data["edgeprism"]["captions"]) == 2


def test_llm_vision_gets_structured_data(server: Running, scenes: list[bytes]) -> None:
    body = llm_vision("nano", scenes[:1], "Labels?", format=LABELS)
    labels = json.loads(server.post("/api/chat", body).data["message"]["content"])["labels"]
    assert {label["name"] for label in labels} <= {"star", "car"}


def test_llm_vision_speaks_openais_chat_too(
    server: Running, scenes: list[bytes], both: str
) -> None:
    content: list[dict[str, Any]] = []
    for number, scene in enumerate(scenes[:2], 1):
        url = {"url": as_data_url(scene, "image/jpeg")}
        content += [{"type": "text", "text": f"Image {number}:"},
                    {"type": "image_url", "image_url": url}]  # fmt: skip
    content.append({"type": "text", "text": "What happened?"})
    body = {
        "model": both,
        "messages": [
            {"role": "system", "content": "You watch a camera."},
            {"role": "user", "content": content},
        ],
        "max_completion_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    key = {"Authorization": "Bearer any"}
    reply = server.post("/v1/chat/completions", body, **key)
    assert reply.data["choices"][0]["message"]["content"] == SAID_TEXT
    assert len(reply.data["edgeprism"]["captions"]) == 2
    form = {"name": "response", "schema": LABELS, "strict": True}
    body |= {"model": "nano", "response_format": {"type": "json_schema", "json_schema": form}}
    body["messages"] = [{"role": "user", "content": [*content[:2], content[-1]]}]
    reply = server.post("/v1/chat/completions", body, **key)
    assert json.loads(reply.data["choices"][0]["message"]["content"])["labels"] is not None


def test_llm_vision_asks_for_words_alone(server: Running, both: str) -> None:
    """To try the connection, and for titles: a captioner alone says why it cannot."""
    words = [{"type": "text", "text": "Hi"}]
    body = {"model": both, "messages": [{"role": "user", "content": words}]}
    reply = server.post("/v1/chat/completions", body)
    assert reply.data["choices"][0]["message"]["content"] == SAID_TEXT
    talk = [{"role": "user", "content": "Give it a title."}, {"role": "user", "content": "A dog."}]
    reply = server.post("/api/chat", {"model": both, "messages": talk, "stream": False})
    assert reply.data["message"]["content"] == SAID_TEXT
    alone = server.post("/v1/chat/completions", {**body, "model": "nano"})
    assert alone.status == 400
    assert "name a reasoner too" in alone.data["error"]["message"]
