"""`tidewire diff`: what a change of a contract means for publishers, for subscribers and for rights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.__main__ import main
from service.contract.compare.change import Change, Effect
from service.contract.compare.contracts import compare
from service.contract.load import load
from tests.support.contracts import contract_files

NONE, POSSIBLE, BREAKING = Effect.NONE, Effect.POSSIBLE, Effect.BREAKING
TEXT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text"],
    "properties": {"text": {"type": "string"}},
}


def channel(event: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A channel with one event type, which is durable unless the event says otherwise."""
    declared = {"publish": "subscriber", "delivery": "durable", "schema": TEXT, **(event or {})}
    return {
        "subscribe": "grant", "history": {"events": 10, "ttl": "1h"},
        "events": {"chat.message": {key: value for key, value in declared.items() if value is not None}}, **more,
    }  # fmt: skip


def latest(**more: Any) -> dict[str, Any]:
    return channel({"delivery": "latest", "key": "/text", **more})


def changes(folder: Path, old: dict[str, Any], new: dict[str, Any], **options: Any) -> list[Change]:
    for name, channels in (("old", old), ("new", new)):
        (folder / f"{name}.json").write_text(json.dumps({"channels": channels}))
    return compare(load(folder / "old.json"), load(folder / "new.json"), **options)


def data(schema: Any) -> dict[str, Any]:
    return channel({"schema": schema})


def text_and(name: str, *required: str) -> dict[str, Any]:
    """The schema of a text with another property."""
    return {
        **TEXT,
        "properties": {"text": {"type": "string"}, name: {"type": "string"}},
        "required": ["text", *required],
    }


def from_server(**more: Any) -> dict[str, Any]:
    return channel({"publish": "server"}, **more)


def by(rule: str) -> dict[str, Any]:
    return channel({"publish": rule})


def updates(schema: Any) -> dict[str, Any]:
    return channel(presence={"update": {"publish": "subscriber", "schema": schema}})


