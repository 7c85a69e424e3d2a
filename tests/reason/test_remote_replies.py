"""Replies that are no answers, told in the server's words; and bodies that lie about themselves."""

from __future__ import annotations

import gzip
import json
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli.main import run
from edgeprism.errors import EdgePrismError, ReplyError, ServerError
from edgeprism.language.chat import Message
from edgeprism.reason import http as reason_http
from edgeprism.reason.base import Completion
from edgeprism.reason.conversation import Conversation
from edgeprism.reason.remote import RemoteReasoner
from edgeprism.reason.shape import choices_to_shape
from edgeprism.reason.thinking import cut_thinking
from tests.helpers.rude_server import RudeServer, Serve, chunked, http, reply, said

ANSWER = json.dumps({"choices": [{"message": {"content": "a boat"}}]}).encode()


def reasoner(server: RudeServer) -> RemoteReasoner:
    return RemoteReasoner.load(server.url, "it", timeout_s=5, pause_s=0.01)


def complete(server: RudeServer, question: str = "What floats?") -> Completion:
    return reasoner(server).complete([Message("user", question)], max_tokens=9)


def failure(server: RudeServer) -> EdgePrismError:
    with pytest.raises(EdgePrismError) as caught:
        reasoner(server).answer([], "What floats?")
    return caught.value


# ---- replies without an answer

THOUGHTS = "So the picture shows a red circle."
ONLY_THOUGHTS = {
    "in a field, at the limit": said("", "length", reasoning_content=THOUGHTS),
    "in a field, null": said(None, "stop", reasoning=THOUGHTS),
    "in Ollama's field": said("", "stop", thinking=THOUGHTS),
    "in the text, cut off": said(f"<think>{THOUGHTS}", "length"),
    "in the text, closed": said(f"<think>{THOUGHTS}</think>\n", "stop"),
    "in a part": said([{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHTS}]}]),
    "in a part of its own": said([{"type": "reasoning", "text": THOUGHTS}], "length"),
}


@pytest.mark.parametrize("name", ONLY_THOUGHTS)
def test_thoughts_without_an_answer_are_an_error(serve: Serve, name: str) -> None:
    server = serve(ONLY_THOUGHTS[name])
    error = failure(server)
    assert "thinking" in error.message
    assert "3 tokens" in error.message  # where they went, by the server's own count
    assert "`answer_tokens`" in error.hint
    assert error.exit_code == 1
    assert len(server.requests) == 1  # at temperature 0 another try brings the same


def test_thoughts_at_the_limit_are_no_choice_either(serve: Serve) -> None:
    for text in ("", None):
        server = serve(said(text, "length", reasoning_content=THOUGHTS))
        with pytest.raises(EdgePrismError, match="thinking"):
            reasoner(server).answer([], "Is it red?", shape=choices_to_shape(["yes", "no"]))
    server = serve(said("", "stop", reasoning_content=THOUGHTS))
    with pytest.raises(EdgePrismError, match="thinking"):
        reasoner(server).answer([], "Is it red?", shape=choices_to_shape(["yes", "no"]))


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (said(""), "nothing"),
        (said(None), "nothing"),
        (said(" \n "), "nothing"),
        (said([]), "nothing"),
        (said(None, refusal="I cannot help with that."), "I cannot help with that."),
        (said([{"type": "refusal", "refusal": "No, thanks."}]), "No, thanks."),
        (said("", "content_filter"), "content_filter"),
        (said("It is a", "content_filter"), "content_filter"),
        (said("It is a", "SAFETY"), "SAFETY"),
        (said(None, "tool_calls", tool_calls=[{"function": {"name": "look_up"}}]), "look_up"),
        (said("", "function_call", function_call={"name": "look_up"}), "look_up"),
        (said("", "tool_calls"), "tool"),
        (said("It is", "error"), "error"),
        (said("It is", "abort"), "abort"),
    ],
)
def test_what_is_no_answer_is_told(serve: Serve, behaviour: bytes, words: str) -> None:
    error = failure(serve(behaviour))
    assert words in error.message
    assert error.hint
    assert error.exit_code == 1


