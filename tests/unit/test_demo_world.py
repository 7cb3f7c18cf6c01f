"""The demo's made-up world: everything it publishes passes the demo's own contract, for as long as it runs."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from demo.simulations.world import ACTIVE, BY_HAND, KEPT_CLOSED, World
from service.assets import demo_folder
from service.contract.gate import Gate
from service.contract.load import load
from service.core.identity import backend


class Stage:
    """Publisher and listener in one: checks what is published, and gives it back to the world as the service would."""

    def __init__(self) -> None:
        self.gate = Gate(load(demo_folder() / "contract.yaml"))
        self.published: list[tuple[str, str, dict[str, Any], str | None]] = []
        self.rooms: set[str] = set()

    def publish(self, channel: str, kind: str, data: dict[str, Any], sender: str | None = None) -> None:
        self.gate.validate(
            backend("default"),
            channel=channel,
            type=kind,
            data=msgspec.json.encode(data),
            id="x",
            key=None,
            sender=sender,
            at=0,
        )
        self.published.append((channel, kind, data, sender))

    async def join(self, room: str) -> None:
        self.rooms.add(room)

    async def leave(self, room: str) -> None:
        self.rooms.discard(room)

    def queue(self) -> dict[str, dict[str, Any]]:
        """The newest facts of every chat."""
        return {data["chat"]: data for _, kind, data, _ in self.published if kind == "queue.chat"}


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def run(world: World, seconds: int, start: int = 0) -> None:
    for second in range(start, start + seconds):
        await world.tick(float(second))


async def test_hour_of_the_demo_is_bounded_and_valid(stage: Stage) -> None:
    world = World(random.Random(1), stage, stage)
    await world.begin(0.0)
    await run(world, 3600)
    kinds = {kind for _, kind, _, _ in stage.published}
    assert kinds == {"chat.message", "chat.typing", "chat.status", "queue.chat", "board.metric"}
    assert len(world.chats) <= ACTIVE + KEPT_CLOSED + 2
    assert stage.rooms == {chat.room for chat in world.chats.values()}
    assert any(facts["status"] == "gone" for facts in stage.queue().values())


async def test_agent_that_writes_gets_a_reply(stage: Stage) -> None:
    world = World(random.Random(2), stage, stage)
    await world.begin(0.0)
    chat = next(chat for chat in world.chats.values() if chat.status == "waiting" and chat.played)
    said = len(stage.published)
    world.hear({"channel": chat.room, "from": "agent-1", "type": "chat.status", "data": {"status": "claimed"}}, 1.0)
    world.hear({"channel": chat.room, "from": "agent-1", "type": "chat.message", "data": {"text": "Hello"}}, 2.0)
    assert stage.queue()[chat.id]["agent"] == "agent-1"
    await run(world, 30, start=3)
    answers = [
        data["text"]
        for channel, kind, data, sender in stage.published[said:]
        if (channel, kind, sender) == (chat.room, "chat.message", chat.customer_id)
    ]
    assert answers


async def test_manual_publish_shows_in_the_queue(stage: Stage) -> None:
    world = World(random.Random(3), stage, stage)
    await world.begin(0.0)
    world.hear({"channel": "room:1", "from": None, "type": "chat.message", "data": {"text": "from a shell"}}, 1.0)
    facts = stage.queue()[BY_HAND]
    assert (facts["preview"], facts["messages"], facts["status"]) == ("from a shell", 1, "waiting")
    await run(world, 1200)
    assert world.chats[BY_HAND].status == "waiting", "nobody plays this chat"
