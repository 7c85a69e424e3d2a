"""The page's files, with headers that let it load nothing from elsewhere."""

from __future__ import annotations

import os
from typing import Any

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

# The page shows pictures that a person has just chosen (blob:), and speaks to this server alone.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


# Python takes types from the system's tables, and some Windows calls JavaScript plain text there,
# which no browser runs.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFiles(StaticFiles):
    """Serves a folder's files at `/`; `/` itself is index.html."""

    def __init__(self, folder: os.PathLike[str]) -> None:
        super().__init__(directory=folder, html=True)

    def file_response(
        self, full_path: Any, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 if the browser has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        kind = _TYPES.get(os.path.splitext(full_path)[1])
        if kind and response.status_code == 200:
            response.headers["Content-Type"] = kind
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-cache"  # asks each time whether it has changed
        return response
