"""Issues the receipts of sessions, and checks those that clients show."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from service.core.clock import Clock
from service.core.identity import Identity
from service.core.receipt import Receipt, ReceiptChannel, ReceiptSigner
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import SessionReceipt
from service.realtime.cluster.session_endings import RECEIPT_TTL, SessionEndings, session_ended
from service.realtime.connections.connection import Connection

RENEWAL_INTERVAL = RECEIPT_TTL / 3
"""Seconds between two receipts on a stream."""


class Receipts:
    """The receipts of all nodes: every node accepts those of the others."""

    def __init__(self, signer: ReceiptSigner, endings: SessionEndings, clock: Clock) -> None:
        """`clock`: the store clock."""
        self._signer = signer
        self._endings = endings
        self._clock = clock

    def now(self) -> float:
        """Returns the time of a subscription or a session that begins now."""
        return self._clock.wall()

    def issue(
        self,
        identity: Identity,
        session: str,
        channels: Mapping[str, ReceiptChannel],
        started_at: float,
        *,
        is_polled: bool = False,
        is_expiry_announced: bool = False,
    ) -> SessionReceipt:
        """Returns the message with a new receipt.

        `is_polled`: the next poll may continue the session. `is_expiry_announced`: the client has got `expiring` for its token.
        """
        now = self._clock.wall()
        expires_at = min(now + RECEIPT_TTL, inf if identity.expires_at is None else identity.expires_at)
        announced = identity.expires_at if is_expiry_announced else None
        receipt = Receipt(
            identity.tenant, identity.user, session, started_at, now, expires_at, channels, is_polled, announced
        )
        return SessionReceipt(receipt=self._signer.sign(receipt), expires_in=max(0, int(expires_at - now)))

    def send(self, connection: Connection, channels: Mapping[str, object] | None = None) -> None:
        """Sends the receipt of a connection's session. `channels`: those that it is about to be subscribed to."""
        started_at = self._clock.wall() - (self._clock.monotonic() - connection.opened_at)
        names = [one.channel.name for one in connection.session.subscriptions] if channels is None else list(channels)
        identity = connection.session.identity
        connection.reply(
            self.issue(identity, connection.id, dict.fromkeys(names, ReceiptChannel(started_at)), started_at)
        )

    def renew_if_due(self, connection: Connection, since: float) -> None:
        """Sends a new receipt about every RENEWAL_INTERVAL, at a time of its own for each connection.

        `since`: seconds since the last call for this connection.
        """
        offset = hash(connection.id) % RENEWAL_INTERVAL
        now = self._clock.monotonic() + offset
        if now // RENEWAL_INTERVAL != (now - since) // RENEWAL_INTERVAL:
            self.send(connection)

    def check(self, text: str, identity: Identity) -> Receipt:
        """Returns the receipt in a text. Raises ServiceError(INVALID_RECEIPT) unless it is this user's and has not ended."""
        receipt = self._signer.verify(text)
        if (
            receipt is None
            or (receipt.tenant, receipt.user) != (identity.tenant, identity.user)
            or receipt.expires_at <= self._clock.wall()
        ):
            raise _refusal()
        self.check_ended(receipt)
        return receipt

    def check_ended(self, receipt: Receipt) -> None:
        """Raises ServiceError(INVALID_RECEIPT) if the receipt's session has ended, maybe since `check`."""
        if self._endings.has_ended(receipt):
            raise _refusal()

    def end_session(self, session: str, identity: Identity) -> None:
        """Ends the receipts of a session at this node. A command must end them at the others."""
        self._endings.record([session_ended(session, identity.tenant, identity.user)], self._clock.wall())

    def is_subscribed(self, receipt: Receipt, channel: str) -> bool:
        """True if the session is subscribed to the channel, as far as this node knows."""
        return self._endings.is_subscribed(receipt, channel)


def _refusal() -> ServiceError:
    return ServiceError(
        ErrorCode.INVALID_RECEIPT, "the receipt is forged, expired, ended or of another user", path="$.receipt"
    )
