"""What clients and their networks do: vanish, stop reading, lose replies, try the neighbour's door."""

from __future__ import annotations

import asyncio
import ctypes
import socket
import struct
from collections import Counter
from dataclasses import dataclass
from time import monotonic
from typing import Any

from tests.faults.clients.transports import TRANSPORTS, ClientTransport
from tests.faults.clients.witness import Witness
from tests.faults.lossy import LossyFront
from tests.faults.node import Node, total
from tests.faults.scenario import ANY, Arena, scenario
from tests.faults.stage import Stage, seconds_until
from tests.faults.tokens import TENANTS, token
from tests.support.http_wire import HttpWire
from tests.support.proxy import Proxy
from tests.support.wire import Refused, Wire, connect

STALL, SWEEP, GRACE = 10.0, 1.0, 1.0
"""outbox.stall, which the node looks for once in a sweep; and outbox.close_grace, which a close may take."""
LATE = 1.0
"""Seconds that looking at a busy node may add."""
SLEEPERS = 20
"""Readers that stop, each in a channel of its own. One would measure the allocator; so many measure what a reader takes."""
TAKES = 1024
"""KiB that the node may grow by for each."""
FLOODS_AT_ONCE = 5
"""Readers that get their events at the same time: so few that the node grows little by the requests themselves."""
HALF_OPEN = 45.0
"""Seconds until the descriptor of a client that died without a word is free again."""

_SO_ATTACH_FILTER, _BPF_RETURN = 26, 6
"""<asm-generic/socket.h>, <linux/bpf_common.h>"""

TRIES, PER_PAIR, AT_ONCE = 10_000, 8, 8
"""Tries at the neighbour's doors; those of one pair of neighbours: its id, position and history, three reads, a user of its own,
and a made-up tenant; pairs at the same time."""


@scenario("calm", on=ANY)
async def nothing_happens(arena: Arena) -> None:
    """The measure of all others: traffic and no fault. Clients and publishers see no trouble at all."""
    async with arena.broker() as broker, arena.stage(broker) as stage:
        await stage.calm(arena.size.calm * 2)
        arena.report.tell("nothing")
        await undisturbed(stage, 0.0)


async def undisturbed(stage: Stage, since: float, *polls_may_see: str) -> None:
    """Neither clients nor publishers have seen anything since the moment; polls only what they may."""
    books = await stage.crowd.seen()
    seen = Counter(
        f"{one.transport}: {one.what}"
        for one in books.troubles
        if one.at >= since and not (one.transport == "poll" and one.what in polls_may_see)
    )
    stage.report.expect(not seen, f"clients saw {dict(seen)}")
    stage.report.expect(books.repeats == 0, f"{books.repeats} events were delivered again")
    stage.report.expect(books.gaps == 0, f"{books.gaps} gaps reached clients")
    troubles = [trouble.what for trouble in stage.log.troubles if trouble.at >= since]
    stage.report.expect(not troubles, f"publishers saw {troubles[:5]}")


@scenario("lost-reply", quick=True, on=ANY)
async def replies_are_lost(arena: Arena) -> None:
    """The reply to every tenth publish and poll is lost; the same id again gives the same offset, the same receipt gives the
    same events, and nobody gets an event twice."""
    async with arena.broker() as broker, arena.stage(broker, broker) as stage:
        lossy = [LossyFront(node.port, arena.random, 0.1) for node in stage.nodes]
        try:
            stage.ports[:] = [await front.start() for front in lossy]
            started = monotonic()
            for publisher in stage.desk.publishers:
                await publisher.close()  # the next try goes through the lossy front
            polls = [client for client in stage.near.clients if not client.transport.is_connection]
            for client in polls:
                client.transport.abort()
            await stage.calm(arena.size.calm * 3)
            lost = sum(front.lost for front in lossy)
            again = [ack for ack in stage.log.acks if ack.duplicate]
            books = await stage.crowd.seen()
            repeated = books.seen("closed 1006", started, "poll") - len(polls)
            arena.report.tell(f"{lost} replies lost, {len(again)} retries recognised, {repeated} polls repeated")
            arena.report.expect(lost > 0 and len(again) > 0, "no retry was recognised: the scenario tested nothing")
            arena.report.expect(
                repeated > 0 or not polls, "no response to a poll was lost: the scenario tested nothing"
            )
            arena.report.expect(books.repeats == 0, f"{books.repeats} events were delivered again")
            arena.report.recovered(await stage.caught_up(started, 60), within=60)
            stage.ports[:] = [node.port for node in stage.nodes]
            for publisher in stage.desk.publishers:
                await publisher.close()
            await asyncio.sleep(0)
        finally:
            for front in lossy:
                await front.close()


