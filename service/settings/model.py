"""Every setting, as a tree of models. Only `app` and the command line read all of it.

The docstring of a setting is its row in docs/settings.md (scripts/generate_reference.py writes the table).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from service.adapters.http_backend.signing import MAX_SECRETS
from service.adapters.http_backend.signing import check_secret as check_hook_secret
from service.adapters.nats.address import parse_nats_url
from service.adapters.redis.address import parse_redis_url
from service.core.limits import (
    CONNECT_HOOK_RATE,
    EMPTY_TTL,
    IDEMPOTENCY_WINDOW,
    MAX_HOOK_ANSWERS,
    MAX_REVOCATIONS,
    MAX_STORE_CALLS,
    MAX_TOTAL_REVOCATIONS,
    MAX_WAITING_ENDS,
    MAX_WEBHOOK_DEAD_LETTERS,
    POSITION_TTL,
    PRESENCE_MEMBERS,
    PRESENCE_TTL,
    PRESENCE_UPDATE_BYTES,
    REVOCATION_TTL,
    STORE_CALL_TIMEOUT,
    STORE_PING_INTERVAL,
    STORE_PREFIX,
    STORE_SILENCE_TIMEOUT,
    UNREADY_AFTER,
    WEBHOOK_ATTEMPTS,
    WEBHOOK_BATCH,
    WEBHOOK_KEEP,
    WEBHOOK_QUEUE_ENTRIES,
    WEBHOOK_QUEUES,
    WEBHOOK_TIMEOUT,
    Bytes,
    Compression,
    Count,
    Deadlines,
    HistoryPages,
    Limits,
    OutboxLimits,
    Probing,
    Rate,
    RepairLimits,
    Rollout,
    Seconds,
)

PREFIX = "TIDEWIRE_"
MIN_SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key is at least as long as its hash."""
MIN_KEY = 24
MAX_PORT = 65_535
MAX_HOOK_TIMEOUT = 5.0
"""Seconds. A hook holds up its client's commands, pings included, and clients wait 10 s for a pong."""
MAX_WEBHOOK_TIMEOUT = 60.0
"""Seconds. Nobody waits for a webhook but the entries behind it."""
MAX_QUEUES = 64
"""Queues of each endpoint and tenant: each is a lease that some node renews every few seconds."""
MAX_WORKERS = 256
"""More than any machine needs. A typo must not fork a thousand processes."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORT = re.compile(r"https://.*:443|http://.*:80")
"""Browsers omit default ports, so an Origin header never has them."""
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}")
_SECRET_HEADERS = frozenset({"cookie", "cookie2", "set-cookie", "authorization", "proxy-authorization"})
"""Never sent to a hook. The token has a field of its own; cookies are for the origin that has set them."""
MAX_HOOK_HEADERS = 16
"""Headers of a request that a hook gets, at most."""
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _check_secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"is shorter than {MIN_SECRET_BYTES} bytes; try: openssl rand -base64 48")
    return secret


def _check_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch(rf"[\x21-\x7e]{{{MIN_KEY},}}", key.get_secret_value()):
        raise ValueError(f"is not {MIN_KEY} or more visible ASCII characters; try: openssl rand -hex 32")
    return key


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and (not _ORIGIN.fullmatch(origin) or _DEFAULT_PORT.fullmatch(origin)):
            raise ValueError(
                f"{origin[:80]!r} is not an origin: scheme://host[:port] as browsers send it, in lower case"
            )
    if "*" in origins and len(origins) > 1:
        raise ValueError("'*' allows every origin; name no others beside it")
    return origins


def _check_https(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ValueError(
            "is not an https:// address without a user: whoever can change keys in transit can impersonate any user"
        )
    return url


def _check_hook_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError("is not an http:// or https:// address without a user and a fragment")
    return url


def _check_headers(headers: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(header.lower() for header in headers)
    for name in names:
        if not _HEADER.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is not the name of a header")
        if name in _SECRET_HEADERS:
            raise ValueError(f"{name} is never sent: it holds credentials of the client")
    if len(set(names)) < len(names):
        raise ValueError("names a header twice")
    return names


def _check_hook_secret(secret: SecretStr) -> SecretStr:
    check_hook_secret(secret.get_secret_value())
    return secret


def _check_broker_url(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme.partition("+")[0] in ("redis", "rediss"):
        parse_redis_url(url)
    elif scheme in ("nats", "tls"):
        parse_nats_url(url)
    elif url != "memory://":
        raise ValueError(
            "is none of memory://, redis://… (for Valkey too), redis+sentinel://…, redis+cluster://…, rediss… for TLS, "
            "nats://…, tls://…; docs/guarantees.md compares them"
        )
    return url


Secret = Annotated[SecretStr, AfterValidator(_check_secret)]
Key = Annotated[SecretStr, AfterValidator(_check_key)]
Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Port = Annotated[int, Field(ge=0, le=MAX_PORT)]
Origins = Annotated[tuple[str, ...], AfterValidator(_check_origins)]
HttpsUrl = Annotated[str, AfterValidator(_check_https)]
HookUrl = Annotated[str, AfterValidator(_check_hook_url)]
HookHeaders = Annotated[tuple[str, ...], Field(max_length=MAX_HOOK_HEADERS), AfterValidator(_check_headers)]
HookSecret = Annotated[SecretStr, AfterValidator(_check_hook_secret)]
BrokerUrl = Annotated[str, AfterValidator(_check_broker_url)]
Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]


class Issuer(BaseModel):
    """An issuer whose tokens are accepted, with exactly one source of keys that fits the algorithm."""

    model_config = _STRICT
    issuer: Name
    audience: Name
    algorithm: Algorithm
    secret: Secret | None = None
    jwks_file: Path | None = None
    jwks_url: HttpsUrl | None = None
    tenant_claim: Name = "tenant"
    default_tenant: Tenant = "default"
    grants_claim: Name = "grants"
    info_claim: Name = "info"
    channels_claim: Name = "channels"
    leeway: Annotated[float, Field(ge=0, le=300)] = 5.0

    @model_validator(mode="after")
    def _check_key_source(self) -> Issuer:
        given = [name for name in ("secret", "jwks_file", "jwks_url") if getattr(self, name) is not None]
        wanted = ["secret"] if self.algorithm == "HS256" else ["jwks_file", "jwks_url"]
        if len(given) != 1 or given[0] not in wanted:
            has = ", ".join(given) or "nothing"
            raise ValueError(f"{self.algorithm} needs {' or '.join(wanted)}, and only that; given: {has}")
        return self


class ApiKey(BaseModel):
    """A key of the backend API, for one tenant."""

    model_config = _STRICT
    name: Name
    key: Key
    tenant: Tenant


class Auth(BaseModel):
    """Who may connect."""

    model_config = _STRICT
    secret: Secret | None = None
    """Shared secret of HS256 tokens, at least 32 bytes. A short form of one issuer."""
    receipt_secret: Secret | None = None
    """Secret that signs the receipts of streams, at least 32 bytes, the same on all nodes. Unset: made from the secrets and API
    keys. Set it if those change while clients are connected, or if there are none."""
    page_secrets: tuple[Secret, ...] = ()
    """Secrets that sign the addresses of history pages, each at least 32 bytes, the same on all nodes. The first one signs. The
    others only verify, so that addresses stay valid through a change. Empty: the secret of the receipts."""
    issuer: Name = "tidewire"
    """`iss` of the tokens made with `auth.secret`."""
    audience: Name = "tidewire"
    """`aud` of the tokens made with `auth.secret`."""
    issuers: tuple[Issuer, ...] = ()
    """Further issuers, each with its own keys."""
    anonymous: bool = False
    """Accepts connections without credentials. They may do what the contract allows `everyone`."""
    anonymous_tenant: Tenant = "default"
    """The tenant of connections without credentials."""
    cookie: Name | None = None
    """Name of a cookie that may carry the token. Needs `origins`."""
    verified_tokens: Annotated[int, Field(ge=0)] = 10_000
    """Tokens whose valid signatures are cached, about 150 bytes each, so that reconnects cost less. All other claims are checked
    every time. 0 caches none. HS256 tokens are not cached: verifying them is as fast."""
    revocation_ttl: Seconds = REVOCATION_TTL
    """Seconds that a revocation lasts. Set it to the lifetime of the longest-lived token plus its issuer's leeway, or more:
    after that time an unexpired token is valid again."""
    revocations: Count = MAX_REVOCATIONS
    """Revoked users and tokens that are kept for each tenant. One more evicts the tenant's oldest, and `limit_hits` counts it."""
    revocations_total: Count = MAX_TOTAL_REVOCATIONS
    """The same for all tenants together, in each node's memory. One more evicts the oldest of the tenant with the most, so
    a tenant with at most an equal share loses none to others."""


