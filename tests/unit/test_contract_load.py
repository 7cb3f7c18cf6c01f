"""Contract files: what a good one means, and that every fault of a bad one is told with its line."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract.document import Faults
from service.contract.load import ContractFaults, load
from service.contract.model import DEFAULT_STATE
from service.core.access import PublishRule, SubscribeRule
from service.core.event import Delivery, Retention
from service.core.hooks import Hook
from service.core.webhooks import ChannelChange, ChannelWebhook
from service.errors import ErrorCode, ServiceError

CONTRACTS = Path(__file__).parent / "contracts"


def faults_of(path: Path) -> list[tuple[str, int | None, str]]:
    with pytest.raises(ContractFaults) as caught:
        load(path)
    return [(Path(fault.file).name, fault.line, fault.reason) for fault in caught.value.faults]


def faults_in(tmp_path: Path, text: str, **files: str) -> list[tuple[str, int | None, str]]:
    for name, content in files.items():
        (tmp_path / name.replace("_", ".")).write_text(content)
    contract = tmp_path / "contract.yaml"
    contract.write_text(dedent(text))
    return faults_of(contract)


def one(tmp_path: Path, event: str = "{publish: server, delivery: ephemeral}", channel: str = "", **files: str) -> str:
    """The only fault of a contract that is good but for one thing, which must stand in its last line."""
    text = f'channels:\n  "room:{{room}}":\n    subscribe: grant\n    {channel}\n    events:\n      chat.message: {event}\n'
    found = faults_in(tmp_path, text, **files)
    assert len(found) == 1, found
    file, line, reason = found[0]
    assert (file, line) == ("contract.yaml", 4 if channel else 6)
    return reason


def test_contract_loads_every_declaration() -> None:
    contract = load(CONTRACTS / "good.yaml")

    room = contract.resolve("room:42")
    assert room.parameters == {"room": "42"}
    assert room.spec.subscribe is SubscribeRule.GRANT
    assert room.spec.presence
    assert room.spec.history == Retention(entries=500, ttl=86_400.0)
    assert room.spec.state == DEFAULT_STATE
    message = room.spec.events["chat.message"]
    assert (message.publish, message.delivery) == (PublishRule.SUBSCRIBER, Delivery.DURABLE)
    assert message.check is not None
    assert message.check.is_valid({"text": "hi", "reply": "m-1", "mood": "yes"})
    assert not message.check.is_valid({"text": ""})  # through two files
    assert not message.check.is_valid({"text": "hi", "reply": "1"})  # inside one file
    assert room.spec.events["chat.pin"].check is None

    board = contract.resolve("board:main").spec
    assert not board.presence
    assert board.history is None
    assert board.state == Retention(entries=50, ttl=DEFAULT_STATE.ttl)
    price = board.events["ticker.price"]
    assert (price.key, price.window) == (("symbol",), 0.1)
    assert price.check is not None
    assert price.check.is_valid({"price": 1, "at": "2026-11-22T19:00:00Z"})
    assert not price.check.is_valid({"price": -1})
    assert not price.check.is_valid({"price": 1, "at": "yesterday"})  # formats are asserted

    assert price.ttl is None
    inbox = contract.resolve("inbox:ann").spec
    assert (inbox.events["inbox.draft"].ttl, inbox.events["inbox.draft"].removable) == (5_400_000, True)
    assert (inbox.is_removable, board.is_removable) == (True, False)

    assert contract.event_types == {
        "chat.message", "chat.typing", "chat.pin", "lobby.wave", "lobby.shout", "inbox.item", "inbox.draft", "ticker.price",
    }  # fmt: skip


def test_compress_is_as_declared_or_by_size(tmp_path: Path) -> None:
    events = [f"      a.{name}: {{publish: server, delivery: ephemeral{text}}}\n" for name, text in
              [("yes", ", compress: true"), ("no", ", compress: false"), ("unset", "")]]  # fmt: skip
    (tmp_path / "contract.yaml").write_text("channels:\n  a:\n    subscribe: everyone\n    events:\n" + "".join(events))
    found = load(tmp_path / "contract.yaml").resolve("a").spec.events
    assert {type_: spec.compress for type_, spec in found.items()} == {"a.yes": True, "a.no": False, "a.unset": None}


YAML = """# a comment
channels:
  a:
    subscribe: everyone
    events:
      a.b: {publish: server, delivery: ephemeral, schema: {$ref: s.json}}
