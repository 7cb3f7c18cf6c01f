"""What happens to nodes: killed, drained, restarted one after the other; and what nodes must tell each other."""

from __future__ import annotations

import asyncio
import signal
from time import monotonic

from tests.faults.faults_clients import Witness
from tests.faults.node import Node
from tests.faults.scenario import Arena, scenario
from tests.faults.stage import Stage, seconds_until
from tests.faults.tokens import token
from tests.stores.redis_server import RedisServer
from tests.wire import Refused, Wire, connect

RESUMED, SHARE = 15.0, 0.99
"""Seconds until this share of a dead node's clients must be back."""
GHOSTS = 35.0
"""Seconds until the users of a dead node that did not come back must be gone from presence."""
DRAINED = 25.0
"""Seconds from SIGTERM to the exit."""
TOLD = 2.0
"""Seconds until a word of one node must have reached the others."""
QUIET = 7.0
"""Seconds after the last connect in which all of presence has been told: the debounce, and a sweep."""


@scenario("node-kill", quick=True)
async def killed(arena: Arena) -> None:
    """kill -9 of a node: 99 % of its clients are back within 15 s, those who are not vanish from presence within 35 s."""
    report = arena.report
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url, room=True) as stage:
        await stage.calm(arena.size.calm)
        victim, other = stage.nodes
        there = stage.near.on(stage.ports[0])
        ghosts = there[:2]
        for ghost in ghosts:
            ghost.leaving = True  # it dies with its node
        stage.near.clients[:] = [client for client in stage.near.clients if client not in ghosts]
        moment = monotonic()
        await victim.kill()
        wanted = SHARE * (len(there) - len(ghosts))

        async def back() -> bool:
            return sum(client.is_joined and client not in ghosts for client in there) >= wanted

        report.recovered(await seconds_until(back, moment, 2 * RESUMED), within=RESUMED)
        report.expect(await stage.healed(monotonic(), 20) is not None, "publishing did not go on")
        report.tell(f"{len(there)} clients lost their node")
        if not arena.quick:
            await _no_ghosts(stage, other, [ghost.user for ghost in ghosts], moment)
        await victim.start()


async def _no_ghosts(stage: Stage, node: Node, users: list[str], moment: float) -> None:
    gone = await seconds_until(lambda: _vanished(node, stage, users), moment, GHOSTS + 10)
    stage.report.expect(
        gone is not None and gone <= GHOSTS, f"ghosts were gone after {gone} s, not within {GHOSTS:g} s"
    )
    stage.report.tell(f"ghosts gone after {gone or -1:.0f} s")


async def _vanished(node: Node, stage: Stage, users: list[str]) -> bool:
    present: set[str] = set()
    for tenant in ("red", "blue"):
        for channel in stage.channels:
            _, body = await node.api(tenant, "GET", f"channels/{channel}/presence")
            present |= {member["user"] for member in body["presence"].get("members", [])}
    return not present & set(users)


@scenario("drain")
async def drained(arena: Arena) -> None:
    """SIGTERM: every client is told and closed with 1012, the node exits with 0 in time, nothing is lost."""
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        await stage.calm(arena.size.calm)
        there = len(stage.near.on(stage.ports[0]))
        moment = monotonic()
        await _restart(stage, stage.nodes[0])
        books = await stage.crowd.seen()
        arena.report.recovered(await stage.healed(moment, 60), within=DRAINED + 20)
        arena.report.tell(f"{there} clients moved, {books.seen('closed 1012', moment)} closed with 1012")
        _closed_politely(stage, moment)


async def _restart(stage: Stage, node: Node) -> None:
    """As a deployment does: SIGTERM, wait, start anew."""
    moment = monotonic()
    node.signal(signal.SIGTERM)
    status = await node.wait(DRAINED + 10)
    stage.report.expect(status == 0, f"{node.name} exited with {status}")
    stage.report.expect(monotonic() - moment <= DRAINED, f"{node.name} took {monotonic() - moment:.1f} s to drain")
    await node.start()


def _closed_politely(stage: Stage, since: float) -> None:
    tally = stage.near.books.tally(since)
    rough = {
        what: count
        for what, count in tally.items()
        if what.startswith(("closed", "recovered")) and what != "closed 1012"
    }
    stage.report.expect(not rough, f"clients saw {rough}")


@scenario("rolling-restarts", quick=True)
async def restarted_one_after_the_other(arena: Arena) -> None:
    """Ten restarts in a row: nothing lost, and presence tells of nobody coming or going."""
    report, times = arena.report, 2 if arena.quick else 10
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url, room=True) as stage:
        await stage.calm(QUIET)
        stage.near.books.presence.clear()
        moment = monotonic()
        for number in range(times):
            await _restart(stage, stage.nodes[number % 2])
            report.expect(
                await stage.healed(monotonic(), 30) is not None, f"nothing went on after restart {number + 1}"
            )
        report.recover = (monotonic() - moment) / times
        await stage.calm(QUIET)
        flaps = stage.near.books.presence
        report.expect(not flaps, f"presence flapped: {sum(flaps.values())} times, such as {list(flaps)[:3]}")
        report.tell(f"{times} restarts, {sum(flaps.values())} presence events")
        _closed_politely(stage, moment)


@scenario("far-word", quick=True)
async def a_user_is_disconnected_elsewhere(arena: Arena) -> None:
    """Disconnecting a user through one node ends it on the other within 2 s, Pub/Sub cut at that moment or not."""
    await _told_through_the_other_node(arena, "disconnect", 4403)
    arena.report.tell("4 users disconnected through the other node, 2 of them during a cut")


@scenario("revocation", quick=True)
async def a_user_is_revoked_elsewhere(arena: Arena) -> None:
    """The same for revoking its tokens, which no node takes any more."""
    await _told_through_the_other_node(arena, "revoke", 4401)
    arena.report.tell("4 users revoked through the other node, 2 of them during a cut")


async def _told_through_the_other_node(arena: Arena, what: str, code: int) -> None:
    report, slowest = arena.report, 0.0
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        await stage.calm(arena.size.calm)
        for number in range(4):
            user, cut = f"unwanted-{number}", number % 2 == 1
            witness, bearer = Witness(), token(user, "red")
            wire = await witness.come(stage.nodes[1], "red", user, "hall:0", bearer=bearer)
            try:
                if cut:
                    await server.command("CLIENT", "KILL", "TYPE", "pubsub")
                moment = monotonic()
                status, body = await stage.nodes[0].api("red", "POST", f"users/{user}/{what}")
                report.expect(status == 200, f"{what} was answered with {status} {body}")
                closed = await _closed(wire)
                slowest = max(slowest, monotonic() - moment)
                report.expect(
                    closed == code, f"{user} was closed with {closed}, not with {code}{' during a cut' * cut}"
                )
                for node in stage.nodes if what == "revoke" else ():
                    report.expect(await _refused(node, bearer), f"{node.name} still takes the token of {user}")
            finally:
                witness.leave()
        report.recovered(slowest, within=TOLD)


async def _closed(wire: Wire) -> int:
    """The close code; 0 if none comes in time."""
    try:
        async with asyncio.timeout(3 * TOLD):
            return await asyncio.shield(wire.gone)
    except TimeoutError:
        return 0


async def _refused(node: Node, bearer: str) -> bool:
    try:
        (await connect(node.port, lambda frame: None, bearer=bearer)).abort()
    except Refused as refusal:
        return "401" in str(refusal)
    return False
