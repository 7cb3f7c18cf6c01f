"""What happens to nodes: killed, drained, restarted one after the other; and what nodes must tell each other."""

from __future__ import annotations

import signal
from time import monotonic

from tests.faults.clients.witness import Witness
from tests.faults.node import Node
from tests.faults.scenario import Arena, scenario
from tests.faults.stage import Stage, seconds_until
from tests.faults.tokens import TENANTS, token
from tests.stores.redis_server import RedisServer
from tests.support.wire import Refused, connect

RESUMED, SHARE = 15.0, 0.99
"""Seconds until this share of a dead node's clients must be back."""
LOST = 2000
"""Clients on the node that is killed; a third as many are on the other."""
MOVED = 5000
"""Clients on the node that is drained; a quarter as many are on the other."""
FEW = 20
"""Clients that die with their node."""
GHOSTS = 35.0
"""Seconds until the users of a dead node that did not come back must be gone from presence."""
DRAINED = 25.0
"""Seconds from SIGTERM to the exit."""
BACK = 15.0
"""Seconds after it in which everyone must have found the other node: the pause they were told, and two tries."""
TOLD = 2.0
"""Seconds until a word of one node must have reached the others."""
LEAVE, QUICK_LEAVE, SWEEP = 5.0, 3.0, 2.0
"""Seconds of deadlines.presence_leave, of the same in the quick form, and of a sweep. So long after the last connect, all of
presence has been told."""
SILENCE = 1.0
"""Seconds without a presence event after which all that came have been told of."""


@scenario("node-kill", quick=True)
async def killed(arena: Arena) -> None:
    """kill -9 of a node with 2 000 clients: 99 % of them are back within 15 s, resumed; those who died with it vanish from
    presence within 35 s."""
    report = arena.report
    many = (
        {}
        if arena.quick
        else {"clients": LOST * 4 // 3, "homes": (0, 0, 0, 1), "channels": 40, "rate": 40, "apart": True}
    )
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url, room=True, **many) as stage:
        await stage.calm(arena.size.calm)
        victim, other = stage.nodes
        here, there = [await stage.crowd.joined_at(port) for port in stage.ports]
        ghosts = await stage.crowd.doom(stage.ports[0], 2 if arena.quick else FEW)
        orphans = here - len(ghosts)
        report.expect(arena.quick or here >= LOST, f"only {here} clients were on the node")
        report.expect(not set(ghosts) - await _present(other, stage), "presence did not show those who were to die")
        resumed = (await stage.crowd.seen()).resumed
        moment = monotonic()
        await victim.kill()
        report.tell(f"{here} clients lost their node")

        async def back() -> bool:
            return await stage.crowd.joined_at(stage.ports[1]) >= there + SHARE * orphans

        report.recovered(await seconds_until(back, moment, 2 * RESUMED * report.patience), within=RESUMED)
        report.expect(await stage.healed(monotonic(), 20) is not None, "publishing did not go on")
        resumed = (await stage.crowd.seen()).resumed - resumed
        report.expect(resumed >= SHARE * orphans, f"only {resumed} of {orphans} clients resumed")
        if not arena.quick:
            await _no_ghosts(stage, other, ghosts, moment)
        await victim.start()


async def _no_ghosts(stage: Stage, node: Node, users: list[str], moment: float) -> None:
    async def vanished() -> bool:
        return not await _present(node, stage) & set(users)

    within = GHOSTS * stage.report.patience
    gone = await seconds_until(vanished, moment, within + 10)
    stage.report.expect(
        gone is not None and gone <= within, f"ghosts were gone after {gone} s, not within {within:g} s"
    )
    stage.report.tell(f"{len(users)} ghosts gone after {gone or -1:.0f} s")


async def _present(node: Node, stage: Stage) -> set[str]:
    present: set[str] = set()
    for tenant in TENANTS:
        for channel in stage.channels:
            _, body = await node.api(tenant, "GET", f"channels/{channel}/presence")
            present |= {member["user"] for member in body["presence"]["members"]}
    return present


