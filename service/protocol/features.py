"""The features of this node, and what a client announces in the address of its upgrade. Pure.

A node lists `FEATURES` in `welcome.features`. A client uses a new field only if its feature is listed. In the other direction,
a node sends what not every client understands only to a client that has announced the feature.

Example:
    announced = parse_announcement("tidewire-js/1.2.0", "", "removal,echo")
    if "removal" in announced.features: ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from msgspec import Raw, Struct, json

FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "calls": "`call` asks the backend, which answers with `reply` ([`call`](#call)).",
        "connect_data": "`welcome` may have `data`, from the backend that has authenticated the client ([`welcome`](#welcome)).",
        "if_rev": "`if_rev` changes a value only if it has this `rev` ([Conditional publishes](#conditional-publishes)).",
        "echo": "Events may have `exclude`, the connection that drops them ([events](#events-1)).",
        "event_removed": "The backend can take back durable events: [`event.removed`](#eventremoved), and tombstones.",
        "ttl": "Values that end by themselves have `ttl` in events and in `state` ([Values that end](#values-that-end)).",
        "removal": "`removed` removes a value; clients that announce the feature get it as [`removed`](#removed-values).",
        "history_pages": "`history` brings addresses of pages that caches may keep ([history-pages.md](history-pages.md)).",
        "ready_in_address": "`ready=1` in the address of the upgrade starts deliveries ([`ready`](#ready)).",
        "server_subscriptions": "Tokens and the backend subscribe clients ([how](#server-side-subscriptions)).",
        "subscription_token": "`subscribe` takes a `token` for one channel ([Subscription tokens](#subscription-tokens)).",
        "tail": "`tail` in `subscribe` brings the last durable events of the channel ([`subscribe`](#subscribe)).",
        "presence_update": "Clients can set the info of their users: [`presence.update`](#presenceupdate).",
        "streams": "`/stream`, `/sse`, `/poll` and `/emit` serve clients without WebSockets ([streams.md](streams.md)).",
    }
)
"""The features of this node by name, each with one line for docs/protocol.md. Once released, a name stays."""

ENCODED_FEATURES = Raw(json.encode(sorted(FEATURES)))
"""The names, sorted, as JSON: encoded once for all connections."""

MAX_CLIENT = 65
"""Characters of `client`: two words of 32 and the slash."""
MAX_CONTRACT = 64
MAX_FEATURES = 1_024
"""Characters of `features`."""
NO_FEATURES: frozenset[str] = frozenset()

_CLIENT = re.compile(r"([A-Za-z0-9._@-]{1,32})/([A-Za-z0-9._+-]{1,32})")
_CONTRACT = re.compile(r"[0-9a-f]{8,64}")


class Announcement(Struct, frozen=True):
    """What a client announces. Each value is empty if the client has not announced it, or not in the right form."""

    client: str = ""
    """The name of the client library or program."""
    version: str = ""
    """Its version; empty if and only if `client` is."""
    contract: str = ""
    """The hash of the contract that the client was made for."""
    features: frozenset[str] = NO_FEATURES
    """The features that both the client and this node know. All clients that announce the same share the set."""


NO_ANNOUNCEMENT = Announcement()


def parse_announcement(client: str, contract: str, features: str) -> Announcement:
    """Reads the parameters `client`, `contract` and `features` of an address; a missing one is empty.

    Never fails: a value that is too long or not in the right form counts as missing, an unknown feature is ignored.
    """
    # The lengths are checked before the cache, so that its size has a bound.
    return _parse(
        client if len(client) <= MAX_CLIENT else "",
        contract if len(contract) <= MAX_CONTRACT else "",
        features if len(features) <= MAX_FEATURES else "",
    )


@lru_cache(maxsize=256)
def _parse(client: str, contract: str, features: str) -> Announcement:
    found = _CLIENT.fullmatch(client)
    name, version = found.groups() if found else ("", "")
    return Announcement(
        name,
        version,
        contract if _CONTRACT.fullmatch(contract) else "",
        known_features(features.split(",")) if features else NO_FEATURES,
    )


def known_features(names: list[str]) -> frozenset[str]:
    """Returns those of the names that this node knows. Equal results are one object, so a connection may keep its own."""
    return _shared(frozenset(FEATURES.keys() & names))


@lru_cache(maxsize=256)
def _shared(names: frozenset[str]) -> frozenset[str]:
    return names