@scenario("reader-stops", on=ANY)
async def readers_stop(arena: Arena) -> None:
    """Each is found within a sweep of outbox.stall, cut a grace later, and takes 1 MB at most; the others notice nothing. Counts
    from the moment at which all that it does not read is acknowledged."""
    report = arena.report
    async with arena.broker() as broker, arena.stage(broker) as stage:
        node, halls = stage.nodes[0], [f"hall:flood-{number}" for number in range(4 if arena.quick else SLEEPERS)]
        kinds = [kind for kind in arena.mix.each if TRANSPORTS[kind].is_connection] or ["websocket"]
        witnesses = [Witness(kinds[number % len(kinds)]) for number in range(len(halls))]
        try:
            wires = [
                await witness.come(node, "red", f"sleeper-{hall}", hall, receive_buffer=4096)
                for witness, hall in zip(witnesses, halls, strict=True)
            ]
            before = await node.metrics()
            rss = most = node.rss()
            left, behind, slowest = set(map(local_port, wires)), dict[int, float](), 0.0
            turn = asyncio.Semaphore(FLOODS_AT_ONCE)

            async def fall_behind(wire: ClientTransport, hall: str) -> None:
                async with turn:
                    wire.read(False)
                    await stage.flood(node, "red", hall, events=150, size=1500)
                    behind[local_port(wire)] = monotonic()

            async def closed() -> bool:
                nonlocal slowest, most
                most = max(most, node.rss())
                gone, now = left - node.peers(), monotonic()
                left.difference_update(gone)
                report.expect(gone <= behind.keys(), "a reader was cut before its flood was acknowledged")
                slowest = max([slowest, *(now - behind[port] for port in gone & behind.keys())])
                return not left

            # The readers are watched meanwhile: all floods take NATS longer than a reader has.
            everyone, *_ = await asyncio.gather(
                seconds_until(closed, monotonic(), 3 * STALL * report.patience), *map(fall_behind, wires, halls)
            )
            report.recovered(slowest if everyone is not None else None, within=STALL + SWEEP + GRACE + LATE)
            told = total(await node.metrics(), "slow_consumers") - total(before, "slow_consumers")
            report.expect(told == len(halls), f"{told:g} of {len(halls)} were counted as slow consumers")
            each = (most - rss) / len(halls)
            report.tell(
                f"{len(halls)} clients read nothing of 150 events each; the node grew by {each:.0f} KiB for each"
            )
            report.expect(each <= TAKES, f"the node grew by {each:.0f} KiB for each")
            await undisturbed(stage, 0.0)
        finally:
            for witness in witnesses:
                witness.leave()


def local_port(transport: ClientTransport) -> int:
    """The client's end of a connection."""
    wire = transport.wire
    assert wire is not None
    assert wire.transport is not None
    port: int = wire.transport.get_extra_info("sockname")[1]
    return port


@scenario("half-open", on=ANY)
async def clients_die_without_a_word(arena: Arena) -> None:
    """One reads nothing any more, one's network swallows everything (no streams, see below), one's machine is gone for TCP too,
    so that nothing is acknowledged: no FIN, no RST, no pong. Each descriptor is free within 45 s."""
    report = arena.report
    async with arena.broker() as broker, arena.stage(broker) as stage:
        node, front, left = stage.nodes[0], Proxy(stage.nodes[0].port), dict[str, int]()
        kinds = arena.mix.each
        # A stream's client sends nothing. While something acknowledges its bytes, it looks like one that reads.
        alive = [kind for kind in kinds if TRANSPORTS[kind].shows_life]
        silent, swallowed = [[Witness(kind) for kind in alive] for _ in range(2)]
        vanished = [Witness(kind) for kind in kinds]
        witnesses = [*silent, *swallowed, *vanished]
        try:
            behind = await front.start()
            for witness in swallowed:
                known = front.ports
                await witness.come(node, "red", f"swallowed-{witness.name}", "hall:0", port=behind)
                (left[f"{witness.name} swallowed"],) = front.ports - known
            stopped = [await witness.come(node, "red", f"silent-{witness.name}", "hall:0") for witness in silent]
            gone = [await witness.come(node, "red", f"vanished-{witness.name}", "hall:0") for witness in vanished]
            left |= {f"{one.name} silent": local_port(one) for one in stopped}
            left |= {f"{one.name} vanished": local_port(one) for one in gone}
            started = monotonic()
            report.expect(set(left.values()) <= node.peers(), "the node does not have all of them")
            front.black_hole()
            for one in stopped:
                one.read(False)
            for one in gone:
                assert one.wire is not None
                vanish(one.wire)

            async def freed() -> bool:
                peers = node.peers()
                for name in [name for name, port in left.items() if port not in peers]:
                    del left[name]
                    seconds[name] = round(monotonic() - started, 1)
                return not left

            seconds: dict[str, float] = {}
            report.recovered(await seconds_until(freed, started, (HALF_OPEN + 10) * report.patience), within=HALF_OPEN)
            report.tell(
                f"{len(seconds)} connections freed after {min(seconds.values()):g} to {max(seconds.values()):g} s"
            )
            report.figures["freed"] = seconds
            report.expect(not left, f"{', '.join(left)} still held")
            report.expect(not swallowed or front.swallowed > 0, "nothing was swallowed: the scenario tested nothing")
        finally:
            for witness in witnesses:
                witness.leave()
            await front.close()


