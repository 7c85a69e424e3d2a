"""Who is refused, and what: other hosts and origins, keys, addresses, sizes, odd bodies."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprism.errors import UsageError
from edgeprism.serve.options import (
    Limits,
    ServeOptions,
    check_address,
    is_open_to_others,
    read_key,
    to_seconds,
)
from tests.helpers.serving import Running, as_base64, as_form, serving

KEY = "a-key-of-the-tests-0123456789"


@pytest.fixture(scope="module")
def strict() -> Iterator[Running]:
    """A server with a key, a foreign name, a foreign origin, and small limits."""
    limits = Limits(
        body_bytes=200_000, bodies_bytes=150_000, pictures=2, pixels=1_000_000, text_chars=100
    )
    with serving(
        limits, api_key=KEY, allow_hosts=("photos.lan",), allow_origins=("https://app.lan",)
    ) as running:
        yield running


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.org:1", "", "localhost.x"])
def test_another_host_is_refused(server: Running, host: str) -> None:
    """A page whose name was made to lead here sends that name (DNS rebinding)."""
    for path in ("/v1/models", "/healthz", "/"):
        reply = server.get(path, Host=host)
        assert (reply.status, reply.code) == (403, "host_refused")


def test_own_hosts_are_answered(server: Running) -> None:
    for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80", "192.168.1.5"):
        assert server.get("/healthz", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
    ],
)
def test_pages_of_other_origins_are_refused(server: Running, headers: dict[str, str]) -> None:
    """Also for reading alone, and before a body is looked at (CSRF)."""
    for method, path in (("POST", "/v1/captions"), ("GET", "/v1/models")):
        reply = server.request(method, path, b"{}" if method == "POST" else None,
                               {"Content-Type": "text/plain", **headers})  # fmt: skip
        assert (reply.status, reply.code) == (403, "origin_refused")
        assert not any(name.startswith("access-control") for name in reply.headers)


def test_the_own_origin_is_answered_without_cors(server: Running) -> None:
    reply = server.get("/v1/models", Origin=server.address)
    assert reply.status == 200
    assert not any(name.startswith("access-control") for name in reply.headers)
    asked = {"Origin": server.address, "Access-Control-Request-Method": "POST"}
    assert server.request("OPTIONS", "/v1/captions", headers=asked).status == 405


def test_a_key_is_needed_where_there_is_one(strict: Running) -> None:
    for given in ({}, {"Authorization": "Bearer wrong-key-wrong-key"}, {"Authorization": KEY}):
        for path in ("/v1/models", "/v1/models/nano", "/metrics", "/api/tags", "/openapi.json"):
            reply = strict.get(path, **given)
            assert reply.status == 401, path
            assert reply.headers["www-authenticate"] == "Bearer"
    assert strict.get("/v1/models", Authorization=f"Bearer {KEY}").status == 200
    assert strict.get("/healthz").status == 200
    assert KEY not in "\n".join(strict.log)


def test_allowed_names_and_origins(strict: Running) -> None:
    reply = strict.get("/v1/models", Authorization=f"Bearer {KEY}", Host="photos.lan",
                       Origin="https://app.lan")  # fmt: skip
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://app.lan"
    asked = {"Origin": "https://app.lan", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization"}  # fmt: skip
    assert strict.request("OPTIONS", "/v1/captions", headers=asked).status == 200


def test_listening_to_others_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "myhost"):
        with pytest.raises(UsageError, match="needs a key"):
            check_address(host, None)
        check_address(host, KEY)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        check_address(host, None)
    for key in ("short", "with blank in it 0123456", "ключ-ключ-ключ-ключ"):
        with pytest.raises(UsageError, match="API key"):
            ServeOptions(api_key=key)


@pytest.mark.skipif(os.name != "posix", reason="modes of files are POSIX's")
@pytest.mark.parametrize(("mode", "is_open"), [(0o600, False), (0o400, False), (0o644, True),
                                               (0o640, True), (0o604, True)])  # fmt: skip
def test_a_key_that_others_can_read_is_told(tmp_path: Path, mode: int, is_open: bool) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(mode)
    assert is_open_to_others(str(key)) is is_open
    assert read_key(str(key)) == KEY
    assert not is_open_to_others(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "image",
    ["https://example.org/a.png", "HTTP://127.0.0.1:1/x", "file:///etc/passwd", "/etc/passwd",
     "ftp://x/y", "data:image/png,abc", "data:image/png;base64,???", "data:,", "../a.png"],
)  # fmt: skip
def test_addresses_and_paths_are_refused(server: Running, image: str) -> None:
    reply = server.post("/v1/captions", {"images": [image]})
    assert reply.status == 400
    assert reply.code in ("address_refused", "invalid_base64", "invalid_data_url")


def test_sizes_are_limited(strict: Running) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    large = strict.post("/v1/captions", {"images": ["A" * 300_000]}, **key)
    assert (large.status, large.code) == (413, "body_too_large")
    full = strict.post("/v1/captions", {"images": ["A" * 170_000]}, **key)
    assert (full.status, full.code, full.headers["retry-after"]) == (429, "too_many_bytes", "1")
    many = strict.post("/v1/captions", {"images": ["AAAA"] * 3}, **key)
    assert (many.status, many.code) == (400, "invalid_request")
    body, headers = as_form({}, {f"{i}.png": b"x" for i in range(3)})
    assert strict.request("POST", "/v1/captions", body, {**headers, **key}).status == 400
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    )
    reply = strict.post("/v1/captions", {"images": [as_base64(bomb)]}, **key)
    assert (reply.status, reply.code) == (413, "too_many_pixels")
    long = {"images": [as_base64(b"x")], "instruction": "a" * 101}
    assert strict.post("/v1/captions", long, **key).status == 400
    chat = {"model": "nano", "messages": [{"role": "user", "content": "a" * 101}]}
    assert strict.post("/v1/chat/completions", chat, **key).code == "text_too_long"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_request"),
        (b"null", "invalid_request"),
        (b'{"images":["AA=="],"images":[]}', "invalid_json"),
        (b'{"temperature":NaN}', "invalid_json"),
        (b'{"temperature":1e999}', "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"images":["\\ud800"]}', "invalid_json"),
        (b"[" * 100_000 + b"]" * 100_000, "invalid_json"),
        (b'{"images":[' + b'{"data":' * 900 + b"1" + b"}" * 900 + b"]}", "invalid_request"),
    ],
)
def test_odd_json_is_refused(server: Running, body: bytes, code: str) -> None:
    for path in ("/v1/captions", "/v1/chat/completions"):
        reply = server.request("POST", path, body, {"Content-Type": "application/json"})
        assert (reply.status, reply.code) == (400, code)


def test_a_deep_schema_is_refused_in_words(server: Running, scenes: list[bytes]) -> None:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    body = {"images": [as_base64(scenes[0])], "question": "?!", "schema": schema}
    reply = server.post("/v1/ask", body)
    assert reply.status in (200, 400, 502)
    assert reply.data


@pytest.mark.parametrize("kind", ["text/plain", "", "application/xml", "multipart/form-data"])
def test_other_types_are_refused(server: Running, kind: str) -> None:
    reply = server.request("POST", "/v1/captions", b'{"images":[]}', {"Content-Type": kind})
    assert reply.status == (400 if kind.startswith("multipart") else 415)
    reply = server.request("POST", "/api/chat", b"{}", {"Content-Type": kind})
    assert reply.status == 415
    assert isinstance(reply.data["error"], str)


def test_unknown_paths_and_methods(server: Running) -> None:
    assert server.get("/v1/nothing").status == 404
    assert server.get("/v1/../../etc/passwd").status == 404
    reply = server.get("/v1/captions")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


def test_the_log_holds_no_content(server: Running, scenes: list[bytes]) -> None:
    secret = "a secret instruction"
    server.post("/v1/captions", {"images": [as_base64(scenes[0])], "instruction": secret})
    server.post("/v1/captions?question=" + "very-secret", {"images": [secret]})
    server.get("/very-secret")
    server.get("/v1/secret")
    server.get("/v1/models/secret")
    deadline = time.monotonic() + 10  # a line is written after its answer
    while "{name}" not in server.log[-1] and time.monotonic() < deadline:
        time.sleep(0.01)
    told = "\n".join(server.log)
    assert "POST /v1/captions 200" in told
    assert told.count("GET unknown 404") >= 2
    assert "GET /v1/models/{name} 404" in told
    assert "secret" not in told
    assert "secret" not in server.get("/metrics").body.decode()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0", 0), ("-1", float("inf")), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert to_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "nan", "5d", "1..2s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        to_seconds(text)


def test_the_description_is_json(server: Running) -> None:
    description = server.get("/openapi.json").data
    assert json.dumps(description).count("/v1/captions") == 1


def test_the_pages_files_load_nothing_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<title>page</title>")
    (folder / "app.js").write_text("'use strict'")
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    monkeypatch.setattr("edgeprism.serve.app.PAGE", folder)
    with serving(api_key=KEY) as running:  # the page asks a person for the key
        for path, kind in (("/", "text/html"), ("/app.js", "text/javascript")):
            reply = running.get(path)
            assert reply.status == 200
            assert reply.headers["content-type"].startswith(kind)
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert running.get("/", **link).status == 200
        assert running.get("/v1/models", **link).status == 403
        for path in ("/../secret", "/..%2fsecret", "/%2e%2e/secret", "/link", "/none"):
            assert running.get(path).status == 404, path
        assert running.request("POST", "/", b"").status == 405
        assert running.get("/v1/captions", Authorization=f"Bearer {KEY}").status == 405
