"""What clients and their networks do: vanish, stop reading, lose replies, try the neighbour's door."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

from tests.faults.lossy import LossyFront
from tests.faults.node import Node, total
from tests.faults.scenario import ANY, Arena, scenario
from tests.faults.stage import Stage, seconds_until
from tests.faults.tokens import TENANTS, token
from tests.wire import Refused, Wire, connect

STALL, GRACE = 10.0, 3.0
"""outbox.stall; and what the sweep, the close and the cut may take beyond it."""
HALF_OPEN = 45.0
"""Seconds until the descriptor of a client that died without a word is free again."""


class Witness:
    """One connection outside the crowd."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.wire: Wire | None = None

    async def come(
        self,
        node: Node,
        tenant: str,
        user: str,
        *channels: str,
        bearer: str | None = None,
        receive_buffer: int | None = None,
    ) -> Wire:
        """Connects and subscribes."""
        self.wire = await connect(
            node.port, self.frames.append, bearer=bearer or token(user, tenant), receive_buffer=receive_buffer
        )
        self.wire.send({"type": "ready"})
        for channel in channels:
            self.wire.send({"type": "subscribe", "id": f"s-{channel}", "channel": channel})
        await self.until(b'"subscribed"', len(channels))
        return self.wire

    async def until(self, what: bytes, times: int = 1, within: float = 5.0) -> None:
        """Waits until a text has come so often."""

        async def came() -> bool:
            return sum(frame.count(what) for frame in self.frames) >= times

        assert await seconds_until(came, monotonic(), within) is not None, f"{what!r} did not come: {self.frames[-3:]}"

    def leave(self) -> None:
        """Goes."""
        if self.wire is not None:
            self.wire.abort()


@scenario("calm", on=ANY)
async def nothing_happens(arena: Arena) -> None:
    """The measure of all others: traffic and no fault. Clients and publishers see no trouble at all."""
    async with arena.broker() as broker, arena.stage(broker) as stage:
        await stage.calm(arena.size.calm * 2)
        arena.report.tell("nothing")
        await undisturbed(stage, 0.0)


async def undisturbed(stage: Stage, since: float) -> None:
    """Neither clients nor publishers have seen anything since the moment."""
    books = await stage.crowd.seen()
    stage.report.expect(not books.tally(since), f"clients saw {books.tally(since)}")
    stage.report.expect(books.repeats == 0, f"{books.repeats} events were delivered again")
    stage.report.expect(books.gaps == 0, f"{books.gaps} gaps reached clients")
    troubles = [trouble.what for trouble in stage.log.troubles if trouble.at >= since]
    stage.report.expect(not troubles, f"publishers saw {troubles[:5]}")


@scenario("lost-reply", quick=True, on=ANY)
async def replies_are_lost(arena: Arena) -> None:
    """The reply to every tenth publish is lost; the same id again gives the same offset, and nobody gets the event twice."""
    async with arena.broker() as broker, arena.stage(broker, broker) as stage:
        lossy = [LossyFront(node.port, arena.random, 0.1) for node in stage.nodes]
        try:
            stage.ports[:] = [await front.start() for front in lossy]
            for publisher in stage.desk.publishers:
                await publisher.close()  # the next try goes through the lossy front
            started = monotonic()
            await stage.calm(arena.size.calm * 3)
            lost = sum(front.lost for front in lossy)
            again = [ack for ack in stage.log.acks if ack.duplicate]
            arena.report.tell(f"{lost} replies lost, {len(again)} retries recognised")
            arena.report.expect(lost > 0 and len(again) > 0, "no retry was recognised: the scenario tested nothing")
            arena.report.recovered(await stage.caught_up(started, 60), within=60)
            stage.ports[:] = [node.port for node in stage.nodes]
            for publisher in stage.desk.publishers:
                await publisher.close()
            await asyncio.sleep(0)
        finally:
            for front in lossy:
                await front.close()


