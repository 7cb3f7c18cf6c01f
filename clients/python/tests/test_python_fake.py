"""The service in memory, as tests of applications use it; and that it answers as the real one does."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.harness import API_KEY, DEADLINE, Running, token

from tidewire import (
    AsyncTidewire,
    ConflictError,
    EventsMissedError,
    ForbiddenError,
    InvalidRequestError,
    NewEvent,
    NotFoundError,
    RateLimitedError,
    RetryPolicy,
    TidewireError,
)
from tidewire.testing import FakeTidewire

HI = {"text": "hi"}
QUICK = RetryPolicy(5, base=0.01)


def fake() -> FakeTidewire:
    return FakeTidewire(latest={"chat.pinned": "slot", "doc.cursor": "user"}, ephemeral={"chat.typing"})


def test_fake_records_what_an_application_publishes() -> None:
    service = fake()
    with service.client() as client:
        client.publish("room:1", "chat.message", HI, sender="ann", id="m-1")
        assert client.publish("room:1", "chat.message", HI, sender="ann", id="m-1").duplicate
        client.publish_many([NewEvent("room:2", "chat.typing", {}), NewEvent("room:1", "chat.message", HI)])
    assert [(event.channel, event.type, event.offset) for event in service.events()] == [
        ("room:1", "chat.message", 1), ("room:2", "chat.typing", None), ("room:1", "chat.message", 2),
    ]  # fmt: skip
    assert [event.sender for event in service.events("room:1", "chat.message")] == ["ann", None]
    assert (service.requests[0].method, service.requests[0].body["id"]) == ("POST", "m-1")


def test_fake_refuses_delays_and_loses_replies_and_the_client_copes() -> None:
    service = fake()
    with service.client(retries=QUICK) as client:
        service.refuse("rate_limited", times=2, retry_after=0.01)
        service.lose_replies(2)
        assert client.publish("room:1", "chat.message", HI).duplicate
        assert len(service.events()) == 1
        service.delay(0.05)
        started = time.monotonic()
        client.channels()
        assert time.monotonic() - started >= 0.05
        service.refuse("forbidden")
        with pytest.raises(ForbiddenError):
            client.publish("room:1", "chat.message", HI)
        service.refuse("rate_limited", retry_after=1000.0)
        with pytest.raises(RateLimitedError):
            client.publish("room:1", "chat.message", HI)
    with pytest.raises(ValueError, match="no error code"):
        service.refuse("nonsense")
    assert len(service.events()) == 1


async def test_fake_delivers_to_channels_and_they_resume_after_a_cut() -> None:
    service = fake()
    async with service.async_client() as client:
        client._random = lambda: 0.0
        channel = client.channel("room:1")
        await channel.ready()
        service.publish("room:1", "chat.message", 1, sender="ben")
        assert (await channel.next(DEADLINE)).sender == "ben"
        service.cut(refused_connections=2)
        service.publish("room:1", "chat.message", 2)
        service.publish("room:1", "chat.message", 3)
        assert [(await channel.next(DEADLINE)).data for _ in range(2)] == [2, 3]
        service.lose_replies()
        assert (await channel.publish("chat.message", 4)).offset == 4
        assert (await channel.next(DEADLINE)).data == 4
        service.restart()
        with pytest.raises(EventsMissedError):
            await channel.next(DEADLINE)
        await client.publish("room:1", "chat.message", 5)
        assert (await channel.next(DEADLINE)).data == 5
        assert service.subscribers == {"room:1": 1}
    assert service.subscribers == {}


def test_fake_serves_channels_of_threads() -> None:
    service = fake()
    with service.client() as client, ThreadPoolExecutor(2) as pool:
        channel = client.channel("room:1", tail=2)
        channel.ready()
        taken = pool.submit(lambda: [channel.next(DEADLINE).data for _ in range(20)])
        list(pool.map(lambda n: service.publish("room:1", "chat.message", n), range(20)))
        assert sorted(taken.result(DEADLINE)) == list(range(20))


async def _story(client: AsyncTidewire) -> list[Any]:
    """What a client sees of a service."""

    async def refused(call: Any) -> str:
        with pytest.raises(TidewireError) as error:
            await call
        return f"{type(error.value).__name__} {error.value.code} {error.value.details.get('rev')}"

    seen: list[Any] = []
    room, doc = client.channel("room:1"), client.channel("doc:1")
    await room.ready()
    await doc.ready()
    first = await client.publish("room:1", "chat.message", HI, id="m-1", sender="ann")
    seen += [first.offset, (await client.publish("room:1", "chat.message", HI, id="m-1", sender="ann")).duplicate]
    seen.append(len((await client.publish_many([NewEvent("room:1", "chat.message", HI, id="m-2")])).published))
    await client.publish("room:1", "chat.typing", {})
    seen += [(await room.next(DEADLINE)).id for _ in range(2)]
    value = await client.publish("doc:1", "doc.cursor", {"user": "ann"}, if_rev=0)
    seen.append(await refused(client.publish("doc:1", "doc.cursor", {"user": "ann"}, if_rev=0)))
    seen += [value.rev, (await client.remove_value("doc:1", "doc.cursor", "ann", if_rev=value.rev)).rev]
    seen += [(one.key, one.removed) for one in [await doc.next(DEADLINE), await doc.next(DEADLINE)]]
    page = await client.history("room:1", before=2)
    seen += [[event.id for event in page.events], page.more, page.offset, (await room.history(after=1)).events[0].id]
    seen += [(await client.state("doc:1")).state, (await client.remove_event("room:1", "m-1")).offset]
    seen += [
        (await client.history("room:1", after=0)).events[0].type,
        await refused(client.remove_event("room:1", "x")),
    ]
    seen.append(await client.presence_counts(["room:1", "room:9"]))
    seen.append([one.channel for one in (await client.channels("room:")).channels])
    await room.close()
    await client.purge("room:1")
    seen.append((await client.history("room:1")).events)
    return seen


async def test_fake_answers_as_the_real_service_does(server: Running) -> None:
    def user_token() -> str:
        return token("fake", grants=["room:*"])

    async with AsyncTidewire(server.url, api_key=API_KEY, token=user_token) as real, fake().async_client() as faked:
        assert await _story(faked) == await _story(real)


def test_fake_says_what_it_cannot_do() -> None:
    with fake().client() as client:
        with pytest.raises(NotFoundError, match="the fake does not know"):
            client.asyncapi()
        with pytest.raises(InvalidRequestError, match="slot"):
            client.publish("room:1", "chat.pinned", {})
        with pytest.raises(NotFoundError, match="has a dot"):
            client.publish("room:1", "chat", {})
        with pytest.raises(ConflictError):
            client.publish("room:1", "chat.pinned", {"slot": "a"}, if_rev=7)
        assert client.ticket().expires_in
        assert client.disconnect_user("ann").complete
        assert client.subscribe_user("ann", "room:1").complete
        assert client.revoke_user("ann").until
        assert client.revoke_token("j").until
        assert client.erase_user("ann").removed == 0
        assert client.presence("room:1").count == 0
        assert client.channel_info("room:1").offset == 0
    assert asyncio.iscoroutinefunction(AsyncTidewire.publish)
