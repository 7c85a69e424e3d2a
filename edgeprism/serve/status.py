"""Requests about the server itself: health, metrics, models, the OpenAPI description."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgeprism.serve.metrics import CONTENT_TYPE
from edgeprism.serve.openapi import describe_api
from edgeprism.serve.service import Service
from edgeprism.version import __version__


class StatusRoutes:
    """These requests, for one server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._description = describe_api(service.options)

    async def health(self, _request: Request) -> Response:
        """Say that the server answers, without what only those with a key should know."""
        return JSONResponse({"status": "ok", "version": __version__})

    async def metrics(self, _request: Request) -> Response:
        """Return the counters."""
        text = self._service.metrics.to_text(self._service)
        return Response(text, media_type=CONTENT_TYPE)

    async def models(self, _request: Request) -> Response:
        """List the models as OpenAI's API does, and say which are taken where none is named."""
        offers = await self._service.models.offers()
        data = [_to_model(offer.name) for offer in offers]
        options = self._service.options
        defaults = {"captioner": options.model, "reasoner": options.reasoner}
        return JSONResponse({"object": "list", "data": data, "defaults": defaults})

    async def model(self, request: Request) -> Response:
        """Describe one model. Raises Refusal for one that is not here."""
        if not (name := request.path_params["name"]):
            raise HTTPException(404)
        model = await self._service.models.resolve(name)
        return JSONResponse(_to_model(str(model)))

    async def openapi(self, _request: Request) -> Response:
        """Return the OpenAPI description."""
        return JSONResponse(self._description)


def _to_model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "edgeprism"}
