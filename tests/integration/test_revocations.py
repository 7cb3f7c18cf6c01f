"""A revocation holds on all nodes, whatever happens to connections, the store and clocks, and however much others revoke."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication, Retention
from service.core.revocation import Revocation, Target
from service.realtime.cluster import heartbeat
from service.realtime.cluster.messages import REVOKING_TENANTS, decode_revocation, encode, revocations_channel
from service.realtime.cluster.revocation_log import RevocationRetention
from tests.integration.cluster import BUSES, SOON, away, cluster, ends, old, refused
from tests.support.api_client import post
from tests.support.clock import WrongClock
from tests.support.harness import API_KEY, DEADLINE, OTHER_API_KEY, Running, eventually, serving, token
from tests.support.shared_broker import Bus, Line, SharedBroker

pytestmark = pytest.mark.slow

REVOCATIONS = revocations_channel("default")


def held(server: Running) -> list[Revocation]:
    """What the node knows to be revoked, each tenant's oldest first."""
    revocations = server.service.node.cluster.revocations
    return [one for tenant in ("default", "other") for one in revocations.held(tenant)]


def names(server: Running) -> set[str]:
    return {one.name for one in held(server)}


async def stored(line: Line, holds: Callable[[Sequence[Event]], bool], channel: ChannelKey = REVOCATIONS) -> None:
    """Waits until this holds of the channel's state in the store."""
    async with asyncio.timeout(DEADLINE):
        while not holds((await line.snapshot(channel, None, 0, 0)).state):  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.01)


def keys(events: Sequence[Event]) -> set[str | None]:
    return {event.key for event in events}


def restores_run() -> bool:
    names = ("revocation restore", "revoking tenants restore")
    return any(task.get_name() in names for task in asyncio.all_tasks())


def epoch_read(server: Running) -> str:
    """The epoch of the default tenant's channel, as this node has read it."""
    followers = {follower.channel: follower for follower in server.service.node.cluster.revocations.followers}
    return followers[REVOCATIONS].epoch