@scenario("drain")
async def drained(arena: Arena) -> None:
    """SIGTERM with 5 000 clients: every connection is told and closed with 1012, the node exits with 0 within 25 s, all resume
    on the other node, nothing is lost."""
    report = arena.report
    many = {"clients": MOVED * 5 // 4, "homes": (0, 0, 0, 0, 1), "channels": 50, "rate": 40, "apart": True}
    async with (
        RedisServer(arena.flavour) as server,
        arena.stage(server.url, server.url, **({} if arena.quick else many)) as stage,
    ):
        await stage.calm(arena.size.calm)
        here, there = [await stage.crowd.joined_at(port) for port in stage.ports]
        report.expect(arena.quick or here >= MOVED, f"only {here} clients were on the node")
        before = await stage.crowd.seen()
        told, told_polls, resumed = before.told, before.told_by.get("poll", 0), before.resumed
        polls = await stage.crowd.joined_at(stage.ports[1], "poll")
        moment = monotonic()
        await _stop(stage, stage.nodes[0])
        took = monotonic() - moment

        async def moved() -> bool:
            return await stage.crowd.joined_at(stage.ports[1]) == here + there

        report.recovered(await seconds_until(moved, moment, (DRAINED + 20) * report.patience), within=DRAINED + BACK)
        report.expect(await stage.healed(monotonic(), 20) is not None, "publishing did not go on")
        books = await stage.crowd.seen()
        told, resumed, closed = books.told - told, books.resumed - resumed, books.seen("closed 1012", moment)
        polls = await stage.crowd.joined_at(stage.ports[1], "poll") - polls
        report.tell(
            f"{here} clients, {polls} of them with polls: {told} told, {closed} closed with 1012, {resumed} resumed; exit after"
            f" {took:.1f} s"
        )
        # A poll that is told ends with its response; between two polls, there is nobody to tell.
        told_polls = books.told_by.get("poll", 0) - told_polls
        report.expect(
            told - told_polls == closed == here - polls and resumed == here,
            f"of {here}, {told} told, {closed} closed, {resumed} resumed",
        )
        await _closed_politely(stage, moment)
        await stage.nodes[0].start()


async def _restart(stage: Stage, node: Node) -> None:
    """As a deployment does: SIGTERM, wait, start anew."""
    await _stop(stage, node)
    await node.start()


async def _stop(stage: Stage, node: Node) -> None:
    moment = monotonic()
    node.signal(signal.SIGTERM)
    status = await node.wait((DRAINED + 10) * stage.report.patience)
    stage.report.expect(status == 0, f"{node.name} exited with {status}")
    took = monotonic() - moment
    stage.report.expect(took <= DRAINED * stage.report.patience, f"{node.name} took {took:.1f} s to drain")


async def _closed_politely(stage: Stage, since: float) -> None:
    tally = (await stage.crowd.seen()).tally(since)
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
    leave = QUICK_LEAVE if arena.quick else LEAVE
    settings = {"DEADLINES__PRESENCE_LEAVE": str(leave)}
    async with (
        RedisServer(arena.flavour) as server,
        arena.stage(server.url, server.url, room=True, settings=settings) as stage,
    ):
        await _all_told(stage)
        stage.near.books.presence.clear()
        moment = monotonic()
        for number in range(times):
            await _restart(stage, stage.nodes[number % 2])
            report.expect(
                await stage.healed(monotonic(), 30) is not None, f"nothing went on after restart {number + 1}"
            )
        report.recover = (monotonic() - moment) / times
        await stage.calm(leave + SWEEP)
        flaps = stage.near.books.presence
        report.expect(not flaps, f"presence flapped: {sum(flaps.values())} times, such as {list(flaps)[:3]}")
        report.tell(f"{times} restarts, {sum(flaps.values())} presence events")
        await _closed_politely(stage, moment)


async def _all_told(stage: Stage) -> None:
    """Waits until presence has told of everybody who came: until it tells nothing more."""
    presence, before = stage.near.books.presence, -1
    while (now := sum(presence.values())) != before:
        before = now
        await stage.calm(SILENCE)


@scenario("far-word")
async def a_user_is_disconnected_elsewhere(arena: Arena) -> None:
    """Disconnecting a user through one node ends it on the other within 2 s, Pub/Sub cut at that moment or not."""
    await _told_through_the_other_node(arena, "disconnect", {4403, "invalid_receipt"})


@scenario("revocation", quick=True)
async def a_user_is_revoked_elsewhere(arena: Arena) -> None:
    """The same for revoking its tokens, which no node takes any more."""
    await _told_through_the_other_node(arena, "revoke", {4401, "invalid_token"})


async def _told_through_the_other_node(arena: Arena, what: str, codes: set[int | str]) -> None:
    """`codes`: what ends a connection, and how the next poll of the session is refused."""
    report, slowest = arena.report, 0.0
    users = [(kind, cut) for kind in arena.mix.each for cut in (False, True)]
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        await stage.calm(arena.size.calm)
        for number, (kind, cut) in enumerate(users):
            user, witness = f"unwanted-{number}", Witness(kind)
            bearer = token(user, "red")
            await witness.come(stage.nodes[1], "red", user, "hall:0", bearer=bearer)
            try:
                if cut:
                    await server.command("CLIENT", "KILL", "TYPE", "pubsub")
                moment = monotonic()
                status, body = await stage.nodes[0].api("red", "POST", f"users/{user}/{what}")
                report.expect(status == 200, f"{what} was answered with {status} {body}")
                code = await witness.code(3 * TOLD * report.patience)
                slowest = max(slowest, monotonic() - moment)
                report.expect(code in codes, f"{user} ({kind}) ended with {code}, not {codes}{' during a cut' * cut}")
                for node in stage.nodes if what == "revoke" else ():
                    report.expect(await _refused(node, bearer), f"{node.name} still takes the token of {user}")
            finally:
                witness.leave()
        report.recovered(slowest, within=TOLD)
        report.tell(f"{what}: {len(users)} users through the other node, half of them during a cut")


async def _refused(node: Node, bearer: str) -> bool:
    """Whether every door is closed to the token."""
    try:
        (await connect(node.port, lambda frame: None, bearer=bearer)).abort()
    except Refused as refusal:
        event = {"type": "talk.line", "channel": "hall:0", "id": "late", "data": {}}
        subscriptions = {"subscriptions": [{"channel": "hall:0"}]}
        doors = {"emit": event, "poll": subscriptions, "stream": subscriptions}
        statuses = [(await node.post(path, bearer, body))[0] for path, body in doors.items()]
        return "401" in str(refusal) and set(statuses) == {401}
    return False
