"""A reasoner's server that is slow, broken, elsewhere or hostile; `test_remote` has a real one."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest

from edgeprism.errors import EdgePrismError, Interrupted, ReplyError, ServerError, UsageError
from edgeprism.language.chat import Message
from edgeprism.reason import http as reason_http
from edgeprism.reason.base import Completion
from edgeprism.reason.remote import RemoteReasoner, ShapeError
from edgeprism.reason.shape import choices_to_shape
from tests.helpers.rude_server import (
    DRIP,
    DRIP_HEADER,
    HANG,
    NOTHING,
    RudeServer,
    Serve,
    http,
    said,
)

CHUNKS_CUT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\n{"
DEEP = http(b"[" * 200_000)
BROKEN = {
    "silence": HANG,
    "a drip": DRIP,
    "a header in drips": DRIP_HEADER,
    "hanging up": NOTHING,
    "half a body": http(b'{"choices": [', length=1000),
    "less than promised": http({"choices": [{"message": {"content": "a"}}]}, length=1000),
    "half the chunks": CHUNKS_CUT,
    "half a header": b"HTTP/1.1 200 OK\r\nContent-",
    "a header that ends after a line": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTML": http(b"<html>Welcome</html>"),
    "too deep": DEEP,
    "half JSON": http(b'{"choices": ['),
    "a list": http([]),
    "no choice": http({"choices": []}),
    "no message": http({"choices": [{"text": "old API"}]}),
    "no text": said(["a"]),
    "a number": http(b"7"),
    "busy": http({"error": {"message": "slow down"}}, "429 Too Many Requests", "Retry-After: 0"),
    "starting": http({"error": {"message": "Loading model"}}, "503 Service Unavailable"),
    "failed": http(b"oops", "500 Internal Server Error"),
}
GOOD = said("a boat")


def reasoner(server: RudeServer, **settings: Any) -> RemoteReasoner:
    settings = {"timeout_s": 0.3, "pause_s": 0.01, **settings}
    return RemoteReasoner.load(server.url, "it", **settings)


def ask(server: RudeServer, **settings: Any) -> Completion:
    return reasoner(server, **settings).complete([Message("user", "What floats?")], max_tokens=9)


# ---- temporary failures are tried again, within bounds


@pytest.mark.parametrize("name", BROKEN)
def test_two_failures_are_survived(serve: Serve, name: str) -> None:
    server = serve(BROKEN[name], BROKEN[name], GOOD)
    answer = ask(server)
    assert (answer.text, answer.finish_reason) == ("a boat", "stop")
    assert (answer.tokens.prompt, answer.tokens.generated) == (7, 3)
    assert len(server.requests) == 3


@pytest.mark.parametrize("name", BROKEN)
def test_a_third_is_reported(serve: Serve, name: str) -> None:
    server = serve(BROKEN[name])
    with pytest.raises((ReplyError, ServerError), match="3 tries") as caught:
        ask(server)
    assert caught.value.hint
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("silence", r"did not answer within 0\.3 s\. \("),
        ("a header in drips", r"did not answer within 0\.3 s: its header began and did not end\."),
        ("a drip", r"did not answer within 0\.3 s: its answer began and did not end\."),
        ("half a header", r"broke off: in the middle of its header\."),
        ("a header that ends after a line", r"broke off: in the middle of its header\."),
    ],
)
def test_how_far_an_answer_came_is_told(serve: Serve, name: str, words: str) -> None:
    start = time.monotonic()
    with pytest.raises(ReplyError, match=words):
        ask(serve(BROKEN[name]))
    assert time.monotonic() - start < 3 * 0.3 + 2


def test_nobody_there() -> None:
    with socket.socket() as closed:  # bound, not listening: refuses
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        with pytest.raises(ServerError, match="No connection to http://127") as caught:
            RemoteReasoner.load(url, pause_s=0.01)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        ("400 Bad Request", ReplyError, "log"),
        ("401 Unauthorized", ServerError, "EDGEPRISM_API_KEY"),
        ("404 Not Found", ServerError, "/v1"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    serve: Serve, status: str, kind: type[EdgePrismError], hint: str
) -> None:
    server = serve(http({"error": {"message": "no \x1b[31m such thing"}}, status))
    with pytest.raises(kind, match=r"no \[31m such thing") as caught:
        ask(server)
    assert hint in caught.value.hint
    assert len(server.requests) == 1


def test_an_answer_without_end_is_cut(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reason_http, "MAX_REPLY", 1000)
    with pytest.raises(ReplyError, match="more than"):
        ask(serve(http(b" " * 5000)))


def test_cancel_from_another_thread(serve: Serve) -> None:
    remote = reasoner(serve(HANG), timeout_s=30)
    threading.Timer(0.2, remote.cancel).start()
    with pytest.raises(Interrupted):
        remote.complete([Message("user", "?")], max_tokens=1)


def test_cancel_between_two_tries(serve: Serve) -> None:
    remote = reasoner(serve(NOTHING), pause_s=30)
    threading.Timer(0.2, remote.cancel).start()
    with pytest.raises(Interrupted):
        remote.complete([Message("user", "?")], max_tokens=1)


# ---- which addresses it connects to


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/v1",
        "https://10.0.0.1:8080/v1",
        "http://0.0.0.0:8080/v1",
        "http://[::ffff:8.8.8.8]/v1",
        "http://[2001:db8::1]/v1",
        "http://127.0.0.1.example.org/v1",
        "http://localhost.example.org/v1",
        "http://2130706433/v1",
    ],
)
def test_other_machines_are_refused_without_looking_them_up(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    with pytest.raises(UsageError, match="not on this machine") as caught:
        RemoteReasoner.load(url)
    assert "`allow_network`" in caught.value.hint


def test_a_local_name_that_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def elsewhere(*_: Any, **__: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 1)) for a in ("127.0.0.1", "9.9.9.9")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("connected"))
    with pytest.raises(UsageError, match=r"leads to 9\.9\.9\.9"):
        RemoteReasoner.load("http://localhost:1/v1")


def test_offline_means_this_machine_only(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_OFFLINE", "1")
    with pytest.raises(UsageError, match="EDGEPRISM_OFFLINE"):
        RemoteReasoner.load("http://example.org/v1", allow_network=True)
    assert ask(serve(GOOD)).text == "a boat"


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http://127.0.0.1:x/v1",
        "http://127.0.0.1:99999/v1",
        "http://me:secret@127.0.0.1/v1",
        "http://127.0.0.1/v1?key=secret",
        "http://127.0.0.1/v1#x",
        "http://127.0.0.1/a b",
        "http://127.0.0.1/\r\nX: y",
        "http://bücher.localhost/v1",
        "http://[::1/v1",
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        RemoteReasoner.load(url)
    assert caught.value.hint


def test_no_redirect_is_followed(serve: Serve) -> None:
    other = serve(GOOD)
    moved = serve(http(b"", "307 Temporary Redirect", f"Location: {other.url}/chat/completions"))
    with pytest.raises(ServerError, match="307"):
        ask(moved)
    assert (len(moved.requests), len(other.requests)) == (1, 0)


def test_no_proxy_is_asked(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = serve(http(b"", "502 Bad Gateway"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert ask(serve(GOOD)).text == "a boat"
    assert proxy.requests == []


def test_the_key_is_sent_and_never_said(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRISM_API_KEY", "sk-hush")
    server = serve(http({"error": {"message": "bad key sk-hush"}}, "401 Unauthorized"))
    with pytest.raises(ServerError, match="bad key …") as refused:
        ask(server)
    assert "sk-hush" not in str(refused.value)
    assert b"Authorization: Bearer sk-hush\r\n" in server.requests[0]
    monkeypatch.setenv("EDGEPRISM_API_KEY", "sk\r\nhush")
    with pytest.raises(UsageError) as caught:
        ask(server)
    assert "hush" not in str(caught.value)


# ---- how it reads replies


def test_the_first_model_unless_one_is_named(serve: Serve) -> None:
    server = serve(http({"data": [{"id": "first"}, {"id": "second"}]}))
    assert RemoteReasoner.load(server.url).model.name == "first"
    assert RemoteReasoner.load(server.url, "second").model.name == "second"
    replies: tuple[dict[str, Any] | None, ...] = ({"data": []}, {"data": [{"id": 3}]}, {}, None)
    for listed in replies:
        with pytest.raises(ReplyError, match="lists no model") as caught:
            RemoteReasoner.load(serve(http(listed)).url, pause_s=0.01)
        assert "`served_model`" in caught.value.hint


@pytest.mark.parametrize(
    "reply",
    [
        said("<think>water?</think>a boat"),
        said("a boat", reasoning_content="water?"),
        said("a boat", reasoning="water?"),
    ],
)
def test_thoughts_are_cut(serve: Serve, reply: bytes) -> None:
    answer = ask(serve(reply))
    assert (answer.text, answer.thinking) == ("a boat", "water?")


def test_half_a_surrogate_pair_can_be_written_down(serve: Serve) -> None:
    answer = ask(serve(said("\ud83d boat")))
    assert answer.text.encode() == b"? boat"


# ---- shapes

YES_NO = choices_to_shape(["yes", "no"])
REFUSED = http({"error": {"message": "unknown field"}}, "400 Bad Request")


def shaped(remote: RemoteReasoner) -> Completion:
    return remote.complete([Message("user", "Is it red?")], max_tokens=4, shape=YES_NO)


def test_a_schema_first(serve: Serve) -> None:
    server = serve(said('{ "answer": "no" }'))
    assert shaped(reasoner(server)).text == "no"
    (body,) = server.bodies()
    sent = body["response_format"]["json_schema"]["schema"]
    assert sent["properties"]["answer"]["enum"] == ["yes", "no"]
    assert "grammar" not in body


@pytest.mark.parametrize(
    "first", [REFUSED, BROKEN["failed"], said("It is not red."), said('{"answer": "maybe"}')]
)
def test_a_grammar_where_schemas_are_not_kept_to(serve: Serve, first: bytes) -> None:
    server = serve(first, said("no"))
    remote = reasoner(server)
    assert [shaped(remote).text, shaped(remote).text] == ["no", "no"]
    ways = ["grammar" if "grammar" in body else "schema" for body in server.bodies()]
    assert ways == ["schema", "grammar", "grammar"]  # the second request skips schemas
    assert server.bodies()[1]["grammar"] == YES_NO.gbnf


def test_a_server_that_keeps_to_nothing(serve: Serve) -> None:
    server = serve(said("Perhaps."))
    with pytest.raises(ShapeError, match="did not obey") as caught:
        shaped(reasoner(server))
    assert caught.value.hint
    assert len(server.requests) == 3
    focus, why_not = reasoner(server).draw_focus("What colour is the boat?")
    assert focus == ""
    assert "ignored the words" in why_not


def test_a_choice_said_after_thinking(serve: Serve) -> None:
    assert shaped(reasoner(serve(said("<think>yes or no?</think>no")))).text == "no"


def test_half_a_shape_is_no_answer(serve: Serve) -> None:
    for cut in ('{"answer": "n', "n"):
        done = shaped(reasoner(serve(said(cut, "length"))))
        assert (done.text, done.finish_reason) == ("", "length")


def test_a_focus_by_schema(serve: Serve) -> None:
    server = serve(said(json.dumps({"phrases": ["the", "colour", "of", "the", "boat"]})))
    drawn = reasoner(server).draw_focus("What colour is the boat?", options={"A": "red"})
    assert drawn == ("the colour of the boat", "")
    assert "red" not in server.requests[0].decode().replace("required", "")
    # The reply is checked even if the server did not bind it.
    other = serve(said(json.dumps({"words": ["the", "red", "boat"]})))
    assert reasoner(other).draw_focus("What colour is the boat?")[0] == ""
