"""Which of two rules lets more people in."""

from __future__ import annotations

from service.contract.model import ChannelSpec
from service.core.access import PublishRule, SubscribeRule

_EVERYONE, _AUTHENTICATED = "everyone", "authenticated users"
NOBODY = "nobody"
_READERS = {
    SubscribeRule.EVERYONE: _EVERYONE,
    SubscribeRule.AUTHENTICATED: _AUTHENTICATED,
    SubscribeRule.GRANT: "users with a grant to subscribe",
    SubscribeRule.OWNER: "the owner",
}
_PUBLISHERS = {
    PublishRule.SERVER: NOBODY,
    PublishRule.AUTHENTICATED: _AUTHENTICATED,
    PublishRule.GRANT: "users with a grant to publish",
    PublishRule.OWNER: "the owner",
}


def readers(channel: ChannelSpec) -> str:
    """Returns who may subscribe."""
    return _READERS[channel.subscribe]


def publishers(rule: PublishRule | None, channel: ChannelSpec) -> str:
    """Returns who may publish with this rule. None: nobody may. Whoever has a subscription is whoever may subscribe."""
    if rule is None:
        return NOBODY
    return _PUBLISHERS.get(rule) or readers(channel)


def includes(wider: str, narrower: str) -> bool:
    """True if everybody of the second audience surely belongs to the first."""
    if narrower in (wider, NOBODY) or wider == _EVERYONE:
        return True
    return wider == _AUTHENTICATED and narrower != _EVERYONE


def needs_subscription(rule: PublishRule | None) -> bool:
    """True if only those who have subscribed may publish."""
    return rule is PublishRule.SUBSCRIBER