LONGER, SHORTER = ({"events": number, "ttl": "1h"} for number in (50, 5))
TELLS = {"endpoint": "a", "tell": ["occupied"]}
HOOK, OPEN = {"endpoint": "a"}, {"without_answer": "allow"}
CACHEABLE = {"events": 10, "ttl": "1h", "cacheable": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], Effect, Effect, bool]] = {
    "property required": (channel(), data(text_and("lang", "lang")), BREAKING, NONE, False),
    "property not required": (channel(), data({**TEXT, "required": []}), NONE, BREAKING, False),
    "property added": (channel(), data(text_and("lang")), NONE, NONE, False),
    "property removed": (data(text_and("lang")), channel(), BREAKING, NONE, False),
    "enum narrowed": (data({"enum": ["a", "b"]}), data({"enum": ["a"]}), BREAKING, NONE, False),
    "enum widened": (data({"enum": ["a"]}), data({"enum": ["a", "b"]}), NONE, BREAKING, False),
    "type changed": (data({"type": "string"}), data({"type": "integer"}), BREAKING, BREAKING, False),
    "object closed": (
        data({"type": "object"}),
        data({"type": "object", "additionalProperties": False}),
        POSSIBLE,
        NONE,
        False,
    ),
    "format added": (data({"type": "string"}), data({"type": "string", "format": "email"}), BREAKING, NONE, False),
    "schema removed": (channel(), channel({"schema": None}), NONE, BREAKING, False),
    "schema incomparable": (data({}), data({"not": {"required": ["x"]}}), POSSIBLE, NONE, False),
    "description changed": (channel(), data({**TEXT, "description": "x"}), NONE, NONE, False),
    "delivery": (channel(), channel({"delivery": "ephemeral"}), BREAKING, BREAKING, False),
    "key": (latest(), latest(key="/other"), BREAKING, BREAKING, False),
    "ttl shortened": (latest(ttl="20s"), latest(ttl="10s"), POSSIBLE, POSSIBLE, False),
    "ttl removed": (latest(ttl="20s"), latest(), NONE, POSSIBLE, False),
    "removable": (latest(), latest(removable=True), NONE, POSSIBLE, True),
    "removable by the backend": (
        latest(publish="server"),
        latest(publish="server", removable=True),
        NONE,
        POSSIBLE,
        False,
    ),
    "not removable": (latest(removable=True), latest(), BREAKING, NONE, False),
    "echo": (channel(), channel({"echo": False}), POSSIBLE, NONE, False),
    "hook": (channel(), channel({"hook": HOOK}), POSSIBLE, NONE, False),
    "no hook": (channel({"hook": HOOK}), channel(), NONE, NONE, True),
    "hook elsewhere": (channel({"hook": HOOK}), channel({"hook": {"endpoint": "b"}}), POSSIBLE, NONE, True),
    "hook open": (channel({"hook": HOOK}), channel({"hook": {**HOOK, **OPEN}}), POSSIBLE, NONE, True),
    "hook closed": (channel({"hook": {**HOOK, **OPEN}}), channel({"hook": HOOK}), POSSIBLE, NONE, False),
    "hook for reads": (channel(), channel(hook=HOOK), NONE, POSSIBLE, False),
    "no hook for reads": (channel(hook=HOOK), channel(), NONE, NONE, True),
    "hook again": (channel(hook=HOOK), channel(hook={**HOOK, "recheck": "1m"}), NONE, POSSIBLE, False),
    "hook again less often": (
        channel(hook={**HOOK, "recheck": "1m"}),
        channel(hook={**HOOK, "recheck": "2m"}),
        NONE,
        POSSIBLE,
        True,
    ),
    "hook not again": (channel(hook={**HOOK, "recheck": "1m"}), channel(hook=HOOK), NONE, POSSIBLE, True),
    "hook open and again": (
        channel(hook=HOOK),
        channel(hook={**HOOK, **OPEN, "recheck": "1m"}),
        NONE,
        POSSIBLE,
        True,
    ),
    "content": (channel(), channel(when_empty=HOOK), NONE, POSSIBLE, False),
    "no content": (channel(when_empty=HOOK), channel(), NONE, POSSIBLE, False),
    "webhook": (channel(), channel({"webhook": {"endpoint": "a"}}), NONE, NONE, False),
    "no webhook": (channel({"webhook": {"endpoint": "a"}}), channel(), NONE, NONE, False),
    "webhook of the channel": (channel(), channel(webhook=TELLS), NONE, NONE, False),
    "no webhook of the channel": (channel(webhook=TELLS), channel(), NONE, NONE, False),
    "window": (channel(), channel({"window": "1s"}), NONE, NONE, False),
    "history shortened": (channel(), channel(history=SHORTER), NONE, POSSIBLE, False),
    "history longer": (channel(), channel(history=LONGER), NONE, NONE, False),
    "history cacheable": (channel(), channel(history=CACHEABLE), NONE, NONE, False),
    "subscribe widened": (from_server(), from_server(subscribe="authenticated"), NONE, NONE, True),
    "subscribe narrowed": (from_server(subscribe="everyone"), from_server(), NONE, BREAKING, False),
    "publish by more subscribers": (channel(), channel(subscribe="everyone"), NONE, NONE, True),
    "publish widened": (by("server"), by("grant"), NONE, NONE, True),
    "publish narrowed": (by("authenticated"), by("grant"), BREAKING, NONE, False),
    "publish by others": (by("grant"), by("subscriber"), BREAKING, NONE, True),
    "presence": (channel(), channel(presence=True), NONE, NONE, True),
    "no presence": (channel(presence=True), channel(), BREAKING, BREAKING, False),
    "presence update": (channel(presence=True), updates({}), NONE, NONE, True),
    "no presence update": (updates({}), channel(presence=True), BREAKING, NONE, False),
    "presence update narrowed": (updates({}), updates({"maxProperties": 1}), BREAKING, NONE, False),
    "event removed": (channel(), channel(events={}), BREAKING, BREAKING, False),
    "event added": (channel(events={}), channel(), NONE, NONE, False),
}


@pytest.mark.parametrize("case", CASES)
def test_change_of_a_channel_has_its_effects(case: str, tmp_path: Path) -> None:
    old, new, publishers, subscribers, widens = CASES[case]
    found = changes(tmp_path, {"room:{room}": old}, {"room:{room}": new})
    assert found
    worst = [NONE, NONE]
    for change in found:
        worst = [worst[0] | change.publishers, worst[1] | change.subscribers]
    assert (*worst, any(change.widens for change in found)) == (publishers, subscribers, widens), found


@pytest.mark.parametrize("path", contract_files(), ids=lambda path: "/".join(path.parts[-3:]))
def test_contract_has_no_changes_to_itself(path: Path) -> None:
    assert compare(load(path), load(path), strict=True) == []


def test_channel_removed_and_added(tmp_path: Path) -> None:
    gone, new = changes(tmp_path, {"a:{x}": channel()}, {"b:{x}": channel()})
    assert (gone.path, gone.subscribers, gone.publishers) == ('$.channels["a:{x}"]', BREAKING, BREAKING)
    assert (new.path, new.text) == ('$.channels["b:{x}"]', "is new; users with a grant to subscribe may subscribe")


