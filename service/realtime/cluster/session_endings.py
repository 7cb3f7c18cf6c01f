"""What the backend has ended lately, so that no node accepts the receipt of a session or a subscription that has ended.

Every node gets the commands that end sessions. It remembers them for as long as a receipt can last. A starting node reads
them from the stream of the commands.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from math import inf

from service.core.receipt import Receipt

RECEIPT_TTL = 300.0
"""Seconds that a receipt lasts, unless the token expires before."""
MAX_SKEW = 1.5
"""Seconds by which the times of two nodes may differ (store_clock.py) and by which a connection's start is rounded down. A
session that starts within this time after a command ends with it."""
MAX_DELAY = 10.0
"""Seconds after which a node has a command. Receipts vouch for no command that is younger than that at their issue."""
MAX_ENDINGS = 10_000
"""Endings that a node remembers. One more forgets the oldest: then no receipt from before it is accepted."""

Ended = tuple[str, ...]
"""A session (`session_ended`), all sessions of a user (`user_ended`), or a user's subscriptions to a channel."""


def session_ended(session: str) -> Ended:
    """Returns the ending of one session."""
    return ("session", session)


def user_ended(tenant: str, user: str) -> Ended:
    """Returns the ending of all sessions of a user."""
    return ("user", tenant, user)


def subscription_ended(tenant: str, user: str, channel: str) -> Ended:
    """Returns the ending of a user's subscriptions to a channel."""
    return ("subscription", tenant, user, channel)


class SessionEndings:
    """Remembers endings. Times are seconds since the Unix epoch, by the store clock."""

    def __init__(self) -> None:
        self._ended_at: OrderedDict[Ended, float] = OrderedDict()
        """When each has ended last, the oldest first."""
        self._known_from = -inf
        """Endings before this time may be unknown."""

    def __len__(self) -> int:
        return len(self._ended_at)

    def forget_before(self, at: float) -> None:
        """Records that endings before this time may be unknown."""
        self._known_from = max(self._known_from, at)

    def record(self, endings: Iterable[Ended], at: float) -> None:
        """Records endings, and forgets those that no receipt can be older than."""
        for ended in endings:
            self._ended_at[ended] = max(at, self._ended_at.pop(ended, at))
        while self._ended_at:
            oldest = next(iter(self._ended_at.values()))
            if oldest + RECEIPT_TTL + MAX_DELAY + MAX_SKEW < at:
                self._ended_at.popitem(last=False)
            elif len(self._ended_at) > MAX_ENDINGS:
                self._ended_at.popitem(last=False)
                self.forget_before(oldest)
            else:
                return

    def has_ended(self, receipt: Receipt) -> bool:
        """True if the receipt's session has ended, or may have ended without this node's knowledge."""
        if receipt.issued_at - MAX_DELAY < self._known_from:
            return True
        endings = (session_ended(receipt.session), user_ended(receipt.tenant, receipt.user))
        return any(self._is_after(ended, receipt.started_at) for ended in endings)

    def is_subscribed(self, receipt: Receipt, channel: str) -> bool:
        """True if the receipt has the channel, and the subscription has not ended since."""
        found = receipt.channels.get(channel)
        return found is not None and not self._is_after(
            subscription_ended(receipt.tenant, receipt.user, channel), found.subscribed_at
        )

    def _is_after(self, ended: Ended, at: float) -> bool:
        return at <= self._ended_at.get(ended, -inf) + MAX_SKEW
