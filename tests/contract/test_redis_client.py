"""The client of the stores beside the broker: every topology, and calls while Redis fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.adapters.redis.address import parse_redis_url
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.lua.scripts import Script
from service.adapters.redis.stores.client import MAX_BATCH, MAX_CONNECTIONS, Call, RedisClient
from service.adapters.redis.stores.presence import RedisPresence
from service.adapters.redis.stores.quota import RedisQuota
from service.adapters.redis.stores.tickets import RedisTickets
from service.core.channel import ChannelKey
from service.core.presence import PresenceEntry
from service.core.quota import QuotaClaim, QuotaScope
from service.errors import ErrorCode, ServiceError
from tests.contract.presence_suite import Node, entrance, farewell
from tests.contract.redis_stage import client_of, new_prefix
from tests.stores import FLAVOURS, Certificates, Cluster, Flavour, RedisServer, Sentinels, shared_redis

pytestmark = pytest.mark.slow

SECRET = "canary-password"
QUICK = 1.0


def script(text: str) -> Script:
    return Script(text, hashlib.sha1(text.encode()).hexdigest())


ECHO = script("return {KEYS[1], ARGV[1]}")


async def refusal(client: RedisClient) -> ServiceError:
    """Returns the message of a call that fails."""
    with pytest.raises(ServiceError) as refused:
        await client.run(ECHO, ["k"], ["x"])
    assert refused.value.code is ErrorCode.BROKER_UNAVAILABLE
    assert refused.value.retryable
    return refused.value


async def uses_everything(client: RedisClient) -> None:
    """Uses every store once, in more channels than a shard has."""
    rooms = [ChannelKey("acme", f"room:{number}") for number in range(2 * MAX_BATCH)]
    node = Node(RedisPresence(client, ttl=30, max_announced_users=10))
    changes = await node.store.join_all([entrance(room, "ann", "c-1") for room in rooms])
    assert [tuple(change) for change in changes] == [(True, 1, True)] * len(rooms)
    assert list(await node.store.renew([PresenceEntry(room, "ann", "c-1") for room in rooms])) == []
    assert list(await node.store.remove_expired(rooms, farewell)) == []
    assert await node.leave(rooms[0], "ann", "c-1") == (True, 0, True)
    assert await node.store.members(rooms[0], 1) == (0, [])

    tickets = RedisTickets(client)
    ticket = await tickets.issue("token", 30)
    assert [await tickets.redeem(ticket), await tickets.redeem(ticket)] == ["token", None]

    holders = [QuotaScope("acme"), *(QuotaScope("acme", f"u-{number}") for number in range(50))]
    assert list(await RedisQuota(client).claim([QuotaClaim(holder, 1) for holder in holders])) == [1] * 51
    assert list(await RedisQuota(client).claim([QuotaClaim(holder, 1) for holder in holders])) == [2] * 51


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_client_in_cluster_works(flavour: Flavour) -> None:
    async with Cluster(flavour) as cluster, client_of(cluster.url, new_prefix()) as client:
        assert client.publish_command == "SPUBLISH"
        await uses_everything(client)


async def test_redis_client_follows_failover_of_shard() -> None:
    async with Cluster() as cluster, client_of(cluster.url, new_prefix(), call_timeout=2.0) as client:
        node, room = Node(RedisPresence(client, ttl=30, max_announced_users=10)), ChannelKey("acme", "room:1")
        await node.join(room, "ann", "c-1")
        await cluster.failover(client.keys.of_channel(room, "presence-users"))
        async with asyncio.timeout(20):
            while True:
                try:
                    await node.join(room, "ben", "c-2")
                except ServiceError:
                    continue
                break
        assert await node.store.count(room) >= 1


async def test_redis_client_follows_failover_by_sentinels() -> None:
    async with Sentinels() as sentinels, client_of(sentinels.url, new_prefix(), call_timeout=2.0) as client:
        await uses_everything(client)
        await sentinels.failover()
        async with asyncio.timeout(20):
            while True:
                try:
                    await RedisQuota(client).claim([QuotaClaim(QuotaScope("acme"), 1, None)])
                except ServiceError:
                    continue
                break


async def test_redis_client_with_client_certificate_connects(tmp_path_factory: pytest.TempPathFactory) -> None:
    certificates = Certificates(tmp_path_factory.mktemp("certificates"))
    async with RedisServer(tls=certificates, client_certificates=True) as server:
        files = {
            "ca": certificates.ca,
            "certificate": certificates.client_certificate,
            "private_key": certificates.client_key,
        }
        async with client_of(server.url, new_prefix(), **files) as client:
            await uses_everything(client)
        async with client_of(server.url, new_prefix(), ca=certificates.ca, call_timeout=QUICK * 3) as client:
            await refusal(client)
        async with client_of(server.url, new_prefix(), call_timeout=QUICK * 3) as client:
            assert "reached" in (await refusal(client)).message


async def test_redis_client_refused_user_is_named_in_error() -> None:
    prefix = new_prefix()
    rule = f"on >{SECRET} ~{prefix}:* &{prefix}:* -@all +@connection +@read +@write +@scripting +@pubsub +time"
    async with RedisServer(password="for-nobody-else", users={"app": rule}) as server:
        async with client_of(server.url, prefix, user="app", password=SECRET) as client:
            await uses_everything(client)
            with pytest.raises(ServiceError) as refused:
                await client.command("SET", "elsewhere", "x")
            assert refused.value.code is ErrorCode.BROKER_UNAVAILABLE
            assert "refused" in refused.value.message
        async with client_of(server.url, prefix, user="app", password=f"{SECRET}-not") as client:
            assert SECRET not in str(await refusal(client))


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_client_reloads_flushed_scripts(flavour: Flavour) -> None:
    async with RedisServer(flavour) as server, client_of(server.url, new_prefix()) as client:
        for _ in range(2):
            assert await client.run(ECHO, ["k"], ["x"]) == [b"k", b"x"]
            await server.command("SCRIPT", "FLUSH")
        calls = [Call([f"k{number}"], [number]) for number in range(3 * MAX_BATCH + 1)]
        expected = [[b"k%d" % number, b"%d" % number] for number in range(len(calls))]
        assert await client.run_all(ECHO, calls) == expected
        await server.command("SCRIPT", "FLUSH")
        assert await client.run_all(ECHO, calls) == expected


async def test_redis_client_failed_call_in_batch_raises_without_quoting() -> None:
    words = Call(["k"], ["canary-payload"])
    async with client_of((await shared_redis()).url, new_prefix()) as client:
        faulty = script("return redis.error_reply('ERR ' .. ARGV[1])")
        for call in (client.run_all(faulty, [words]), client.run(faulty, *words)):
            with pytest.raises(ServiceError) as refused:
                await call
            assert "canary" not in str(refused.value)


async def test_redis_client_stalled_server_fails_calls_in_time() -> None:
    async with RedisServer() as server, client_of(server.url, new_prefix(), call_timeout=QUICK * 2) as client:
        await client.check()
        server.stop_()
        try:
            began = asyncio.get_running_loop().time()
            errors = await asyncio.gather(*(refusal(client) for _ in range(3 * MAX_CONNECTIONS)))
            assert asyncio.get_running_loop().time() - began < QUICK * 5, "they did not wait in turns"
            assert "answer" in errors[0].message
        finally:
            server.cont()
        await answers(client)
        found = await asyncio.gather(*(client.run(ECHO, [f"k{n}"], [n]) for n in range(3 * MAX_CONNECTIONS)))
        assert found == [[b"k%d" % n, b"%d" % n] for n in range(3 * MAX_CONNECTIONS)]


async def test_redis_client_cancelled_calls_keep_replies_apart() -> None:
    async with client_of((await shared_redis()).url, new_prefix()) as client:
        for turns in range(8):
            calls = [asyncio.create_task(client.run(ECHO, ["k"], [f"old {n}"])) for n in range(MAX_CONNECTIONS)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            found = await asyncio.gather(*(client.run(ECHO, ["k"], [n]) for n in range(MAX_CONNECTIONS)))
            assert found == [[b"k", b"%d" % n] for n in range(MAX_CONNECTIONS)]


async def test_redis_client_recovers_after_restart() -> None:
    async with RedisServer() as server, client_of(server.url, new_prefix(), call_timeout=QUICK * 3) as client:
        await asyncio.gather(*(client.check() for _ in range(MAX_CONNECTIONS)))
        await server.restart()
        await uses_everything(client)
        server.kill()
        assert "reached" in (await refusal(client)).message
        await server.restart()
        await answers(client)
        await uses_everything(client)


async def answers(client: RedisClient) -> None:
    """Waits until calls succeed."""
    async with asyncio.timeout(30):
        while True:
            try:
                await client.check()
            except ServiceError:
                continue
            return


@asynccontextmanager
async def unreachable() -> AsyncIterator[RedisClient]:
    async with RedisServer() as server:
        url = server.url
    client = RedisClient(RedisConfig(parse_redis_url(url), user="app", password=SECRET, call_timeout=QUICK))
    try:
        yield client
    finally:
        await client.close()


async def test_redis_client_without_server_fails_in_time() -> None:
    async with unreachable() as client:
        error = await refusal(client)
        assert SECRET not in str(error)
        assert "reached" in error.message
