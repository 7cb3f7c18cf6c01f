"""HTTP refusals as RFC 9457 problem details with this service's error codes."""

from __future__ import annotations

import logging
import math
import secrets
from http import HTTPStatus
from random import randint

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_urldispatcher import SystemRoute

from service.errors import ErrorCode, ServiceError

_log = structlog.get_logger("web")
MAX_RETRY_AFTER = 3
"""The longest random Retry-After in seconds, for problems of unknown duration. It is random so that clients do not all
return at once."""

_BAD_REQUESTS = (
    HttpProcessingError,
    web.RequestPayloadError,  # a body that no handler read, in an encoding that does not match its header
    UnicodeEncodeError,  # aiohttp's error for an Expect header that is not UTF-8, which it quotes
)
_BY_STATUS = {
    400: ErrorCode.INVALID_REQUEST,
    403: ErrorCode.NOT_FOUND,  # aiohttp's status for a directory among static files
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    408: ErrorCode.DEADLINE,
    413: ErrorCode.TOO_BIG,
    415: ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    417: ErrorCode.EXPECTATION_FAILED,
}


def problem_response(error: ServiceError) -> web.Response:
    """The response to a refusal; `details.retry_after` (seconds) becomes the Retry-After header."""
    status = error.code.status
    headers: dict[str, str] = {hdrs.CACHE_CONTROL: "no-store"}  # caches keep some errors otherwise
    if "retry_after" in error.details:
        headers["Retry-After"] = str(max(1, math.ceil(error.details["retry_after"])))
    elif error.retryable:
        headers["Retry-After"] = str(randint(1, MAX_RETRY_AFTER))  # noqa: S311  # spreads load, not a secret
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == HTTPStatus.UPGRADE_REQUIRED:
        headers["Upgrade"] = "websocket"
        headers["Connection"] = "Upgrade"
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": error.message,
        "code": error.code.code,
        "details": dict(error.details),
        "retryable": error.retryable,
    }
    return web.Response(
        status=status, headers=headers, body=msgspec.json.encode(body), content_type="application/problem+json"
    )


def serialize_closing_response(response: web.Response) -> bytes:
    """The bytes of a connection's last response, to be written without aiohttp."""
    body = response.body if isinstance(response.body, bytes) else b""
    response.headers[hdrs.CONNECTION] = "close"
    response.headers[hdrs.CONTENT_LENGTH] = str(len(body))
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + body


def server_logger() -> logging.Logger:
    """The logger of aiohttp's servers, which logs their own faults only.

    Malformed requests are answered but not logged: the messages quote them, so any client could fill the log.
    """
    logger = logging.getLogger("server")
    logger.addFilter(_is_server_fault)
    return logger


def _is_server_fault(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], _BAD_REQUESTS))


def problem_middleware() -> Middleware:
    """Turns refusals and faults of handlers into problem details. Faults are logged with the incident id that the
    client gets."""

    @web.middleware
    async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ServiceError as error:
            return problem_response(error)
        except web.HTTPException as exception:
            if exception.status < HTTPStatus.BAD_REQUEST:
                raise
            _break_cycles(request, exception)
            return translate_http_exception(exception)
        except ConnectionResetError:
            raise  # the client has disconnected, so a response cannot be sent
        except Exception:
            return fault_response(request.method)

    return problems


def fault_response(method: str) -> web.Response:
    """Logs the exception that is being handled as a fault of this service, and returns a response with its incident id."""
    incident = secrets.token_hex(8)
    _log.exception("request_failed", incident=incident, method=method)
    return problem_response(ServiceError(ErrorCode.INTERNAL, "a fault in the service", incident=incident))


def _break_cycles(request: web.Request, exception: web.HTTPException) -> None:
    """Breaks the reference cycles of a request that matches no route, so that it is freed at once.

    A full garbage collection runs only after millions of allocations (telemetry/runtime.py). Without this, 65 000 such
    requests grew the process by 150 MB.
    """
    exception.__traceback__ = None  # its frames refer to the request, which refers to this exception
    route = request.match_info.route
    if isinstance(route, SystemRoute):  # aiohttp made it for this request; it refers to its own bound method
        del route._handler


def translate_http_exception(exception: web.HTTPException) -> web.Response:
    """Replaces a refusal of aiohttp by problem details."""
    code = _BY_STATUS.get(exception.status, ErrorCode.INVALID_REQUEST if exception.status < 500 else ErrorCode.INTERNAL)
    text = exception.text or ""
    # aiohttp's default text only repeats the status.
    detail = code.meaning if not text or text.startswith(str(exception.status)) else text
    response = problem_response(ServiceError(code, detail))
    if "Allow" in exception.headers:
        response.headers["Allow"] = exception.headers["Allow"]
    return response
