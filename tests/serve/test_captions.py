"""`/v1/captions` and `/v1/ask`: JSON and forms, whole and streamed, many clients at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeprism.prism import NO_FOCUS_NOTE
from edgeprism.reason.local import Reasoner
from tests.helpers import bundles, tiny_decoder
from tests.helpers.bundles import SAID_TEXT
from tests.helpers.serving import Running, as_base64, as_data_url, as_form, serving


def test_json_gives_what_python_gives(
    server: Running, scenes: list[bytes], texts: list[str]
) -> None:
    images = [as_base64(scenes[0]), {"data": as_data_url(scenes[1]), "name": "C:\\x\\two.png"}]
    reply = server.post("/v1/captions", {"images": images})
    assert reply.status == 200
    assert reply.data["model"] == "nano"
    first, second = reply.data["captions"]
    assert [first["caption"], second["caption"]] == texts[:2]
    assert [first["image"], second["image"]] == ["picture 1", "two.png"]
    assert first["tokens"]["generated"] > 0
    assert first["timings_ms"]["encode"] > 0


def test_a_form_gives_the_same(server: Running, scenes: list[bytes], texts: list[str]) -> None:
    body, headers = as_form({"seed": "3"}, {"a.png": scenes[2], "b.png": scenes[3]})
    reply = server.request("POST", "/v1/captions", body, headers)
    assert reply.status == 200
    assert [record["caption"] for record in reply.data["captions"]] == texts[2:4]
    assert [record["image"] for record in reply.data["captions"]] == ["a.png", "b.png"]


def test_a_stream_brings_every_caption_piece_by_piece(
    server: Running, scenes: list[bytes], texts: list[str]
) -> None:
    images = [as_base64(data) for data in scenes]
    reply = server.post("/v1/captions", {"images": images, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = reply.events()
    pieces = [[d["text"] for name, d in events if name == "caption.delta" and d["index"] == i]
              for i in range(len(scenes))]  # fmt: skip
    assert ["".join(own) for own in pieces] == texts
    assert all(len(own) > 3 for own in pieces)
    done = {d["index"]: d["caption"] for name, d in events if name == "caption.done"}
    assert [done[i]["caption"] for i in range(len(scenes))] == texts
    assert events[-1] == ("done", {"model": "nano"})


def test_a_picture_that_cannot_be_read_fails_alone(
    server: Running, scenes: list[bytes], texts: list[str]
) -> None:
    images = [as_base64(b"no picture"), as_base64(scenes[0]), as_base64(scenes[0][:200])]
    reply = server.post("/v1/captions", {"images": images})
    assert reply.status == 200
    bad, good, cut = reply.data["captions"]
    assert bad["error"]["code"] == cut["error"]["code"] == "unreadable_picture"
    assert "picture 1" in bad["error"]["message"]
    assert good["caption"] == texts[0]
    events = server.post("/v1/captions", {"images": images, "stream": True}).events()
    assert sorted(d["index"] for name, d in events if name == "caption.failed") == [0, 2]


def test_a_video_is_refused_in_words(server: Running, scenes: list[bytes]) -> None:
    video = b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(300)
    images = [as_base64(video), as_base64(scenes[0])]
    refused, good = server.post("/v1/captions", {"images": images}).data["captions"]
    assert "the server takes pictures only" in refused["error"]["message"]
    assert "caption" in good


def test_options_reach_the_captioner(server: Running, scenes: list[bytes]) -> None:
    body = {"images": [as_base64(scenes[0])], "caption_tokens": 3, "instruction": "Describe it."}
    (record,) = server.post("/v1/captions", body).data["captions"]
    assert record["finish_reason"] == "length"
    assert record["tokens"]["generated"] == 3
    assert record["instruction"] == "Describe it."


# ---- questions


def test_an_answer_comes_with_its_captions(
    server: Running, scenes: list[bytes], texts: list[str]
) -> None:
    body = {"images": [as_base64(scenes[0])], "question": "What is on the left?",
            "instruction_mode": "generic"}  # fmt: skip
    reply = server.post("/v1/ask", body)
    assert reply.status == 200, reply.body
    assert reply.data["answer"] == SAID_TEXT
    assert [record["caption"] for record in reply.data["captions"]] == texts[:1]
    assert reply.data["focus"] == ""


def test_an_answer_streams_word_by_word(
    server: Running, scenes: list[bytes], slow_words: None
) -> None:
    body = {"images": [as_base64(scenes[0])], "question": "What is it?", "stream": True}
    events = server.post("/v1/ask", body).events()
    names = list(dict.fromkeys(name for name, _ in events))
    assert names == [
        "focus",
        "caption.delta",
        "caption.done",
        "answer.delta",
        "answer.done",
        "done",
    ]
    parts = [data["text"] for name, data in events if name == "answer.delta"]
    assert "".join(parts) == dict(events)["answer.done"]["answer"]["answer"] == SAID_TEXT
    assert len(parts) > 4


def test_thoughts_that_nothing_announced_do_not_hide_the_answer(
    server: Running, scenes: list[bytes], tmp_path: Path
) -> None:
    """A tag closes a block that none opened: what came before it was sent already."""
    script = bundles.piece_ids("▁red", *"</think>", "▁a", "▁dog", bundles.IM_END)
    with serving(reasoner=str(bundles.write_lm(tmp_path / "lm.gguf", script=script))) as running:
        message = {"role": "user", "content": "What?", "images": [as_base64(scenes[0])]}
        model = f"nano+{tmp_path / 'lm.gguf'}"
        reply = running.post("/api/chat", {"model": model, "messages": [message]})
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == "red\n\na dog"


def test_an_answer_streams_focus_captions_answer(server: Running, scenes: list[bytes]) -> None:
    body = {"images": [as_base64(scenes[0])], "question": "What colour is the star?",
            "stream": True, "choices": ["red", "blue"], "evidence": False}  # fmt: skip
    events = server.post("/v1/ask", body).events()
    names = list(dict.fromkeys(name for name, _ in events))
    assert names == ["focus", "caption.delta", "caption.done", "answer.done", "done"]
    answer = dict(events)["answer.done"]["answer"]
    assert answer["answer"] in ("red", "blue")
    assert answer["focus"] == dict(events)["focus"]["focus"]


def test_a_reasoner_of_another_server_answers(
    server: Running, scripted_gguf: Path, scenes: list[bytes]
) -> None:
    """The other server is one of ours; clients cannot name a third."""
    served = f"nano+{scripted_gguf}"
    address = f"{server.address}/v1"
    with serving(reasoner=address, served_model=served) as running:
        body = {"images": [as_base64(scenes[0])], "question": "What is it?",
                "instruction_mode": "generic", "evidence": False}  # fmt: skip
        for model in ({}, {"model": f"nano+{address}"}):
            reply = running.post("/v1/ask", {**body, **model})
            assert reply.data["answer"] == SAID_TEXT
            assert reply.data["reasoner"] == {**reply.data["reasoner"], "name": served}
        other = running.post("/v1/ask", {**body, "model": "nano+http://127.0.0.1:1/v1"})
        assert (other.status, other.code) == (404, "model_not_found")
        assert running.get("/v1/models").data["defaults"]["reasoner"] == address


def test_a_reasoner_elsewhere_needs_consent(scenes: list[bytes]) -> None:
    with serving(reasoner="http://192.0.2.1/v1") as running:
        body = {"images": [as_base64(scenes[0])], "question": "What is it?",
                "instruction_mode": "generic"}  # fmt: skip
        reply = running.post("/v1/ask", body)
    assert reply.status == 400
    assert "is not on this machine" in reply.data["error"]["message"]


def test_a_question_is_not_turned_into_a_focus_that_nobody_takes(
    scripted_gguf: Path, scenes: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the captioner is in memory, and afterwards."""

    def refuse(*_: object, **__: object) -> tuple[str, str]:
        raise AssertionError("the reasoner drew a focus")

    monkeypatch.setattr(Reasoner, "draw_focus", refuse)
    bundle = tiny_decoder.write_bundle(tmp_path / "b")
    body = {"images": [as_base64(scenes[0])], "question": "What colour is the boat?"}
    with serving(model=str(bundle), reasoner=str(scripted_gguf)) as running:
        for _ in range(2):
            reply = running.post("/v1/ask", body)
            assert (reply.status, reply.data["focus"]) == (200, "")
            assert reply.data["notes"][0] == NO_FOCUS_NOTE


def test_a_question_about_a_broken_picture_is_an_error(server: Running) -> None:
    body = {"images": [as_base64(b"nothing")], "question": "What is it?",
            "instruction_mode": "generic"}  # fmt: skip
    reply = server.post("/v1/ask", body)
    assert (reply.status, reply.code) == (400, "unreadable_picture")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "images"),
        ({"images": [], "question": "?"}, "images"),
        ({"images": ["eA=="], "question": " "}, "question"),
        ({"images": ["eA=="]}, "question"),
        ({"images": ["eA=="], "question": "?", "colour": 1}, "colour"),
        ({"images": ["eA=="], "question": "?", "answer_tokens": 0}, "answer_tokens"),
        ({"images": ["eA=="], "question": "?", "choices": ["a", "b"], "schema": {}}, "exclude"),
        ({"images": ["eA=="], "question": "?", "schema": {"type": "tower"}}, "tower"),
    ],
)
def test_faulty_questions_are_told(server: Running, body: object, told: str) -> None:
    reply = server.post("/v1/ask", body)
    assert reply.status == 400
    assert told in reply.data["error"]["message"]
