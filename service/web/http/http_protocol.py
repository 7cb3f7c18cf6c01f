"""One HTTP/1.1 connection: aiohttp's, with what RFC 9112 asks for and aiohttp leaves out.

- A peer that ends its sending side after its requests (`nc`, health checks) is answered, and then the connection is closed.
- A transfer coding other than `chunked`, and any in HTTP/1.0, is refused (§6.1); so is a Host that is no authority (§3.2).
- Whatever is refused is refused with problem details.
- A request's head is bounded and counted while it is not whole; a peer whose requests are refused all the time is cut.

Both listeners use it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http import HttpProcessingError, HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from service.core.authority import parse_authority
from service.core.clock import Clock
from service.core.limits import Rate
from service.core.token_bucket import TokenBucket
from service.errors import ErrorCode, ServiceError
from service.realtime.connections.byte_budget import OVERLOADED_MESSAGE, Account, HeldBytes, overloaded
from service.telemetry.metrics import Metrics
from service.web.http.half_close import end_sending
from service.web.http.header_list import list_of, offers_websocket
from service.web.http.parse_queue import SLICE_BYTES, ParseQueue
from service.web.problem import problem, serialized, translated

MAX_TARGET = 8_190
"""Bytes of a request's target."""
MAX_FIELD = 8_192
"""Bytes of a header's name and value. Not MAX_TARGET: by its limit an error of the parser tells what was too long."""
HEAD_COPIES = 2
"""How often the parser keeps what has come of a head: as bytes and as text."""
MAX_FIELDS = 128
"""Headers of a request."""
MAX_HEAD = 65_536
"""Bytes of a request's head: aiohttp bounds each header, which comes to a megabyte."""
MAX_QUEUED = 2
"""Requests of one connection that are parsed before their turn. Parsing aiohttp's 32 for each of 500 connections that had sent
them in one write took 400 ms, in one loop iteration."""
READ_SIZE = 65_536
"""Bytes of a body that wait for the handler; then the connection is not read."""

MAX_HEADS = 32
"""Parts of one segment, each up to the end of a head, that are read one by one; what is behind them, all at once."""

_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class PeerBounds:
    """What one peer may make a listener hold and do."""

    account: Account
    """Counts heads and bodies that nobody has read yet."""
    refusal_rate: Rate
    """Requests of one connection that are refused; above it the connection is closed."""
    clock: Clock
    metrics: Metrics


_Parsed = tuple[Sequence[tuple[Any, Any]], bool, bytes]


