"""One call of the backend API: whose it is, and its parts, read and checked."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
import structlog
from aiohttp import hdrs, web
from msgspec import Struct

from service.contract.model import Resolved
from service.core.channel import ChannelKey
from service.core.identity import Identity, Right, backend
from service.errors import ErrorCode, ServiceError
from service.protocol.codec import invalid
from service.protocol.unique_keys import check_text, prefer_duplicate
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import Account, HeldBytes
from service.realtime.node import Node
from service.web.api.messages import MAX_USER, IdempotencyKey
from service.web.client_info import client_ip
from service.web.http.header_list import list_of
from service.web.http.http_protocol import HttpProtocol
from service.web.http_config import HTTP_CONFIG, NODE, ApiKey

MAX_BODY = 1_048_576
"""Bytes of a request body; the application's client_max_size must not be below it."""

IDEMPOTENCY_KEY = "Idempotency-Key"

_log = structlog.get_logger("api")

_BEARER = re.compile(r"bearer +(?P<key>\S+) *", re.IGNORECASE)
# msgspec's own exceptions, and what it lets through: see protocol/codec.py.
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError)
_T = TypeVar("_T")
_Q = TypeVar("_Q", bound=Struct)


def authenticate(request: web.Request, keys: Iterable[ApiKey]) -> ApiKey:
    """The request's API key. Raises ServiceError(INVALID_API_KEY).

    Every key is compared, in constant time and as a digest: the time taken tells neither which one matched, nor how much
    of one, nor how long they are.
    """
    found = _BEARER.fullmatch(",".join(request.headers.getall(hdrs.AUTHORIZATION, ())))  # twice is no key
    given = _digest(found["key"] if found else "")
    matching = [key for key in keys if hmac.compare_digest(_digest(key.key), given)]
    if not matching or not found:
        raise ServiceError(ErrorCode.INVALID_API_KEY, "send a valid API key as Authorization: Bearer <key>")
    return matching[0]


