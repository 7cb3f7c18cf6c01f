"""The rights that docs/guarantees.md names are all that the service needs at Redis."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.adapters import redis as redis_adapters
from tests.stores import FLAVOURS, Flavour, RedisServer
from tests.support.rights import rule, use_everything

pytestmark = pytest.mark.slow

RULE = rule("ACL SETUSER tidewire reset on >PASSWORD ")


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_service_works_with_the_documented_redis_user(flavour: Flavour) -> None:
    rules = f"on >secret {' '.join(RULE.split())}"
    async with RedisServer(flavour, password="for-nobody-else", users={"tidewire": rules}) as redis:
        await use_everything({"url": redis.url, "user": "tidewire", "password": "secret"})
        assert "tidewire" not in str(await redis.command("ACL", "LOG"))


def test_documented_redis_rights_cover_every_script_command() -> None:
    folder = Path(redis_adapters.__file__).parent
    used = {
        word.lower()
        for file in folder.rglob("*.lua")
        for word in re.findall(r"redis\.p?call\('(\w+)'", file.read_text())
    }
    allowed = {right.removeprefix("+").partition("|")[0] for right in RULE.split() if right.startswith("+")}
    assert len(used) > 15
    assert used <= allowed, used - allowed