class Refusal(HttpProcessingError):  # noqa: N818  # reads as what happened
    """A request that is well-formed, and that this service refuses before any handler sees it."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code=code.status, message=message)
        self.refusal = ServiceError(code, message)


def upgrade_request(protocol: Any, loop: asyncio.AbstractEventLoop, head: bytes) -> RawRequestMessage | None:
    """The request with this head, if nothing is wrong with it and it is one to become a WebSocket, without a body.

    It takes less than a RequestParser, which reads again what is not answered here.
    """
    try:
        parser = HttpRequestParser(
            protocol, loop, READ_SIZE, max_line_size=MAX_TARGET, max_headers=MAX_FIELDS, max_field_size=MAX_FIELD
        )
        messages, _, _ = parser.feed_data(head)
    except HttpProcessingError:
        return None
    if len(messages) != 1:
        return None
    message: RawRequestMessage
    message, payload = messages[0]
    is_upgrade = message.upgrade and payload is EMPTY_PAYLOAD and offers_websocket(message.headers)
    return message if is_upgrade and _fault(message) is None else None


class RequestParser(HttpRequestParser):
    """aiohttp's parser. A request that it must not have accepted comes out as one of aiohttp's error entries."""

    payload: StreamReader = EMPTY_PAYLOAD
    """The body of the newest request, which may still be incomplete."""
    head = 0
    """Bytes of a head that is not whole, about."""

    def __init__(self, protocol: Any, loop: asyncio.AbstractEventLoop, *, max_queue: int = 0) -> None:
        super().__init__(
            protocol,
            loop,
            READ_SIZE,
            max_line_size=MAX_TARGET,
            max_field_size=MAX_FIELD,
            max_headers=MAX_FIELDS,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,  # no handler takes a body with a Content-Encoding
            max_msg_queue_size=max_queue,
        )
        self._max_queue = max_queue
        self._queued = 0
        self._rest = b""
        """What is parsed when there is room for it in the queue."""

    def feed_data(self, data: bytes) -> _Parsed:  # type: ignore[override]  # what else aiohttp's takes are its constants
        """See HttpRequestParser. Goes head by head: aiohttp's loses requests of the same segment before a fault, and behind an
        offer to upgrade that it does not know."""
        data, self._rest = self._rest + data, b""
        found: list[tuple[Any, Any]] = []
        start = 0
        for count in range(MAX_HEADS):
            end = data.find(_HEAD_END, start) + len(_HEAD_END)
            if end < len(_HEAD_END) or count == MAX_HEADS - 1:
                end = len(data)
            try:
                messages, upgraded, tail = self._feed(data[start:end])
            except HttpProcessingError as error:
                error.__traceback__ = None  # its frames refer to this parser, which refers to it
                return [*found, _refused(error)], False, b""
            found += messages
            start = end
            if upgraded or start == len(data):
                return found, upgraded, tail + data[start:]
            if self._queued >= self._max_queue > 0:
                break
        self._rest = data[start:]
        return found, False, b""

    def message_consumed(self) -> None:
        """See HttpRequestParser."""
        if self._queued:  # a fault is consumed too, and was not counted
            self._queued -= 1
        super().message_consumed()

    def _feed(self, data: bytes) -> _Parsed:
        is_head = self.payload.is_eof()
        messages, upgraded, tail = super().feed_data(data)
        if is_head and not messages:
            self.head += len(data)
            if self.head > MAX_HEAD:
                raise _head_too_large()
        if messages:
            self.head = 0
            self._queued += len(messages)
            newest, self.payload = messages[-1]
            # aiohttp knows of an upgrade where `websocket` is the only protocol offered.
            upgraded = upgraded or (
                newest.upgrade and self.payload is EMPTY_PAYLOAD and offers_websocket(newest.headers)
            )
            messages = [_checked(*entry) for entry in messages]
        return messages, upgraded, tail


def _checked(message: RawRequestMessage, payload: StreamReader) -> tuple[Any, StreamReader]:
    fault = _fault(message)
    return (message, payload) if fault is None else _refused(fault)


def _fault(message: RawRequestMessage) -> Refusal | None:
    headers = message.headers
    if message.version == HttpVersion11 and hdrs.TRANSFER_ENCODING not in headers and hdrs.EXPECT not in headers:
        return _check_host(message)  # nearly always, and at a third of the cost
    for check in _CHECKS:
        refusal = check(message)
        if refusal is not None:
            return refusal
    return None


def _refused(error: HttpProcessingError) -> tuple[Any, StreamReader]:
    return _ErrInfo(status=error.code, exc=error, message=error.message), EMPTY_PAYLOAD


def _head_too_large() -> Refusal:
    return Refusal(ErrorCode.HEADER_TOO_LARGE, f"a request's head has at most {MAX_HEAD} bytes")


def _check_version(message: RawRequestMessage) -> Refusal | None:
    if message.version in (HttpVersion11, HttpVersion10):
        return None
    return Refusal(ErrorCode.INVALID_REQUEST, "this service speaks HTTP/1.1 and HTTP/1.0")


def _check_transfer_coding(message: RawRequestMessage) -> Refusal | None:
    if hdrs.TRANSFER_ENCODING not in message.headers:
        return None
    if message.version < HttpVersion11:
        return Refusal(ErrorCode.INVALID_REQUEST, "HTTP/1.0 has no Transfer-Encoding")
    # The parser has seen to it that the last one is `chunked`, and the only `chunked`.
    if [coding.lower() for coding in list_of(message.headers, hdrs.TRANSFER_ENCODING)] != ["chunked"]:
        return Refusal(ErrorCode.NOT_IMPLEMENTED, "the only transfer coding known here is chunked")
    return None


def _check_host(message: RawRequestMessage) -> Refusal | None:
    host = message.headers.get(hdrs.HOST, "")
    if not host or parse_authority(host) is not None:  # RFC 9112 §3.2: empty where the target has no authority
        return None
    return Refusal(ErrorCode.INVALID_REQUEST, "Host is host or host:port")


def _check_expectations(message: RawRequestMessage) -> Refusal | None:
    if hdrs.EXPECT not in message.headers or message.version < HttpVersion11:  # RFC 9110 §10.1.1: there it is ignored
        return None
    if all(expected.lower() == "100-continue" for expected in list_of(message.headers, hdrs.EXPECT)):
        return None
    return Refusal(ErrorCode.EXPECTATION_FAILED, "the only expectation known here is 100-continue")


_CHECKS = (_check_version, _check_transfer_coding, _check_host, _check_expectations)


class HttpProtocol(RequestHandler):
    """aiohttp's protocol of a connection, which ends as RFC 9112 §9.6 has it, and refuses in this service's words."""

    __slots__ = (
        "_bounds",
        "_has_ended_unparsed",
        "_parsed",
        "_queue",
        "_refusals",
        "_unparsed",
        "_unread",
        "body_is_counted",
        "has_ended",
    )

    def __init__(self, server: web.Server, queue: ParseQueue, bounds: PeerBounds, **options: Any) -> None:
        super().__init__(server, **options)
        self._queue = queue
        self._unparsed = b""
        """What has been read and waits to be parsed; while there is any, nothing more is read."""
        self._parsed = 0
        """Bytes of it that have been parsed."""
        self._has_ended_unparsed = False
        """Whether the peer's end comes behind that."""
        self._bounds = bounds
        self._unread = HeldBytes(bounds.account)
        self._refusals: TokenBucket | None = None
        self.body_is_counted = False
        """Whether a handler counts the body that it reads."""
        self._max_msg_queue_size = MAX_QUEUED
        self._msg_queue_resume_size = MAX_QUEUED // 2
        self._parser = RequestParser(self, self._loop, max_queue=MAX_QUEUED)
        self.has_ended = False
        """Whether the peer has ended its sending side: nothing more can come."""

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. aiohttp calls it too, without data, to parse what its parser has held back."""
        if not data or self._payload_parser is not None or self._may_parse(len(data)):
            super().data_received(data)
        elif not self._force_close and not self._close:
            if not self._unparsed:
                self._queue.wait(self)
            self._unparsed = self.take_unparsed() + data
            self._parsed = 0
            self._pause_transport_reading()
        self.count()

    def _may_parse(self, size: int) -> bool:
        return not self._unparsed and size <= SLICE_BYTES and self._queue.has_time()

    def parse_on(self) -> None:
        """See Parsing."""
        if not self._unparsed or self._is_held:
            return
        start, self._parsed = self._parsed, self._parsed + SLICE_BYTES
        piece = self._unparsed[start : self._parsed]
        is_last = self._parsed >= len(self._unparsed) or self._force_close or self._close
        if is_last:
            self._unparsed = b""
        else:
            self._queue.wait(self)
        super().data_received(piece)
        self.count()
        if not is_last:
            return
        if not self._is_held:
            self._resume_transport_reading()
        if self._has_ended_unparsed and not self.eof_received() and self.transport is not None:
            self.transport.close()

    @property
    def _is_held(self) -> bool:
        """Whether aiohttp has no room for more: it comes back to `_resume_transport_reading`."""
        return self._reading_paused or self._buffer_paused

    def take_unparsed(self) -> bytes:
        """What has come and is not aiohttp's any more."""
        rest, self._unparsed = self._unparsed[self._parsed :], b""
        return rest

    def _resume_transport_reading(self) -> None:
        if self._unparsed:
            self._queue.wait(self)
        else:
            super()._resume_transport_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        """See asyncio.Protocol."""
        parser = self._parser
        super().connection_lost(exc)
        _forget_body(parser)
        self._unread.release()

    def _is_flood(self) -> bool:
        """Counts a refused request; True above the rate."""
        bounds = self._bounds
        now = bounds.clock.monotonic()
        if self._refusals is None:
            self._refusals = TokenBucket(bounds.refusal_rate, now)
        if not self._refusals.acquire(now):
            return False
        bounds.metrics.limits.rate_limited.labels(scope="http").inc()
        return True

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio takes an answer; aiohttp's gives none
        """See asyncio.Protocol. True, which keeps the connection, while a request is in hand."""
        if self._unparsed:
            self._has_ended_unparsed = True
            return True
        payload = self._parser.payload if isinstance(self._parser, RequestParser) else EMPTY_PAYLOAD
        if not payload.is_eof():
            payload.set_exception(web.RequestPayloadError("the connection ended within the body"))
        is_waiting = self._waiter is not None and not self._waiter.done()
        if is_waiting or not self._request_count:
            return False
        self.has_ended = True
        self._close_when_done()
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """See RequestHandler."""
        if isinstance(resp, web.HTTPException) and resp.status >= HTTPStatus.BAD_REQUEST:
            resp = translated(resp)
        is_body_there = request.content.is_eof()
        # A preflight too: nobody has to authenticate for one.
        is_refused = resp.status >= HTTPStatus.BAD_REQUEST or request.method == hdrs.METH_OPTIONS
        if not is_body_there or (self.has_ended and self._is_last) or (is_refused and self._is_flood()):
            resp.force_close()
        result = await super().finish_response(request, resp, start_time)
        if not is_body_there:
            self._end_unread()
        if self.has_ended:
            self._close_when_done()
        self.count()
        return result

    def count(self) -> None:
        """Counts what is kept of heads and bodies that nobody has read yet.

        If that does not fit, the request is refused, or, where it is in hand already, the connection is cut.
        """
        parser = self._parser
        if not isinstance(parser, RequestParser):
            return
        size = 0
        if not self.body_is_counted:
            size = parser.head * HEAD_COPIES + len(self._unparsed)
            if parser.payload is not EMPTY_PAYLOAD:
                size += parser.payload._size
        if not self._unread.set(size):
            self._bounds.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
            if self._messages:
                _forget_body(parser)
                self._messages[-1] = _refused(Refusal(ErrorCode.OVERLOADED, OVERLOADED_MESSAGE))
            elif self._current_request is None and self.transport is not None:
                self.transport.write(serialized(problem(overloaded())))
                self._end_unread()
            else:
                self.force_close()
            self._unread.set(parser.head * HEAD_COPIES)  # what is left

    def _end_unread(self) -> None:
        """Ends a connection whose request was answered before its body had come. The peer may go on sending for the time that
        aiohttp would take to read it (`lingering_time`): so it sees the answer, and not a reset. Nobody reads what it sends."""
        self._unparsed = b""
        _forget_body(self._parser)
        self._pause_reading_for_buffer()
        end_sending(self.transport)

    @property
    def _is_last(self) -> bool:
        """Whether no further request waits. `_message_tail`: what has come behind an upgrade, which may yet be refused."""
        return not self._messages and not self._message_tail

    def _close_when_done(self) -> None:
        if self._is_last:
            self._close = True

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = HTTPStatus.INTERNAL_SERVER_ERROR,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See RequestHandler."""
        super().handle_error(request, status, exc, message)  # for its log, and its fault if part of an answer has gone
        if status == HTTPStatus.BAD_REQUEST or isinstance(exc, Refusal):
            request._version = (
                HttpVersion11  # aiohttp has put a request of HTTP/1.0 in the place of one that cannot be read
            )
            if exc is not None:
                exc.__traceback__ = None  # its frames refer to this connection, which refers to it
        response = problem(_refusal(status, exc))
        response.force_close()
        return response


def _forget_body(parser: object) -> None:
    """Frees what nobody will read of a body: what refers to it in a circle lasts until the garbage collector comes."""
    if isinstance(parser, RequestParser) and parser.payload is not EMPTY_PAYLOAD:
        parser.payload._buffer.clear()
        parser.payload._size = 0


def _refusal(status: int, exc: BaseException | None) -> ServiceError:
    if isinstance(exc, Refusal):
        return exc.refusal
    if status != HTTPStatus.BAD_REQUEST:
        return ServiceError(ErrorCode.INTERNAL, ErrorCode.INTERNAL.meaning)
    if isinstance(exc, LineTooLong) and exc.args[1] == MAX_TARGET:
        return ServiceError(
            ErrorCode.URI_TOO_LONG, f"a request's target has at most {MAX_TARGET} bytes", limit=MAX_TARGET
        )
    if isinstance(exc, LineTooLong):
        return ServiceError(ErrorCode.HEADER_TOO_LARGE, f"a header has at most {MAX_FIELD} bytes", limit=MAX_FIELD)
    said = exc.message if isinstance(exc, HttpProcessingError) else ""
    if said.startswith("Too many headers"):
        return ServiceError(ErrorCode.HEADER_TOO_LARGE, f"a request has at most {MAX_FIELDS} headers", limit=MAX_FIELDS)
    # One of the first lines says what is wrong; what follows quotes the request.
    lines = (line.strip().rstrip(":") for line in said.splitlines())
    reason = next((line for line in lines if line and line != "Bad status line"), "it cannot be read")
    return ServiceError(ErrorCode.INVALID_REQUEST, f"this is no HTTP request: {reason}")
