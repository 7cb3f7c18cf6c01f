"""The contract as the service uses it: which channels exist, what each one carries, and for whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from jsonschema_rs import Draft202012Validator

from service.contract.pointer import Pointer
from service.core.access import PublishRule, SubscribeRule
from service.core.channel import OWNER_PARAMETER, ChannelPattern, check_name
from service.core.event import Delivery, Retention
from service.errors import ErrorCode, ServiceError

DEFAULT_STATE = Retention(entries=1000, ttl=86_400.0)
"""What a channel keeps of its `latest` events unless it says otherwise: 1000 keys, each for 24 h."""

RESOLVED_NAMES = 16_384
"""Channel names whose pattern is remembered; the one unused longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class EventSpec:
    """One event type in one channel pattern."""

    type: str
    publish: PublishRule
    delivery: Delivery
    check: Draft202012Validator | None = None
    """The compiled schema of `data`; None takes any JSON."""
    key: Pointer | None = None
    """Where `data` holds the key; only with LATEST, and always then."""
    window: float = 0.0
    """Seconds that the service may wait to join several of them into one frame."""
    compress: bool | None = None
    """Whether they are sent compressed where that is enabled; None: by their size. With False, neither is a frame that holds
    one of them among others."""


@dataclass(frozen=True, slots=True)
class ChannelSpec:
    """One channel pattern."""

    pattern: ChannelPattern
    subscribe: SubscribeRule
    events: Mapping[str, EventSpec]
    presence: bool = False
    history: Retention | None = None
    """What is kept of durable events; None if there is no history."""
    state: Retention = DEFAULT_STATE
    """What is kept of latest events."""
    has_state: bool = field(init=False)
    """Whether there are any latest events."""

    def __post_init__(self) -> None:
        """Finds out what is asked for with every join."""
        has_state = any(event.delivery is Delivery.LATEST for event in self.events.values())
        object.__setattr__(self, "has_state", has_state)

    def retention(self, delivery: Delivery) -> Retention | None:
        """What is kept of events of this class."""
        if delivery is Delivery.DURABLE:
            return self.history
        return self.state if delivery is Delivery.LATEST else None


class Resolved(NamedTuple):
    """A channel name and what the contract says about it."""

    spec: ChannelSpec
    parameters: Mapping[str, str]
    """What the pattern's {parameters} stand for in this name."""


class Contract:
    """The declared channels."""

    def __init__(self, channels: Iterable[ChannelSpec]) -> None:
        self.channels = tuple(sorted(channels, key=lambda spec: spec.pattern.specificity))
        self.event_types = frozenset(type_ for spec in self.channels for type_ in spec.events)
        """Every declared event type: a bounded set, fit for metric labels."""
        self._resolve = lru_cache(maxsize=RESOLVED_NAMES)(self._match)

    def resolve(self, name: str) -> Resolved:
        """Finds the most specific pattern that matches the name: literal segments win, from the left.

        Raises ServiceError: INVALID_CHANNEL or UNKNOWN_CHANNEL.
        """
        return self._resolve(name)

    def _match(self, name: str) -> Resolved:
        check_name(name, encoded=True)
        for spec in self.channels:
            parameters = spec.pattern.match(name)
            if parameters is not None:
                return Resolved(spec, parameters)
        hint = (
            f"; only what stands for {{{OWNER_PARAMETER}}} is percent-encoded, and what needs it" if "%" in name else ""
        )
        raise ServiceError(
            ErrorCode.UNKNOWN_CHANNEL, f"no pattern of the contract matches this channel{hint}", path="$.channel"
        )
