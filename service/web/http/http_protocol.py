"""aiohttp's HTTP/1.1 protocol, completed where it falls short of RFC 9112. Both listeners use it.

- A peer that closes its sending half after its requests (`nc`, health checks) gets its responses; then the connection
  is closed.
- A transfer coding other than `chunked`, any transfer coding in HTTP/1.0 (§6.1) and an invalid Host (§3.2) are refused.
- Every refusal is sent as problem details.
- The size of an unfinished head is limited, and its bytes are counted. A peer is disconnected if too many of its requests
  are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from service.core.authority import parse_authority
from service.core.limits import Rate
from service.core.token_bucket import TokenBucket
from service.errors import ErrorCode, ServiceError
from service.realtime.connections.byte_budget import OVERLOADED_MESSAGE, Account, HeldBytes, overloaded
from service.realtime.runtime import Runtime
from service.web.http.half_close import half_close
from service.web.http.header_list import header_elements, offers_websocket
from service.web.http.parse_queue import SLICE_BYTES, ParseQueue
from service.web.problem import problem_response, serialize_closing_response, translate_http_exception

MAX_TARGET_BYTES = 8_190
"""Bytes of a request's target."""
MAX_FIELD_BYTES = MAX_TARGET_BYTES + 2
"""Bytes of a header's name and value. Differs from MAX_TARGET_BYTES, so that the limit in aiohttp's LineTooLong shows what
was too long."""
HEAD_COPIES = 2
"""How often aiohttp's parser stores a head: as bytes and as text."""
MAX_FIELDS = 128
"""Headers of a request."""
MAX_HEAD_BYTES = 65_536
"""Bytes of a request's head. aiohttp limits only each header, which allows a megabyte in total."""
MAX_QUEUED_REQUESTS = 2
"""Requests of one connection that are parsed ahead. With aiohttp's default of 32, one loop iteration took 400 ms when
each of 500 connections sent 32 requests in one write."""
BODY_BUFFER_BYTES = 65_536
"""Bytes of a body that wait for the handler; above this, the connection is not read."""

MAX_HEADS_PER_SEGMENT = 32
"""Heads of one segment that are parsed one by one; the parser gets the rest of the segment at once."""

_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class HttpContext:
    """Dependencies shared by all HTTP connections of a service."""

    account: Account
    """Counts the bytes of heads and bodies that no handler has read."""
    refusal_rate: Rate
    """Refused requests of one connection; above this rate the connection is closed."""
    runtime: Runtime


_FeedResult = tuple[Sequence[tuple[Any, Any]], bool, bytes]


