"""What the backend has ended lately, so that no node accepts the receipt of a session or a subscription that has ended.

Every node gets the commands that end sessions. It remembers them for as long as a receipt can last. A starting node reads
them from the stream of the commands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from math import inf
from typing import NamedTuple, TypeVar

from service.core.receipt import Receipt
from service.telemetry.metrics import Metrics

RECEIPT_TTL = 300.0
"""Seconds that a receipt lasts, unless the token expires before."""
MAX_SKEW = 1.5
"""Seconds by which the times of two nodes may differ (store_clock.py) and by which a connection's start is rounded down. A
session that starts within this time after a command ends with it."""
MAX_DELAY = 10.0
"""Seconds after which a node has a command. Receipts vouch for no command that is younger than that at their issue."""
MAX_ENDINGS = 10_000
"""Endings that a node remembers. One more forgets the oldest of the tenant that has the most."""
MAX_USER_ENDINGS = 100
"""The same for one user: with sessions that replace each other, a user can make endings. One more forgets the user's oldest."""


_Key = TypeVar("_Key")


class Ended(NamedTuple):
    """A session, all sessions of a user, or a user's subscriptions to a channel. Or endings that are forgotten.

    Where some are forgotten, no receipt is accepted that was issued before the newest of them: of the user, or of the tenant.
    """

    kind: str
    tenant: str
    user: str
    name: str = ""


def session_ended(session: str, tenant: str = "", user: str = "") -> Ended:
    """Returns the ending of one session. Commands of older versions do not name its user."""
    return Ended("session", tenant, user, session)


def user_ended(tenant: str, user: str) -> Ended:
    """Returns the ending of all sessions of a user."""
    return Ended("user", tenant, user)


def subscription_ended(tenant: str, user: str, channel: str) -> Ended:
    """Returns the ending of a user's subscriptions to a channel."""
    return Ended("subscription", tenant, user, channel)


def _user_forgotten(tenant: str, user: str) -> Ended:
    return Ended("user forgotten", tenant, user)


def _tenant_forgotten(tenant: str) -> Ended:
    return Ended("tenant forgotten", tenant, "")


class SessionEndings:
    """Remembers endings. Times are seconds since the Unix epoch, by the store clock."""

    def __init__(self, metrics: Metrics) -> None:
        self._ended_at: OrderedDict[Ended, float] = OrderedDict()
        """When each has ended last, in the order of the records."""
        self._of_user: dict[tuple[str, str], OrderedDict[Ended, None]] = {}
        """The endings by tenant and user, the oldest first. The user is empty for those of whole tenants."""
        self._of_tenant: dict[str, OrderedDict[Ended, None]] = {}
        self._known_from = -inf
        """Endings before this time may be unknown."""
        self._forgotten = metrics.cluster.session_endings_forgotten
        metrics.cluster.session_endings.set_function(self.__len__)

    def __len__(self) -> int:
        return len(self._ended_at)

    def forget_before(self, at: float) -> None:
        """Records that endings before this time may be unknown."""
        self._known_from = max(self._known_from, at)

    def record(self, endings: Iterable[Ended], at: float) -> None:
        """Records endings, and forgets those that no receipt can be older than, and those above the bounds."""
        for ended in endings:
            self._put(ended, at)
            self._bound_user(ended.tenant, ended.user)
        while self._ended_at and next(iter(self._ended_at.values())) + RECEIPT_TTL + MAX_DELAY + MAX_SKEW < at:
            self._drop(next(iter(self._ended_at)))
        while len(self._ended_at) > MAX_ENDINGS:
            self._bound_tenant(max(self._of_tenant, key=lambda tenant: len(self._of_tenant[tenant])))

    def has_ended(self, receipt: Receipt) -> bool:
        """True if the receipt's session has ended, or may have ended without this node's knowledge."""
        if not self._ended_at:  # as nearly always
            return receipt.issued_at - MAX_DELAY < self._known_from
        tenant, user = receipt.tenant, receipt.user
        forgotten = (_user_forgotten(tenant, user), _tenant_forgotten(tenant))
        if receipt.issued_at - MAX_DELAY < max(self._known_from, *(self._ended_at.get(one, -inf) for one in forgotten)):
            return True
        endings = (
            session_ended(receipt.session, tenant, user),
            session_ended(receipt.session),
            user_ended(tenant, user),
        )
        return any(self._is_after(ended, receipt.started_at) for ended in endings)

    def _put(self, ended: Ended, at: float) -> None:
        at = max(at, self._drop(ended))
        self._ended_at[ended] = at
        self._of_user.setdefault(ended[1:3], OrderedDict())[ended] = None
        self._of_tenant.setdefault(ended.tenant, OrderedDict())[ended] = None

    def _drop(self, ended: Ended) -> float:
        """Returns the time of the dropped ending."""
        at = self._ended_at.pop(ended, None)
        if at is None:
            return -inf
        _remove(self._of_user, ended[1:3], ended)
        _remove(self._of_tenant, ended.tenant, ended)
        return at

    def _bound_user(self, tenant: str, user: str) -> None:
        held = self._of_user[tenant, user]
        if user and len(held) > MAX_USER_ENDINGS:
            marker = _user_forgotten(tenant, user)
            self._put(marker, self._drop(next(one for one in held if one != marker)))
            self._forgotten.labels(scope="user").inc()

    def _bound_tenant(self, tenant: str) -> None:
        marker = _tenant_forgotten(tenant)
        oldest = next((one for one in self._of_tenant[tenant] if one != marker), marker)
        at = self._drop(oldest)
        if tenant and oldest != marker:
            self._put(marker, at)
        else:  # the command did not name the user, or no tenant has more
            self.forget_before(at)
        self._forgotten.labels(scope="tenant").inc()

    def is_subscribed(self, receipt: Receipt, channel: str) -> bool:
        """True if the receipt has the channel, and the subscription has not ended since."""
        found = receipt.channels.get(channel)
        if not self._ended_at:
            return found is not None
        return found is not None and not self._is_after(
            subscription_ended(receipt.tenant, receipt.user, channel), found.subscribed_at
        )

    def _is_after(self, ended: Ended, at: float) -> bool:
        return at <= self._ended_at.get(ended, -inf) + MAX_SKEW


def _remove(index: dict[_Key, OrderedDict[Ended, None]], key: _Key, ended: Ended) -> None:
    held = index[key]
    del held[ended]
    if not held:
        del index[key]