def check_address_rate(request: web.Request) -> str:
    """Counts a request for its address, which is returned. Raises ServiceError(RATE_LIMITED)."""
    network = network_of(client_ip(request, request.app[HTTP_CONFIG].hops))
    request.app[NODE].admission.requests.check_api_address(network)
    return network


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose API key has been checked."""

    request: web.Request
    node: Node
    identity: Identity
    key: str
    """The API key's name."""
    holding: HeldBytes
    """Counts the body's bytes, until the request is answered."""

    @classmethod
    def of(cls, request: web.Request) -> Call:
        """Raises ServiceError: RATE_LIMITED or INVALID_API_KEY."""
        node, edge = request.app[NODE], request.app[HTTP_CONFIG]
        network = check_address_rate(request)
        try:
            key = authenticate(request, edge.api_keys)
        except ServiceError:
            node.admission.requests.charge_failed_api_request(network)
            raise
        node.admission.requests.check_api_key(network, key.tenant, key.name)
        return cls(
            request,
            node,
            backend(key.tenant),
            key.name,
            HeldBytes(node.delivery.budget.account(key.tenant, is_backend=True)),
        )

    @property
    def account(self) -> Account:
        """What counts the bytes that are held for the caller."""
        return self.node.delivery.budget.account(self.identity.tenant, is_backend=True)

    def note(self, command: str, **concerned: str) -> None:
        """Writes down who has asked for something that ends connections."""
        _log.info("backend command", command=command, by=self.key, tenant=self.identity.tenant, **concerned)

    def key_of(self, channel: str) -> ChannelKey:
        """The channel, in the caller's tenant."""
        return ChannelKey(self.identity.tenant, channel)

    def channel(self, right: Right = Right.SUBSCRIBE) -> tuple[str, Resolved]:
        """The address's channel and what the contract says. Raises ServiceError as `Gate.authorise` does."""
        name = self._segment("channel")
        try:
            return name, self.node.gate.authorise(self.identity, name, right)
        except ServiceError as error:
            raise ServiceError(error.code, error.message, parameter="channel") from error

    def user(self) -> str:
        """The address's user. Raises ServiceError(INVALID_REQUEST) if no token could name such a one."""
        user = self._segment("user")
        if not is_user(user):
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                f"a user is 1 to {MAX_USER} printable characters without spaces around them",
                parameter="user",
            )
        return user

    def _segment(self, name: str) -> str:
        # aiohttp has decoded it once, and left alone what is no UTF-8: that would give one user two addresses.
        try:
            unquote_to_bytes(self.request.rel_url.raw_path).decode()
        except UnicodeDecodeError as error:
            raise ServiceError(ErrorCode.INVALID_REQUEST, "the address is not UTF-8", parameter=name) from error
        return self.request.match_info[name]

    def query(self, kind: type[_Q]) -> _Q:
        """The query parameters. Raises ServiceError(INVALID_REQUEST) for one that is wrong, unknown or given twice."""
        query = self.request.query
        for name in query:
            if len(query.getall(name)) > 1:
                raise ServiceError(ErrorCode.INVALID_REQUEST, "the parameter is given twice", parameter=name[:64])
        try:
            return msgspec.convert(dict(query), kind, strict=False)
        except msgspec.ValidationError as error:
            wrong = invalid(error)
            parameter = str(wrong.details["path"]).removeprefix("$.")
            raise ServiceError(ErrorCode.INVALID_REQUEST, wrong.message, parameter=parameter) from error

    def idempotency_key(self) -> str | None:
        """The header's value. Raises ServiceError(INVALID_REQUEST)."""
        given = self.request.headers.getall(IDEMPOTENCY_KEY, [])
        if not given:
            return None
        try:
            (key,) = given
            return msgspec.convert(key, IdempotencyKey)
        except ValueError as error:  # msgspec's too
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                "an idempotency key is 1 to 60 visible ASCII characters, given once",
                parameter=IDEMPOTENCY_KEY,
            ) from error

    async def body(self) -> bytes:
        """The JSON body; empty if there is none.

        Raises ServiceError: UNSUPPORTED_MEDIA_TYPE, TOO_BIG, DEADLINE, OVERLOADED, or MALFORMED if it broke off.
        """
        request = self.request
        if not request.body_exists:
            return b""
        if request.content_type != "application/json":
            raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "send the body as Content-Type: application/json")
        if any(coding.lower() != "identity" for coding in list_of(request.headers, hdrs.CONTENT_ENCODING)):
            raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "send the body without Content-Encoding")
        if (request.content_length or 0) > MAX_BODY:
            raise self._too_big()
        try:
            async with asyncio.timeout(self.node.bounds.deadlines.body):
                return await self._read()
        except TimeoutError as error:
            self.node.runtime.metrics.limits.limit_hits.labels(limit="body_deadline").inc()
            raise ServiceError(
                ErrorCode.DEADLINE, f"the body did not arrive within {self.node.bounds.deadlines.body:g} s"
            ) from error
        except (web.RequestPayloadError, ConnectionError) as error:
            raise ServiceError(ErrorCode.MALFORMED, "the body broke off", path="$") from error

    async def _read(self) -> bytes:
        # Where the size is known its memory is taken at once: what grows by parts leaves holes between many others.
        size = self.request.content_length or 0
        protocol = self.request.protocol
        if isinstance(protocol, HttpProtocol):
            protocol.body_is_counted = True
            protocol.count()
        body = bytearray()
        try:
            self.holding.add(size)
            body = bytearray(size)
            end = 0
            async for chunk in self.request.content.iter_any():
                start, end = end, end + len(chunk)
                if end > MAX_BODY:
                    raise self._too_big()
                if end > len(body):
                    self.holding.add(end - len(body))
                body[start:end] = chunk
            return bytes(body)
        finally:
            if isinstance(protocol, HttpProtocol):
                protocol.body_is_counted = False
            body.clear()  # an exception keeps this frame until the garbage collector comes; it must not keep megabytes

    def _too_big(self) -> ServiceError:
        self.node.runtime.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        return ServiceError(ErrorCode.TOO_BIG, f"a body has at most {MAX_BODY} bytes", limit=MAX_BODY)


def is_user(name: str) -> bool:
    """Whether a token could name such a user."""
    return 1 <= len(name) <= MAX_USER and name.isprintable() and name == name.strip()


def decode(body: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[_T]) -> _T:
    """Reads JSON. Raises ServiceError: MALFORMED, or INVALID_MESSAGE with details.path."""
    found = decode_leniently(body, decoder)
    check_text(body)
    return found


def decode_leniently(body: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[_T]) -> _T:
    """As `decode`, but of a key that stands twice in an object it takes the last value: for `check_text` to be called later."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        prefer_duplicate(body)
        raise invalid(error) from error
    except _UNREADABLE as error:
        raise ServiceError(ErrorCode.MALFORMED, f"the body is not JSON: {_reason(error)}", path="$") from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "not UTF-8" if isinstance(error, UnicodeError) else str(error)
