"""One call of the backend API: authenticates it, and parses its path, query, headers and body."""

from __future__ import annotations

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
from service.protocol.messages import MAX_ID, Id
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import Account, HeldBytes
from service.realtime.node import Node
from service.web.api.messages import MAX_USER_CHARS, IdempotencyKey
from service.web.body import parse_query, read_json
from service.web.client_info import client_ip
from service.web.http_config import HTTP_CONFIG, NODE, ApiKey

EVENTS_PER_REQUEST = 100
"""Events that a removal reads for the price of one request."""

IDEMPOTENCY_KEY = "Idempotency-Key"

_log = structlog.get_logger("api")

_BEARER = re.compile(r"bearer +(?P<key>\S+) *", re.IGNORECASE)
_Q = TypeVar("_Q", bound=Struct)


def authenticate(request: web.Request, keys: Iterable[ApiKey]) -> ApiKey:
    """Returns the request's API key. Raises ServiceError(INVALID_API_KEY).

    Compares the digests of all keys in constant time. So timing reveals neither the matching key, nor a prefix, nor a
    length.
    """
    match = _BEARER.fullmatch(",".join(request.headers.getall(hdrs.AUTHORIZATION, ())))  # two headers match no key
    given = _hash(match["key"] if match else "")
    matching = [key for key in keys if hmac.compare_digest(_hash(key.key), given)]
    if not matching or not match:
        raise ServiceError(ErrorCode.INVALID_API_KEY, "send a valid API key as Authorization: Bearer <key>")
    return matching[0]


def check_address_rate(request: web.Request) -> str:
    """Counts a request against its address's rate, and returns its network. Raises ServiceError(RATE_LIMITED)."""
    network = network_of(client_ip(request, request.app[HTTP_CONFIG].hops))
    request.app[NODE].admission.requests.check_api_address(network)
    return network


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True, slots=True)
class Call:
    """A request with a valid API key."""

    request: web.Request
    node: Node
    identity: Identity
    key: str
    """The API key's name."""
    holding: HeldBytes
    """Counts the body's bytes until the request is answered."""

    @classmethod
    def authenticate_request(cls, request: web.Request) -> Call:
        """Authenticates the request and charges its rates. Raises ServiceError: RATE_LIMITED or INVALID_API_KEY."""
        node, config = request.app[NODE], request.app[HTTP_CONFIG]
        network = check_address_rate(request)
        try:
            key = authenticate(request, config.api_keys)
        except ServiceError:
            node.admission.requests.charge_failed_api_request(network)
            raise
        node.admission.requests.check_api_key(network, key.tenant, key.name)
        return cls(
            request,
            node,
            backend(key.tenant),
            key.name,
            HeldBytes(node.streams.budget.account(key.tenant, is_backend=True)),
        )

    @property
    def account(self) -> Account:
        """The account of the bytes held for the caller."""
        return self.node.streams.budget.account(self.identity.tenant, is_backend=True)

    def log_command(self, command: str, **fields: str) -> None:
        """Logs who has sent a command that ends connections or takes back events."""
        _log.info("backend_command", command=command, by=self.key, tenant=self.identity.tenant, **fields)

    def channel_key(self, channel: str) -> ChannelKey:
        """The channel in the caller's tenant."""
        return ChannelKey(self.identity.tenant, channel)

    def channel(self, right: Right = Right.SUBSCRIBE) -> tuple[str, Resolved]:
        """The path's channel and its contract. Raises ServiceError as `Gate.authorise` does."""
        name = self.path_parameter("channel")
        try:
            return name, self.node.gate.authorise(self.identity, name, right)
        except ServiceError as error:
            raise ServiceError(error.code, error.message, parameter="channel") from error

    def event_id(self) -> str:
        """The path's event id. Raises ServiceError(INVALID_REQUEST) if no event can have it."""
        try:
            return msgspec.convert(self.path_parameter("id"), Id)
        except msgspec.ValidationError as error:
            raise ServiceError(
                ErrorCode.INVALID_REQUEST, f"an event's id is 1 to {MAX_ID} visible ASCII characters", parameter="id"
            ) from error

    def charge_read(self, events: int) -> None:
        """Charges the API key for a request that has read many events: another request for every EVENTS_PER_REQUEST."""
        self.node.admission.requests.charge_api_key(self.identity.tenant, self.key, events / EVENTS_PER_REQUEST)

    def user(self) -> str:
        """The path's user. Raises ServiceError(INVALID_REQUEST) if no token can name this user."""
        user = self.path_parameter("user")
        if not is_valid_user(user):
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                f"a user is 1 to {MAX_USER_CHARS} printable characters without spaces around them",
                parameter="user",
            )
        return user

    def path_parameter(self, name: str) -> str:
        """A part of the path. Raises ServiceError(INVALID_REQUEST) if the address is not UTF-8."""
        # aiohttp leaves invalid UTF-8 percent-encoded when it decodes the path. Accepted, it would give one user two addresses.
        try:
            unquote_to_bytes(self.request.rel_url.raw_path).decode()
        except UnicodeDecodeError as error:
            raise ServiceError(ErrorCode.INVALID_REQUEST, "the address is not UTF-8", parameter=name) from error
        return self.request.match_info[name]

    def query(self, kind: type[_Q]) -> _Q:
        """The query parameters. Raises ServiceError(INVALID_REQUEST) for one that is invalid, unknown or repeated."""
        return parse_query(self.request, kind)

    def idempotency_key(self) -> str | None:
        """The Idempotency-Key header; None if absent. Raises ServiceError(INVALID_REQUEST)."""
        lines = self.request.headers.getall(IDEMPOTENCY_KEY, [])
        if not lines:
            return None
        try:
            (key,) = lines
            return msgspec.convert(key, IdempotencyKey)
        except ValueError as error:  # includes msgspec.ValidationError
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                "an idempotency key is 1 to 60 visible ASCII characters, given once",
                parameter=IDEMPOTENCY_KEY,
            ) from error

    async def body(self) -> bytes:
        """The JSON body; empty if there is none.

        Raises ServiceError: UNSUPPORTED_MEDIA_TYPE, TOO_BIG, DEADLINE, OVERLOADED, or MALFORMED if the body ended
        early.
        """
        return await read_json(self.request, self.node.bounds, self.node.runtime.metrics, self.holding)


def is_valid_user(name: str) -> bool:
    """Whether a token can name this user."""
    return 1 <= len(name) <= MAX_USER_CHARS and name.isprintable() and name == name.strip()
