"""OpenAI's own client works against the server."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.helpers.bundles import SAID_TEXT
from tests.helpers.serving import Running, as_data_url

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="unused", max_retries=0)


def with_picture(text: str, *pictures: bytes) -> Any:
    parts: list[dict[str, object]] = [{"type": "text", "text": text}] if text else []
    for data in pictures:
        parts.append({"type": "image_url", "image_url": {"url": as_data_url(data)}})
    return [{"role": "user", "content": parts}]


def test_a_caption(client: openai.OpenAI, scenes: list[bytes], texts: list[str]) -> None:
    reply = client.chat.completions.create(model="nano", messages=with_picture("", scenes[0]))
    assert reply.choices[0].message.content == texts[0]
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    extension = reply.model_dump()["edgeprism"]
    assert extension["captions"][0]["caption"] == texts[0]
    assert extension["timings_ms"]["decode"] > 0


def test_a_stream(client: openai.OpenAI, scenes: list[bytes], texts: list[str]) -> None:
    stream = client.chat.completions.create(
        model="nano", messages=with_picture("", scenes[1]), stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    deltas = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert "".join(deltas) == texts[1]
    assert len(deltas) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_several_pictures_are_described_in_order(
    client: openai.OpenAI, scenes: list[bytes], texts: list[str]
) -> None:
    messages = with_picture("", *scenes[:3])
    stream = client.chat.completions.create(model="nano", messages=messages, stream=True)
    deltas = [c.choices[0].delta.content or "" for c in stream if c.choices]
    assert "".join(deltas) == "\n\n".join(texts[:3])


def test_a_schema_binds_the_text(client: openai.OpenAI, scenes: list[bytes]) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA}}
    reply = client.chat.completions.create(
        model="nano", messages=with_picture("What colour?", scenes[0]), response_format=form,
    )  # fmt: skip
    seen = json.loads(reply.choices[0].message.content or "")
    assert seen["colour"] in ("red", "green", "blue")
    assert isinstance(seen["sure"], bool)


def test_a_text_that_breaks_its_schema_is_an_error(
    client: openai.OpenAI, scenes: list[bytes]
) -> None:
    """A grammar cannot forbid that two items are alike, and nano writes one three times."""
    items = {"enum": ["a", "b", "c"]}
    schema = {"type": "array", "items": items, "minItems": 3, "maxItems": 3, "uniqueItems": True}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = with_picture("", scenes[0])
    with pytest.raises(openai.InternalServerError, match="has the same item twice") as error:
        client.chat.completions.create(model="nano", messages=messages, response_format=form)
    assert error.value.status_code == 502


def test_two_stages_behind_one_name(
    client: openai.OpenAI,
    scripted_gguf: object,
    scenes: list[bytes],
    texts: list[str],
    slow_words: None,
) -> None:
    model = f"nano+{scripted_gguf}"
    reply = client.chat.completions.create(
        model=model,
        messages=with_picture("What colour is the star?", scenes[0]),
    )
    assert reply.choices[0].message.content == SAID_TEXT
    extension = reply.model_dump()["edgeprism"]
    assert len(extension["captions"]) == 1
    assert "evidence" in extension
    messages = with_picture("What colour is the star?", scenes[0])
    chunks = list(client.chat.completions.create(model=model, messages=messages, stream=True))
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(deltas) == SAID_TEXT
    assert len(list(filter(None, deltas))) > 4
    assert chunks[0].model_dump()["edgeprism"]["caption"]["image"] == "picture 1"
    talk = with_picture("", scenes[0])
    talk += [{"role": "assistant", "content": texts[0]}, {"role": "user", "content": "Where?"}]
    later = client.chat.completions.create(model=model, messages=talk)
    assert later.choices[0].message.content == SAID_TEXT


def test_responses(client: openai.OpenAI, scenes: list[bytes], texts: list[str]) -> None:
    part = {"type": "input_image", "image_url": as_data_url(scenes[0]), "detail": "auto"}
    given: Any = [{"role": "user", "content": [part]}]
    whole = client.responses.create(model="nano", input=given)
    assert whole.output_text == texts[0]
    assert whole.status == "completed"
    assert whole.usage is not None
    assert whole.usage.output_tokens > 3
    with client.responses.stream(model="nano", input=given) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == texts[0]
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.delta") > 3
    assert kinds[-1] == "response.completed"


def test_a_cut_response_says_so(client: openai.OpenAI, scenes: list[bytes]) -> None:
    part = {"type": "input_image", "image_url": as_data_url(scenes[0]), "detail": "auto"}
    given: Any = [{"role": "user", "content": [part]}]
    cut = client.responses.create(model="nano", input=given, max_output_tokens=2)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_models(client: openai.OpenAI, scripted_gguf: object) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == "nano"
    assert f"nano+{scripted_gguf}" in names
    assert client.models.retrieve("nano").id == "nano"


def test_refusals_are_the_clients_own_errors(client: openai.OpenAI, scenes: list[bytes]) -> None:
    with pytest.raises(openai.NotFoundError, match="no captioner 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=with_picture("", scenes[0]))
    with pytest.raises(openai.BadRequestError, match="holds none"):
        client.chat.completions.create(model="nano", messages=with_picture("Hello"))
    with pytest.raises(openai.BadRequestError, match="not a picture"):
        client.chat.completions.create(
            model="nano",
            messages=with_picture("", b"not a picture"),
            stream=True,
        )
    url = {"type": "image_url", "image_url": {"url": "https://example.org/a.jpg"}}
    messages: Any = [{"role": "user", "content": [url]}]
    with pytest.raises(openai.BadRequestError, match="fetches nothing"):
        client.chat.completions.create(model="nano", messages=messages)
