"""A limit of visual tokens for each request, and what a request says of a model's loading."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgeprism.perceive.captioner import Captioner
from edgeprism.vision.token_reduction import METHOD, TokenLimit
from tests.helpers import mmprojs
from tests.helpers.serving import Reply, Running, as_base64, as_data_url, as_form, serving
from tests.language.test_generator import multi_axis_lm

ALL = 81  # visual tokens of a picture of nano
LIMITS: dict[str, TokenLimit | None] = {"": None, "all": None, "auto": "auto", "40": 40, "9": 9}
ROWS = {"": ALL, "all": ALL, "auto": 64, "40": 40, "9": 9}


def chat(picture: bytes, **fields: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": as_data_url(picture)}}
    return {"messages": [{"role": "user", "content": [part]}], **fields}


def captioned(running: Running, way: str, picture: bytes, limit: str) -> tuple[str, Any]:
    """Return the text of a caption and its record, asked for in one of several ways."""
    body: dict[str, Any]
    given = {"visual_tokens": int(limit) if limit.isdigit() else limit} if limit else {}
    if way == "form":
        data, headers = as_form({"visual_tokens": limit} if limit else {}, {"a.png": picture})
        reply = running.request("POST", "/v1/captions", data, headers)
        record = reply.data["captions"][0]
        return record["caption"], record
    if way == "stream":
        body = {"images": [as_base64(picture)], "stream": True, **given}
        events = running.post("/v1/captions", body).events()
        text = "".join(data["text"] for name, data in events if name == "caption.delta")
        return text, dict(events)["caption.done"]["caption"]
    if way == "responses":
        part = {"type": "input_image", "image_url": as_data_url(picture)}
        body = {"input": [{"role": "user", "content": [part]}], **given}
        reply = running.post("/v1/responses", body)
        text = reply.data["output"][0]["content"][0]["text"]
    elif way == "ollama":
        body = {"model": "nano", "prompt": "", "images": [as_base64(picture)], "stream": False}
        reply = running.post("/api/generate", {**body, "options": given})
        text = reply.data["response"]
    else:
        reply = running.post("/v1/chat/completions", chat(picture, **given))
        text = reply.data["choices"][0]["message"]["content"]
    return text, reply.data["edgeprism"]["captions"][0]


def test_many_clients_with_mixed_limits_get_their_own(
    server: Running, scenes: list[bytes], texts: list[str]
) -> None:
    """Each gets the caption of its own picture, from as many rows as it asked for."""
    pictures = range(len(scenes))
    expected = {("", number): text for number, text in enumerate(texts)}
    for limit in ("auto", "40", "9"):
        with Captioner.load("nano", visual_tokens=LIMITS[limit]) as captioner:
            for number in pictures:
                expected[limit, number] = captioner.caption(scenes[number]).text
    expected |= {("all", number): expected["", number] for number in pictures}
    assert len(set(expected.values())) > 8
    ways = itertools.cycle(("chat", "form", "stream", "responses", "ollama", "form"))
    asked = [(next(ways), limit, number) for number in pictures for limit in LIMITS]

    def ask(way: str, limit: str, number: int) -> tuple[str, Any]:
        return captioned(server, way, scenes[number], limit)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, *zip(*asked, strict=True)))
    for (way, limit, number), (text, record) in zip(asked, answers, strict=True):
        assert text == record["caption"] == expected[limit, number], (way, limit)
        assert record["tokens"]["visual"] == ROWS[limit]
        reduction = {"limit": LIMITS[limit], "encoded": ALL, "method": METHOD}
        assert record.get("reduction") == (reduction if LIMITS[limit] else None)


def test_a_question_has_it(server: Running, scenes: list[bytes]) -> None:
    body = {"images": [as_base64(scenes[0])], "question": "What is it?", "evidence": False,
            "instruction_mode": "generic", "visual_tokens": 9}  # fmt: skip
    (caption,) = server.post("/v1/ask", body).data["captions"]
    assert caption["tokens"]["visual"] == 9
    reasoner = server.get("/v1/models").data["defaults"]["reasoner"]
    asked = chat(scenes[0], model=f"nano+{reasoner}", visual_tokens="auto")
    asked["messages"].append({"role": "user", "content": "What is it?"})
    extension = server.post("/v1/chat/completions", asked).data["edgeprism"]
    assert extension["captions"][0]["tokens"]["visual"] == 64


@pytest.mark.parametrize("limit", [0, -1, "some", "9", 1.5, True, [9], ""], ids=str)
def test_another_value_is_refused(server: Running, limit: Any) -> None:
    asks = {
        "/v1/captions": {"images": ["eA=="], "visual_tokens": limit},
        "/v1/ask": {"images": ["eA=="], "question": "?", "visual_tokens": limit},
        "/v1/chat/completions": chat(b"x", visual_tokens=limit),
        "/v1/responses": {"input": "x", "visual_tokens": limit},
    }
    for path, body in asks.items():
        reply = server.post(path, body)
        assert (reply.status, reply.code) == (400, "invalid_request"), path
        assert "visual_tokens: " in reply.data["error"]["message"]
        assert 'a number, "auto" or "all"' in reply.data["error"]["hint"]
    body = {"model": "nano", "prompt": "x", "options": {"visual_tokens": limit}}
    assert "options.visual_tokens: " in server.post("/api/generate", body).data["error"]


@pytest.mark.parametrize("text", ["0", "-1", "some", "1.5", "", "9" * 5000, "٩"])
def test_a_form_with_another_value_is_refused(server: Running, text: str) -> None:
    body, headers = as_form({"visual_tokens": text}, {"a.png": b"x"})
    reply = server.request("POST", "/v1/captions", body, headers)
    assert (reply.status, reply.code) == (400, "invalid_request")
    assert "visual_tokens" in reply.data["error"]["message"]


def test_the_servers_own_limit_and_the_time_of_loading(scenes: list[bytes]) -> None:
    images = [as_base64(data) for data in scenes[:2]]

    def captions(reply: Reply) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = reply.data["captions"]
        return records

    with serving(visual_tokens=9) as running:
        body = chat(scenes[0])
        body["messages"] *= 2  # two pictures: whether nano takes several shows once it is loaded
        first = running.post("/v1/chat/completions", body).data["edgeprism"]
        assert first["timings_ms"]["load"] > 10
        assert [each["timings_ms"]["load"] > 10 for each in first["captions"]] == [True, False]
        times = first["captions"][0]["timings_ms"]
        stages = sum(ms for stage, ms in times.items() if stage != "total")
        assert times["total"] == pytest.approx(stages, abs=0.1)
        assert [each["tokens"]["visual"] for each in first["captions"]] == [9, 9]
        for given, rows in (({}, 9), ({"visual_tokens": None}, 9), ({"visual_tokens": 12}, 12),
                            ({"visual_tokens": "all"}, ALL)):  # fmt: skip
            for record in captions(running.post("/v1/captions", {"images": images, **given})):
                assert record["tokens"]["visual"] == rows
                assert record["timings_ms"]["load"] == 0


def test_a_model_that_needs_all_of_them(tmp_path: Path, scenes: list[bytes]) -> None:
    lm = mmprojs.with_marks(multi_axis_lm(1)).write(tmp_path / "lm.gguf")
    mmprojs.mmproj_parts(mmprojs.QWEN).write(tmp_path / "mmproj.gguf")
    body: dict[str, Any] = {"images": [as_base64(scenes[0])], "caption_tokens": 2}
    with serving(model=str(lm), visual_tokens=9) as running:
        for more in ({}, {"visual_tokens": "auto"}):
            reply = running.post("/v1/captions", {**body, **more})
            assert (reply.status, reply.code) == (400, "invalid_value")
            assert "M-RoPE" in reply.data["error"]["message"]
        assert '"all"' in reply.data["error"]["hint"]
        reply = running.post("/v1/captions", {**body, "visual_tokens": "all"})
        assert "reduction" not in reply.data["captions"][0]
        assert reply.data["captions"][0]["tokens"]["visual"] > 9