@scenario("reader-stops", on=ANY)
async def a_reader_stops(arena: Arena) -> None:
    """Closed after outbox.stall and a grace; what it took is bounded, and the others notice nothing."""
    async with arena.broker() as broker, arena.stage(broker) as stage:
        node, witness = stage.nodes[0], Witness()
        wire = await witness.come(node, "red", "sleeper", "hall:flood", receive_buffer=4096)
        try:
            mine, rss = local_port(wire), node.rss()
            before = await node.metrics()
            wire.read(False)
            started = monotonic()
            await stage.flood(node, "red", "hall:flood", events=150, size=1500)

            async def closed() -> bool:
                metrics = await node.metrics()
                return total(metrics, "slow_consumers") > total(before, "slow_consumers") and mine not in node.peers()

            arena.report.recovered(await seconds_until(closed, started, STALL + 2 * GRACE), within=STALL + GRACE)
            grown = node.rss() - rss
            arena.report.tell(f"one client read nothing of 150 events; the node grew by {grown} KiB")
            arena.report.expect(grown < 8 * 1024, f"the node grew by {grown} KiB")
            await undisturbed(stage, 0.0)
        finally:
            witness.leave()


def local_port(wire: Wire) -> int:
    """The client's end of a connection."""
    assert wire.transport is not None
    port: int = wire.transport.get_extra_info("sockname")[1]
    return port


@scenario("half-open", on=ANY)
async def a_client_dies_without_a_word(arena: Arena) -> None:
    """No FIN, no RST, no pong: the descriptor is free within 45 s."""
    async with arena.broker() as broker, arena.stage(broker) as stage:
        node, witness = stage.nodes[0], Witness()
        wire = await witness.come(node, "red", "dead", "hall:0")
        try:
            mine, started = local_port(wire), monotonic()
            wire.read(False)

            async def freed() -> bool:
                return mine not in node.peers()

            arena.report.recovered(await seconds_until(freed, started, HALF_OPEN + 10), within=HALF_OPEN)
            arena.report.tell("one client answered nothing any more")
        finally:
            witness.leave()


@scenario("cross-tenant", quick=True, on=ANY)
async def neighbours_try_each_others_doors(arena: Arena) -> None:
    """Same channels, same users, same ids, the neighbour's positions and keys: nothing is seen, changed or told."""
    async with arena.broker() as broker, arena.stage(broker, broker) as stage:
        tries = 0
        for round_ in range(5 if arena.quick else 50):
            for tenant, other in (TENANTS, TENANTS[::-1]):
                channel = arena.random.choice(stage.channels)
                here, there = arena.random.choice(stage.nodes), arena.random.choice(stage.nodes)
                tries += await _one_pair(arena, here, there, tenant, other, channel, f"{tenant}-{round_}")
        arena.report.tell(f"{tries} tries")


async def _one_pair(arena: Arena, here: Node, there: Node, tenant: str, other: str, channel: str, name: str) -> int:
    report, secret = arena.report, f"secret-{name}"
    private = f"hall:private-{name}"
    event = {"type": "talk.line", "id": f"same-{name}", "data": {"t": tenant, "c": private, "text": secret}}
    _, mine = await here.api(tenant, "POST", f"channels/{private}/events", event)
    _, theirs = await there.api(other, "POST", f"channels/{private}/events", {**event, "data": {"t": other}})
    report.expect(not theirs["duplicate"], f"{other}'s id was taken for {tenant}'s")
    report.expect(theirs["offset"] == 1 and theirs["epoch"] != mine["epoch"], f"{other} shares a stream with {tenant}")
    witness = Witness()
    try:
        wire = await witness.come(there, other, "user-0", private)
        since = {"epoch": mine["epoch"], "offset": mine["offset"], "id": mine["id"]}
        wire.send({"type": "unsubscribe", "id": "u", "channel": private})
        wire.send({"type": "subscribe", "id": "r", "channel": private, "since": {**since, "offset": 0, "id": None}})
        wire.send({"type": "history", "id": "h", "channel": private, "limit": 100})
        wire.send({"type": "ping", "id": "end"})
        await witness.until(b'"pong"')
        report.expect(not any(secret.encode() in frame for frame in witness.frames), f"{other} was shown {secret}")
        report.expect(b'"recovered":true' not in b"".join(witness.frames), f"{other} resumed from {tenant}'s position")
    finally:
        witness.leave()
    for path in (f"channels/{private}/history", f"channels/{private}/state", "channels?prefix=hall&limit=1000"):
        _, body = await there.api(other, "GET", path)
        report.expect(secret not in str(body), f"{path} shows {other} {secret}")
    ended: dict[str, Any] = (await there.api(other, "POST", "users/nobody-here/disconnect"))[1]
    report.expect(ended.get("connections", 0) == 0, f"{other} disconnected somebody: {ended}")
    try:
        (await connect(there.port, witness.frames.append, bearer=token("x", f"{other}:{tenant}"))).abort()
        report.expect(False, "a token with a made-up tenant was let in")
    except Refused:
        pass
    return 8