class Api(BaseModel):
    """The backend API."""

    model_config = _STRICT
    key: Key | None = None
    """An API key, at least 24 characters. A short form of one key. Without any key the API refuses every request."""
    tenant: Tenant = "default"
    """The tenant of `api.key`."""
    keys: tuple[ApiKey, ...] = ()
    """Further keys, each for one tenant."""


class HookEndpoint(BaseModel):
    """An address of the backend that hooks ask, for some tenants."""

    model_config = _STRICT
    name: Name
    url: HookUrl
    tenants: tuple[Tenant, ...]
    secrets: Annotated[tuple[HookSecret, ...], Field(max_length=MAX_SECRETS)] = ()
    secrets_file: Path | None = None
    timeout: Annotated[float, Field(gt=0, le=MAX_HOOK_TIMEOUT)] = 2.0
    concurrency: Count = 128
    tenant_concurrency: Count = 64
    ca: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> HookEndpoint:
        if not self.tenants:
            raise ValueError("tenants is empty: name those whose questions go there")
        if bool(self.secrets) is (self.secrets_file is not None):
            raise ValueError("needs secrets or secrets_file, and only one of them")
        return self


class ConnectHook(BaseModel):
    """The hook `connect`: the backend authenticates clients."""

    model_config = _STRICT
    endpoint: Name | None = None
    """Name of the endpoint that is asked about clients whose tokens no issuer of the settings has signed. Unset: nobody is asked
    ([hooks.md](hooks.md#connects))."""
    tenant: Tenant = "default"
    """The tenant whose endpoint is asked. Clients belong to it, unless the answer names another tenant of that endpoint."""
    without_token: bool = True
    """Asks about clients without a token, too. `false`: they are anonymous, where `auth.anonymous` allows that."""
    headers: HookHeaders = ()
    """Names of headers of the client's request that the backend gets, up to 16. Cookies and credentials are never sent."""
    rate: Rate = CONNECT_HOOK_RATE
    """Questions of this node about clients. Above it, clients are refused with `overloaded`, and the backend is not asked."""


