"""Publish templates: what they encode is what publish.lua expects, by Redis' own parser."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.redis import event_codec, publish_template
from service.adapters.redis.connections.link import Link
from service.adapters.redis.keys import channel_keys
from service.adapters.redis.lua.scripts import PUBLISH
from service.adapters.redis.publish_template import PublishTemplates
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention

KEEP = Retention(10, 60.0)
keys_of = channel_keys("tw", 0)


def new_templates() -> PublishTemplates:
    return PublishTemplates(
        keys_of, epoch_seed="5eed", position_ttl=7000, idempotency_window=3.0, publish_command="PUBLISH"
    )


class UnconnectedLink(Link):
    """A link with a generation and no connection."""

    def __init__(self, generation: str) -> None:
        self.generation = generation


def sent(templates: PublishTemplates, publication: Publication, generation: str = "g1") -> list[bytes]:
    """Returns the arguments that the server gets."""
    reader = hiredis.Reader(notEnoughData=None)
    reader.feed(templates.get(publication).encode(publication, UnconnectedLink(generation)))
    arguments: Any = reader.gets()
    assert reader.gets() is None
    assert isinstance(arguments, list)
    return arguments


def expected(publication: Publication, kind: str, *field: str, generation: str = "g1") -> list[bytes]:
    channel, retention = keys_of(publication.channel), publication.retention
    assert retention is not None
    sender = "" if publication.sender is None else f" {publication.sender}"
    result_key = f"{channel.result_prefix}{publication.id}{sender}"
    limits = (str(retention.entries), str(round(retention.ttl * 1000)), "3000")
    names = channel.keys if kind == "d" else (*channel.keys, channel.expiries, channel.removed_values)
    before = (
        "EVALSHA",
        PUBLISH.sha,
        str(len(names) + 1),
        *names,
        result_key,
        generation,
        "5eed",
        "7000",
        kind,
        *limits,
        "PUBLISH",
    )
    texts = (
        *(text.encode() for text in before),
        channel.events,
        publication.id.encode(),
        event_codec.encode_body(publication),
    )
    return [*texts, *(text.encode() for text in field)]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@given(
    id=texts,
    sender=st.none() | texts,
    type=texts,
    key=st.none() | texts,
    data=st.binary(max_size=40) | st.integers(1_900, 2_200).map(lambda size: b"x" * size),
)
def test_template_encodes_any_publication(id: str, sender: str | None, type: str, key: str | None, data: bytes) -> None:
    templates, room = new_templates(), ChannelKey("acme", "room:1")
    durable = Publication(room, type, id, Delivery.DURABLE, data, sender, 17, None, KEEP)
    latest = Publication(room, type, id, Delivery.LATEST, data, sender, 17, key, KEEP)
    ending = Publication(room, type, id, Delivery.LATEST, data, sender, 17, key, KEEP, 1_500)
    removal = Publication(room, type, id, Delivery.LATEST, b"", sender, 17, key, KEEP, None, removed=True, if_version=7)
    for _ in range(2):  # with a new template, and with a known one
        assert sent(templates, durable) == expected(durable, "d")
        assert sent(templates, latest) == expected(latest, "l", f"{type}\n{key or ''}")
        assert sent(templates, ending) == expected(ending, "l", f"{type}\n{key or ''}", "1500", "0", "")
        assert sent(templates, removal) == expected(removal, "l", f"{type}\n{key or ''}", "", "1", "7")


def test_template_changes_with_retention_and_generation() -> None:
    templates, room = new_templates(), ChannelKey("acme", "room:1")
    for retention in (KEEP, Retention(11, 60.0), Retention(10, 61.0), KEEP):
        for generation in ("g1", "g2", "g1"):
            one = Publication(room, "t", "m", Delivery.DURABLE, b"{}", None, 17, None, retention)
            assert sent(templates, one, generation) == expected(one, "d", generation=generation)


def test_templates_above_limit_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish_template, "MAX_TEMPLATES", 3)
    templates, made = new_templates(), []
    for number in range(10):
        one = Publication(ChannelKey("acme", f"room:{number}"), "t", "m", Delivery.DURABLE, b"{}", None, 17, None, KEEP)
        assert sent(templates, one) == expected(one, "d")
        made.append((one, templates.get(one)))
    kept = list(takewhile(lambda entry: templates.get(entry[0]) is entry[1], reversed(made)))
    assert 1 <= len(kept) <= 3


def test_template_without_retention_raises_value_error() -> None:
    for delivery in (Delivery.DURABLE, Delivery.LATEST):
        with pytest.raises(ValueError, match=f"{delivery.value} .* retention"):
            new_templates().get(Publication(ChannelKey("acme", "room:1"), "t", "m", delivery, b"{}", None, 17))
