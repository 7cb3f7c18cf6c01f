"""The contract in memory: channel patterns, their events, and who may read and publish."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

from jsonschema_rs import Draft202012Validator

from service.contract.document import Fault
from service.contract.pointer import Pointer
from service.core.access import CallRule, PublishRule, SubscribeRule
from service.core.channel import OWNER_PARAMETER, SEPARATOR, ChannelPattern, check_name
from service.core.event import Delivery, Retention
from service.core.hooks import Hook
from service.core.webhooks import ChannelWebhook
from service.errors import ErrorCode, ServiceError

DEFAULT_STATE = Retention(entries=1000, ttl=86_400.0)
"""Default retention of `latest` events in a channel: 1000 keys, 24 h each."""

MAX_RESOLVED_NAMES = 16_384
"""Channel names whose pattern is cached. One more evicts the least recently used one."""

MAX_COMPARED = 32
"""Characters of a first segment that is compared with those of the contract, and the number of those. They bound the cost of a
refusal."""


@dataclass(frozen=True, slots=True)
class EventSpec:
    """One event type in one channel pattern."""

    type: str
    publish: PublishRule
    delivery: Delivery
    check: Draft202012Validator | None = None
    """The compiled schema of `data`; None accepts any JSON."""
    key: Pointer | None = None
    """The path of the key in `data`; set if and only if `delivery` is LATEST."""
    window: float = 0.0
    """Seconds that the service may wait to join several events into one frame."""
    compress: bool | None = None
    """True to compress the events if compression is enabled, False to never compress them; None: the size decides. A frame with
    one event that has False is not compressed."""
    ttl: int | None = None
    """Milliseconds after which a value ends; None if only the channel's `state` ends it. Only for LATEST."""
    removable: bool = False
    """True if those who may publish the event may also remove the value of a key. Only for LATEST."""
    echo: bool = True
    """False if the connection that publishes the event does not get it."""
    schema: Any = None
    """The schema of `data` as declared, which the validator was made from. A $ref is relative to the contract's folder."""
    hook: Hook | None = None
    """Asks the backend about each publish of a client; None asks nobody."""
    webhook: str | None = None
    """The endpoint that is told of each published event; None tells nobody. Not for EPHEMERAL."""


@dataclass(frozen=True, slots=True)
class DataSpec:
    """What the data of a call, or of its reply, may be."""

    type: str
    """The name of the call, and `request` or `reply`."""
    check: Draft202012Validator | None = None
    """The compiled schema; None accepts any JSON."""
    schema: Any = None
    """The schema as declared, as in EventSpec."""


@dataclass(frozen=True, slots=True)
class CallSpec:
    """One call that clients make to the backend."""

    name: str
    hook: Hook
    """Whom to ask, and for how long."""
    who: CallRule
    request: DataSpec
    reply: DataSpec


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """One channel pattern."""

    pattern: ChannelPattern
    subscribe: SubscribeRule
    events: Mapping[str, EventSpec]
    presence: bool = False
    history: Retention | None = None
    """Retention of durable events; None without history."""
    state: Retention = DEFAULT_STATE
    """Retention of latest events."""
    presence_update: EventSpec | None = None
    """Who may send `presence.update`, and the schema of its data; None if nobody may."""
    is_cacheable: bool = False
    """True if caches between client and service may keep full pages of the history. False without history."""
    hook: Hook | None = None
    """Asks the backend about each subscribe and read of a client; None asks nobody."""
    when_empty: Hook | None = None
    """Asks the backend for the content of a channel that has none, before a client is subscribed; None asks nobody."""
    webhook: ChannelWebhook | None = None
    """Which endpoint is told when the channel becomes occupied or vacated, and when users join or leave; None tells nobody."""
    has_state: bool = field(init=False)
    """True if the contract declares `latest` events in the channel."""
    is_removable: bool = field(init=False)
    """True if values of some event type can be removed."""

    def __post_init__(self) -> None:
        """Computes `has_state`, which every subscribe reads, and `is_removable`."""
        has_state = any(event.delivery is Delivery.LATEST for event in self.events.values())
        object.__setattr__(self, "has_state", has_state)
        object.__setattr__(self, "is_removable", any(event.removable for event in self.events.values()))

    def retention(self, delivery: Delivery) -> Retention | None:
        """Returns the retention of events of this class."""
        if delivery is Delivery.DURABLE:
            return self.history
        return self.state if delivery is Delivery.LATEST else None


