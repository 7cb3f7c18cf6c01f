"""Who may subscribe, publish, read history and see presence. Each is decided by itself."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from service.core.channel import OWNER_PARAMETER, encode_user
from service.core.identity import Identity, Right


class SubscribeRule(Enum):
    """Who may join a channel (and, by the same rule and its own right, read its history and presence)."""

    EVERYONE = "everyone"
    """Anonymous connections too."""
    AUTHENTICATED = "authenticated"
    """Every user of the tenant."""
    GRANT = "grant"
    """Whoever's token grants the channel."""
    OWNER = "owner"
    """The user named by the pattern's {user}."""


class PublishRule(Enum):
    """Who may publish an event type. The backend may publish every declared type."""

    SERVER = "server"
    """Only the backend."""
    SUBSCRIBER = "subscriber"
    """Whoever has joined the channel."""
    AUTHENTICATED = "authenticated"
    """Every user of the tenant."""
    GRANT = "grant"
    """Whoever's token grants publishing in the channel."""
    OWNER = "owner"
    """The user named by the pattern's {user}."""


def may_read(
    rule: SubscribeRule, right: Right, identity: Identity, channel: str, parameters: Mapping[str, str]
) -> bool:
    """Whether the identity may subscribe, read history or see presence (the `right`) in a channel with this rule."""
    if identity.is_backend or rule is SubscribeRule.EVERYONE:
        return True
    if rule is SubscribeRule.AUTHENTICATED:
        return not identity.is_anonymous
    if rule is SubscribeRule.OWNER:
        return _owns(identity, parameters)
    return identity.may(right, channel)


def may_publish(
    rule: PublishRule, identity: Identity, channel: str, parameters: Mapping[str, str], *, subscribed: bool
) -> bool:
    """Whether the identity may publish an event with this rule. `subscribed`: it has joined the channel."""
    if identity.is_backend:
        return True
    if rule is PublishRule.SERVER:
        return False
    if rule is PublishRule.SUBSCRIBER:
        return subscribed
    if rule is PublishRule.AUTHENTICATED:
        return not identity.is_anonymous
    if rule is PublishRule.OWNER:
        return _owns(identity, parameters)
    return identity.may(Right.PUBLISH, channel)


def _owns(identity: Identity, parameters: Mapping[str, str]) -> bool:
    return not identity.is_anonymous and parameters.get(OWNER_PARAMETER) == encode_user(identity.user)