def test_renamed_parameter_is_compatible(tmp_path: Path) -> None:
    [change] = changes(tmp_path, {"room:{room}": channel()}, {"room:{id}": channel()})
    assert change.is_compatible
    _, change = changes(tmp_path, {"room:{user}": channel()}, {"room:{id}": channel()})
    assert "percent-encoded" in change.text
    assert change.subscribers is POSSIBLE


def test_new_pattern_that_takes_names_from_an_old_one_is_compared_with_it(tmp_path: Path) -> None:
    old = {"room:{room}": channel({"publish": "server"})}
    found = changes(tmp_path, old, {**old, "room:lobby": channel({"publish": "server"}, subscribe="everyone")})
    assert [(change.path, change.widens) for change in found if not change.is_compatible] == [
        ('$.channels["room:lobby"].subscribe', True)
    ]


def test_patterns_that_share_names_are_compared(tmp_path: Path) -> None:
    old = {"{any}:lobby": channel({"publish": "server"})}
    found = changes(tmp_path, old, {**old, "room:{room}": channel({"publish": "server"}, subscribe="everyone")})
    assert ('$.channels["room:lobby"].subscribe', True) in [(change.path, change.widens) for change in found]


def test_change_in_a_schema_file_is_found_and_named(tmp_path: Path) -> None:
    for version, length in (("old", 10), ("new", 5)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "text.yaml").write_text(
            f"{{type: object, properties: {{text: {{maxLength: {length}}}}}}}"
        )
        (tmp_path / version / "contract.json").write_text(
            json.dumps({"channels": {"room:{room}": channel({"schema": {"$ref": "text.yaml"}})}})
        )
    [change] = compare(load(tmp_path / "old" / "contract.json"), load(tmp_path / "new" / "contract.json"))
    assert change.path == '$.channels["room:{room}"].events["chat.message"].schema.properties.text.maxLength'
    assert change.text == "data of the old schema may be longer than 5"


def test_strict_counts_undeclared_properties(tmp_path: Path) -> None:
    arguments = (tmp_path, {"room:{room}": channel()}, {"room:{room}": data(text_and("lang"))})
    [change] = changes(*arguments)
    assert change.is_compatible
    [change] = changes(*arguments, strict=True)
    assert (change.subscribers, change.text) == (BREAKING, 'data of the new schema may have "lang"')


def write(folder: Path, **contracts: dict[str, Any]) -> list[str]:
    for name, declared in contracts.items():
        (folder / f"{name}.json").write_text(json.dumps({"channels": {"room:{room}": declared}}))
    return ["diff", *(str(folder / f"{name}.json") for name in contracts)]


def test_command_returns_0_for_compatible_contracts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(write(tmp_path, old=channel(), new=channel())) == 0
    assert capsys.readouterr().out == "the contracts are the same for clients\n"
    assert main(write(tmp_path, old=channel(events={}), new=channel())) == 0
    assert capsys.readouterr().out.startswith('compatible:\n  $.channels["room:{room}"].events["chat.message"]: is new')


def test_command_returns_1_and_tells_the_sides_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = channel({"schema": {"type": "string", "enum": ["a"]}}, subscribe="everyone")
    old = channel({"schema": {"type": "string", "enum": ["a", "b"]}})
    assert main(write(tmp_path, old=old, new=new)) == 1
    assert capsys.readouterr().out.splitlines() == [
        "widened rights (check each: somebody may do or see more):",
        '  $.channels["room:{room}"].events["chat.message"].publish: subscriber: everyone may publish, once they '
        "have subscribed",
        '  $.channels["room:{room}"].subscribe: grant → everyone: everyone may subscribe (and read history, and see presence)',
        "for publishers:",
        '  breaking: $.channels["room:{room}"].events["chat.message"].schema: data of the old schema may be "b"',
    ]


def test_command_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*write(tmp_path, old=channel(), new=channel(presence=True)), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["compatible"], document["summary"]["widened"]) == (False, 1)
    assert document["new"] == load(tmp_path / "new.json").hash
    assert document["changes"] == [
        {
            "path": '$.channels["room:{room}"].presence', "text": "users with a grant to subscribe may see who is in the channel",
            "publishers": "none", "subscribers": "none", "widens": True,
        }
    ]  # fmt: skip


def test_command_returns_2_for_a_contract_with_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = write(tmp_path, old=channel(), new=channel())
    (tmp_path / "new.json").write_text("{}")
    assert main(arguments) == 2
    assert "declares no channels" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["diff", "only-one.yaml"])