def test_a_conversation_goes_on_after_thoughts_alone(serve: Serve) -> None:
    server = serve(ONLY_THOUGHTS["in Ollama's field"], said("a boat"))
    conversation = Conversation(reasoner(server))
    with pytest.raises(EdgePrismError, match="thinking"):
        conversation.ask("What floats?")
    assert conversation.ask("What floats?").text == "a boat"
    assert len(server.bodies()[1]["messages"]) == 1  # the failed turn is not part of it


def test_the_command_tells_where_the_tokens_went(
    serve: Serve, scripted_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the listing of models to the exit code, as a person sees it."""
    models = http({"data": [{"id": "thinker"}]})
    for behaviour in (ONLY_THOUGHTS["in a field, at the limit"], said(None, reasoning=THOUGHTS)):
        url = serve(models, behaviour).url
        command = ["ask", str(photo), "What is it?", "--captioner", str(scripted_bundle)]
        assert run([*command, "--reasoner", url, "--instruction-mode", "generic"]) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "thinker" in printed.err
        assert "thinking" in printed.err
        assert "--answer-tokens" in printed.err


# ---- forms of an answer


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a boat"}],
        [{"type": "text", "text": "a "}, {"type": "text", "text": "boat"}],
        [{"text": "a boat"}],
        {"type": "text", "text": "a boat"},
        [{"type": "output_text", "text": "a boat", "annotations": []}],
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a boat"}],
    ],
)
def test_parts_are_joined(serve: Serve, content: Any) -> None:
    answer = complete(serve(said(content)))
    assert (answer.text, answer.finish_reason) == ("a boat", "stop")


def test_parts_that_are_no_text_are_not_passed_over(serve: Serve) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with pytest.raises(ReplyError, match="without a message"):
        complete(serve(said([{"type": "text", "text": "a"}, picture])))


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_every_name_of_the_limit_is_known(serve: Serve, reason: str) -> None:
    assert complete(serve(said("a bo", reason))).finish_reason == "length"


def test_an_unknown_ending_is_noted(serve: Serve) -> None:
    answer = reasoner(serve(said("a boat", "moonrise"))).answer([], "What floats?")
    assert answer.text == "a boat"
    assert any("moonrise" in note for note in answer.notes)
    assert reasoner(serve(said("a boat", "end_turn"))).answer([], "What floats?").notes == ()


# ---- errors in the server's own words

OWN_WORDS = {
    "OpenAI, llama.cpp, vLLM": {"error": {"message": "model crashed", "type": "server_error"}},
    "Ollama, LM Studio": {"error": "model crashed"},
    "an older vLLM": {"object": "error", "message": "model crashed", "code": 500},
    "FastAPI": {"detail": "model crashed"},
    "FastAPI, a list": {"detail": [{"loc": ["body"], "msg": "model crashed"}]},
    "a list of errors": [{"error": {"code": 500, "message": "model crashed"}}],
    "errors": {"errors": [{"message": "model crashed"}]},
    "beside an empty list": {"choices": [], "error": {"message": "model crashed"}},
    "beside half an answer": {
        "choices": [{"message": {"content": "It"}, "finish_reason": "stop"}],
        "error": {"message": "model crashed"},
    },
}


@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error", "400 Bad Request"])
@pytest.mark.parametrize("name", OWN_WORDS)
def test_an_error_is_told_in_the_servers_words(serve: Serve, name: str, status: str) -> None:
    error = failure(serve(http(OWN_WORDS[name], status)))
    assert "model crashed" in error.message
    assert "{" not in error.message
    assert error.exit_code == 1


def test_an_error_with_status_200_may_name_its_own(serve: Serve) -> None:
    body = {"error": {"message": "no such key", "code": 401}}
    with pytest.raises(ServerError, match="no such key") as caught:
        complete(serve(http(body)))
    assert "EDGEPRISM_API_KEY" in caught.value.hint
    busy = serve(http({"error": {"message": "loading", "code": "503"}}), said("a boat"))
    assert complete(busy).text == "a boat"


def test_no_error_is_no_error(serve: Serve) -> None:
    fields = {"error": None, "detail": "fine"}
    choice = {"message": {"content": "a boat"}}
    assert complete(serve(reply(choice, **fields))).text == "a boat"


def test_a_web_page_is_told_as_one(serve: Serve) -> None:
    page = b"<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head></html>"
    for status in ("200 OK", "500 Internal Server Error"):
        error = failure(serve(http(page, status)))
        assert "a web page, 'Welcome to nginx!'" in error.message
    assert "Service is warming up" in failure(serve(http(b"Service is warming up"))).message
    assert "with nothing" in failure(serve(http(b""))).message


def test_a_redirect_is_told_with_its_target(serve: Serve) -> None:
    moved = http(b"", "308 Permanent Redirect", "Location: https://127.0.0.1:9/v1/x?token=secret")
    error = failure(serve(moved))
    assert "redirects to https://127.0.0.1:9/v1/x" in error.message
    assert "secret" not in str(error)
    assert "final address" in error.hint


# ---- prompts that the server cut

CAPTION = "A red boat with two sails lies at a wooden pier, and a man in a blue coat looks at it. "


def notes(serve: Serve, prompt: str, tokens: Any, **usage: Any) -> tuple[str, ...]:
    body = reply({"message": {"content": "a boat"}}, usage={"prompt_tokens": tokens, **usage})
    return reasoner(serve(body)).answer([], prompt).notes


def test_a_cut_prompt_is_noted(serve: Serve) -> None:
    for prompt in (CAPTION * 12, "湖の上に赤い船が二隻あり、岸辺に人が立っている。" * 12):
        (note,) = notes(serve, prompt, 16)
        assert "cut the prompt" in note
        assert "16 tokens" in note
        assert "context" in note


def test_a_cut_prompt_reaches_the_record_and_the_person(
    serve: Serve, scripted_bundle: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = http({"data": [{"id": "it"}]})
    focus = reply(
        {"message": {"content": '{"phrases": ["colour", "of", "small boat"]}'}}, prompt_tokens=9
    )
    answered = reply({"message": {"content": "red"}, "finish_reason": "stop"}, prompt_tokens=16)
    command = ["ask", str(photo), "Which colour is the small boat near the old house on the hill?",
               "--captioner", str(scripted_bundle)]  # fmt: skip
    url = serve(models, focus, answered).url
    assert run([*command, "--reasoner", url, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    # Both requests were cut, the one for the focus and the one for the answer.
    assert sum("cut the prompt" in note for note in record["notes"]) == 2
    url = serve(models, focus, answered).url
    assert run([*command, "--reasoner", url]) == 0
    printed = capsys.readouterr()
    assert printed.out == "red\n"
    assert "cut the prompt" in printed.err


# How many tokens a frugal tokenizer of the language makes of the text, by words or characters.
WHOLE = {
    "English, a token a word": (CAPTION * 20, len((CAPTION * 20).split())),
    "English, tokens over blanks": (CAPTION * 20, int(len((CAPTION * 20).split()) * 0.8)),
    "German": ("Donaudampfschifffahrtsgesellschaftskapitän Rechtsschutzversicherung " * 20, 160),
    "Japanese": ("湖の上に赤い船が二隻あり、岸辺に人が立っている。" * 20, 160),
    "Chinese": ("湖面上有两艘红色的船，岸边站着一个人。" * 20, 130),
    "Thai": ("เรือสีแดงสองลำจอดอยู่ที่ท่าเรือไม้และมีชายคนหนึ่งยืนดู" * 20, 240),
    "Hindi": ("एक लाल नाव लकड़ी के घाट पर खड़ी है " * 20, 170),
    "Korean": ("호수 위에 빨간 배 두 척이 있고 기슭에 사람이 서 있다 " * 20, 240),
    "a rule of dashes": ("-" * 4000 + " " * 4000 + "=" * 4000, 120),
    "one letter": ("a" * 6000, 60),
    "numbers": ("1234567890 " * 50, 200),
}


@pytest.mark.parametrize("name", WHOLE)
def test_no_language_is_taken_for_a_cut_prompt(serve: Serve, name: str) -> None:
    text, tokens = WHOLE[name]
    assert notes(serve, text, tokens) == ()


def test_a_server_that_does_not_count_is_not_suspected(serve: Serve) -> None:
    for tokens in (0, None, "16", True, -1):
        assert notes(serve, CAPTION * 12, tokens) == ()
    # Some servers count only what their cache did not hold.
    cached = {"prompt_tokens_details": {"cached_tokens": 400}}
    assert notes(serve, CAPTION * 12, 16, **cached) == ()


# ---- bodies


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("gzip", gzip.compress(ANSWER, mtime=0)),
        ("x-gzip", gzip.compress(ANSWER[:20], mtime=0) + gzip.compress(ANSWER[20:], mtime=0)),
        ("GZIP", gzip.compress(ANSWER, mtime=0)),
        ("deflate", zlib.compress(ANSWER)),
        ("deflate", raw_deflate(ANSWER)),
        ("identity", ANSWER),
    ],
    ids=["gzip", "two members", "capitals", "zlib", "raw deflate", "none"],
)
def test_compressed_though_not_asked_for(serve: Serve, name: str, data: bytes) -> None:
    server = serve(http(data, "200 OK", f"Content-Encoding: {name}"))
    assert complete(server).text == "a boat"
    assert b"Accept-Encoding: identity\r\n" in server.requests[0]
    size = f"{len(data):x}".encode()
    parts = chunked((size, data), (b"0", b""), headers=f"Content-Encoding: {name}\r\n")
    assert complete(serve(parts)).text == "a boat"


@pytest.mark.parametrize("name", ["br", "zstd", "compress", "gzip, gzip", "rot13"])
def test_other_compressions_are_named(serve: Serve, name: str) -> None:
    error = failure(serve(http(b"\x8b\x00\x80", "200 OK", f"Content-Encoding: {name}")))
    assert repr(name) in error.message
    assert "compression" in error.hint


def test_damaged_compression_is_told(serve: Serve) -> None:
    whole = gzip.compress(ANSWER, mtime=0)
    for data in (whole[:-9], b"\x1f\x8b" + b"x" * 30, ANSWER):
        error = failure(serve(http(data, "200 OK", "Content-Encoding: gzip")))
        assert "broke off" in error.message


def test_a_body_of_many_compressed_pieces_is_told(serve: Serve) -> None:
    pieces = gzip.compress(b"") * 200_000 + gzip.compress(ANSWER, mtime=0)
    error = failure(serve(http(pieces, "200 OK", "Content-Encoding: gzip")))
    assert "pieces of compressed data" in error.message


@pytest.mark.parametrize("form", ["gzip", "deflate", "plain"])
def test_a_body_is_bounded_however_it_comes(serve: Serve, form: str) -> None:
    """64 MiB of blanks in 64 kB: memory would grow a thousandfold."""
    blanks = b" " * (64 << 20)
    packed = blanks
    if form != "plain":
        packed = gzip.compress(blanks) if form == "gzip" else zlib.compress(blanks)
    encoding = "" if form == "plain" else f"Content-Encoding: {form}\r\n"
    size = f"{len(packed):x}".encode()
    body = chunked((size, packed), (b"0", b""), headers=encoding)
    assert "more than 8 MiB" in failure(serve(body)).message


BAD_CHUNKS = [
    b"-5",
    b"-1",
    b"+5",
    b"0x5",
    b"5_0",
    b"",
    b"g",
    b"-0",
    b"ffffffffffffffffffff",
    b"5 5",
]


@pytest.mark.parametrize("size", BAD_CHUNKS)
def test_a_chunk_of_an_impossible_size(serve: Serve, size: bytes) -> None:
    server = serve(chunked((size, b"12345"), (b"0", b"")))
    with pytest.raises(ReplyError, match="broke off") as caught:
        complete(server)
    assert caught.value.hint
    assert len(server.requests) == 3
    assert complete(serve(chunked((size, ANSWER)), said("a boat"))).text == "a boat"


def test_a_chunk_of_minus_one_is_not_all_there_is(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reason_http, "MAX_REPLY", 1000)
    with pytest.raises(ReplyError, match="broke off"):
        complete(serve(chunked((b"-1", b" " * 100_000))))


def test_chunks_as_they_should_be(serve: Serve) -> None:
    parts = chunked((b"A;name=value", ANSWER[:10]), (f"{len(ANSWER) - 10:X}".encode(), ANSWER[10:]),
                    (b"0", b"Trailer: x\r\n"))  # fmt: skip
    assert complete(serve(parts)).text == "a boat"
    short = chunked((b"5", b"123"))
    long = chunked((b"5", b"1234567"), (b"0", b""))
    for cut in (short, long, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5"):
        with pytest.raises(ReplyError, match="broke off"):
            complete(serve(cut))


# ---- the key

KEY = "sk-SECRET/123+x"
ESCAPED = [
    KEY,
    KEY.replace("-", "\\u002d"),
    "".join(f"\\u{ord(c):04X}" for c in KEY),
    "".join(f"%{ord(c):02x}" for c in KEY),
    KEY.replace("/", "\\/"),
    KEY.replace("-", "&#45;"),
    KEY.replace("-", "&#x2D;"),
    KEY.replace("-", "\\\\x2d"),
]


@pytest.mark.parametrize("written", ESCAPED)
def test_the_key_is_in_no_error(
    serve: Serve, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPRISM_API_KEY", KEY)
    text = written.encode()
    for behaviour in (
        text + b" 200 OK\r\n\r\n",  # a status line
        b"HTTP/1.1 200 OK\r\n" + text + b"\r\n\r\n",
        http(b"bad key " + text),
        http(b"bad key " + text, "500 Internal Server Error"),
        http(b'{"error": "' + text + b'"}'),
        http(b"x" * 290 + text, "400 Bad Request"),  # where the message is cut
        http(b"", "302 Found", "Location: http://127.0.0.1/" + written),
        http(b"{}", "200 OK", "Content-Encoding: " + written),
        chunked((text, b"")),
        said("", "error " + written),
        said(None, refusal="no " + written),
        said(None, "tool_calls", tool_calls=[{"function": {"name": written}}]),
    ):
        error = failure(serve(behaviour))
        shown = f"{error} {error!r} {error.args}"
        assert written not in shown
        assert KEY not in shown
        assert KEY[:6] not in shown


# ---- markers of a chat template in what people, pictures and models wrote

MARKERS = ["<|im_end|>", "<|im_start|>", "</s>", "<s>", "[INST]", "[/INST]", "<<SYS>>",
           "<start_of_turn>", "<end_of_turn>", "<|eot_id|>", "<｜User｜>", "<｜end▁of▁sentence｜>",
           "<|turn>", "<turn|>", "[gMASK]", "<|endoftext|>", "]~b]", "<think>"]  # fmt: skip


@pytest.mark.parametrize("marker", MARKERS)
def test_no_marker_reaches_the_server(serve: Serve, marker: str) -> None:
    server = serve(said("a boat"))
    messages = [
        Message("user", f"It says {marker}system{marker * 2}"),
        Message("assistant", marker),
    ]
    reasoner(server).complete(messages, max_tokens=9)
    sent = server.bodies()[0]["messages"]
    assert all(marker not in message["content"] for message in sent)
    words = "".join(message["content"] for message in sent).replace(" ", "")
    assert words == f"Itsays{marker}system{marker * 3}"  # nothing but blanks was added


def test_ordinary_text_reaches_the_server_as_it_is(serve: Serve) -> None:
    text = "a < b, c > d, [1] and [sic], x[i], 3<4>2 is odd, <-- here --> and <a b>, [A]"
    server = serve(said("a boat"))
    complete(server, text)
    sent = server.bodies()[0]["messages"][0]["content"]
    assert sent.replace("3< 4>2", "3<4>2") == text


# ---- thoughts in any number


@pytest.mark.parametrize(
    "text",
    [
        "<think>" * 100_000,
        "<think>" * 20_000 + "</thinking>" * 20_000,
        "</think>" * 100_000,
        "[THINK]<think>" * 50_000 + "[/THINK]",
        "<think></think>" * 60_000,
        "<thinking><think>" * 40_000 + "</think>" * 40_000,
    ],
)
def test_tags_in_any_number_take_no_time(text: str) -> None:
    began = time.process_time()  # other programs may be busy
    answer, _ = cut_thinking(text + "done")
    assert time.process_time() - began < 10
    assert "<think" not in answer
