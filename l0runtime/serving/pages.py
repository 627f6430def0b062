"""What do the pages beside inference say: health, metadata, metrics, and the OpenAPI page?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from l0runtime.machine import installed_version
from l0runtime.serving.failures import RequestError
from l0runtime.serving.metrics import CONTENT_TYPE
from l0runtime.serving.models import ModelRepository
from l0runtime.serving.openapi import openapi_document


def server_metadata() -> dict[str, Any]:
    """The protocol's server metadata."""
    return {
        "name": "l0runtime",
        "version": installed_version("l0runtime") or "unknown",
        "extensions": ["binary_tensor_data"],
    }


def make_pages(repository: ModelRepository, metrics_page: Callable[[], bytes], *, body_limit: int) -> Starlette:
    """The application that answers everything but inference."""

    def live(request: Request) -> Response:
        return JSONResponse({"live": True})

    def ready(request: Request) -> Response:
        return JSONResponse({"ready": repository.is_ready}, 200 if repository.is_ready else 503)

    def server(request: Request) -> Response:
        return JSONResponse(server_metadata())

    def model(request: Request) -> Response:
        found = repository.find(request.path_params["name"])
        found.check_version(request.path_params.get("version", ""))
        return JSONResponse(found.metadata())

    def model_ready(request: Request) -> Response:
        found = repository.find(request.path_params["name"])
        found.check_version(request.path_params.get("version", ""))
        return JSONResponse({"name": found.name, "ready": repository.is_ready}, 200 if repository.is_ready else 503)

    def metrics(request: Request) -> Response:
        return Response(metrics_page(), media_type=CONTENT_TYPE)

    def openapi(request: Request) -> Response:
        return JSONResponse(openapi_document(list(repository.models.values()), body_limit=body_limit))

    # Handlers that never wait are coroutines all the same: starlette would run plain functions on a thread each.
    def page(path: str, handler: Callable[[Request], Response]) -> Route:
        async def answer(request: Request) -> Response:
            return handler(request)

        return Route(path, answer, methods=["GET"], name=handler.__name__)

    pages = Starlette(
        routes=[
            page("/v2/health/live", live),
            page("/v2/health/ready", ready),
            page("/v2", server),
            page("/v2/models/{name}", model),
            page("/v2/models/{name}/ready", model_ready),
            page("/v2/models/{name}/versions/{version}", model),
            page("/v2/models/{name}/versions/{version}/ready", model_ready),
            page("/metrics", metrics),
            page("/openapi.json", openapi),
        ],
        exception_handlers={RequestError: _failed, HTTPException: _refused},
    )
    # an address with a slash too many is no page; a redirection would lead to whatever host the client names
    pages.router.redirect_slashes = False
    return pages


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse({"error": str(error)}, error.status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {404: f"no page {request.url.path[:80]}; /openapi.json lists all.", 405: "this page takes GET."}
    return JSONResponse(
        {"error": message.get(error.status_code, error.detail)}, error.status_code, headers=dict(error.headers or {})
    )