class Resolved(NamedTuple):
    """What the contract declares for a channel name."""

    spec: ChannelSpec
    parameters: Mapping[str, str]
    """The values of the pattern's {parameters} in this name."""


class Contract:
    """The declared channel patterns and calls."""

    def __init__(
        self,
        channels: Iterable[ChannelSpec],
        hash: str = "",
        files: Mapping[str, Any] = MappingProxyType({}),
        endpoints: Mapping[str, Fault] = MappingProxyType({}),
        calls: Mapping[str, CallSpec] = MappingProxyType({}),
        webhook_endpoints: Mapping[str, Fault] = MappingProxyType({}),
    ) -> None:
        self.hash = hash
        """Identifies the content of the contract file and its schema files: 16 hexadecimal digits. Comments, the order of keys,
        and whether it is YAML or JSON make no difference. Empty for a contract that was not loaded from a file."""
        self.files = files
        """The content of each schema file in use, by its path below the contract's folder."""
        self.endpoints = endpoints
        """The endpoints of hooks that the contract names, each with the fault to report if the settings do not have it."""
        self.calls = calls
        """What clients may call at the backend, by name. The set is fixed, so a name can be a metric label."""
        self.webhook_endpoints = webhook_endpoints
        """The same for the endpoints of webhooks."""
        self.channels = tuple(sorted(channels, key=lambda spec: spec.pattern.specificity))
        self.event_types = frozenset(type_ for spec in self.channels for type_ in spec.events)
        """Every declared event type. The set is fixed, so it can be a metric label."""
        self.has_hooks = any(event.hook is not None for spec in self.channels for event in spec.events.values())
        """True if the backend is asked about some publishes."""
        self.has_read_hooks = any(spec.hook is not None for spec in self.channels)
        """True if the backend is asked about reads of some channels."""
        self.has_content_hooks = any(spec.when_empty is not None for spec in self.channels)
        """True if the backend is asked for the content of some channels."""
        self.has_event_webhooks = any(
            event.webhook is not None for spec in self.channels for event in spec.events.values()
        )
        """True if some endpoint is told of published events."""
        self.has_channel_webhooks = any(spec.webhook is not None for spec in self.channels)
        """True if some endpoint is told who is in some channels."""
        by_head: dict[str, list[ChannelPattern]] = {}
        for spec in self.channels:
            if spec.pattern.shape[0] != "{}":
                by_head.setdefault(spec.pattern.shape[0], []).append(spec.pattern)
        self._by_head = dict(list(by_head.items())[:MAX_COMPARED])
        self.resolve: Callable[[str], Resolved] = lru_cache(maxsize=MAX_RESOLVED_NAMES)(self._match)
        """Returns the most specific pattern that matches a channel name.

        The first segment in which two patterns differ decides, and a literal wins.

        Raises ServiceError: INVALID_CHANNEL or UNKNOWN_CHANNEL.
        """

    def _match(self, name: str) -> Resolved:
        check_name(name, encoded=True)
        for spec in self.channels:
            parameters = spec.pattern.match(name)
            if parameters is not None:
                return Resolved(spec, parameters)
        hint = (
            f"; only what stands for {{{OWNER_PARAMETER}}} is percent-encoded, and what needs it" if "%" in name else ""
        )
        suggestion = self._suggest(name)
        details = {} if suggestion is None else {"suggestion": suggestion}
        raise ServiceError(
            ErrorCode.UNKNOWN_CHANNEL,
            f"no pattern of the contract matches this channel{hint}",
            path="$.channel",
            **details,
        )

    def _suggest(self, name: str) -> str | None:
        """Returns the pattern that a misspelt name was probably meant for.

        This tells little more than the refusal itself: `forbidden` and `unknown_channel` already tell declared names from others.
        """
        segments = name.split(SEPARATOR)
        if len(segments[0]) > MAX_COMPARED:
            return None
        for head in get_close_matches(segments[0], self._by_head, n=1, cutoff=0.7):
            patterns = self._by_head[head]
            return next((found for found in patterns if len(found.shape) == len(segments)), patterns[0]).text
        return None
