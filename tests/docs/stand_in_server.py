"""A server with OpenAI's chat interface that keeps to JSON schemas and says little."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL, TEXT = "stand-in", "A red star."


def _instance(schema: dict[str, Any]) -> Any:
    """The smallest value of a schema such as EdgePrism sends."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "object":
        return {name: _instance(inner) for name, inner in schema["properties"].items()}
    if schema["type"] == "array":
        return [_instance(schema["items"])] * schema.get("minItems", 0)
    return {"integer": schema.get("minimum", 0), "string": "", "boolean": True}[schema["type"]]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"data": [{"id": MODEL}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = TEXT
        if "response_format" in body:
            text = json.dumps(_instance(body["response_format"]["json_schema"]["schema"]))
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        self._answer({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is for the test."""


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The address of a server that runs while inside."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
