"""Reads and decodes the JSON body of a request, within bounds, and its query."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec
from aiohttp import hdrs, web
from msgspec import UNSET, Raw, UnsetType

from service.errors import ErrorCode, ServiceError
from service.protocol.codec import invalid
from service.protocol.unique_keys import check_text, check_text_first
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import HeldBytes
from service.telemetry.metrics import Metrics
from service.web.http.header_list import header_elements
from service.web.http.http_protocol import HttpProtocol

MAX_BODY_BYTES = 1_048_576
"""Bytes of a request body, also aiohttp's limit for every body."""

# msgspec's own errors, and the two that it lets through (protocol/codec.py).
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError)
_T = TypeVar("_T")


async def read_json(request: web.Request, bounds: Bounds, metrics: Metrics, holding: HeldBytes) -> bytes:
    """Returns the JSON body of a request; empty if there is none. `holding` counts its bytes.

    Raises ServiceError: UNSUPPORTED_MEDIA_TYPE, TOO_BIG, DEADLINE, OVERLOADED, or MALFORMED if the body ended early.
    """
    if not request.body_exists:
        return b""
    if request.content_type != "application/json":
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "send the body as Content-Type: application/json")
    if any(coding.lower() != "identity" for coding in header_elements(request.headers, hdrs.CONTENT_ENCODING)):
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "send the body without Content-Encoding")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_big(metrics)
    try:
        async with asyncio.timeout(bounds.deadlines.body):
            return await _read(request, metrics, holding)
    except TimeoutError as error:
        metrics.limits.limit_hits.labels(limit="body_deadline").inc()
        raise ServiceError(ErrorCode.DEADLINE, f"the body did not arrive within {bounds.deadlines.body:g} s") from error
    except (web.RequestPayloadError, ConnectionError) as error:
        raise ServiceError(ErrorCode.MALFORMED, "the body ended early", path="$") from error


async def _read(request: web.Request, metrics: Metrics, holding: HeldBytes) -> bytes:
    # With a known size the memory is allocated once: a growing buffer would fragment the heap.
    size = request.content_length or 0
    protocol = request.protocol
    if isinstance(protocol, HttpProtocol):
        protocol.is_body_counted = True
        protocol.count_unread()
    body = bytearray()
    try:
        holding.add(size)
        body = bytearray(size)
        end = 0
        async for chunk in request.content.iter_any():
            start, end = end, end + len(chunk)
            if end > MAX_BODY_BYTES:
                raise _too_big(metrics)
            if end > len(body):
                holding.add(end - len(body))
            body[start:end] = chunk
        return bytes(body)
    finally:
        if isinstance(protocol, HttpProtocol):
            protocol.is_body_counted = False
        body.clear()  # an exception may keep this frame, with megabytes, until a garbage collection


def _too_big(metrics: Metrics) -> ServiceError:
    metrics.limits.limit_hits.labels(limit="message_bytes").inc()
    return ServiceError(ErrorCode.TOO_BIG, f"a body has at most {MAX_BODY_BYTES} bytes", limit=MAX_BODY_BYTES)


def decode(body: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[_T]) -> _T:
    """Decodes JSON. Raises ServiceError: MALFORMED, or INVALID_MESSAGE with details.path."""
    decoded = decode_unchecked(body, decoder)
    check_text(body)
    return decoded


def decode_unchecked(body: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[_T]) -> _T:
    """Decodes JSON but accepts duplicate keys: the last one wins. The caller must call `check_text` later."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        check_text_first(body)
        raise invalid(error) from error
    except _DECODE_ERRORS as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the body is not JSON: {_reason(error)}", path="$") from error


def parse_query(request: web.Request, kind: type[_T]) -> _T:
    """Returns the query parameters. Raises ServiceError(INVALID_REQUEST) for one that is invalid, unknown or repeated."""
    query = request.query
    for name in query:
        if len(query.getall(name)) > 1:
            raise ServiceError(ErrorCode.INVALID_REQUEST, "the parameter is given twice", parameter=name[:64])
    try:
        return msgspec.convert(dict(query), kind, strict=False)
    except msgspec.ValidationError as error:
        service_error = invalid(error)
        parameter = str(service_error.details["path"]).removeprefix("$.")
        raise ServiceError(ErrorCode.INVALID_REQUEST, service_error.message, parameter=parameter) from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeError) else str(error)


def data_of(data: Raw | UnsetType, *, removed: bool) -> bytes | Raw:
    """Returns the data of a publish; nothing for a removal, which has none. Raises ServiceError(INVALID_MESSAGE)."""
    if data is UNSET:
        if not removed:
            raise ServiceError(ErrorCode.INVALID_MESSAGE, "Object missing required field `data`", path="$.data")
        return b""
    if removed:
        raise ServiceError(ErrorCode.INVALID_MESSAGE, "a removal has no data", path="$.data")
    return data
