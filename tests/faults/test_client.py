"""The suite's client follows the rule of docs/protocol.md, and hides nothing from the oracle that the service got wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from tests.faults.books import CrowdBooks, Told
from tests.faults.client import Client, Follow
from tests.wire import Wire

HALL = "hall:1"


class Recording(Wire):
    """A connection that goes nowhere and remembers what was sent."""

    def __init__(self) -> None:
        super().__init__(b"", lambda frame: None)
        self.sent: list[Mapping[str, Any]] = []

    def send(self, *messages: Mapping[str, Any]) -> None:
        self.sent += messages


class Table:
    """A client, joined, and what the service says to it."""

    def __init__(self) -> None:
        self.books = CrowdBooks()
        self.client = Client(1, "red", [HALL], [1], 0, self.books, Random(1), lambda client, pause: None)
        self.wire = Recording()
        self.client.wire = self.wire
        self.follow: Follow = self.client.follows[HALL]
        self.client._subscribe(self.follow)
        self.subscribed(epoch="one", offset=10, last="e-10")

    def says(self, *messages: Mapping[str, Any]) -> None:
        """One frame."""
        self.client._text(json.dumps(messages[0] if len(messages) == 1 else messages).encode())

    def subscribed(self, **fields: Any) -> None:
        """The answer to the subscribe under way."""
        self.says(
            {"type": "subscribed", "channel": HALL, "id": self.follow.request, "events": [], "state": [], **fields}
        )

    @property
    def position(self) -> tuple[str, int, str | None]:
        """Where the client believes to be."""
        return self.follow.epoch, self.follow.offset, self.follow.last

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


async def test_the_next_event_is_applied_and_moves_the_position(table: Table) -> None:
    table.says(event(11), event(12))
    assert table.applied == [11, 12]
    assert table.position == ("one", 12, "e-12")


async def test_what_was_applied_before_is_dropped_and_counted(table: Table) -> None:
    table.says(event(11), event(11), event(9))
    assert table.applied == [11]
    assert table.books.repeats == 2


async def test_a_jump_makes_it_subscribe_again_from_its_position(table: Table) -> None:
    table.says(event(11), event(13), event(14))
    assert table.applied == [11]
    assert table.books.gaps == 1
    leaves, again = table.wire.sent[-2:]
    assert leaves["type"] == "unsubscribe"
    assert again["since"] == {"epoch": "one", "offset": 11, "id": "e-11"}
    table.subscribed(epoch="one", offset=14, last="e-14", recovered=True, events=[event(12), event(13), event(14)])
    assert table.applied == [11, 12, 13, 14]
    assert table.told == [Told.FRESH]


async def test_of_what_is_replayed_only_the_new_is_applied(table: Table) -> None:
    table.says(event(11), event(13))
    table.subscribed(epoch="one", offset=12, last="e-12", recovered=True, events=[event(11), event(12)])
    assert table.applied == [11, 12]


async def test_a_loss_that_is_told_begins_a_new_stretch(table: Table) -> None:
    table.says({"type": "subscribed", "channel": HALL, "id": None, "epoch": "two", "offset": 3, "recovered": False})
    table.says(event(4))
    assert table.told == [Told.FRESH, Told.LOST]
    assert table.follow.diary.stretches[1].base == 3
    assert table.position == ("two", 4, "e-4")
    assert table.books.pushed == 1


async def test_another_epoch_without_a_word_of_loss_is_written_down_as_such(table: Table) -> None:
    table.says({"type": "subscribed", "channel": HALL, "id": None, "epoch": "two", "offset": 3, "recovered": True})
    assert table.told == [Told.FRESH, Told.KEPT]


async def test_a_position_beyond_what_was_replayed_shows_in_the_diary(table: Table) -> None:
    table.says(event(12))
    table.subscribed(epoch="one", offset=15, last="e-15", recovered=True, events=[event(11), event(12)])
    (stretch,) = table.follow.diary.stretches
    assert (stretch.offsets, stretch.top) == ([11, 12], 15)


async def test_an_answer_to_an_older_request_is_none(table: Table) -> None:
    table.says(event(12))
    table.says({"type": "subscribed", "channel": HALL, "id": "s1", "epoch": "one", "offset": 12, "recovered": True})
    assert table.position == ("one", 10, "e-10")


async def test_another_tenants_payload_is_counted(table: Table) -> None:
    table.says(event(11, tenant="blue"))
    assert table.follow.diary.foreign == 1
