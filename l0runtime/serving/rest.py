"""How is a REST request answered?

Inference is the hot path: it talks ASGI directly, without a router or request objects. All other pages are starlette's.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import orjson

from l0runtime.serving.access import TokenCheck
from l0runtime.serving.decoding import decode_request
from l0runtime.serving.encoding import encode_response
from l0runtime.serving.failures import RequestError, as_failure, malformed
from l0runtime.serving.logs import EventLog
from l0runtime.serving.models import ModelRepository, ServedModel
from l0runtime.serving.options import ServeOptions
from l0runtime.serving.pages import make_pages

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_OPEN_PAGES = frozenset({"/v2/health/live", "/v2/health/ready"})  # probes carry no token


class RestApp:
    """The ASGI application."""

    def __init__(self, repository: ModelRepository, options: ServeOptions, log: EventLog, metrics_page: Any) -> None:
        self._repository = repository
        self._limit = options.limits.body_bytes
        self._token = TokenCheck(options.token)
        self._log = log
        self._log_requests = options.log_requests
        self._pages = make_pages(repository, metrics_page, body_limit=self._limit)
        self._direct = {f"/v2/models/{name}/infer": model for name, model in repository.models.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope["path"]
        model, version = self._direct.get(path), ""
        try:
            if model is None:
                parts = path.split("/")
                # /v2/models/NAME/infer or /v2/models/NAME/versions/VERSION/infer
                is_inference = path.startswith("/v2/models/") and parts[-1] == "infer" and len(parts) in (5, 7)
                if not is_inference or (len(parts) == 7 and parts[4] != "versions"):
                    await self._page(scope, receive, send)
                    return
                self._token.check(_header(scope, b"authorization"))
                model = self._repository.find(unquote(parts[3]))
                version = parts[5] if len(parts) == 7 else ""
            if scope["method"] != "POST":
                raise RequestError(405, "inference takes POST.")
        except RequestError as failure:
            await _send_error(send, failure)
            return
        await self._infer(model, version, scope, receive, send)

    async def _infer(self, model: ServedModel, version: str, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 200
        failure: RequestError | None = None
        try:
            authorization = json_length = declared = None
            encoding = b"identity"
            for name, value in scope["headers"]:
                if name == b"content-length":
                    declared = int(value)  # the HTTP parser lets only digits pass
                elif name == b"inference-header-content-length":
                    json_length = _length(value)
                elif name == b"authorization":
                    authorization = value
                elif name == b"content-encoding":
                    encoding = value
            self._token.check(authorization)
            model.check_version(version)
            if encoding not in (b"identity", b""):
                raise RequestError(415, "compressed bodies are not taken; send this one without Content-Encoding.")
            if declared is not None and declared > self._limit:
                raise self._too_large()
            message = await receive()
            if message["type"] != "http.request":
                return
            body = message["body"]
            if message.get("more_body"):
                body = await self._rest_of(body, receive)
                if body is None:
                    return
            elif len(body) > self._limit:
                raise self._too_large()
            started = time.perf_counter()
            request = decode_request(body, json_length, model.revision.signature)
            results, answered_by = await model.infer(request)
            content, json_part = encode_response(model.name, answered_by, request, model.revision.signature, results)
            headers = [_JSON if json_part is None else _BINARY, (b"content-length", b"%d" % len(content))]
            if json_part is not None:
                headers.append((b"inference-header-content-length", b"%d" % json_part))
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content})
        except Exception as error:
            failure = as_failure(error)
            status = failure.status
            if status == 500:
                self._log.error("request_failed", model=model.name, protocol="rest", error=repr(error))
            await _send_error(send, failure)
        seconds = time.perf_counter() - started
        model.metrics.answered("rest", status, seconds)
        if self._log_requests:
            self._log.info(
                "request",
                model=model.name,
                protocol="rest",
                status=status,
                ms=round(seconds * 1e3, 3),
                client=(scope.get("client") or ("",))[0],
                **({} if failure is None else {"reason": str(failure)}),
            )

    async def _rest_of(self, first: bytes, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away."""
        chunks, size = [first], len(first)
        more = True
        while more:
            if size > self._limit:
                raise self._too_large()
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunks.append(message["body"])
            size += len(message["body"])
            more = message.get("more_body", False)
        if size > self._limit:
            raise self._too_large()
        return b"".join(chunks)

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the body is larger than this server's limit of {self._limit} bytes.")

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in _OPEN_PAGES:
            self._token.check(_header(scope, b"authorization"))
        await self._pages(scope, receive, send)


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    found: bytes | None = next((value for name, value in scope["headers"] if name == wanted), None)
    return found


def _length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise malformed(f"Inference-Header-Content-Length is {value[:40]!r}, expected a number of bytes.")
    return int(value)


async def _send_error(send: Send, failure: RequestError) -> None:
    content = orjson.dumps({"error": str(failure)})
    headers = [_JSON, (b"content-length", b"%d" % len(content))]
    if failure.status in (429, 503):
        headers.append((b"retry-after", b"1"))
    if failure.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if failure.status == 405:
        headers.append((b"allow", b"POST"))
    await send({"type": "http.response.start", "status": failure.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