def vanish(wire: Wire | HttpWire) -> None:
    """Lets the kernel drop whatever comes for this connection before TCP sees it: nothing is acknowledged, nothing reset."""
    assert wire.transport is not None
    raw: socket.socket = wire.transport.get_extra_info("socket")
    drop = ctypes.create_string_buffer(struct.pack("HBBI", _BPF_RETURN, 0, 0, 0))  # `return 0`: keep no byte
    raw.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", 1, ctypes.addressof(drop)))


@scenario("cross-tenant", quick=True, on=ANY)
async def neighbours_try_each_others_doors(arena: Arena) -> None:
    """Same channels, same users, same ids, the neighbour's positions and keys: nothing is seen, changed or told."""
    report = arena.report
    rounds = 5 if arena.quick else -(-TRIES // (PER_PAIR * len(TENANTS)))
    async with arena.broker() as broker, arena.stage(broker, broker) as stage:
        pairs = [
            Pair(
                arena.random.choice(stage.nodes), arena.random.choice(stage.nodes), tenant, other, f"{tenant}-{round_}"
            )
            for round_ in range(rounds)
            for tenant, other in (TENANTS, TENANTS[::-1])
        ]
        waiting = iter(pairs)

        async def try_doors() -> int:
            return sum([await _one_pair(arena, stage, pair) for pair in waiting])

        started = monotonic()
        tries = sum(await asyncio.gather(*(try_doors() for _ in range(AT_ONCE))))
        report.tell(f"{tries} tries in {monotonic() - started:.0f} s")
        report.expect(arena.quick or tries >= TRIES, f"only {tries} tries")
        await undisturbed(stage, 0.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two neighbours: one publishes a secret through one node, the other tries to get at it through another."""

    here: Node
    there: Node
    tenant: str
    other: str
    name: str


async def _one_pair(arena: Arena, stage: Stage, pair: Pair) -> int:
    report, tenant, other, there = arena.report, pair.tenant, pair.other, pair.there
    private, secret = f"hall:private-{pair.name}", f"secret-{pair.name}"
    event = {"type": "talk.line", "id": f"same-{pair.name}", "data": {"t": tenant, "c": private, "text": secret}}
    _, mine = await pair.here.api(tenant, "POST", f"channels/{private}/events", event)
    _, theirs = await there.api(other, "POST", f"channels/{private}/events", {**event, "data": {"t": other}})
    report.expect(not theirs["duplicate"], f"{other}'s id was taken for {tenant}'s")
    report.expect(theirs["offset"] == 1 and theirs["epoch"] != mine["epoch"], f"{other} shares a stream with {tenant}")
    witness = Witness()
    try:
        await witness.come(there, other, "user-0", private)
        wire = witness.websocket
        since = {"epoch": mine["epoch"], "offset": 0}
        wire.send({"type": "unsubscribe", "id": "u", "channel": private})
        wire.send({"type": "subscribe", "id": "r", "channel": private, "since": since})
        wire.send({"type": "history", "id": "h", "channel": private, "limit": 100})
        wire.send({"type": "ping", "id": "end"})
        await witness.until(b'"pong"')
        report.expect(not any(secret.encode() in frame for frame in witness.frames), f"{other} was shown {secret}")
        told = b"".join(witness.frames)
        report.expect(b'"recovered":false' in told, f"{other} was not refused {tenant}'s position")
        report.expect(b'"recovered":true' not in told, f"{other} resumed from {tenant}'s position")
    finally:
        witness.leave()
    for path in (f"channels/{private}/history", f"channels/{private}/state", f"channels?prefix={private}"):
        status, body = await there.api(other, "GET", path)
        report.expect(status == 200 and secret not in str(body), f"{path} shows {other} {status} {body}")
    neighbour = f"user-{TENANTS.index(tenant) + len(TENANTS)}"  # somebody of the crowd, who must not notice
    ended: dict[str, Any] = (await there.api(other, "POST", f"users/{neighbour}/disconnect"))[1]
    report.expect(ended["connections"] == 0, f"{other} disconnected somebody of {tenant}: {ended}")
    try:
        (await connect(there.port, witness.frames.append, bearer=token("x", f"{other}:{tenant}"))).abort()
        report.expect(False, "a token with a made-up tenant was let in")
    except Refused:
        pass
    return PER_PAIR
