"""Compares two contracts: channels by the names that they match, events by type, calls by name, schemas in both directions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from service.contract import pointer
from service.contract.compare import rights
from service.contract.compare.change import Change, Effect
from service.contract.compare.facts import equal
from service.contract.compare.inclusion import Assumptions, Gap, Inclusion
from service.contract.compare.pairs import pair_channels
from service.contract.document import Place
from service.contract.export.bundle import Bundle
from service.contract.model import CallSpec, ChannelSpec, Contract, EventSpec
from service.core.access import CallRule, PublishRule
from service.core.channel import OWNER_PARAMETER, SEPARATOR
from service.core.event import Delivery, Retention
from service.core.hooks import Hook
from service.core.webhooks import ChannelWebhook

_NONE, _POSSIBLE, _BREAKING = Effect.NONE, Effect.POSSIBLE, Effect.BREAKING


def compare(old: Contract, new: Contract, *, strict: bool = False) -> list[Change]:
    """Returns every change, in the order of places.

    Unless `strict`, it assumes that data has only declared properties, and that subscribers ignore properties which they do not
    know.
    """
    comparison = _Comparison(Bundle(old, exact=True), Bundle(new, exact=True), strict=strict)
    changes = [change for pair in pair_channels(old, new) for change in comparison.compare_channel(*pair)]
    changes += comparison.compare_calls(old.calls, new.calls)
    return sorted(dict.fromkeys(changes), key=lambda change: (change.path, change.text))


class _Comparison:
    def __init__(self, old: Bundle, new: Bundle, *, strict: bool) -> None:
        self._old, self._new = old, new
        sending = Assumptions(declared_only=not strict)
        reading = Assumptions(declared_only=not strict, reads_known=not strict)
        self._old_into_new = Inclusion(old.components, new.components, sending)
        self._new_into_old = Inclusion(new.components, old.components, reading)

    def compare_channel(self, name: str, old: ChannelSpec | None, new: ChannelSpec | None) -> Iterator[Change]:
        place: Place = ("channels", name)
        if old is None or new is None:
            yield from _compare_existence(place, old, new)
            return
        yield from _compare_names(place, old, new)
        yield from _compare_readers(place, old, new)
        yield from _compare_hook(place, old.hook, new.hook, _READS)
        if old.when_empty != new.when_empty:
            yield Change((*place, "when_empty"), _content_change(new.when_empty), subscribers=_POSSIBLE)
        if old.webhook != new.webhook:
            yield Change((*place, "webhook"), _channel_webhook_change(new.webhook))
        yield from _compare_retention(place, old, new)
        for type_ in sorted({*old.events, *new.events}):
            at: Place = (*place, "events", type_)
            before, after = old.events.get(type_), new.events.get(type_)
            if before is None or after is None:
                yield from _compare_event_existence(at, type_, before, after, new)
            else:
                yield from self._compare_event(at, (before, old), (after, new))
        yield from self._compare_presence(place, old, new)

    def _compare_event(
        self, place: Place, old: tuple[EventSpec, ChannelSpec], new: tuple[EventSpec, ChannelSpec]
    ) -> Iterator[Change]:
        before, after = old[0], new[0]
        yield from _compare_publishers((*place, "publish"), (before.publish, old[1]), (after.publish, new[1]))
        yield from _compare_delivery(place, before, after)
        yield from self._compare_schema(place, before, after)

    def compare_calls(self, old: Mapping[str, CallSpec], new: Mapping[str, CallSpec]) -> Iterator[Change]:
        """Compares calls by name. For what they send, clients count as publishers; for what they get back, as subscribers."""
        for name in sorted({*old, *new}):
            place: Place = ("calls", name)
            before, after = old.get(name), new.get(name)
            if before is None or after is None:
                yield from _compare_call_existence(place, before, after)
            else:
                yield from _compare_callers((*place, "who"), before.who, after.who)
                yield from _compare_call_hook(place, before.hook, after.hook)
                yield from self._compare_call_data(place, before, after)

    def _compare_call_data(self, place: Place, old: CallSpec, new: CallSpec) -> Iterator[Change]:
        before, after = _or_any(self._old.reference(old.request)), _or_any(self._new.reference(new.request))
        at: Place = (*place, "request")
        refused = self._old_into_new.gaps(before, after)
        for gap in refused:
            text = f"a request of the old schema {gap.reason}"
            yield Change((*at, *_steps(gap)), text, publishers=_effect(gap))
        yield from self._unnoticed(at, refused, before, after)
        before, after = _or_any(self._old.reference(old.reply)), _or_any(self._new.reference(new.reply))
        at = (*place, "reply")
        unexpected = self._new_into_old.gaps(after, before)
        for gap in unexpected:
            text = f"a reply of the new schema {gap.reason}"
            yield Change((*at, *_steps(gap)), text, subscribers=_effect(gap))
        yield from self._unnoticed(at, unexpected, before, after)

    def _unnoticed(self, place: Place, gaps: Sequence[Gap], old: Any, new: Any) -> Iterator[Change]:
        if not gaps and not equal(old, new, self._old.components, self._new.components):
            yield Change(place, "is changed; no client notices")

    def _compare_schema(self, place: Place, old: EventSpec, new: EventSpec) -> Iterator[Change]:
        before, after = self._old.reference(old), self._new.reference(new)
        is_before, is_after = (before if before is not None else True), (after if after is not None else True)
        at: Place = (*place, "schema")
        refused, unexpected = self._old_into_new.gaps(is_before, is_after), self._new_into_old.gaps(is_after, is_before)
        for gap in refused:
            yield Change((*at, *_steps(gap)), f"data of the old schema {gap.reason}", publishers=_effect(gap))
        for gap in unexpected:
            yield Change((*at, *_steps(gap)), f"data of the new schema {gap.reason}", subscribers=_effect(gap))
        if (
            not refused
            and not unexpected
            and not equal(is_before, is_after, self._old.components, self._new.components)
        ):
            yield Change(at, "is changed; neither side notices")

    def _compare_presence(self, place: Place, old: ChannelSpec, new: ChannelSpec) -> Iterator[Change]:
        at: Place = (*place, "presence")
        if old.presence and not new.presence:
            yield Change(at, "presence is removed", publishers=_BREAKING, subscribers=_BREAKING)
        elif new.presence and not old.presence:
            yield Change(at, f"{rights.readers(new)} may see who is in the channel", widens=True)
        before, after = old.presence_update, new.presence_update
        rules = [update.publish if update is not None else None for update in (before, after)]
        if new.presence:
            yield from _compare_publishers((*at, "update", "publish"), (rules[0], old), (rules[1], new))
        if before is not None and after is not None:
            yield from self._compare_schema((*at, "update"), before, after)


def _or_any(reference: Any) -> Any:
    """Returns a schema: without one, everything is allowed."""
    return True if reference is None else reference


def _steps(gap: Gap) -> Iterable[str | int]:
    """The place of a gap, without the step into the component of an inline schema, which the contract does not show."""
    return gap.place[1:] if gap.place[:1] == ("$ref",) else gap.place


def _effect(gap: Gap) -> Effect:
    return _BREAKING if gap.is_certain else _POSSIBLE


def _compare_existence(place: Place, old: ChannelSpec | None, new: ChannelSpec | None) -> Iterator[Change]:
    if new is not None:
        yield Change(place, f"is new; {rights.readers(new)} may subscribe")
    elif old is not None:
        may_publish = (
            any(event.publish is not PublishRule.SERVER for event in old.events.values()) or old.presence_update
        )
        yield Change(place, "is removed", publishers=_BREAKING if may_publish else _POSSIBLE, subscribers=_BREAKING)


def _compare_names(place: Place, old: ChannelSpec, new: ChannelSpec) -> Iterator[Change]:
    before, after = old.pattern, new.pattern
    owners = [_owner_segment(spec) for spec in (old, new)]
    if owners[0] != owners[1]:
        text = f"{{{OWNER_PARAMETER}}} is elsewhere in the name, so other names are percent-encoded"
        yield Change(place, text, publishers=_POSSIBLE, subscribers=_POSSIBLE)
    if before.text == after.text:
        return
    if before.shape == after.shape:
        yield Change(place, f"its parameters have other names than in {before.text}")
    else:
        yield Change(place, f"{after.text} applies where {before.text} did before")


def _owner_segment(spec: ChannelSpec) -> int | None:
    segments = spec.pattern.text.split(SEPARATOR)
    owner = f"{{{OWNER_PARAMETER}}}"
    return segments.index(owner) if owner in segments else None


def _compare_readers(place: Place, old: ChannelSpec, new: ChannelSpec) -> Iterator[Change]:
    before, after = rights.readers(old), rights.readers(new)
    widens, narrows = not rights.includes(before, after), not rights.includes(after, before)
    if widens or narrows:
        also = " (and read history, and see presence)" if widens else ""
        text = f"{old.subscribe.value} → {new.subscribe.value}: {after} may subscribe{also}"
        yield Change((*place, "subscribe"), text, subscribers=_BREAKING if narrows else _NONE, widens=widens)


def _compare_publishers(
    place: Place, old: tuple[PublishRule | None, ChannelSpec], new: tuple[PublishRule | None, ChannelSpec]
) -> Iterator[Change]:
    before, after = rights.publishers(*old), rights.publishers(*new)
    needed, needs = rights.needs_subscription(old[0]), rights.needs_subscription(new[0])
    is_empty = before == rights.NOBODY or after == rights.NOBODY
    widens = not rights.includes(before, after) or (needed and not needs and not is_empty)
    narrows = not rights.includes(after, before) or (needs and not needed and not is_empty)
    if not widens and not narrows:
        return
    condition = ", once they have subscribed" if needs else ""
    rules = " → ".join(dict.fromkeys(rule.value if rule is not None else "not allowed" for rule in (old[0], new[0])))
    text = f"{rules}: {'no client' if after == rights.NOBODY else after} may publish{condition}"
    yield Change(place, text, publishers=_BREAKING if narrows else _NONE, widens=widens)


def _compare_event_existence(
    place: Place, type_: str, old: EventSpec | None, new: EventSpec | None, channel: ChannelSpec
) -> Iterator[Change]:
    if new is not None:
        who = rights.publishers(new.publish, channel)
        yield Change(place, f"is new; {'only the backend' if who == rights.NOBODY else who} may publish it")
    elif old is not None:
        yield Change(place, "is removed", publishers=_BREAKING, subscribers=_BREAKING)


def _compare_delivery(place: Place, old: EventSpec, new: EventSpec) -> Iterator[Change]:
    if old.delivery is not new.delivery:
        text = f"{old.delivery.value} → {new.delivery.value}: {_LOST[new.delivery]}"
        yield Change((*place, "delivery"), text, publishers=_BREAKING, subscribers=_BREAKING)
        return
    if old.key is not None and new.key is not None and old.key != new.key:
        text = f"{pointer.text_of(old.key)} → {pointer.text_of(new.key)}: values are replaced by another key"
        yield Change((*place, "key"), text, publishers=_BREAKING, subscribers=_BREAKING)
    yield from _compare_ttl(place, old.ttl, new.ttl)
    if old.removable and not new.removable:
        yield Change((*place, "removable"), "values can no longer be removed", publishers=_BREAKING)
    elif new.removable and not old.removable:
        text = "who may publish the event may remove the values of others"
        yield Change((*place, "removable"), text, subscribers=_POSSIBLE, widens=new.publish is not PublishRule.SERVER)
    if old.echo != new.echo:
        text = "publishers get their own events" if new.echo else "publishers do not get their own events"
        yield Change((*place, "echo"), text, publishers=_POSSIBLE)
    yield from _compare_hook(place, old.hook, new.hook, _PUBLISHES)
    if old.webhook != new.webhook:
        text = (
            "no endpoint is told of these events" if new.webhook is None else f"{new.webhook} is told of these events"
        )
        yield Change((*place, "webhook"), text)
    for name in ("window", "compress"):
        if getattr(old, name) != getattr(new, name):
            yield Change((*place, name), "is changed; it affects only delay and size")


def _compare_hook(place: Place, old: Hook | None, new: Hook | None, what: str) -> Iterator[Change]:
    """Compares the hooks of an event, or those of a channel. `what` they are asked about: publishes or reads."""
    if old == new:
        return
    at = (*place, "hook")
    if new is None:
        yield Change(at, f"is removed: the backend no longer decides about {what}", widens=True)
        return
    publishers, subscribers = (_POSSIBLE, _NONE) if what == _PUBLISHES else (_NONE, _POSSIBLE)
    if old is None or old.endpoint != new.endpoint:
        text = f"the endpoint {new.endpoint} decides about {what}"
        yield Change(at, text, publishers=publishers, subscribers=subscribers, widens=old is not None)
        return
    if old.fails_open != new.fails_open:
        text = f"without an answer, {what} are {'allowed' if new.fails_open else 'refused'}"
        place = (*at, "without_answer")
        yield Change(place, text, publishers=publishers, subscribers=subscribers, widens=new.fails_open)
    if old.recheck != new.recheck:
        widens = new.recheck == 0 or 0 < old.recheck < new.recheck
        text = f"is decided again every {new.recheck:g} s" if new.recheck else "is decided only at its start"
        yield Change((*at, "recheck"), f"a subscription {text}", subscribers=_POSSIBLE, widens=widens)


def _content_change(new: Hook | None) -> str:
    if new is None:
        return "is removed: the backend is no longer asked for the content of empty channels"
    rule = "clients are subscribed to an empty channel" if new.fails_open else "clients are refused"
    return f"the endpoint {new.endpoint} has the content of empty channels; without an answer, {rule}"


def _channel_webhook_change(new: ChannelWebhook | None) -> str:
    if new is None:
        return "is removed: no endpoint is told who is in the channel"
    return f"{new.endpoint} is told of {', '.join(sorted(change.value for change in new.tell))}"


def _compare_call_existence(place: Place, old: CallSpec | None, new: CallSpec | None) -> Iterator[Change]:
    if new is not None:
        yield Change(place, f"is new; {_CALLERS[new.who]} may call it")
    elif old is not None:
        yield Change(place, "is removed", publishers=_BREAKING, subscribers=_BREAKING)


def _compare_callers(place: Place, old: CallRule, new: CallRule) -> Iterator[Change]:
    if old is not new:
        widens = new is CallRule.EVERYONE
        text = f"{old.value} → {new.value}: {_CALLERS[new]} may call it"
        yield Change(place, text, publishers=_NONE if widens else _BREAKING, widens=widens)


def _compare_call_hook(place: Place, old: Hook, new: Hook) -> Iterator[Change]:
    if old.endpoint != new.endpoint:
        yield Change((*place, "endpoint"), f"the endpoint {new.endpoint} answers")
    if old.timeout != new.timeout:
        is_longer = old.timeout is not None and new.timeout is not None and old.timeout < new.timeout
        what = "as long as the endpoint allows" if new.timeout is None else f"{new.timeout:g} s"
        yield Change((*place, "timeout"), f"the backend may take {what}", publishers=_NONE if is_longer else _POSSIBLE)


_CALLERS = {CallRule.EVERYONE: "everyone", CallRule.AUTHENTICATED: "authenticated users"}
_PUBLISHES, _READS = "publishes", "reads"
_LOST = {
    Delivery.DURABLE: "every event counts",
    Delivery.LATEST: "only the newest value of each key counts",
    Delivery.EPHEMERAL: "nothing is kept, and events may be dropped",
}


def _compare_ttl(place: Place, old: int | None, new: int | None) -> Iterator[Change]:
    if old == new:
        return
    at: Place = (*place, "ttl")
    if new is not None and (old is None or new < old):
        yield Change(
            at, f"values end after {new / 1000:g} s, which is sooner", publishers=_POSSIBLE, subscribers=_POSSIBLE
        )
    else:
        when = f"after {new / 1000:g} s, which is later" if new is not None else "only with the state of the channel"
        yield Change(at, f"values end {when}", subscribers=_POSSIBLE)


def _compare_retention(place: Place, old: ChannelSpec, new: ChannelSpec) -> Iterator[Change]:
    kept: Mapping[str, tuple[Retention | None, Retention | None]] = {
        "history": (old.history, new.history),
        "state": (old.state if old.has_state else None, new.state if new.has_state else None),
    }
    if old.is_cacheable != new.is_cacheable:
        may = "may" if new.is_cacheable else "may no longer"
        yield Change((*place, "history"), f"caches {may} keep full pages")
    for name, (before, after) in kept.items():
        at: Place = (*place, name)
        if before == after:
            continue
        if after is None:
            yield Change(at, f"{name} is removed", subscribers=_BREAKING)
        elif before is None:
            yield Change(at, f"{name} is new")
        elif after.entries < before.entries or after.ttl < before.ttl:
            yield Change(at, "less is kept, or not as long", subscribers=_POSSIBLE)
        else:
            yield Change(at, "more is kept, or longer")


def summarise(changes: Iterable[Change]) -> dict[str, Any]:
    """Returns the numbers of changes by what they mean."""
    listed = list(changes)
    return {
        "publishers": _count(change.publishers for change in listed),
        "subscribers": _count(change.subscribers for change in listed),
        "widened": sum(change.widens for change in listed),
        "compatible": sum(change.is_compatible for change in listed),
    }


def _count(effects: Iterable[Effect]) -> dict[str, int]:
    found = list(effects)
    return {"breaking": found.count(_BREAKING), "possibly": found.count(_POSSIBLE)}
