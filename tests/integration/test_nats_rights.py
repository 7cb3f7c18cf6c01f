"""The rights that docs/guarantees.md names are all that the service needs at NATS."""

from __future__ import annotations

import pytest

from service.adapters.nats.records import SEGMENT_SIZE
from tests.stores import NatsServer
from tests.support.rights import rule, use_everything

pytestmark = pytest.mark.slow

RULE = f"publish: {rule('publish: ')}"


async def test_service_works_with_the_documented_nats_rights() -> None:
    rules = f'authorization {{ users: [{{ user: "tidewire", password: "secret", permissions: {{ {RULE} }} }}] }}'
    async with NatsServer(config=rules) as nats:
        broker = {"url": nats.url, "user": "tidewire", "password": "secret"}
        await use_everything(broker, more=2 * SEGMENT_SIZE)  # so many that the stream is trimmed
        assert "Violation" not in nats.log