class Hooks(BaseModel):
    """Hooks: what the service asks the backend."""

    model_config = _STRICT
    connect: ConnectHook = ConnectHook()
    remembered_answers: Annotated[int, Field(ge=0)] = MAX_HOOK_ANSWERS
    """Answers that this node remembers, those about clients, reads and empty channels each. One more forgets the answer
    that was used longest ago, and `limit_hits` counts it. 0 remembers none."""
    endpoints: tuple[HookEndpoint, ...] = ()
    """Addresses that hooks of the contract name. `name`, `url`, `tenants` and `secrets` (or `secrets_file`) are needed
    ([hooks.md](hooks.md))."""


class WebhookEndpoint(BaseModel):
    """Where webhooks go, for some tenants."""

    model_config = _STRICT
    name: Name
    url: HookUrl | None = None
    tenants: tuple[Tenant, ...]
    secrets: Annotated[tuple[HookSecret, ...], Field(max_length=MAX_SECRETS)] = ()
    secrets_file: Path | None = None
    timeout: Annotated[float, Field(gt=0, le=MAX_WEBHOOK_TIMEOUT)] = WEBHOOK_TIMEOUT
    batch: Annotated[int, Field(ge=1, le=1_000)] = WEBHOOK_BATCH
    ca: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> WebhookEndpoint:
        if not self.tenants:
            raise ValueError("tenants is empty: name those whose entries go there")
        given = bool(self.secrets) + (self.secrets_file is not None)
        if self.url is None and (given or self.ca is not None):
            raise ValueError("has no url, so nothing is sent: give it a url, or take secrets, secrets_file and ca away")
        if self.url is not None and given != 1:
            raise ValueError("needs secrets or secrets_file, and only one of them")
        return self


class ClientWebhook(BaseModel):
    """Webhooks about connections."""

    model_config = _STRICT
    endpoint: Name | None = None
    """Name of the endpoint that is told when clients connect and disconnect. Unset: none is."""
    tenant: Tenant | None = None
    """Only clients of this tenant are told of. Unset: those of all tenants of the endpoint."""


