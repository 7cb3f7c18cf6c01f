"""Refusals over HTTP: RFC 9457 problem details with this service's codes."""

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
MAX_RETRY = 3
"""Seconds of the longest Retry-After where nothing is known of how long it takes. By chance, or all would come at once."""

_BAD_REQUESTS = (
    HttpProcessingError,
    web.RequestPayloadError,  # a body that nobody read, in an encoding that it is not in
    UnicodeEncodeError,  # aiohttp's refusal of an Expect that is no UTF-8, which it quotes
)
_BY_STATUS = {
    400: ErrorCode.INVALID_REQUEST,
    403: ErrorCode.NOT_FOUND,  # aiohttp's answer for a folder among static files
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    408: ErrorCode.DEADLINE,
    413: ErrorCode.TOO_BIG,
    415: ErrorCode.UNSUPPORTED_MEDIA_TYPE,
    417: ErrorCode.EXPECTATION_FAILED,
}


def problem(error: ServiceError) -> web.Response:
    """The response for a refusal; `details.retry_after` (seconds) becomes Retry-After."""
    status = error.code.status
    headers = {}
    if "retry_after" in error.details:
        headers["Retry-After"] = str(max(1, math.ceil(error.details["retry_after"])))
    elif error.retryable:
        headers["Retry-After"] = str(randint(1, MAX_RETRY))  # noqa: S311  # spreads load, guards nothing
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


def serialized(response: web.Response) -> bytes:
    """The bytes of a response that is the last of its connection, for those who write it past aiohttp."""
    body = response.body if isinstance(response.body, bytes) else b""
    response.headers[hdrs.CONNECTION] = "close"
    response.headers[hdrs.CONTENT_LENGTH] = str(len(body))
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items()]
    return "\r\n".join((*lines, "", "")).encode() + body


def server_log() -> logging.Logger:
    """The logger for aiohttp's servers: of their own faults. A request that is not HTTP, down to its body's encoding and its
    headers' characters, is answered and not logged: the complaint quotes it, and whoever likes could fill the log with it."""
    logger = logging.getLogger("server")
    logger.addFilter(_is_no_bad_request)
    return logger


def _is_no_bad_request(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], _BAD_REQUESTS))


def middleware() -> Middleware:
    """Turns every refusal and fault of a handler into problem details. Faults are logged, with the id the client gets."""

    @web.middleware
    async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ServiceError as error:
            return problem(error)
        except web.HTTPException as answer:
            if answer.status < HTTPStatus.BAD_REQUEST:
                raise
            _break_cycles(request, answer)
            return translated(answer)
        except ConnectionResetError:
            raise  # the client has gone: nobody is left to answer, and there is nothing to complain about
        except Exception:
            return fault(request)

    return problems


def fault(request: web.BaseRequest) -> web.Response:
    """The response for the exception that is being handled, a fault of this service: logged, with the id that the client gets."""
    incident = secrets.token_hex(8)
    _log.exception("request failed", incident=incident, method=request.method)
    return problem(ServiceError(ErrorCode.INTERNAL, "a fault in the service", incident=incident))


def _break_cycles(request: web.Request, answer: web.HTTPException) -> None:
    """Lets a request for what does not exist be freed by its last reference.

    The garbage collector looks again at what has survived it once only after millions of allocations (telemetry/runtime.py), so a
    flood of such requests would grow the process: by 150 MB for 65 000.
    """
    answer.__traceback__ = None  # its frames refer to the request, and the request to this answer
    route = request.match_info.route
    if isinstance(route, SystemRoute):  # made for this request; it refers to a method of its own
        del route._handler


def translated(answer: web.HTTPException) -> web.Response:
    """The response in place of a refusal of aiohttp's own."""
    code = _BY_STATUS.get(answer.status, ErrorCode.INVALID_REQUEST if answer.status < 500 else ErrorCode.INTERNAL)
    said = answer.text or ""
    # aiohttp's default text is the status once more.
    detail = code.meaning if not said or said.startswith(str(answer.status)) else said
    response = problem(ServiceError(code, detail))
    if "Allow" in answer.headers:
        response.headers["Allow"] = answer.headers["Allow"]
    return response