class RequestRefusedError(HttpProcessingError):
    """A well-formed request that is refused before a handler sees it."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code=code.status, message=message)
        self.service_error = ServiceError(code, message)


def parse_upgrade_request(protocol: Any, loop: asyncio.AbstractEventLoop, head: bytes) -> RawRequestMessage | None:
    """The parsed head of a valid WebSocket upgrade without a body; None for any other request.

    Costs less than RequestParser, which parses the head again if this returns None.
    """
    try:
        parser = HttpRequestParser(
            protocol,
            loop,
            BODY_BUFFER_BYTES,
            max_line_size=MAX_TARGET_BYTES,
            max_headers=MAX_FIELDS,
            max_field_size=MAX_FIELD_BYTES,
        )
        messages, _, _ = parser.feed_data(head)
    except HttpProcessingError:
        return None
    if len(messages) != 1:
        return None
    message: RawRequestMessage
    message, payload = messages[0]
    is_upgrade = message.upgrade and payload is EMPTY_PAYLOAD and offers_websocket(message.headers)
    return message if is_upgrade and _find_refusal(message) is None else None


class RequestParser(HttpRequestParser):
    """aiohttp's parser with further checks. A refused request becomes one of aiohttp's error entries."""

    payload: StreamReader = EMPTY_PAYLOAD
    """The body of the newest request, possibly incomplete."""
    head_bytes = 0
    """Bytes of an unfinished head, approximately."""

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop, *, max_queue: int = 0) -> None:
        super().__init__(
            protocol,
            loop,
            BODY_BUFFER_BYTES,
            max_line_size=MAX_TARGET_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_FIELDS,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,  # handlers refuse bodies with a Content-Encoding
            max_msg_queue_size=max_queue,
        )
        self._max_queue = max_queue
        self._queued = 0
        self._unparsed = b""
        """Bytes that are parsed once the queue of requests has space."""

    def feed_data(self, data: bytes) -> _FeedResult:  # type: ignore[override]  # aiohttp's other parameters keep their defaults
        """Parses head by head. Given a whole segment, aiohttp's parser loses the requests before a faulty one, and
        those after an Upgrade to an unknown protocol."""
        data, self._unparsed = self._unparsed + data, b""
        found: list[tuple[Any, Any]] = []
        start = 0
        for count in range(MAX_HEADS_PER_SEGMENT):
            end = data.find(_HEAD_END, start) + len(_HEAD_END)
            if end < len(_HEAD_END) or count == MAX_HEADS_PER_SEGMENT - 1:
                end = len(data)
            try:
                messages, upgraded, tail = self._feed(data[start:end])
            except HttpProcessingError as error:
                error.__traceback__ = None  # breaks a cycle: its frames refer to this parser, which refers to the error
                return [*found, _error_entry(error)], False, b""
            found += messages
            start = end
            if upgraded or start == len(data):
                return found, upgraded, tail + data[start:]
            if self._queued >= self._max_queue > 0:
                break
        self._unparsed = data[start:]
        return found, False, b""

    def message_consumed(self) -> None:
        """Counts a request that the protocol has taken from the queue."""
        if self._queued:  # error entries are consumed too, but were not counted
            self._queued -= 1
        super().message_consumed()

    def _feed(self, data: bytes) -> _FeedResult:
        is_head = self.payload.is_eof()
        messages, upgraded, tail = super().feed_data(data)
        if is_head and not messages:
            self.head_bytes += len(data)
            if self.head_bytes > MAX_HEAD_BYTES:
                raise _head_too_large()
        if messages:
            self.head_bytes = 0
            self._queued += len(messages)
            newest, self.payload = messages[-1]
            # aiohttp recognizes an upgrade only if `websocket` is the single protocol offered.
            upgraded = upgraded or (
                newest.upgrade and self.payload is EMPTY_PAYLOAD and offers_websocket(newest.headers)
            )
            messages = [_check_message(*entry) for entry in messages]
        return messages, upgraded, tail


def _check_message(message: RawRequestMessage, payload: StreamReader) -> tuple[Any, StreamReader]:
    refusal = _find_refusal(message)
    return (message, payload) if refusal is None else _error_entry(refusal)


def _find_refusal(message: RawRequestMessage) -> RequestRefusedError | None:
    headers = message.headers
    if message.version == HttpVersion11 and hdrs.TRANSFER_ENCODING not in headers and hdrs.EXPECT not in headers:
        return _check_host(message)  # the usual request, at a third of the cost of all checks
    for check in _CHECKS:
        refusal = check(message)
        if refusal is not None:
            return refusal
    return None


def _error_entry(error: HttpProcessingError) -> tuple[Any, StreamReader]:
    return _ErrInfo(status=error.code, exc=error, message=error.message), EMPTY_PAYLOAD


def _head_too_large() -> RequestRefusedError:
    return RequestRefusedError(ErrorCode.HEADER_TOO_LARGE, f"a request's head has at most {MAX_HEAD_BYTES} bytes")


def _check_version(message: RawRequestMessage) -> RequestRefusedError | None:
    if message.version in (HttpVersion11, HttpVersion10):
        return None
    return RequestRefusedError(ErrorCode.INVALID_REQUEST, "this service supports HTTP/1.1 and HTTP/1.0")


def _check_transfer_coding(message: RawRequestMessage) -> RequestRefusedError | None:
    if hdrs.TRANSFER_ENCODING not in message.headers:
        return None
    if message.version < HttpVersion11:
        return RequestRefusedError(ErrorCode.INVALID_REQUEST, "HTTP/1.0 does not allow Transfer-Encoding")
    # aiohttp's parser has checked that the last coding is `chunked`, and that no other one is.
    if [coding.lower() for coding in header_elements(message.headers, hdrs.TRANSFER_ENCODING)] != ["chunked"]:
        return RequestRefusedError(ErrorCode.NOT_IMPLEMENTED, "the only supported transfer coding is chunked")
    return None


def _check_host(message: RawRequestMessage) -> RequestRefusedError | None:
    host = message.headers.get(hdrs.HOST, "")
    if not host or parse_authority(host) is not None:  # RFC 9112 §3.2: empty if the target has no authority
        return None
    return RequestRefusedError(ErrorCode.INVALID_REQUEST, "Host must be host or host:port")


def _check_expectations(message: RawRequestMessage) -> RequestRefusedError | None:
    # RFC 9110 §10.1.1: an HTTP/1.0 request's Expect is ignored.
    if hdrs.EXPECT not in message.headers or message.version < HttpVersion11:
        return None
    if all(expected.lower() == "100-continue" for expected in header_elements(message.headers, hdrs.EXPECT)):
        return None
    return RequestRefusedError(ErrorCode.EXPECTATION_FAILED, "the only supported expectation is 100-continue")


_CHECKS = (_check_version, _check_transfer_coding, _check_host, _check_expectations)


class HttpProtocol(RequestHandler):
    """aiohttp's protocol of one connection, with parsing in slices, byte accounting, and closing as RFC 9112 §9.6
    requires."""

    __slots__ = (
        "_context",
        "_has_eof_after_unparsed",
        "_parse_queue",
        "_parsed_bytes",
        "_refusal_bucket",
        "_unparsed",
        "_unread_bytes",
        "has_eof",
        "is_body_counted",
        "on_end",
    )

    def __init__(self, server: web.Server, context: HttpContext, parse_queue: ParseQueue, **options: Any) -> None:
        super().__init__(server, **options)
        self._parse_queue = parse_queue
        self._unparsed = b""
        """Bytes that are read and wait for parsing. While there are any, the transport is paused."""
        self._parsed_bytes = 0
        """How many of them are parsed."""
        self._has_eof_after_unparsed = False
        """Whether the peer has closed its sending half after the unparsed bytes."""
        self._context = context
        self._unread_bytes = HeldBytes(context.account)
        self._refusal_bucket: TokenBucket | None = None
        self.is_body_counted = False
        """Whether a handler counts the body itself while it reads it."""
        self.on_end: Callable[[], object] | None = None
        """Called when the peer closes its sending half, and when the connection is lost. For a handler that waits."""
        self._max_msg_queue_size = MAX_QUEUED_REQUESTS
        self._msg_queue_resume_size = MAX_QUEUED_REQUESTS // 2
        self._parser = RequestParser(self, self._loop, max_queue=MAX_QUEUED_REQUESTS)
        self.has_eof = False
        """Whether the peer has closed its sending half."""

    def data_received(self, data: bytes) -> None:
        """Parses the bytes now if there is budget, else queues them. aiohttp calls this without data to continue its
        own parsing."""
        if not data or self._payload_parser is not None or self._can_parse_now(len(data)):
            super().data_received(data)
        elif not self._force_close and not self._close:
            if not self._unparsed:
                self._parse_queue.schedule(self)
            self._unparsed = self.pop_unparsed() + data
            self._parsed_bytes = 0
            self._pause_transport_reading()
        self.count_unread()

    def _can_parse_now(self, size: int) -> bool:
        return not self._unparsed and size <= SLICE_BYTES and self._parse_queue.has_budget()

    def parse_slice(self) -> None:
        """Parses the next slice, and queues itself again if bytes are left."""
        if not self._unparsed or self._is_paused:
            return
        start, self._parsed_bytes = self._parsed_bytes, self._parsed_bytes + SLICE_BYTES
        piece = self._unparsed[start : self._parsed_bytes]
        is_last = self._parsed_bytes >= len(self._unparsed) or self._force_close or self._close
        if is_last:
            self._unparsed = b""
        else:
            self._parse_queue.schedule(self)
        super().data_received(piece)
        self.count_unread()
        if not is_last:
            return
        if not self._is_paused:
            self._resume_transport_reading()
        if self._has_eof_after_unparsed and not self.eof_received() and self.transport is not None:
            self.transport.close()

    @property
    def _is_paused(self) -> bool:
        """Whether aiohttp has paused reading; it resumes with `_resume_transport_reading`."""
        return self._reading_paused or self._buffer_paused

    def pop_unparsed(self) -> bytes:
        """Removes and returns the bytes that aiohttp has not parsed."""
        unparsed, self._unparsed = self._unparsed[self._parsed_bytes :], b""
        return unparsed

    def _resume_transport_reading(self) -> None:
        if self._unparsed:
            self._parse_queue.schedule(self)
        else:
            super()._resume_transport_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Frees the body and its counted bytes, and ends the wait of a handler."""
        if self.on_end is not None:
            self.on_end()
        parser = self._parser
        super().connection_lost(exc)
        _discard_body(parser)
        self._unread_bytes.release()

    def _exceeds_refusal_rate(self) -> bool:
        """Counts a refused request; True above the rate."""
        context = self._context
        now = context.runtime.clock.monotonic()
        if self._refusal_bucket is None:
            self._refusal_bucket = TokenBucket(context.refusal_rate, now)
        if not self._refusal_bucket.acquire(now):
            return False
        context.runtime.metrics.limits.rate_limited.labels(scope="http").inc()
        return True

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio reads a result; aiohttp's method returns None
        """Keeps the connection open while a request has no response yet."""
        if self._unparsed:
            self._has_eof_after_unparsed = True
            return True
        payload = self._parser.payload if isinstance(self._parser, RequestParser) else EMPTY_PAYLOAD
        if not payload.is_eof():
            payload.set_exception(web.RequestPayloadError("the connection ended within the body"))
        is_waiting = self._waiter is not None and not self._waiter.done()
        if is_waiting or not self._request_count:
            return False
        self.has_eof = True
        if self.on_end is not None:
            self.on_end()
        self._close_when_done()
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Sends the response. Closes the connection if the request's body is incomplete, if the peer sends no more requests,
        or if refusals exceed the rate."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = translate_http_exception(resp)
        has_whole_body = request.content.is_eof()
        if has_whole_body:
            self._skip_body(request.content)
        # Preflights count too, because they need no credentials.
        is_refused = resp.status >= HTTPStatus.BAD_REQUEST or request.method == hdrs.METH_OPTIONS
        if (
            not has_whole_body
            or (self.has_eof and self._has_no_more_requests)
            or (is_refused and self._exceeds_refusal_rate())
        ):
            resp.force_close()
        result = await super().finish_response(request, resp, start_time)
        if not has_whole_body:
            self._close_unread()
        if self.has_eof:
            self._close_when_done()
        self.count_unread()
        return result

    def _skip_body(self, body: StreamReader) -> None:
        """Frees a whole body that the handler has not read. The connection may stay open long after the response."""
        if body is not EMPTY_PAYLOAD and body.exception() is None:
            body.read_nowait()  # also resumes reading, if the body has filled its buffer
            self.count_unread()

    def count_unread(self) -> None:
        """Counts the bytes of heads and bodies that no handler has read.

        If they do not fit the budget, a request that waits is refused. If a handler is running, the connection is cut.
        """
        parser = self._parser
        if not isinstance(parser, RequestParser):
            return
        size = 0
        if not self.is_body_counted:
            size = parser.head_bytes * HEAD_COPIES + len(self._unparsed)
            if parser.payload is not EMPTY_PAYLOAD:
                size += parser.payload._size
        if not self._unread_bytes.set(size):
            self._context.runtime.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
            if self._messages:
                _discard_body(parser)
                self._messages[-1] = _error_entry(RequestRefusedError(ErrorCode.OVERLOADED, OVERLOADED_MESSAGE))
            elif self._current_request is None and self.transport is not None:
                self.transport.write(serialize_closing_response(problem_response(overloaded())))
                self._close_unread()
            else:
                self.force_close()
            self._unread_bytes.set(parser.head_bytes * HEAD_COPIES)  # bytes that aiohttp's parser keeps

    def _close_unread(self) -> None:
        """Closes a connection whose request was answered before its whole body arrived.

        The peer may continue to send for `lingering_time`, so that it gets the response and not a reset. Nothing reads these
        bytes.
        """
        self._unparsed = b""
        _discard_body(self._parser)
        self._pause_reading_for_buffer()
        half_close(self.transport)

    @property
    def _has_no_more_requests(self) -> bool:
        """Whether no further request waits. aiohttp's `_message_tail` holds the bytes after an upgrade; if the upgrade
        is refused, they may be requests."""
        return not self._messages and not self._message_tail

    def _close_when_done(self) -> None:
        if self._has_no_more_requests:
            self._close = True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Turns aiohttp's error into problem details."""
        super().handle_error(request, status, exc, message)  # logs it; raises if part of a response was sent
        if status == HTTPStatus.BAD_REQUEST or isinstance(exc, RequestRefusedError):
            request._version = HttpVersion11  # aiohttp represents an unreadable request as one of HTTP/1.0
            if exc is not None:
                exc.__traceback__ = None  # breaks a cycle: its frames refer to this connection, and it to the error
        response = problem_response(_describe_error(status, exc))
        response.force_close()
        return response


