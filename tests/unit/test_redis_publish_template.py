"""Publications packed by hand are what the parser of Redis takes for the call that publish.lua documents."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.redis import event_codec, publish_template
from service.adapters.redis.config import namer
from service.adapters.redis.connections.link import Link
from service.adapters.redis.lua.scripts import PUBLISH
from service.adapters.redis.publish_template import PublishTemplates
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention

KEEP = Retention(10, 60.0)
names = namer("tw", 0)


def forms() -> PublishTemplates:
    return PublishTemplates(names, seed="5eed", position_ttl=7000, idempotency_window=3.0, publish="PUBLISH")


class Server(Link):
    """A link that leads nowhere, to a server in some life."""

    def __init__(self, generation: str) -> None:
        self.generation = generation


def told(made: PublishTemplates, publication: Publication, generation: str = "g1") -> list[bytes]:
    """The arguments that the server gets."""
    reader = hiredis.Reader(notEnoughData=None)
    reader.feed(made.of(publication).fill_in(publication, Server(generation)))
    arguments: Any = reader.gets()
    assert reader.gets() is None
    assert isinstance(arguments, list)
    return arguments


def expected(publication: Publication, kind: str, *slot: str, generation: str = "g1") -> list[bytes]:
    channel, retention = names(publication.channel), publication.retention
    assert retention is not None
    sender = "" if publication.sender is None else f" {publication.sender}"
    receipt = f"{channel.receipt}{publication.id}{sender}"
    kept = (str(retention.entries), str(round(retention.ttl * 1000)), "3000")
    before = ("EVALSHA", PUBLISH.sha, "5", *channel.keys, receipt, generation, "5eed", "7000", kind, *kept, "PUBLISH")
    texts = (
        *(text.encode() for text in before),
        channel.events,
        publication.id.encode(),
        event_codec.encode(publication),
    )
    return [*texts, *(text.encode() for text in slot)]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(
    id=texts,
    sender=st.none() | texts,
    type=texts,
    key=st.none() | texts,
    data=st.binary(max_size=40) | st.integers(1_900, 2_200).map(lambda size: b"x" * size),
)
def test_whatever_the_publication_holds(id: str, sender: str | None, type: str, key: str | None, data: bytes) -> None:
    made, room = forms(), ChannelKey("acme", "room:1")
    durable = Publication(room, type, id, Delivery.DURABLE, data, sender, 17, None, KEEP)
    latest = Publication(room, type, id, Delivery.LATEST, data, sender, 17, key, KEEP)
    for _ in range(2):  # with a form that is made, and with one that is known
        assert told(made, durable) == expected(durable, "d")
        assert told(made, latest) == expected(latest, "l", f"{type}\n{key or ''}")


def test_a_form_holds_for_one_retention_and_one_life_of_the_server() -> None:
    made, room = forms(), ChannelKey("acme", "room:1")
    for retention in (KEEP, Retention(11, 60.0), Retention(10, 61.0), KEEP):
        for generation in ("g1", "g2", "g1"):
            one = Publication(room, "t", "m", Delivery.DURABLE, b"{}", None, 17, None, retention)
            assert told(made, one, generation) == expected(one, "d", generation=generation)


def test_forms_of_so_many_channels_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_template, "CHANNELS", 3)
    made = forms()
    for number in range(10):
        one = Publication(ChannelKey("acme", f"room:{number}"), "t", "m", Delivery.DURABLE, b"{}", None, 17, None, KEEP)
        assert told(made, one) == expected(one, "d")
        assert len(made._durable) <= 3


def test_a_publication_without_retention_is_a_fault() -> None:
    for delivery in (Delivery.DURABLE, Delivery.LATEST):
        with pytest.raises(ValueError, match=f"{delivery.value} .* retention"):
            forms().of(Publication(ChannelKey("acme", "room:1"), "t", "m", delivery, b"{}", None, 17))
