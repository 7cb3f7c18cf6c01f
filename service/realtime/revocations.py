"""Revoked tokens: the same table on every node, asked whenever a token is used, and enforced on who is connected already."""

from __future__ import annotations

import asyncio
import hashlib
import random

import structlog

from service.core.authenticator import Authenticator
from service.core.broker import Broker, Snapshot
from service.core.clock import Clock, Timer, milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.core.identity import Identity
from service.core.revocation import Revocation, RevocationTable, Subject, Target
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.realtime.connection import Connection
from service.realtime.control_messages import REVOCATIONS, decode_revocation, encode
from service.realtime.following import Following
from service.realtime.roster import Roster
from service.realtime.supervisor import Supervisor
from service.telemetry.metrics import Metrics

REASON = "the token has been revoked"
LOOK = 0.05
"""Seconds from a revocation to the look at who is connected: one look serves all that come together."""

_log = structlog.get_logger("revocations")


class Revocations:
    """What has been revoked, on all nodes. A node that starts reads it before it lets anybody in.

    The broker's state is the common copy. If the broker has lost it, the nodes put back what they hold.
    """

    def __init__(
        self,
        roster: Roster,
        broker: Broker,
        clock: Clock,
        supervisor: Supervisor,
        metrics: Metrics,
        *,
        ttl: float,
        most: int,
    ) -> None:
        """`ttl`: seconds that a revocation is kept; no token may live longer. `most`: how many are kept."""
        self._roster = roster
        self._broker = broker
        self._clock = clock
        self._supervisor = supervisor
        self._metrics = metrics
        self._retention = Retention(most, ttl)
        self._table = RevocationTable(most)
        self._missing: dict[Subject, tuple[Revocation, int]] = {}
        """What the broker has lost and nobody has put back yet, and the rev of what stands in its place."""
        self._putting_back: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self.following = Following(
            REVOCATIONS, broker, clock, supervisor, metrics, self._take, restarted=self._find_missing
        )
        metrics.revocations.set_function(lambda: len(self._table))

    async def start(self) -> None:
        """Reads the table. Raises ServiceError."""
        await self.following.start()

    def close(self) -> None:
        """Lets the timer go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- revoking -----------------------------------------------------------------------------------------------------

    async def revoke_user(self, tenant: str, user: str, before: float, reason: str) -> Revocation:
        """Revokes every token of the user that was issued before a moment, or says not when. Raises ServiceError; then
        nothing was done. An earlier revocation that goes further stays in force, and is what is returned."""
        return await self._revoke(Revocation(Target.USER, tenant, user, self._until(), before, reason))

    async def revoke_token(self, tenant: str, token_id: str, reason: str) -> Revocation:
        """Revokes one token by its id. Raises ServiceError; then nothing was done."""
        return await self._revoke(Revocation(Target.TOKEN, tenant, token_id, self._until(), None, reason))

    def _until(self) -> float:
        return self._clock.wall() + self._retention.ttl

    async def _revoke(self, revocation: Revocation) -> Revocation:
        known = self._table.get(revocation.subject)
        if known is not None:
            revocation = revocation.joined(known)
        await self._publish(revocation, rev=0)
        self._add(revocation)
        return revocation

    # --- enforcing ----------------------------------------------------------------------------------------------------

    def check(self, identity: Identity) -> None:
        """Raises ServiceError(INVALID_TOKEN) if the token behind the identity has been revoked."""
        if self._table.find(identity) is not None:
            raise ServiceError(ErrorCode.INVALID_TOKEN, REASON)

    def look_at(self, connection: Connection) -> None:
        """Ends the connection with 4401 if its token has been revoked."""
        found = self._table.find(connection.session.identity)
        if found is not None:
            connection.close(CloseCode.UNAUTHORIZED, found.reason or REASON)

    def tend(self) -> None:
        """Called now and then: drops what no living token can meet any more, and goes on with what could not be put back."""
        self._table.forget(self._clock.wall())
        self._put_back_soon()

    def _add(self, revocation: Revocation) -> None:
        if not self._table.add(revocation):
            self._metrics.limit_hits.labels(limit="revocations").inc()
        if self._timer is None:
            self._timer = self._clock.call_later(LOOK, self._look)

    def _look(self) -> None:
        self._timer = None
        for connection in self._roster:
            self.look_at(connection)

    # --- keeping the table the same everywhere ------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        revocation = _decode(event)
        if revocation.until <= self._clock.wall():
            return
        known = self._table.get(revocation.subject)
        if known is not None and not revocation.covers(known):
            # Two nodes have revoked at the same moment, and the narrower one has replaced the wider one at the broker.
            self._missing[known.subject] = (known.joined(revocation), event.rev or 0)
            self._put_back_soon()
        else:
            self._missing.pop(revocation.subject, None)
        self._add(revocation)

    def _find_missing(self, snapshot: Snapshot) -> None:
        """Called when the broker has started anew; what it still had has been taken."""
        kept = {revocation.subject: revocation for revocation in map(_decode, snapshot.state)}
        missing = [
            revocation
            for revocation in self._table
            if (found := kept.get(revocation.subject)) is None or not found.covers(revocation)
        ]
        random.shuffle(missing)  # each node in another order, so that it finds much of it done by others
        self._missing = {revocation.subject: (revocation, 0) for revocation in missing}
        self._put_back_soon()

    def _put_back_soon(self) -> None:
        if self._missing and (self._putting_back is None or self._putting_back.done()):
            self._putting_back = self._supervisor.spawn("revocations put back", self._put_back())

    async def _put_back(self) -> None:
        _log.warning("the broker has lost revocations; they are put back", count=len(self._missing))
        while self._missing:
            subject, (revocation, rev) = next(iter(self._missing.items()))
            try:
                await self._publish(revocation, rev)
            except ServiceError as error:  # `tend` comes again
                _log.warning("revocations not put back", left=len(self._missing), code=error.code.code)
                return
            self._missing.pop(subject, None)

    async def _publish(self, revocation: Revocation, rev: int) -> None:
        """`rev`: of what it corrects. All nodes that put back the same thing use the same id, so it is done once."""
        epoch = self.following.epoch
        name = repr((*revocation.subject, revocation.before, revocation.until, epoch, rev))
        await self._broker.publish(
            Publication(
                channel=REVOCATIONS,
                type=f"revocation.{revocation.target.value}",
                id=hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32],
                delivery=Delivery.LATEST,
                data=encode(revocation),
                sender=None,
                at=milliseconds(self._clock),
                key=f"{revocation.tenant}/{revocation.name}",
                retention=self._retention,
            )
        )


def _decode(event: Event) -> Revocation:
    return decode_revocation(event.data)


class RevocationGuard:
    """An Authenticator in front of another one: refuses what has been revoked since."""

    def __init__(self, authenticator: Authenticator, revocations: Revocations) -> None:
        self._authenticator = authenticator
        self._revocations = revocations

    async def authenticate(self, token: str) -> Identity:
        """As the port says."""
        identity = await self._authenticator.authenticate(token)
        self._revocations.check(identity)
        return identity