class Webhooks(BaseModel):
    """Webhooks: what the service tells the backend."""

    model_config = _STRICT
    clients: ClientWebhook = ClientWebhook()
    queues: Annotated[int, Field(ge=1, le=MAX_QUEUES)] = WEBHOOK_QUEUES
    """Queues of each endpoint and tenant. All entries of a channel are in one of them, in order. One request of each queue is
    under way at a time. Must be equal on all nodes."""
    queue_entries: Annotated[int, Field(ge=100, le=1_000_000)] = WEBHOOK_QUEUE_ENTRIES
    """Records that may wait in one queue; an event takes up to two. Above that, events with a webhook are refused with
    `overloaded`, and other entries are dropped and counted."""
    keep: Annotated[float, Field(ge=60, le=2_592_000)] = WEBHOOK_KEEP
    """Seconds after which an entry that could not be delivered becomes a dead letter. Delivered entries can be replayed for as
    long, while the queue still holds them."""
    attempts: Annotated[int, Field(ge=1, le=100)] = WEBHOOK_ATTEMPTS
    """Refusals (statuses such as 400 and 422) after which an entry becomes a dead letter."""
    dead_letters: Annotated[int, Field(ge=1, le=1_000_000)] = MAX_WEBHOOK_DEAD_LETTERS
    """Dead letters that are kept for each endpoint and tenant. One more drops the oldest."""
    waiting_ends: Annotated[int, Field(ge=0)] = MAX_WAITING_ENDS
    """Ends of connections, channels and users that this node keeps in memory while the store is away, to tell them. Further
    ones are told when their entries have expired (`presence.ttl`), those of clients with the code 1006."""
    endpoints: tuple[WebhookEndpoint, ...] = ()
    """Endpoints that `webhook` in the contract names. `name` and `tenants` are needed, and `secrets` (or `secrets_file`) beside
    `url`. Without `url`, entries are only kept for `tidewire listen`."""


class Proxy(BaseModel):
    """Proxies in front of the service."""

    model_config = _STRICT
    hops: Annotated[int, Field(ge=0, le=16)] = 0
    """Number of proxies whose `X-Forwarded-For` is trusted; 0 trusts none."""


class Broker(BaseModel):
    """The broker, which carries events between nodes and keeps history and state."""

    model_config = _STRICT
    url: BrokerUrl = "memory://"
    """`memory://` (this process alone), `redis://host:port/db`, `redis+sentinel://host:port,host:port/master/db`,
    `redis+cluster://host:port,host:port`, each also as `rediss…` for TLS; `nats://host:port,host:port`, or `tls://` for TLS."""
    user: Name | None = None
    """User name at the broker."""
    password: SecretStr | None = None
    """Password at the broker."""
    sentinel_user: Name | None = None
    """User name at the Sentinels, if they need one."""
    sentinel_password: SecretStr | None = None
    """Password at the Sentinels."""
    ca: Path | None = None
    """PEM file of the certificate authorities for the broker. Unset: those of the system."""
    certificate: Path | None = None
    """PEM file of the client certificate of this node."""
    private_key: Path | None = None
    """PEM file of the private key of that certificate."""
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = STORE_PREFIX
    """Prefix of every key and channel name at the broker, so that several services can share it."""
    timeout: Seconds = STORE_CALL_TIMEOUT
    """Seconds that a broker call may take; then it fails with a retryable error."""
    queue: Count = MAX_STORE_CALLS
    """Broker calls that may wait. Further calls fail at once with a retryable error."""
    ping: Seconds = STORE_PING_INTERVAL
    """Seconds between two pings of the broker."""
    silence: Seconds = STORE_SILENCE_TIMEOUT
    """Seconds without any response after which a connection to the broker is closed and reopened."""
    unready_after: Annotated[float, Field(ge=0)] = UNREADY_AFTER
    """Seconds without the broker after which this node is not ready, or its start fails. Connections stay open."""
    position_ttl: Seconds = POSITION_TTL
    """Seconds that a channel without publishes keeps its position; at least the ttl of its history."""
    empty_ttl: Annotated[float, Field(ge=5, allow_inf_nan=False)] = EMPTY_TTL
    """Seconds that a channel without any publish keeps its position after its last subscriber. Clients can name any number
    of such channels. A client that returns later gets `recovered: false`."""
    idempotency_window: Seconds = IDEMPOTENCY_WINDOW
    """Seconds in which a repeated id is detected."""
    idempotency_entries: Count = 100_000
    """Ids that are remembered for all channels together; `memory://` only."""
    channels: Count = 100_000
    """Channels with history or state; `memory://` only."""
    bytes: Bytes = 536_870_912
    """Bytes of history and state together; `memory://` only."""


class Presence(BaseModel):
    """Presence: who is in a channel."""

    model_config = _STRICT
    members: Annotated[int, Field(ge=0)] = PRESENCE_MEMBERS
    """Users in a channel above which presence is sent as a count, without names."""
    ttl: Annotated[float, Field(ge=1)] = PRESENCE_TTL
    """Seconds after which the users of a node without heartbeats are no longer present; `presence.left` follows within a sixth of
    that time. Must be equal on all nodes."""
    update_bytes: Count = PRESENCE_UPDATE_BYTES
    """Bytes of `data` in a `presence.update`; a larger one is refused. A `subscribed` has the info of up to `presence.members`
    users."""


