"""Errors of Redis are explained correctly, by the broker and the other stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

import pytest

from service.adapters.redis.address import parse_redis_url
from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.errors import explain_reply
from service.adapters.redis.stores.client import RedisClient
from service.adapters.redis.stores.tickets import RedisTickets
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics
from tests.contract.broker_suite import RecordingSink
from tests.contract.redis_stage import client_of, new_prefix
from tests.stores import FLAVOURS, Flavour, RedisServer, Sentinels
from tests.support.rights import rule

RULE = " ".join(rule("ACL SETUSER tidewire reset on >PASSWORD ").split())


def an_event(id: str) -> Publication:
    return Publication(
        channel=ChannelKey("acme", "room:1"),
        type="note",
        id=id,
        delivery=Delivery.DURABLE,
        data=b"{}",
        sender=None,
        at=0,
        retention=Retention(10, 60.0),
    )


async def refusal(call: Callable[[], Awaitable[object]]) -> ServiceError:
    """Returns the message of one of the next calls: Redis may accept the first before it tries to write."""
    for _ in range(3):
        try:
            await call()
        except ServiceError as error:
            return error
    raise AssertionError("nothing was refused")


class FullDisk(RedisServer):
    """A server whose append-only file can be opened but not written."""

    def _prepare(self) -> None:
        super()._prepare()
        folder = self.folder / "appendonlydir"
        folder.mkdir(exist_ok=True)
        (folder / "appendonly.aof.1.incr.aof").symlink_to("/dev/full")


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_append_only_file_on_full_disk_is_named_in_error(flavour: Flavour) -> None:
    async with FullDisk(flavour, persistence="everysec") as server:
        config = RedisConfig(parse_redis_url(server.url), prefix="tidewire")
        broker, client = RedisBroker(config, Metrics()), RedisClient(config)
        await broker.start(RecordingSink())
        try:
            numbers = count()
            for call in (
                lambda: broker.publish(an_event(f"m-{next(numbers)}")),
                lambda: RedisTickets(client).issue("token", 5.0),
            ):
                error = await refusal(call)
                assert error.code is ErrorCode.BROKER_UNAVAILABLE
                assert "append-only file: No space left on device" in error.message
                assert "snapshot" not in error.message
        finally:
            await broker.close()
            await client.close()


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_user_without_password_logs_in(flavour: Flavour) -> None:
    rules = {"tidewire": f"on nopass {RULE}"}
    async with RedisServer(flavour, password="for-nobody-else", users=rules) as server:
        config = RedisConfig(
            parse_redis_url(server.url), prefix="tidewire", user="tidewire", call_timeout=2.0, start_timeout=2.0
        )
        broker = RedisBroker(config, Metrics())
        await broker.start(RecordingSink())
        async with client_of(server.url, "tidewire", user="tidewire") as client:
            try:
                await broker.publish(an_event("m-1"))
                await broker.subscribe(ChannelKey("acme", "room:1"))
                await RedisTickets(client).issue("token", 5.0)
                users = [
                    line.partition(" user=")[2].partition(" ")[0]
                    for line in str(await server.command("CLIENT", "LIST")).splitlines()
                ]
            finally:
                await broker.close()
        assert sorted(user for user in users if user != "tests") == ["tidewire"] * 3


async def test_redis_empty_user_and_password_send_no_auth() -> None:
    async with RedisServer() as server:
        config = RedisConfig(parse_redis_url(server.url), prefix=new_prefix(), user="", password="")
        assert config.login is None
        broker = RedisBroker(config, Metrics())
        await broker.start(RecordingSink())
        await broker.close()


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist", "its snapshot"),
        ("MISCONF Valkey is configured to save RDB snapshots, but it's unable to persist to disk", "its snapshot"),
        ("MISCONF Errors writing to the AOF file: No space left on device", "file: No space left on device"),
        ("MISCONF Errors writing to the AOF file: Read-only file system script: ab12, on @user_script:1.", "system"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "maxmemory"),
        ("READONLY You can't write against a read only replica.", "replica"),
        ("NOAUTH Authentication required.", "broker.password"),
        ("NOPERM User x has no permissions to run the 'get' command", "ACL rules"),
        ("ERR The user executing the script can't run this command or subcommand script: 1", "ACL rules"),
    ],
)
def test_redis_error_reply_is_explained_by_its_code(said: str, found: str) -> None:
    reason = explain_reply(said)
    assert reason is not None
    assert found in reason
    assert "script:" not in reason


async def test_redis_sentinel_user_without_password_logs_in() -> None:
    async with Sentinels(sentinel_password="for-nobody-else", replicas=1) as sentinels:
        for sentinel in sentinels.sentinels:
            await sentinel.command("ACL", "SETUSER", "asker", "on", "nopass", "~*", "&*", "+@all")
        config = RedisConfig(
            parse_redis_url(sentinels.url), prefix=new_prefix(), sentinel_user="asker", start_timeout=5.0
        )
        broker, client = RedisBroker(config, Metrics()), RedisClient(config)
        await broker.start(RecordingSink())
        try:
            await broker.publish(an_event("m-1"))
            await client.check()
        finally:
            await broker.close()
            await client.close()
