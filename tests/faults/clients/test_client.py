"""A smoke test of the suite's client: it follows the rule of docs/protocol.md and hides no fault from the oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from tests.faults.books import CrowdBooks, Told
from tests.faults.clients.client import Client
from tests.faults.clients.follow import Follow
from tests.faults.clients.transports import Since, WebSocketTransport

HALL = "hall:1"


class Recording(WebSocketTransport):
    """A connection that goes nowhere and remembers what was asked for."""

    def __init__(self, client: Client) -> None:
        super().__init__("", client)
        self.asked: list[tuple[Since, bool]] = []

    def subscribe(self, channel: str, since: Since, *, leaves: bool) -> str | None:
        self.asked.append((since, leaves))
        return f"s{len(self.asked)}"


class Table:
    """A client, joined, and what the service says to it."""

    def __init__(self) -> None:
        self.books = CrowdBooks()
        self.client = Client(1, "red", [HALL], [1], 0, self.books, Random(1), lambda client, pause: None)
        self.client.transport = self.transport = Recording(self.client)
        self.follow: Follow = self.client.follows[HALL]
        self.subscribed(epoch="one", offset=10, last="e-10")

    def says(self, *messages: Mapping[str, Any]) -> None:
        """One frame."""
        self.client.received(json.dumps(messages[0] if len(messages) == 1 else messages).encode())

    def subscribed(self, **fields: Any) -> None:
        """The answer to the subscribe under way."""
        self.says(
            {"type": "subscribed", "channel": HALL, "id": self.follow.request, "events": [], "state": [], **fields}
        )

    @property
    def applied(self) -> list[int]:
        """Offsets, of all stretches."""
        return [offset for stretch in self.follow.diary.stretches for offset in stretch.offsets]

    @property
    def told(self) -> list[Told]:
        """What began the stretches."""
        return [stretch.told for stretch in self.follow.diary.stretches]


def event(offset: int, tenant: str = "red") -> dict[str, Any]:
    data = {"t": tenant, "c": HALL, "line": offset, "at": 0.0}
    return {
        "type": "talk.line",
        "channel": HALL,
        "id": f"e-{offset}",
        "at": 1,
        "from": None,
        "offset": offset,
        "data": data,
    }


@pytest.fixture
async def table() -> Table:
    return Table()


async def test_repeated_event_is_dropped_and_counted(table: Table) -> None:
    table.says(event(11), event(11), event(9))
    assert table.applied == [11]
    assert table.books.repeats == 2


async def test_gap_makes_client_resubscribe_from_its_position(table: Table) -> None:
    table.says(event(11), event(13), event(14))
    assert table.applied == [11]
    assert table.books.gaps == 1
    assert table.transport.asked == [({"epoch": "one", "offset": 11, "id": "e-11"}, True)]
    table.subscribed(epoch="one", offset=14, last="e-14", recovered=True, events=[event(12), event(13), event(14)])
    assert table.applied == [11, 12, 13, 14]
    assert table.told == [Told.FRESH]


async def test_payload_of_another_tenant_is_counted(table: Table) -> None:
    table.says(event(11, tenant="blue"))
    assert table.follow.diary.foreign == 1