"""
SAME = """{"channels": {"a": {
  "events": {"a.b": {"schema": {"$ref": "s.json"}, "delivery": "ephemeral", "publish": "server"}},
  "subscribe": "everyone"}}}"""


def hash_of(folder: Path, name: str, contract: str, schema: str = '{"type": "object"}') -> str:
    (folder / "s.json").write_text(schema)
    (folder / name).write_text(contract)
    return load(folder / name).hash


def test_hash_depends_on_content_and_not_on_form(tmp_path: Path) -> None:
    first = hash_of(tmp_path, "a.yaml", YAML)
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert hash_of(tmp_path, "b.json", SAME) == first
    changed = [
        hash_of(tmp_path, "a.yaml", YAML.replace("everyone", "authenticated")),
        hash_of(tmp_path, "a.yaml", YAML, '{"type": "array"}'),
    ]
    assert len({first, *changed}) == 3


def test_resolve_prefers_the_most_specific_pattern() -> None:
    contract = load(CONTRACTS / "good.yaml")

    assert contract.resolve("room:lobby").spec.pattern.text == "room:lobby"
    assert contract.resolve("room:lobby2").spec.pattern.text == "room:{room}"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("room", ErrorCode.UNKNOWN_CHANNEL),
        ("room:1:2", ErrorCode.UNKNOWN_CHANNEL),
        ("other:1", ErrorCode.UNKNOWN_CHANNEL),
        ("room:*", ErrorCode.INVALID_CHANNEL),
        ("room:", ErrorCode.INVALID_CHANNEL),
        ("", ErrorCode.INVALID_CHANNEL),
        ("room:1\n", ErrorCode.INVALID_CHANNEL),
        ("room:" + "x" * 124, ErrorCode.INVALID_CHANNEL),
    ],
)
def test_resolve_of_other_names_is_refused(name: str, code: ErrorCode) -> None:
    contract = load(CONTRACTS / "good.yaml")

    for _ in range(2):  # the second time it might come from the cache
        with pytest.raises(ServiceError) as caught:
            contract.resolve(name)
        assert caught.value.code is code


def test_contract_with_five_faults_reports_each_line() -> None:
    assert faults_of(CONTRACTS / "five_faults.yaml") == [
        ("five_faults.yaml", 3, "subscribe is one of everyone, authenticated, grant, owner; did you mean 'grant'?"),
        ("five_faults.yaml", 6, "chat.message is durable, but its channel has no history to keep it in"),
        (
            "five_faults.yaml",
            7,
            "event type 'typing' has no dot; system messages have none, events always do, such as chat.message",
        ),
        ("five_faults.yaml", 14, "'100' is not a duration such as 100ms, 5s, 15m, 24h or 7d"),
        ("five_faults.yaml", 19, "'numbr' is not a JSON Schema type; did you mean 'number'?"),
    ]


@pytest.mark.parametrize(
    ("presence", "reason"),
    [
        ("1", "presence is true or false"),
        ("{updates: {}}", "unknown key 'updates'; did you mean 'update'?"),
        ("{update: true}", "update is a mapping of names to values"),
        ("{update: {schema: true}}", "publish is missing: one of server, subscriber"),
        ("{update: {publish: subscriber}}", "update lacks schema, which says what a user may show of itself"),
        ("{update: {publish: server, schema: true}}", "presence shows only users, so the backend sends no updates"),
        ("{update: {publish: owner, schema: true}}", "owner is the user named by {user}, which 'room:{room}' has not"),
        ("{update: {publish: grant, schema: {type: objct}}}", "'objct' is not a JSON Schema type"),
        ("{update: {publish: grant, schema: true, delivery: latest}}", "unknown key 'delivery'"),
    ],
)
def test_wrong_presence_is_reported(tmp_path: Path, presence: str, reason: str) -> None:
    [(_, line, found)] = faults_in(
        tmp_path, f'channels:\n  "room:{{room}}":\n    subscribe: grant\n    presence: {presence}\n'
    )
    assert line == 4
    assert found.startswith(reason)


def test_history_is_cacheable_only_where_the_contract_says_so(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(
        "channels:\n  a: {subscribe: grant, history: {events: 5, ttl: 1h}}\n"
        "  b: {subscribe: grant, history: {events: 5, ttl: 1h, cacheable: true}}\n  c: {subscribe: grant}\n"
    )
    assert [load(path).resolve(name).spec.is_cacheable for name in "abc"] == [False, True, False]
    wrong = (
        "channels:\n  a: {subscribe: grant, history: {events: 5, ttl: 1h, cacheable: 1}}\n"
        "  b: {subscribe: grant, state: {cacheable: true}}\n"
    )
    [(_, first, of_history), (_, second, of_state)] = faults_in(tmp_path, wrong)
    assert (first, of_history, second) == (2, "cacheable is true or false", 3)
    assert "cacheable" in of_state


def test_hooks_of_a_channel_are_read(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(
        "channels:\n  a:\n    subscribe: everyone\n    history: {events: 5, ttl: 1h}\n"
        "    hook: {endpoint: x, recheck: 10m}\n    when_empty: {endpoint: y, without_answer: allow}\n"
        "    events: {a.b: {publish: server, delivery: durable}}\n"
    )
    contract = load(path)
    spec = contract.resolve("a").spec
    assert (spec.hook, spec.when_empty) == (Hook("x", recheck=600.0), Hook("y", fails_open=True))
    assert (set(contract.endpoints), contract.has_read_hooks, contract.has_content_hooks) == ({"x", "y"}, True, True)
    wrong = (
        "channels:\n  a: {subscribe: everyone, hook: {endpoint: x, recheck: 9s}}\n"
        "  b: {subscribe: everyone, hook: {endpoint: x, recheck: often}}\n"
        "  c: {subscribe: everyone, when_empty: {endpoint: x, recheck: 1m}}\n"
        "  d: {subscribe: everyone, when_empty: {endpoint: x},"
        " events: {a.b: {publish: server, delivery: ephemeral}}}\n"
    )
    found = [reason for _, _, reason in faults_in(tmp_path, wrong)]
    assert [reason.partition(":")[0] for reason in found] == [
        "recheck is 10 s to 1 d",
        "'often' is not a duration such as 100ms, 5s, 15m, 24h or 7d",
        "unknown key 'recheck'; known here",
        "the channel keeps nothing",
        "the channel keeps nothing",
    ]


def test_webhooks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(
        "channels:\n  a:\n    subscribe: everyone\n    presence: true\n    history: {events: 5, ttl: 1h}\n"
        "    webhook: {endpoint: x, tell: [vacated, joined]}\n"
        "    events:\n      a.b: {publish: server, delivery: durable, webhook: {endpoint: y}}\n"
        "      a.c: {publish: server, delivery: durable}\n"
    )
    contract = load(path)
    spec = contract.resolve("a").spec
    assert spec.webhook == ChannelWebhook("x", frozenset({ChannelChange.VACATED, ChannelChange.JOINED}))
    assert {type_: event.webhook for type_, event in spec.events.items()} == {"a.b": "y", "a.c": None}
    assert (set(contract.webhook_endpoints), contract.has_event_webhooks, contract.has_channel_webhooks) == (
        {"x", "y"},
        True,
        True,
    )
    wrong = (
        "channels:\n  a: {subscribe: everyone, webhook: {endpoint: x}}\n"
        "  b: {subscribe: everyone, webhook: {endpoint: x, tell: [vacate, occupied, occupied]}}\n"
        "  c: {subscribe: everyone, webhook: {endpoint: x, tell: [joined]}}\n"
        "  d: {subscribe: everyone, webhook: {tell: [occupied]}}\n"
        "  e: {subscribe: everyone, webhook: x}\n"
    )
    assert [(line, reason) for _, line, reason in faults_in(tmp_path, wrong)] == [
        (2, "tell is a list of what the endpoint is told: occupied, vacated, joined, left"),
        (3, "tell has 'vacate', which is none of occupied, vacated, joined, left; did you mean 'vacated'?"),
        (3, "tell has occupied twice"),
        (4, "joined need presence: declare presence: true for the channel"),
        (5, "endpoint is the name of one of webhooks.endpoints in the settings"),
        (6, "webhook is a mapping of names to values"),
    ]


def test_presence_is_read_with_its_updates(tmp_path: Path) -> None:
    path = tmp_path / "contract.yaml"
    path.write_text(
        "channels:\n  a: {subscribe: everyone}\n  b: {subscribe: everyone, presence: {}}\n"
        "  c: {subscribe: everyone, presence: {update: {publish: grant, schema: {type: string}}}}\n"
    )
    a, b, c = (load(path).resolve(name).spec for name in "abc")
    assert [(spec.presence, spec.presence_update) for spec in (a, b)] == [(False, None), (True, None)]
    assert c.presence
    assert c.presence_update is not None
    assert c.presence_update.publish is PublishRule.GRANT
    assert c.presence_update.check is not None
    assert (c.presence_update.check.is_valid("x"), c.presence_update.check.is_valid(1)) == (True, False)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ("{publish: subscribr, delivery: ephemeral}", "publish is one of server, subscriber"),
        ("{delivery: ephemeral}", "publish is missing: one of server"),
        ("{publish: server}", "delivery is missing: one of durable, latest, ephemeral"),
        ("{publish: [server], delivery: ephemeral}", "publish is one of"),
        ("{publish: owner, delivery: ephemeral}", "owner is the user named by {user}, which 'room:{room}' has not"),
        ("{publish: server, delivery: durable}", "chat.message is durable, but its channel has no history"),
        ("{publish: server, delivery: latest}", "latest needs a key"),
        ("{publish: server, delivery: ephemeral, key: /a}", "only latest events have a key; this one is ephemeral"),
        ("{publish: server, delivery: latest, key: a}", "'a' is not a JSON Pointer"),
        ("{publish: server, delivery: latest, key: /a~2}", "'/a~2' is not a JSON Pointer"),
        ("{publish: server, delivery: latest, key: 3}", "key is a JSON Pointer"),
        ("{publish: server, delivery: ephemeral, window: 2s}", "window is at most 1s"),
        ("{publish: server, delivery: ephemeral, window: 100}", "'100' is not a duration"),
        ("{publish: server, delivery: ephemeral, window: -1s}", "'-1s' is not a duration"),
        ("{publish: server, delivery: ephemeral, window: true}", "'True' is not a duration"),
        ("{publish: server, delivery: ephemeral, ttl: 5s}", "only latest events have a ttl; this one is ephemeral"),
        ("{publish: server, delivery: latest, key: /a, ttl: 5}", "'5' is not a duration"),
        (
            "{publish: server, delivery: latest, key: /a, ttl: 99ms}",
            "ttl is from 100ms to the ttl of the channel's state, which is 86400s",
        ),
        ("{publish: server, delivery: latest, key: /a, ttl: 25h}", "ttl is from 100ms to the ttl of the channel's"),
        (
            "{publish: server, delivery: ephemeral, removable: true}",
            "only latest events are removable; this one is ephemeral",
        ),
        ("{publish: server, delivery: latest, key: /a, removable: 1}", "removable is true or false"),
        (
            "{publish: server, delivery: ephemeral, hook: {endpoint: a}}",
            "only the backend publishes this event, and it is not asked about its own",
        ),
        ("{publish: grant, delivery: ephemeral, hook: a}", "hook is a mapping of names to values"),
        (
            "{publish: grant, delivery: ephemeral, hook: {}}",
            "endpoint is the name of one of hooks.endpoints in the settings",
        ),
        (
            "{publish: grant, delivery: ephemeral, hook: {endpoint: a, without_answer: alow}}",
            "without_answer is one of deny, allow; did you mean 'allow'?",
        ),
        (
            "{publish: grant, delivery: ephemeral, hook: {endpoint: a, recheck: 1m}}",
            "unknown key 'recheck'; known here: endpoint, without_answer",
        ),
        (
            "{publish: server, delivery: ephemeral, webhook: {endpoint: a}}",
            "chat.message is ephemeral, and only durable and latest events have webhooks",
        ),
        (
            "{publish: server, delivery: latest, key: /a, webhook: {}}",
            "endpoint is the name of one of webhooks.endpoints in the settings",
        ),
        (
            "{publish: server, delivery: latest, key: /a, webhook: {endpoint: a, tell: [joined]}}",
            "unknown key 'tell'; known here: endpoint",
        ),
        ("{publish: server, delivery: ephemeral, compress: yes}", "compress is true or false"),
        ("{publish: server, delivery: ephemeral, compress: 1}", "compress is true or false"),
        ("{publish: server, delivery: ephemeral, compress: null}", "compress is true or false"),
        ("{publish: server, delivery: ephemeral, compres: true}", "unknown key 'compres'; did you mean 'compress'?"),
        ("{publish: server, delivery: ephemeral, windw: 1s}", "unknown key 'windw'; did you mean 'window'?"),
        ("{publish: server, delivery: ephemeral, x: 1}", "unknown key 'x'; known here: publish, delivery, schema"),
        ("[]", "chat.message is a mapping"),
        ("", "chat.message is a mapping"),
        ("{publish: server, publish: server, delivery: ephemeral}", "'publish' is a duplicate key"),
        ("{publish: server, delivery: ephemeral, schema: 3}", "not a usable JSON Schema"),
        ("{publish: server, delivery: ephemeral, schema: {type: objct}}", "did you mean 'object'?"),
        ("{publish: server, delivery: ephemeral, schema: {minLength: -1}}", "-1 is less than the minimum of 0"),
        ("{publish: server, delivery: ephemeral, schema: {pattern: '(?=x)'}}", "patterns run in linear time"),
        ("{publish: server, delivery: ephemeral, schema: {pattern: '(('}}", "patterns run in linear time"),
        ("{publish: server, delivery: ephemeral, schema: {$ref: '#/a'}}", "this schema has nothing at #/a"),
        ("{publish: server, delivery: ephemeral, schema: {$ref: '#a'}}", "Anchor 'a' does not exist"),
        ("{publish: server, delivery: ephemeral, schema: {$ref: no.json}}", "there is no file"),
        ("{publish: server, delivery: ephemeral, schema: {not: {anyOf: [{$ref: no.json}]}}}", "there is no file"),
        ("{publish: server, delivery: ephemeral, schema: {properties: {enum: {$ref: no.json}}}}", "there is no file"),
        ("{publish: server, delivery: ephemeral, schema: {$ref: ../x.json}}", "is outside the contract's folder"),
        ("{publish: server, delivery: ephemeral, schema: {$ref: /etc/x.json}}", "nothing is fetched"),
        ("{publish: server, delivery: ephemeral, schema: {$ref: 'https://e.org/s'}}", "nothing is fetched"),
        ("{publish: server, delivery: ephemeral, schema: {$ref: contract.yaml}}", "cannot refer to the contract"),
        ("{publish: server, delivery: ephemeral, schema: {items: {$id: x}}}", "an $id inside a schema"),
        (
            "{publish: server, delivery: ephemeral, schema: {$schema: 'http://json-schema.org/draft-07/schema#'}}",
            "schemas are of the dialect",
        ),
    ],
)
def test_fault_in_event_is_reported(tmp_path: Path, event: str, reason: str) -> None:
    assert reason in one(tmp_path, event)


@pytest.mark.parametrize(
    ("channel", "reason"),
    [
        ("presence: 1", "presence is true or false"),
        ("presence: yes", "presence is true or false"),
        ("presence: null", "presence is true or false"),
        ("presense: true", "unknown key 'presense'; did you mean 'presence'?"),
        ("history: true", "history is a mapping"),
        ("history: {ttl: 1h}", "history lacks events"),
        ("history: {events: 5}", "history lacks ttl"),
        ("history: {events: 0, ttl: 1h}", "events is a whole number from 1"),
        ("history: {events: 1.5, ttl: 1h}", "events is a whole number from 1"),
        ("history: {events: true, ttl: 1h}", "events is a whole number from 1"),
        ("history: {events: 5, ttl: 1w}", "'1w' is not a duration"),
        ("history: {events: 5, ttl: 10ms}", "ttl is from 1s to 366d"),
        ("history: {events: 5, ttl: 900d}", "ttl is from 1s to 366d"),
        ("state: {entries: 5}", "unknown key 'entries'"),
        ("state: {keys: -5}", "keys is a whole number"),
    ],
)
def test_fault_in_channel_is_reported(tmp_path: Path, channel: str, reason: str) -> None:
    assert reason in one(tmp_path, channel=channel)


@pytest.mark.parametrize(
    ("type_", "reason"),
    [
        ("message", "has no dot"),
        ("Chat.Message", "is not words of a-z"),
        ("chat..message", "is not words of a-z"),
        (".message", "is not words of a-z"),
        ("chat.", "is not words of a-z"),
        ("chat.mess age", "is not words of a-z"),
        ("presence.joined", "belong to the service"),
        ("event.removed", "belongs to the service"),
        ("a." + "b" * 63, "is not words of a-z"),
    ],
)
def test_invalid_event_type_is_reported(tmp_path: Path, type_: str, reason: str) -> None:
    text = f"channels:\n  a:\n    subscribe: everyone\n    events:\n      {type_}: {{publish: server, delivery: ephemeral}}\n"
    [(_, line, found)] = faults_in(tmp_path, text)
    assert line == 5
    assert reason in found


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("", 1, "is empty"),
        ("# nothing\n", 1, "is empty"),
        ("[]", 1, "a contract is a mapping"),
        ("{}", 1, "declares no channels"),
        ("channels:\n", 1, "channels is a mapping"),
        ("channels: {}\n", 1, "declares no channels"),
        ("chanels: {}\nchannels: {a: {subscribe: everyone}}\n", 1, "unknown key 'chanels'; did you mean 'channels'?"),
        ("channels:\n  a: {subscribe: everyone\n  b: 3\n", 3, "is not YAML"),
        ("channels:\n\ta: 1\n", 2, "is not YAML"),
        ("channels: {}\n---\nchannels: {}\n", 2, "is not YAML"),
        ("channels:\n  a: \x01\n", 2, "is not YAML"),
        ("channels:\n  a: {subscribe: everyone}\n  a: {subscribe: everyone}\n", 3, "the first is in line 2"),
        ("channels:\n  ? [a]\n  : 1\n  b: {subscribe: everyone}\n", 2, "a key must be text"),
        ("channels: &c\n  a: {subscribe: everyone}\n  b: *c\n", 1, "an alias refers to a value around it"),
        ("channels:\n  a:\n    subscribe: !!python/name:os.system x\n", 3, "is not allowed here"),
        ("channels:\n  a b: {subscribe: everyone}\n", 2, "'a b' is not a channel pattern"),
        ("channels:\n  'a:{x}:{x}': {subscribe: everyone}\n", 2, "parameter {x} appears twice"),
        ("channels:\n  'a:{x}': {subscribe: everyone}\n  'a:{y}': {subscribe: everyone}\n", 3, "in line 2"),
        ("channels:\n  'a:{x}':\n    subscribe: owner\n", 3, "which 'a:{x}' has not"),
        ("channels:\n  a:\n    presence: true\n", 2, "subscribe is missing"),
    ],
)
def test_fault_in_file_is_reported(tmp_path: Path, text: str, line: int, reason: str) -> None:
    found = faults_in(tmp_path, text)
    assert (found[0][1], reason in found[0][2]) == (line, True), found


def test_alias_inside_its_own_value_is_reported_once(tmp_path: Path) -> None:
    found = faults_in(tmp_path, "channels:\n  a: {subscribe: everyone, events: &e {b.c: *e}}\n")
    assert ("contract.yaml", 2, "an alias refers to a value around it") in found


def test_aliases_of_aliases_are_bounded(tmp_path: Path) -> None:
    rows = "\n".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))
    found = faults_in(tmp_path, f"channels:\n  a0: &a0 [x]\n{rows}\n")
    assert "the file holds more than 200000 values" in [reason for _, _, reason in found]


def test_missing_file_is_reported(tmp_path: Path) -> None:
    assert faults_of(tmp_path / "contract.yaml") == [
        ("contract.yaml", None, "cannot be read: No such file or directory")
    ]


def test_file_that_is_not_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "contract.yaml").write_bytes(b"channels: \xff")
    assert faults_of(tmp_path / "contract.yaml") == [("contract.yaml", None, "is not UTF-8 text")]


REFERS = "channels:\n  a:\n    subscribe: everyone\n    events:\n"
REFERS += "      a.b: {publish: server, delivery: ephemeral, schema: {$ref: %s}}\n"


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("s.json", '{\n"type":\n"objct"}', 3, "did you mean 'object'?"),
        ("s.json", '{"type":\nobject}', 2, "is not JSON"),
        ("s.json", "type: object", 1, "is not JSON"),
        ("s.json", '{"minimum": NaN}', None, "NaN is no JSON number"),
        ("s.json", '{\n"type": "object",\n"type": "string"}', 3, "is a duplicate key"),
        ("s.json", '{\n"type": "object",\n"\\u0074ype": "string"}', 3, "is a duplicate key"),
        ("s.json", f'{{"type": "object", "type": "string", "{"x" * 1100}": 1}}', None, "appears twice in one object"),
        ("s.json", '{"a": 1,\n"$ref": "t.json"}', 2, "there is no file"),
        ("s.json", '{"$ref": "s.json#/$defs/x"}', 1, "s.json has nothing at #/$defs/x"),
        ("s.json", '{"properties": {\n"a": {"pattern": "(?=x)"}}}', 2, "patterns run in linear time"),
        ("s.json", "3", 1, "not a usable JSON Schema"),
        ("s.yaml", "type: object\nrequired: a\n", 2, "not a usable JSON Schema"),
        ("s.yaml", "type: [\n", 2, "is not YAML"),
    ],
)
def test_fault_in_schema_file_is_reported_once_with_its_line(
    tmp_path: Path, name: str, content: str, line: int | None, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    text = REFERS % name + f"      a.c: {{publish: server, delivery: ephemeral, schema: {{$ref: {name}}}}}\n"
    found = faults_in(tmp_path, text)
    assert [(file, at) for file, at, _ in found] == [(name, line)]
    assert reason in found[0][2]


def test_missing_fragment_of_schema_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("$defs: {a/b: {type: string}}\n")
    found = faults_in(tmp_path, REFERS % "'s.yaml#/$defs/nope'")
    assert [(file, line, "s.yaml has nothing at #/$defs/nope" in reason) for file, line, reason in found] == [
        ("contract.yaml", 5, True)
    ]
    (tmp_path / "contract.yaml").write_text(REFERS % "'s.yaml#/$defs/a~1b'")
    assert load(tmp_path / "contract.yaml").event_types == {"a.b"}


@pytest.mark.parametrize("name", ["s" * 300 + ".json", "s/" * 3_000 + "s.json"], ids=["name", "path"])
def test_reference_longer_than_any_file_name_is_reported(tmp_path: Path, name: str) -> None:
    [(file, line, reason)] = faults_in(tmp_path, REFERS % name)
    assert (file, line) == ("contract.yaml", 5)
    assert "there is no file" in reason


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.json").write_text("{}")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "s.json").symlink_to(tmp_path / "outside.json")
    [(_, line, reason)] = faults_in(inner, REFERS % "s.json")
    assert (line, reason) == (5, "'s.json' is outside the contract's folder")


def test_volume_of_kubernetes_is_a_valid_folder(tmp_path: Path) -> None:
    """As a kubelet lays it: each name is a link to a link to the version that holds now."""
    version = tmp_path / "..2026_11_23_08_00_00.1234567890"
    (version / "schemas").mkdir(parents=True)
    (tmp_path / "..data").symlink_to(version.name)
    (version / "contract.yaml").write_text(REFERS % "schemas/a.json")
    (version / "schemas/a.json").write_text('{"$ref": "b.json#/$defs/b"}')
    (version / "schemas/b.json").write_text('{"$defs": {"b": {"type": "integer"}}}')
    for name in ("contract.yaml", "schemas"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    for contract in (tmp_path / "contract.yaml", tmp_path / "..data/contract.yaml", version / "contract.yaml"):
        check = load(contract).resolve("a").spec.events["a.b"].check
        assert check is not None
        assert [list(check.iter_errors(value)) == [] for value in (1, "1")] == [True, False]
    (version / "schemas/b.json").write_text('{"$defs": {"b": {"type": "whole"}}}')
    assert faults_of(tmp_path / "contract.yaml")[0][0] == "b.json"
    (version / "schemas/a.json").write_text('{"$ref": "../../outside.json"}')
    (tmp_path.parent / "outside.json").write_text("{}")
    [(file, _, reason)] = faults_of(tmp_path / "contract.yaml")
    assert (file, reason) == ("a.json", "'../../outside.json' is outside the contract's folder")
    (version / "schemas/a.json").write_text('{"$ref": "../contract.yaml"}')
    [(file, _, reason)] = faults_of(tmp_path / "contract.yaml")
    assert (file, "cannot refer to the contract file" in reason) == ("a.json", True)


@pytest.mark.parametrize(
    ("name", "leads_to", "reference", "reason"),
    [
        ("s.json", "s.json", "s.json", "there is no file"),
        ("again", ".", "again/contract.yaml", "cannot refer to the contract file"),
        ("out", "..", "out/x.json", "is outside the contract's folder"),
    ],
    ids=["in a circle", "to the contract", "out of the folder"],
)
def test_broken_link_is_reported(tmp_path: Path, name: str, leads_to: str, reference: str, reason: str) -> None:
    (tmp_path / name).symlink_to(leads_to)
    [(file, line, found)] = faults_in(tmp_path, REFERS % reference)
    assert (file, line) == ("contract.yaml", 5)
    assert reason in found


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "again").symlink_to(".")
    (tmp_path / "s.json").write_text('{"properties": {"a": {"$ref": "again/s.json"}}}')
    [(file, _, reason)] = faults_in(tmp_path, REFERS % "s.json")
    assert file == "s.json"
    assert (
        reason
        == f"'again/s.json' is a link to {tmp_path / 's.json'}, which is referred to elsewhere: refer to that here too"
    )


def test_scalars_follow_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "contract.yaml").write_text(
        REFERS % "s.yaml" + "      a.n: {publish: server, delivery: ephemeral, schema: {maximum: 1e2}}\n"
    )
    (tmp_path / "s.yaml").write_text('enum: [yes, no, on, 012, 2026-11-22, "\\ud83d\\ude00"]\n')
    events = load(tmp_path / "contract.yaml").resolve("a").spec.events
    check, number = events["a.b"].check, events["a.n"].check
    assert check is not None
    assert [check.is_valid(value) for value in ("yes", "on", 12, "2026-11-22", "😀", True)] == [True] * 5 + [False]
    assert number is not None
    assert (number.is_valid(100), number.is_valid(101)) == (True, False)


def test_lone_surrogate_is_reported(tmp_path: Path) -> None:
    found = faults_in(tmp_path, REFERS % "s.yaml" + '# "\\ud83d"\n', s_yaml='const: "\\ud83d"\n')
    assert found == [("s.yaml", 1, "holds half a surrogate pair")]


@settings(deadline=None)  # files are written, on machines that may be busy
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
    st.sampled_from(["channels", "room:{room}", "a", "events", "a.b", "subscribe", "publish", "delivery", "history", "state",
                     "schema", "$ref", "type", "properties", "key", "window", "compress", "ttl",
                     "keys", "removable", "presence", "update", "cacheable"]) | st.text(), inner)))  # fmt: skip
def test_any_content_is_a_contract_or_faults(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    path = tmp_path_factory.mktemp("any") / "contract.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True))
    try:
        load(path)
    except Faults as faults:
        assert faults.faults  # noqa: PT017  # either outcome is right; an empty list of faults is not