class Log(BaseModel):
    """Logs, which go to standard error."""

    model_config = _STRICT
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` means `console` on a terminal, else `json`."""
    queue_bytes: Annotated[int, Field(ge=65_536)] = 1_048_576
    """Bytes of log records that may wait for a slow reader. Further records are dropped and counted."""


class Settings(BaseSettings):
    """All settings. Created by `load_settings`, or by tests."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    host: Name = "127.0.0.1"
    """Address of the public listener. `::` listens on all addresses of IPv4 and IPv6, `0.0.0.0` on all of IPv4."""
    port: Port = 8080
    """Port of the public listener; 0 selects a free port."""
    ops_host: Name = "127.0.0.1"
    """Address of the listener for health and metrics, as for `host`."""
    ops_port: Port = 9090
    """Port of the listener for health and metrics; 0 selects a free port."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    """Processes that share the public port, each of them a node. More than 1 needs Linux and a broker other than
    `memory://`. Worker i, counted from 0, uses `ops_port` + i."""
    native_send: Literal["auto", "off"] = "auto"
    """`auto` uses the C extension to write to the members of a room and to parse upgrades, where it was built (Linux;
    docs/deploy/native-sender.md). It saves CPU time. `off` never uses it."""
    contract: Path | None = None
    """The contract file. A relative path in the settings file starts at the folder of that file."""
    origins: Origins = ()
    """Origins that browsers may connect from. Empty: only the origin of the service. `*`: all origins, without `auth.cookie`."""
    demo: bool = False
    """Runs the demo with development credentials. Not for production."""
    auth: Auth = Auth()
    api: Api = Api()
    hooks: Hooks = Hooks()
    webhooks: Webhooks = Webhooks()
    proxy: Proxy = Proxy()
    broker: Broker = Broker()
    limits: Limits = Limits()
    outbox: OutboxLimits = OutboxLimits()
    repair: RepairLimits = RepairLimits()
    history_pages: HistoryPages = HistoryPages()
    compression: Compression = Compression()
    deadlines: Deadlines = Deadlines()
    rollout: Rollout = Rollout()
    presence: Presence = Presence()
    probe: Probing = Probing()
    log: Log = Log()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Uses only the arguments: the sources of the library stop at the first fault and know no lines."""
        return (init_settings,)

    def all_issuers(self) -> tuple[Issuer, ...]:
        """Returns every issuer; that of `auth.secret` comes first."""
        if self.auth.secret is None:
            return self.auth.issuers
        short = Issuer(issuer=self.auth.issuer, audience=self.auth.audience, algorithm="HS256", secret=self.auth.secret)
        return (short, *self.auth.issuers)

    def all_api_keys(self) -> tuple[ApiKey, ...]:
        """Returns every API key; `api.key`, named `default`, comes first."""
        if self.api.key is None:
            return self.api.keys
        return (ApiKey(name="default", key=self.api.key, tenant=self.api.tenant), *self.api.keys)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting with a value of its own, not a group."""

    place: tuple[str, ...]
    owner: type
    """The class whose field it is."""
    annotation: Any
    default: Any

    @property
    def name(self) -> str:
        """Its name, such as `limits.message_bytes`."""
        return ".".join(self.place)

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + "__".join(self.place).upper()

    @property
    def is_secret(self) -> bool:
        """Whether it is or contains a secret, which its variable with _FILE reads from a file."""
        return SecretStr in _parts(self.annotation)

    @property
    def entry_names(self) -> tuple[str, ...]:
        """Names of the fields in one entry, if the value is a list of groups."""
        groups = [part for part in _parts(self.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        return tuple(name for group in groups for name in group.model_fields)

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return any(get_origin(part) is tuple for part in _parts(self.annotation))


@cache
def all_settings() -> tuple[Setting, ...]:
    """Returns every setting, in the order of declaration."""
    return tuple(_walk(Settings(), ()))


def _walk(group: Any, place: tuple[str, ...]) -> Iterator[Setting]:
    hints = get_type_hints(type(group), include_extras=True)
    is_model = isinstance(group, BaseModel)
    for name in type(group).model_fields if is_model else [field.name for field in dataclasses.fields(group)]:
        value = getattr(group, name)
        if isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
            yield from _walk(value, (*place, name))
        else:
            yield Setting((*place, name), type(group), hints[name], value)


def _parts(annotation: Any) -> Iterator[Any]:
    """Yields a type and all types that it is made of."""
    yield annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for hint in get_type_hints(annotation, include_extras=True).values():
            yield from _parts(hint)
    for part in get_args(annotation):
        yield from _parts(part)
