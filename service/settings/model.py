"""Every setting. Only app and the command line read them whole.

A setting's docstring is its line in docs/settings.md (scripts/generate_reference.py writes the table).
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

from service.adapters.nats.address import parse_nats_url
from service.adapters.redis.address import parse_redis_url
from service.core.limits import (
    MAX_REVOCATIONS,
    MAX_TOTAL_REVOCATIONS,
    PRESENCE_MEMBERS,
    PRESENCE_TTL,
    REVOCATION_TTL,
    UNREADY_AFTER,
    Bytes,
    Compression,
    Count,
    Deadlines,
    Limits,
    OutboxLimits,
    Probing,
    RepairLimits,
    Rollout,
    Seconds,
)

PREFIX = "TIDEWIRE_"
MIN_SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key is at least as long as its hash."""
MIN_KEY = 24
MAX_PORT = 65_535
MAX_WORKERS = 256
"""More than any machine has use for; a slip of the finger must not fork a thousand processes."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9-]+(?:\.[a-z0-9-]+)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORT = re.compile(r"https://.*:443|http://.*:80")
"""Browsers leave these out, so an Origin never has them."""
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


def _long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"is shorter than {MIN_SECRET_BYTES} bytes; try: openssl rand -base64 48")
    return secret


def _good_key(key: SecretStr) -> SecretStr:
    if not re.fullmatch(rf"[\x21-\x7e]{{{MIN_KEY},}}", key.get_secret_value()):
        raise ValueError(f"is not {MIN_KEY} or more visible ASCII characters; try: openssl rand -hex 32")
    return key


def _good_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and (not _ORIGIN.fullmatch(origin) or _DEFAULT_PORT.fullmatch(origin)):
            raise ValueError(
                f"{origin[:80]!r} is not an origin: scheme://host[:port] as browsers send it, in lower case"
            )
    if "*" in origins and len(origins) > 1:
        raise ValueError("'*' allows every origin; name no others beside it")
    return origins


def _https(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ValueError(
            "is not an https:// address without a user: whoever can change keys on their way can be anybody"
        )
    return url


def _known_broker(url: str) -> str:
    scheme = url.partition("://")[0]
    if scheme.partition("+")[0] in ("redis", "rediss"):
        parse_redis_url(url)
    elif scheme in ("nats", "tls"):
        parse_nats_url(url)
    elif url != "memory://":
        raise ValueError(
            "is none of memory://, redis://… (for Valkey too), redis+sentinel://…, redis+cluster://…, rediss… for TLS, "
            "nats://…, tls://…; docs/guarantees.md tells which to take"
        )
    return url


Secret = Annotated[SecretStr, AfterValidator(_long_enough)]
Key = Annotated[SecretStr, AfterValidator(_good_key)]
Tenant = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Port = Annotated[int, Field(ge=0, le=MAX_PORT)]
Origins = Annotated[tuple[str, ...], AfterValidator(_good_origins)]
HttpsUrl = Annotated[str, AfterValidator(_https)]
BrokerUrl = Annotated[str, AfterValidator(_known_broker)]
Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]


class Issuer(BaseModel):
    """Someone whose tokens are accepted, with exactly one source of keys that fits the algorithm."""

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
    leeway: Annotated[float, Field(ge=0, le=300)] = 5.0

    @model_validator(mode="after")
    def _one_fitting_key(self) -> Issuer:
        given = [name for name in ("secret", "jwks_file", "jwks_url") if getattr(self, name) is not None]
        wanted = ["secret"] if self.algorithm == "HS256" else ["jwks_file", "jwks_url"]
        if len(given) != 1 or given[0] not in wanted:
            has = ", ".join(given) or "nothing"
            raise ValueError(f"{self.algorithm} needs {' or '.join(wanted)}, and only that; given: {has}")
        return self


class ApiKey(BaseModel):
    """A key of the backend API. It belongs to one tenant."""

    model_config = _STRICT
    name: Name
    key: Key
    tenant: Tenant


class Auth(BaseModel):
    """Who is let in."""

    model_config = _STRICT
    secret: Secret | None = None
    """Shared secret of HS256 tokens, at least 32 bytes: the short way to one issuer."""
    issuer: Name = "tidewire"
    """`iss` of the tokens made with `auth.secret`."""
    audience: Name = "tidewire"
    """`aud` of the tokens made with `auth.secret`."""
    issuers: tuple[Issuer, ...] = ()
    """Further issuers, each with keys of its own."""
    anonymous: bool = False
    """Lets in connections without credentials; they may do what the contract allows `everyone`."""
    anonymous_tenant: Tenant = "default"
    """The tenant of connections without credentials."""
    cookie: Name | None = None
    """Name of a cookie that may carry the token; needs `origins`."""
    verified_tokens: Annotated[int, Field(ge=0)] = 10_000
    """Tokens whose signatures are remembered to be right, about 150 bytes each, so that whoever comes back is let in for less;
    everything else about a token is checked every time. 0 remembers none. HS256 needs no memory: it is as cheap as looking."""
    revocation_ttl: Seconds = REVOCATION_TTL
    """Seconds that a revocation lasts: at least the life of the longest-lived token and its issuer's leeway; a token that
    lives longer would be good again."""
    revocations: Count = MAX_REVOCATIONS
    """Revoked users and tokens that are kept of each tenant; with more, the tenant's oldest is forgotten, and `limit_hits`
    counts it."""
    revocations_total: Count = MAX_TOTAL_REVOCATIONS
    """The same of all tenants together, in each node's memory; with more, the oldest of the tenant that has the most is
    forgotten, so a tenant with no more than an equal share loses none to others."""


class Api(BaseModel):
    """The backend API."""

    model_config = _STRICT
    key: Key | None = None
    """An API key, at least 24 characters: the short way to one key. Without any key the API refuses everyone."""
    tenant: Tenant = "default"
    """The tenant of `api.key`."""
    keys: tuple[ApiKey, ...] = ()
    """Further keys, each of one tenant."""


class Proxy(BaseModel):
    """What stands in front."""

    model_config = _STRICT
    hops: Annotated[int, Field(ge=0, le=16)] = 0
    """Proxies whose `X-Forwarded-For` is believed; 0 believes nobody."""


class Broker(BaseModel):
    """What carries events between nodes and keeps history and state."""

    model_config = _STRICT
    url: BrokerUrl = "memory://"
    """`memory://` (this process alone), `redis://host:port/db`, `redis+sentinel://host:port,host:port/master/db`,
    `redis+cluster://host:port,host:port`, each also as `rediss…` for TLS; `nats://host:port,host:port`, or `tls://` for TLS."""
    user: Name | None = None
    """User name at the broker."""
    password: SecretStr | None = None
    """Password at the broker."""
    sentinel_user: Name | None = None
    """User name at the Sentinels, if they ask for one."""
    sentinel_password: SecretStr | None = None
    """Password at the Sentinels."""
    ca: Path | None = None
    """PEM file of the authorities that vouch for the broker; the system's without it."""
    certificate: Path | None = None
    """PEM file of the certificate that this node shows the broker."""
    private_key: Path | None = None
    """PEM file of that certificate's key."""
    prefix: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "tidewire"
    """Begins every key and channel name at the broker, so that services can share one."""
    timeout: Seconds = 5.0
    """Seconds that a call of the broker may take; then it fails with a retryable error."""
    queue: Count = 10_000
    """Calls that may wait for the broker; beyond, calls fail at once with a retryable error."""
    ping: Seconds = 1.0
    """Seconds between two questions whether the broker is there."""
    silence: Seconds = 3.0
    """Seconds without any answer after which a connection to the broker is given up and made anew."""
    unready_after: Annotated[float, Field(ge=0)] = UNREADY_AFTER
    """Seconds without the broker after which this node is not ready, or gives its start up. Connections stay open."""
    position_ttl: Seconds = 604_800.0
    """Seconds that a channel without publishes keeps its position (never less than its history's ttl)."""
    empty_ttl: Annotated[float, Field(ge=5, allow_inf_nan=False)] = 60.0
    """Seconds that a channel in which nothing was ever published keeps its position without subscribers: whoever may subscribe
    can name any number of them. A client that comes back later is told `recovered: false`."""
    idempotency_window: Seconds = 300.0
    """Seconds in which a repeated id is recognised."""
    idempotency_entries: Count = 100_000
    """Ids remembered at most, all channels together; `memory://` only."""
    channels: Count = 100_000
    """Channels with history or state, at most; `memory://` only."""
    bytes: Bytes = 536_870_912
    """History and state together, at most; `memory://` only."""


