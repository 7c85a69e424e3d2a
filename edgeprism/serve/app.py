"""The server as an ASGI app: its routes, behind the guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from edgeprism.serve.captions import CaptionRoutes
from edgeprism.serve.completions import CompletionRoutes
from edgeprism.serve.guard import API_FOLDERS, EXPOSED_HEADERS, Guard
from edgeprism.serve.ollama import OllamaRoutes
from edgeprism.serve.options import ServeOptions
from edgeprism.serve.page_files import PageFiles
from edgeprism.serve.responses import ResponseRoutes
from edgeprism.serve.service import Service
from edgeprism.serve.status import StatusRoutes

PAGE = Path(__file__).parent / "page"


def make_app(options: ServeOptions) -> ASGIApp:
    """Return the app of one server; its models are freed when its lifespan ends."""
    service = Service(options)
    routes = _api_routes(service)
    paths = [route.path for route in routes]
    page: ASGIApp = PageFiles(PAGE) if PAGE.is_dir() else _nothing

    async def file_or_nothing(scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a path of no route; the page has no files where the APIs are."""
        await (_nothing if scope["path"].startswith(API_FOLDERS) else page)(scope, receive, send)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        async with service.running():
            yield

    app: ASGIApp = Router(
        routes, redirect_slashes=False, default=file_or_nothing, lifespan=lifespan
    )
    if options.allow_origins:
        app = CORSMiddleware(
            app,
            allow_origins=options.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=EXPOSED_HEADERS,
        )
    return Guard(app, service, paths)


async def _nothing(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise HTTPException(404)


def _api_routes(service: Service) -> list[Route]:
    status, captions, ollama = StatusRoutes(service), CaptionRoutes(service), OllamaRoutes(service)
    completions, responses = CompletionRoutes(service), ResponseRoutes(service)
    return [
        Route("/healthz", status.health),
        Route("/metrics", status.metrics),
        Route("/openapi.json", status.openapi),
        Route("/v1/models", status.models),
        Route("/v1/models/{name:path}", status.model),
        Route("/v1/captions", captions.captions, methods=["POST"]),
        Route("/v1/ask", captions.ask, methods=["POST"]),
        Route("/v1/chat/completions", completions.completions, methods=["POST"]),
        Route("/v1/responses", responses.responses, methods=["POST"]),
        Route("/api/chat", ollama.chat, methods=["POST"]),
        Route("/api/generate", ollama.generate, methods=["POST"]),
        Route("/api/show", ollama.show, methods=["POST"]),
        Route("/api/tags", ollama.tags),
        Route("/api/ps", ollama.running),
        Route("/api/version", ollama.version),
    ]