def _discard_body(parser: object) -> None:
    """Frees the buffered body at once. A reference cycle would keep it until the garbage collector runs."""
    if isinstance(parser, RequestParser) and parser.payload is not EMPTY_PAYLOAD:
        parser.payload._buffer.clear()
        parser.payload._size = 0


def _describe_error(status: int, exc: BaseException | None) -> ServiceError:
    if isinstance(exc, RequestRefusedError):
        return exc.service_error
    if status != HTTPStatus.BAD_REQUEST:
        return ServiceError(ErrorCode.INTERNAL, ErrorCode.INTERNAL.meaning)
    if isinstance(exc, LineTooLong) and exc.args[1] == MAX_TARGET_BYTES:
        return ServiceError(
            ErrorCode.URI_TOO_LONG, f"a request's target has at most {MAX_TARGET_BYTES} bytes", limit=MAX_TARGET_BYTES
        )
    if isinstance(exc, LineTooLong):
        return ServiceError(
            ErrorCode.HEADER_TOO_LARGE, f"a header has at most {MAX_FIELD_BYTES} bytes", limit=MAX_FIELD_BYTES
        )
    text = exc.message if isinstance(exc, HttpProcessingError) else ""
    if text.startswith("Too many headers"):
        return ServiceError(ErrorCode.HEADER_TOO_LARGE, f"a request has at most {MAX_FIELDS} headers", limit=MAX_FIELDS)
    # One of the first lines gives the reason; the lines after it quote the request.
    lines = (line.strip().rstrip(":") for line in text.splitlines())
    reason = next((line for line in lines if line and line != "Bad status line"), "it is unreadable")
    return ServiceError(ErrorCode.INVALID_REQUEST, f"this is not an HTTP request: {reason}")