class Presence(BaseModel):
    """Who is in a channel."""

    model_config = _STRICT
    members: Annotated[int, Field(ge=0)] = PRESENCE_MEMBERS
    """Users in a channel above which counts are sent and not names."""
    ttl: Annotated[float, Field(ge=1)] = PRESENCE_TTL
    """Seconds after which a node that has fallen silent no longer counts; its users are told as gone within a sixth more. The
    same on all nodes."""


class Log(BaseModel):
    """What is written to standard error."""

    model_config = _STRICT
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe kind that is written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is `console` on a terminal, else `json`."""
    queue_bytes: Annotated[int, Field(ge=65_536)] = 1_048_576
    """Bytes of log records that may wait for whoever reads them; records above that are dropped and counted."""


class Settings(BaseSettings):
    """Everything that can be set. Made by `load_settings`, or in tests by hand."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    host: Name = "127.0.0.1"
    """Address of the public listener; `::` for all, of IPv4 and, where the machine has it, IPv6; `0.0.0.0` for all of IPv4."""
    port: Port = 8080
    """Port of the public listener; 0 takes a free one."""
    ops_host: Name = "127.0.0.1"
    """Address of the listener for health and metrics; as `host`."""
    ops_port: Port = 9090
    """Port of the listener for health and metrics; 0 takes a free one."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    """Processes that serve the public port, each a node; above 1 they need a broker that they share, and Linux. Worker i,
    counted from 0, serves `ops_port` + i."""
    native_send: Literal["auto", "off"] = "auto"
    """`auto` writes to the members of a room in C where that has been built (Linux; docs/deploy/native-sender.md), which saves
    processor time; `off` never does."""
    contract: Path | None = None
    """The contract file. In the settings file it is relative to that file."""
    origins: Origins = ()
    """Origins that browsers may connect from; empty: only the service's own. `*`: all, but then no `auth.cookie`."""
    demo: bool = False
    """Starts the demo with development credentials. Not for production."""
    auth: Auth = Auth()
    api: Api = Api()
    proxy: Proxy = Proxy()
    broker: Broker = Broker()
    limits: Limits = Limits()
    outbox: OutboxLimits = OutboxLimits()
    repair: RepairLimits = RepairLimits()
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
        """Leaves only the arguments: the library's own sources stop at the first fault and know no lines."""
        return (init_settings,)

    def all_issuers(self) -> tuple[Issuer, ...]:
        """Every issuer, the one behind `auth.secret` first."""
        if self.auth.secret is None:
            return self.auth.issuers
        short = Issuer(issuer=self.auth.issuer, audience=self.auth.audience, algorithm="HS256", secret=self.auth.secret)
        return (short, *self.auth.issuers)

    def all_api_keys(self) -> tuple[ApiKey, ...]:
        """Every API key, `api.key` (by the name `default`) first."""
        if self.api.key is None:
            return self.api.keys
        return (ApiKey(name="default", key=self.api.key, tenant=self.api.tenant), *self.api.keys)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting that has a value of its own."""

    place: tuple[str, ...]
    owner: type
    """The class whose field it is."""
    annotation: Any
    default: Any

    @property
    def name(self) -> str:
        """As in `limits.message_bytes`."""
        return ".".join(self.place)

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + "__".join(self.place).upper()

    @property
    def is_secret(self) -> bool:
        """Whether it is or holds a secret, and so can be read from a file that its variable with _FILE names."""
        return SecretStr in _parts(self.annotation)

    @property
    def entry_names(self) -> tuple[str, ...]:
        """The names in one entry, if the value is a list of groups."""
        groups = [part for part in _parts(self.annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        return tuple(name for group in groups for name in group.model_fields)

    @property
    def is_list(self) -> bool:
        """Whether its value is a list."""
        return any(get_origin(part) is tuple for part in _parts(self.annotation))


@cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting, in the order of declaration."""
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
    """A type and all that it is made of."""
    yield annotation
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for hint in get_type_hints(annotation, include_extras=True).values():
            yield from _parts(hint)
    for part in get_args(annotation):
        yield from _parts(part)
