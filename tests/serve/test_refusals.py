"""What is refused says so, in the API's own form and where a page can read it."""

from __future__ import annotations

import time
import weakref
from typing import Any

import pytest

from edgeprism.errors import UsageError
from edgeprism.serve.options import ServeOptions
from edgeprism.serve.refusals import Refusal, let_go
from edgeprism.serve.run import open_socket
from tests.helpers.serving import Running, as_base64, as_data_url, as_form, serving

KEY = "a-key-of-the-tests-0123456789"


@pytest.mark.parametrize(
    "charset",
    ["utf-7", "unicode_escape", "undefined", "punycode", "idna", "latin-1", "none-such", "a\\0b"],
)
def test_forms_are_in_utf_8(server: Running, scenes: list[bytes], charset: str) -> None:
    fields = {"instruction": "+2AA- \\ud800", "stream": "true"}
    body, headers = as_form(fields, {"a.png": scenes[0]})
    kind = f"{headers['Content-Type']}; charset={charset}"
    reply = server.request("POST", "/v1/captions", body, {"Content-Type": kind})
    assert (reply.status, reply.code) == (400, "invalid_form")
    assert "UTF-8" in reply.data["error"]["message"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"utf-8"'])
def test_a_form_may_say_that_it_is_in_utf_8(
    server: Running, scenes: list[bytes], texts: list[str], charset: str
) -> None:
    body, headers = as_form({}, {"a.png": scenes[0]})
    kind = f"{headers['Content-Type']}; charset={charset}"
    reply = server.request("POST", "/v1/captions", body, {"Content-Type": kind})
    assert reply.data["captions"][0]["caption"] == texts[0]


def test_a_refusal_can_repeat_any_character(server: Running) -> None:
    """Half of a character cannot be sent in UTF-8, but as an escape."""
    reply = server.get("/v1/models/%ed%a0%80")
    assert (reply.status, reply.code) == (404, "model_not_found")


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_pictures_are_read_in_user_messages_only(
    server: Running, scenes: list[bytes], role: str
) -> None:
    url, asked = as_data_url(scenes[0]), {"role": "user", "content": "What is it?"}
    picture: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    chat = {"messages": [{"role": role, "content": [picture]}, asked]}
    picture = {"type": "input_image", "image_url": url}
    response = {"input": [{"role": role, "content": [picture]}, asked]}
    message = {"role": role, "content": "", "images": [as_base64(scenes[0])]}
    own = {"model": "nano", "messages": [message, asked]}
    for path, body in (("/v1/chat/completions", chat), ("/v1/responses", response),
                       ("/api/chat", own)):  # fmt: skip
        reply = server.post(path, body)
        assert reply.status == 400
        assert "read in user messages only" in reply.body.decode()


def test_keep_alive_holds_for_the_request_that_loads_the_model(scenes: list[bytes]) -> None:
    with serving(keep_alive_s=float("inf"), idle_look_s=0.05) as running:
        for streams in (False, True):
            body = {"model": "nano", "images": [as_base64(scenes[0])], "keep_alive": "0.1s",
                    "stream": streams}  # fmt: skip
            assert running.post("/api/generate", body).status == 200
            deadline = time.monotonic() + 10
            while running.get("/api/ps").data["models"] and time.monotonic() < deadline:
                time.sleep(0.05)
            assert running.get("/api/ps").data["models"] == []


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/pull", "/v1/captions/", "/v1/", "/api/"])
def test_unknown_paths_of_the_apis_are_not_found(server: Running, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        reply = server.request(method, path, b"{}", {"Content-Type": "application/json"})
        assert reply.status == 404, method
        error = reply.data["error"]
        assert "nothing at this path" in (error if path.startswith("/api") else error["message"])


def test_a_model_without_a_name_is_not_found(server: Running) -> None:
    assert server.get("/v1/models/").status == 404


def test_pages_of_allowed_origins_can_read_refusals(scenes: list[bytes]) -> None:
    page = "https://app.lan"
    with serving(api_key=KEY, allow_origins=(page,)) as running:
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {KEY}"}, 400)):
            reply = running.post("/v1/captions", {}, Origin=page, **headers)
            assert reply.status == status
            assert reply.headers["access-control-allow-origin"] == page
            assert "Retry-After" in reply.headers["access-control-expose-headers"]
            assert reply.headers["vary"] == "Origin"
        other = running.post("/v1/captions", {}, Origin="https://evil.example")
        assert other.status == 403
        assert not any(name.startswith("access-control") for name in other.headers)
        assert "access-control-allow-origin" not in running.get("/v1/models").headers


def test_unknown_names_are_repeated_in_short(server: Running, scenes: list[bytes]) -> None:
    name = "x" * 100_000
    reply = server.post("/v1/captions", {"images": [as_base64(scenes[0])], "model": name})
    assert reply.status == 404
    assert len(reply.body) < 2000


@pytest.mark.parametrize(
    ("path", "field", "words"),
    [
        ("/v1/chat/completions", {"n": 2}, "One answer is given"),
        ("/v1/chat/completions", {"tools": [{}]}, "call no tools"),
        ("/v1/responses", {"previous_response_id": "x"}, "Answers are not kept"),
        ("/api/chat", {"tools": [{}]}, "call no tools"),
    ],
)
def test_what_is_not_offered_is_told_in_words(
    server: Running, path: str, field: dict[str, Any], words: str
) -> None:
    talk = [{"role": "user", "content": "What?"}]
    reply = server.post(path, {"model": "nano", "messages": talk, "input": talk, **field})
    assert reply.status == 400
    assert words in reply.body.decode()


@pytest.mark.parametrize(
    ("path", "part", "told"),
    [
        ("/v1/chat/completions", {"type": "input_audio", "input_audio": {"data": "AA=="}}, "audio"),
        ("/v1/chat/completions", {"type": "file", "file": {"file_id": "x"}}, "file"),
        ("/v1/chat/completions", {"type": "hologram"}, "hologram"),
        ("/v1/responses", {"type": "input_audio", "input_audio": {"data": "AA=="}}, "audio"),
        ("/v1/responses", {"type": "input_file", "file_id": "x"}, "file"),
    ],
)
def test_parts_that_are_no_text_and_no_picture_are_told(
    server: Running, path: str, part: dict[str, Any], told: str
) -> None:
    talk = [{"role": "user", "content": "Hello"}, {"role": "user", "content": [part]}]
    reply = server.post(path, {"messages": talk, "input": talk})
    assert (reply.status, reply.code) == (400, "part_not_understood")
    message = reply.data["error"]["message"]
    assert "[1].content[0]" in message
    assert told in message
    assert "pictures alone" in message


def test_bodies_that_cannot_be_read_say_why(server: Running, scenes: list[bytes]) -> None:
    body, headers = as_form({"focus": "a"}, {"a.png": scenes[0]})
    cut = server.request("POST", "/v1/captions", body[:-40], headers)
    assert (cut.status, cut.code) == (400, "invalid_form")
    assert "breaks off" in cut.data["error"]["message"]
    plain = server.request("POST", "/v1/captions", b"x", {"Content-Type": "text/plain"})
    assert plain.status == 415
    assert "application/json or multipart/form-data" in plain.data["error"]["message"]
    name = b"k" * 100_000
    json_headers = {"Content-Type": "application/json"}
    twice = server.request("POST", "/v1/captions", b'{"%s":1,"%s":2}' % (name, name), json_headers)
    assert twice.code == "invalid_json"
    assert len(twice.body) < 2000


def test_a_host_that_is_no_address_is_told() -> None:
    options = ServeOptions(host="nosuch.invalid", port=0, api_key=KEY)
    with pytest.raises(UsageError, match="no such address"):
        open_socket(options)


def test_an_error_that_was_told_holds_nothing_any_more() -> None:
    class Data:
        """Stands for a picture."""

    held: list[weakref.ref[Data]] = []

    def decode() -> None:
        data = Data()
        held.append(weakref.ref(data))
        raise ValueError("inner")

    def fail() -> None:
        picture = Data()
        held.append(weakref.ref(picture))
        try:
            decode()
        except ValueError as error:
            raise Refusal(400, "unreadable_picture", "It is broken.") from error

    with pytest.raises(Refusal) as refused:
        fail()
    kept = refused.value
    let_go(kept)
    assert [reference() for reference in held] == [None, None]
    assert kept.__traceback__ is not None
