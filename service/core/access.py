"""Rules for who may subscribe, publish, read history and see presence. Each right is checked separately."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from service.core.channel import OWNER_PARAMETER, encode_user
from service.core.identity import Identity, Right


class SubscribeRule(Enum):
    """Who may subscribe to a channel. The same rule, with its own right, decides about history and presence."""

    EVERYONE = "everyone"
    """Everyone, anonymous connections included."""
    AUTHENTICATED = "authenticated"
    """Every user of the tenant."""
    GRANT = "grant"
    """Users whose token grants the channel."""
    OWNER = "owner"
    """The user named by the pattern's {user}."""


class PublishRule(Enum):
    """Who may publish an event type. The backend may publish every declared event type."""

    SERVER = "server"
    """Only the backend."""
    SUBSCRIBER = "subscriber"
    """Users with a subscription to the channel."""
    AUTHENTICATED = "authenticated"
    """Every user of the tenant."""
    GRANT = "grant"
    """Users whose token grants publishing in the channel."""
    OWNER = "owner"
    """The user named by the pattern's {user}."""


class CallRule(Enum):
    """Who may make a call to the backend."""

    EVERYONE = "everyone"
    """Everyone, anonymous connections included."""
    AUTHENTICATED = "authenticated"
    """Every user of the tenant."""


_SERVER, _SUBSCRIBER = PublishRule.SERVER, PublishRule.SUBSCRIBER
"""Names of the module are read faster than members of an Enum, and every message asks."""


def may_read(
    rule: SubscribeRule, right: Right, identity: Identity, channel: str, parameters: Mapping[str, str]
) -> bool:
    """True if the identity has this right (to subscribe, history or presence) in a channel with this rule."""
    if identity.is_backend or rule is SubscribeRule.EVERYONE:
        return True
    if rule is SubscribeRule.AUTHENTICATED:
        return not identity.is_anonymous
    if rule is SubscribeRule.OWNER:
        return _is_owner(identity, parameters)
    return identity.may(right, channel)


def may_publish(
    rule: PublishRule, identity: Identity, channel: str, parameters: Mapping[str, str], *, subscribed: bool
) -> bool:
    """True if the identity may publish an event with this rule. `subscribed`: it has a subscription to the channel."""
    if identity.is_backend:
        return True
    if rule is _SERVER:
        return False
    if rule is _SUBSCRIBER:
        return subscribed
    if rule is PublishRule.AUTHENTICATED:
        return not identity.is_anonymous
    if rule is PublishRule.OWNER:
        return _is_owner(identity, parameters)
    return identity.may(Right.PUBLISH, channel)


def may_call(rule: CallRule, identity: Identity) -> bool:
    """True if the identity may make a call with this rule."""
    return rule is CallRule.EVERYONE or not identity.is_anonymous


def may_remove(identity: Identity) -> bool:
    """True if the identity may take back events of its tenant, whoever has published them."""
    return identity.is_backend


def may_describe(identity: Identity) -> bool:
    """True if the identity may read the whole contract, with the channels and rules that are not for its clients."""
    return identity.is_backend


def _is_owner(identity: Identity, parameters: Mapping[str, str]) -> bool:
    return not identity.is_anonymous and parameters.get(OWNER_PARAMETER) == encode_user(identity.user)
