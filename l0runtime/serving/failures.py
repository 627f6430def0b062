"""Which status does each failure become, over REST and over gRPC?

| cause | REST | gRPC |
|---|---|---|
| malformed request, wrong name, shape, datatype or values | 400 | INVALID_ARGUMENT |
| no or a wrong token | 401 | UNAUTHENTICATED |
| no such model, version or page | 404 | NOT_FOUND |
| a method that the page does not have | 405 | UNIMPLEMENTED |
| the request did not arrive in time | 408 | - |
| larger than the limit | 413 | RESOURCE_EXHAUSTED |
| compressed body | 415 | UNIMPLEMENTED |
| too many requests wait | 429 | RESOURCE_EXHAUSTED |
| headers larger than the limit | 431 | RESOURCE_EXHAUSTED |
| the server's own fault | 500 | INTERNAL |
| shutting down, too many connections, out of memory | 503 | UNAVAILABLE |
| not answered within the deadline | 504 | DEADLINE_EXCEEDED |
"""

from __future__ import annotations

from l0runtime.errors import DeadlineError, InputError, L0RuntimeError, QueueFullError

_GRPC_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    413: "RESOURCE_EXHAUSTED",
    415: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class RequestError(L0RuntimeError):
    """A request is answered with an error.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    @property
    def grpc_code(self) -> str:
        """The name of the status in gRPC."""
        return _GRPC_CODES[self.status]


def malformed(message: str) -> RequestError:
    """A request that breaks the protocol."""
    return RequestError(400, message)


def as_failure(error: BaseException) -> RequestError:
    """The failure that an error becomes; what nobody foresaw is the server's fault, without its details."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, InputError):
        return RequestError(400, str(error))
    if isinstance(error, QueueFullError):
        return RequestError(429, str(error))
    if isinstance(error, DeadlineError):
        return RequestError(504, str(error))
    if isinstance(error, MemoryError):
        return RequestError(
            503, "the server is out of memory for this request; send a smaller one, or try again later."
        )
    if isinstance(error, L0RuntimeError):
        return RequestError(500, str(error))
    return RequestError(500, "internal error; the server's log has the details.")