async def test_revocation_reaches_every_node(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        offered = old()
        async with (
            first.client(token_=offered) as here,
            second.client(token_=offered) as there,
            second.client("ben", jti="t") as ben,
            second.client("eve") as eve,
        ):
            codes = ends(here, there, ben)
            await post(first, "/users/ann/revoke", None)
            await post(first, "/tokens/revoke", {"jti": "t"})
            async with asyncio.timeout(SOON):
                assert await codes == [4401] * 3
            await eve.silence()
        await refused(first, offered)
        await refused(second, offered)
        await refused(second, token("ben", jti="t"))
        async with second.client(token_=token(iat=int(time.time()) + 3)) as again:
            await again.silence()
        assert (await first.metric("revocations"), await second.metric("revocations")) == (2, 2)


async def test_later_node_knows_earlier_revocations(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 1) as nodes:
        await post(nodes.members[0].server, "/users/ann/revoke", None)
        late = await nodes.join()
        await refused(late.server, old())


async def test_missed_revocation_is_read_after_the_interruption(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        async with second.server.client(token_=old()) as ann:
            second.line.cut()
            await post(first.server, "/users/ann/revoke", {"reason": "stolen"})
            await ann.silence()
            second.line.mend()
            async with asyncio.timeout(SOON):
                assert await ann.closed() == 4401


async def test_missed_revocation_is_found_at_the_next_heartbeat(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the channel of a tenant that the node follows already."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.1)
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        await post(first.server, "/tokens/revoke", {"jti": "t"})
        await eventually(lambda: names(second.server) == {"t"})
        await eventually(lambda: epoch_read(second.server) != "")
        second.line.cut()  # calls still go through, and nobody tells of an interruption
        await post(first.server, "/tokens/revoke", {"jti": "u"})
        await eventually(lambda: names(second.server) == {"t", "u"})


def slow(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a publish take its time, so that nodes do the same at the same moment."""
    publish = line.publish

    async def later(publication: Publication) -> Any:
        await asyncio.sleep(0.005)
        return await publish(publication)

    monkeypatch.setattr(line, "publish", later)


async def test_lost_revocations_are_restored_once(make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(make_bus, 3) as nodes:
        for number in range(20):
            await post(nodes.members[number % 3].server, "/tokens/revoke", {"jti": f"t{number}"})
        for member in nodes.members:
            slow(member.line, monkeypatch)
        await nodes.bus.lose_everything()

        line = nodes.members[0].line
        await stored(line, lambda events: len(events) == 20)
        await eventually(lambda: not restores_run())
        assert (await line.snapshot(REVOCATIONS, None, 0, 0)).state_version == 20, "not once a node"
        late = await nodes.join()
        await refused(late.server, token(jti="t7"))


async def test_failed_restore_is_retried(make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(make_bus, 1) as nodes:
        (member,) = nodes.members
        await post(member.server, "/tokens/revoke", {"jti": "t"})
        publish, failed = member.line.publish, asyncio.Event()

        async def fails(publication: Publication) -> Any:
            if publication.channel == REVOCATIONS:
                failed.set()
                raise away()
            return await publish(publication)

        monkeypatch.setattr(member.line, "publish", fails)
        await nodes.bus.lose_everything()
        await asyncio.wait_for(failed.wait(), DEADLINE)
        await eventually(lambda: not restores_run())
        monkeypatch.undo()
        member.server.service.node.cluster.revocations.maintain()
        await stored(member.line, lambda events: keys(events) == {"t"})
        assert (await member.line.snapshot(REVOCATIONS, None, 0, 0)).state_version == 1


async def test_wider_of_two_concurrent_revocations_stays(make_bus: Callable[[], Bus]) -> None:
    """Each node looks at what it knows before it publishes; when neither knows of the other, the later one may be narrower."""
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        now = time.time()
        second.line.cut()
        await post(first.server, "/users/ann/revoke", {"before": now})
        second.line.hear_again()
        await post(second.server, "/users/ann/revoke", {"before": now - 3600})
        await stored(first.line, lambda events: [decode_revocation(one.data).before for one in events] == [now])
        late = await nodes.join()
        for member in nodes.members:
            await refused(member.server, old())
        assert await late.server.metric("revocations") == 1


async def test_revocation_expires(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, auth={"revocation_ttl": 0.2}) as nodes:
        await post(nodes.members[0].server, "/users/ann/revoke", None)
        for member in nodes.members:
            revocations = member.server.service.node.cluster.revocations

            def forgotten(revocations: Any = revocations) -> bool:
                revocations.maintain()
                return not list(revocations.held("default"))

            await eventually(forgotten)
            assert await member.server.metric("revocations") == 0
            async with member.server.client(token_=old()) as ann:
                await ann.silence()


@pytest.mark.parametrize("read", [REVOKING_TENANTS, REVOCATIONS], ids=["tenants", "revocations"])
async def test_revocation_during_the_start_is_not_lost(read: ChannelKey, monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(SharedBroker, 1) as nodes:
        first = nodes.members[0].server
        if read == REVOCATIONS:  # else nobody would read it
            await post(first, "/tokens/revoke", {"jti": "t"})
        line = nodes.bus.line()
        snapshot, revoked = line.snapshot, asyncio.Event()

        async def meanwhile(channel: ChannelKey, *arguments: Any) -> Any:
            found = await snapshot(channel, *arguments)
            if channel == read and not revoked.is_set():
                revoked.set()
                await post(first, "/users/ann/revoke", None)
            return found

        monkeypatch.setattr(line, "snapshot", meanwhile)
        async with serving(broker=line) as server:
            await eventually(lambda: any(one.name == "ann" for one in held(server)))
            await refused(server, old())


async def test_failed_reading_of_a_tenant_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(SharedBroker) as nodes:
        first, second = nodes.members
        subscribe, tried = second.line.subscribe, asyncio.Event()

        async def fails_once(channel: ChannelKey) -> None:
            if channel == REVOCATIONS and not tried.is_set():
                tried.set()
                raise away()
            await subscribe(channel)

        monkeypatch.setattr(second.line, "subscribe", fails_once)
        await post(first.server, "/tokens/revoke", {"jti": "t"})
        await eventually(lambda: len(held(second.server)) == 1)
        assert tried.is_set()


async def test_lost_tenant_is_announced_again(make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a node that comes later would not look for its revocations."""
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        await post(first.server, "/tokens/revoke", {"jti": "t"})
        await eventually(lambda: len(held(second.server)) == 1)
        publish, down, failed = first.line.publish, True, asyncio.Event()

        async def fails(publication: Publication) -> Any:
            if publication.channel == REVOKING_TENANTS and down:
                failed.set()
                raise away()
            return await publish(publication)

        monkeypatch.setattr(first.line, "publish", fails)
        second.line.cut()  # the only one that could tell of it is the one that cannot
        await nodes.bus.lose_everything()
        await asyncio.wait_for(failed.wait(), DEADLINE)
        await eventually(lambda: not restores_run())
        down = False
        first.server.service.node.cluster.revocations.maintain()
        await stored(first.line, lambda events: keys(events) == {"default"}, REVOKING_TENANTS)
        await stored(first.line, lambda events: keys(events) == {"t"})
        second.line.mend()
        late = await nodes.join()
        await refused(late.server, token(jti="t"))


# --- tenants -------------------------------------------------------------------------------------------------------------


async def test_many_revocations_of_a_tenant_evict_no_other_tenants(make_bus: Callable[[], Bus]) -> None:
    """Not in the memory of the nodes that hear of it, nor in what a node reads that comes later."""
    async with cluster(make_bus, auth={"revocations": 3}) as nodes:
        first, second = nodes.members
        await post(first.server, "/tokens/revoke", {"jti": "kept"}, key=OTHER_API_KEY)
        for number in range(10):
            await post(nodes.members[number % 2].server, "/tokens/revoke", {"jti": f"t{number}"})
        kept = {"t7", "t8", "t9", "kept"}
        await eventually(lambda: names(first.server) == names(second.server) == kept, lambda: names(second.server))
        late = await nodes.join(auth={"revocations": 3})
        for member in nodes.members:
            assert names(member.server) == kept
            await refused(member.server, token(jti="kept", tenant="other"))
            await refused(member.server, token(jti="t9"))
            async with member.server.client(jti="t0") as again:
                await again.silence()
        for member in (first, second):
            assert await member.server.metric("limit_hits_total", limit="revocations") == 7
        assert await late.server.metric("limit_hits_total", limit="revocations") == 0


async def test_full_table_evicts_from_the_largest_tenant(make_bus: Callable[[], Bus]) -> None:
    auth = {"revocations": 4, "revocations_total": 5}
    async with cluster(make_bus, auth=auth) as nodes:
        first, second = nodes.members
        for number in range(4):
            await post(first.server, "/tokens/revoke", {"jti": f"t{number}"})
        for number in range(2):
            await post(second.server, "/tokens/revoke", {"jti": f"o{number}"}, key=OTHER_API_KEY)
        kept = {"t1", "t2", "t3", "o0", "o1"}
        await eventually(lambda: names(first.server) == names(second.server) == kept, lambda: names(first.server))
        await nodes.join(auth=auth)
        for member in nodes.members:
            assert names(member.server) == kept
            assert await member.server.metric("limit_hits_total", limit="revocations") == 1
            await refused(member.server, token(jti="o0", tenant="other"))


async def test_revocation_in_another_tenants_channel_is_ignored(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = nodes.members
        await post(first.server, "/tokens/revoke", {"jti": "t"})
        forged = Revocation(Target.TOKEN, "other", "u", time.time() + 60, 60.0)
        await first.line.publish(
            Publication(
                REVOCATIONS, "revocation.token", "f", Delivery.LATEST, encode(forged), None, 0, "u", Retention(10, 60)
            )
        )
        await post(first.server, "/tokens/revoke", {"jti": "v"})
        await eventually(lambda: "v" in names(second.server))
        assert names(second.server) == {"t", "v"}


async def test_unreadable_revocation_does_not_stop_the_restore() -> None:
    bus = SharedBroker()
    async with cluster(lambda: bus, 1) as nodes:
        (member,) = nodes.members
        await post(member.server, "/tokens/revoke", {"jti": "t"})
        bad = Publication(REVOCATIONS, "r", "b", Delivery.LATEST, b"no JSON", None, 0, "k", Retention(1, 60))
        await member.line.publish(bad)  # in place of the other
        await bus.fail_over()
        await stored(member.line, lambda events: "t" in keys(events))
        assert not [name for name in await member.server.metrics() if "task_deaths_total{" in name]


async def test_revocations_do_not_count_in_the_bound_on_channels() -> None:
    async with serving(broker_settings={"channels": 1}) as server, server.client() as ann:
        await ann.subscribe("room:1")
        for key in (API_KEY, OTHER_API_KEY):
            await post(server, "/tokens/revoke", {"jti": "t"}, key=key)
        assert (await ann.ask("subscribe", channel="room:2"))["code"] == "broker_unavailable"


# --- clocks --------------------------------------------------------------------------------------------------------------


HOUR = 3600.0
LASTS = {"revocation_ttl": 2 * HOUR}


async def test_node_whose_clock_was_ahead_keeps_revocations(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what the node knew when its clock jumped, nor what it heard until the clock was set right."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.1)
    clock = WrongClock()
    async with cluster(make_bus, 1, auth=LASTS) as nodes:
        first = nodes.members[0].server
        wrong = (await nodes.join(clock, auth=LASTS)).server
        await post(first, "/tokens/revoke", {"jti": "before"})
        await eventually(lambda: names(wrong) == {"before"})
        clock.ahead = 5 * HOUR
        await post(first, "/tokens/revoke", {"jti": "meanwhile"})
        await post(wrong, "/tokens/revoke", {"jti": "here"})
        await eventually(lambda: names(wrong) == names(first) == {"before", "meanwhile", "here"})
        wrong.service.node.cluster.revocations.maintain()
        clock.ahead = 0.0
        for server in (first, wrong):
            for name in ("before", "meanwhile", "here"):
                await refused(server, token(jti=name))
            async with server.client(jti="other") as spared:
                await spared.silence()


@pytest.mark.parametrize("ahead", [3 * HOUR, -5 * HOUR], ids=["ahead", "behind"])
async def test_node_with_a_wrong_clock_reads_revocations_at_its_start(
    make_bus: Callable[[], Bus], ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.1)  # with NATS it does not find the others in the state
    async with cluster(make_bus, 1, auth=LASTS) as nodes:
        await post(nodes.members[0].server, "/tokens/revoke", {"jti": "t"})
        clock = WrongClock(ahead)
        wrong = (await nodes.join(clock, auth=LASTS)).server
        wrong.service.node.cluster.revocations.maintain()
        clock.ahead = 0.0
        await refused(wrong, token(jti="t"))


@pytest.mark.parametrize("store", ["memory", "redis"])
async def test_revocations_survive_any_skew_where_the_store_has_a_clock(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.1)
    async with cluster(BUSES[store], 1, auth=LASTS) as nodes:
        await post(nodes.members[0].server, "/tokens/revoke", {"jti": "t"})
        clock = WrongClock(1000 * HOUR)
        wrong = (await nodes.join(clock, auth=LASTS)).server
        wrong.service.node.cluster.revocations.maintain()
        clock.ahead = 0.0
        await refused(wrong, token(jti="t"))


async def test_revocation_by_a_node_whose_clock_is_behind_stays_on_the_others(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their clocks its time is over when it comes."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.1)
    async with cluster(make_bus, 1, auth=LASTS) as nodes:
        first = nodes.members[0].server
        slow = (await nodes.join(WrongClock(-2.5 * HOUR), auth=LASTS)).server
        answer = await post(slow, "/tokens/revoke", {"jti": "t"})
        assert answer["until"] < time.time()
        await eventually(lambda: names(first) == {"t"})
        late = (await nodes.join(auth=LASTS)).server
        for server in (first, late):
            server.service.node.cluster.revocations.maintain()
            await refused(server, token(jti="t"))


async def test_node_whose_clock_is_ahead_restores_lost_revocations(
    make_bus: Callable[[], Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.1)
    async with cluster(make_bus, 0) as nodes:
        clock = WrongClock()
        wrong = await nodes.join(clock, auth=LASTS)
        await post(wrong.server, "/tokens/revoke", {"jti": "t"})
        clock.ahead = 3 * HOUR
        wrong.server.service.node.cluster.revocations.maintain()
        await nodes.bus.lose_everything()
        await stored(wrong.line, lambda events: keys(events) == {"t"})
        late = (await nodes.join(auth=LASTS)).server
        await eventually(lambda: names(late) == {"t"})
        await refused(late, token(jti="t"))


# --- what the parts must agree on -----------------------------------------------------------------------------------------


def test_retention_outlives_the_longest_revocation() -> None:
    retention = RevocationRetention(max_per_tenant=7, max_life=100.0)
    assert retention.revocations == Retention(7, 200.0)
    assert retention.tenants.ttl >= retention.announce_interval + retention.revocations.ttl
