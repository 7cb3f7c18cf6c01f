#!/usr/bin/env python3
"""Writes the chart's values.schema.json, files/without-null.yaml, files/settings-names.yaml and the tables of its README.

The sources are values.yaml, files/versions.yaml and the service's settings.

In values.yaml the comment above a key is its description. These lines in it are instructions:

- `@schema {…}` adds to the type of the default;
- `@texts` marks a map whose values may also be numbers or booleans;
- `@open` marks a group that may have other keys;
- `@section …` starts a section of the README with this key;
- `@settings` inserts the settings of the service;
- `@kubernetes Affinity` or `@kubernetes [Toleration]` marks such an object of Kubernetes, or a list of them
  (scripts/kubernetes_types.json).

The schema accepts names of other charts (files/other-names.yaml): the chart's guards say the names here. The table of
versions comes from files/versions.yaml and tests/cluster/crds.yaml. `--check` writes nothing and fails if a file differs.

helm-docs and helm-schema would have to be built from Go source. They know neither the settings of the service, nor the types
of Kubernetes, nor the names of other charts.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from generated import ROOT, update

from service.settings.model import Settings

CHART = Path("helm/tidewire")
PINS = Path("tests/cluster/crds.yaml")
_TABLE = re.compile(r"(<!-- generated: (values|versions) -->\n).*?(<!-- /generated -->)", re.DOTALL)
_KEY = re.compile(r"^(?P<indent> *)(?P<name>[A-Za-z][A-Za-z0-9]*):")
_KEPT = frozenset(
    ("type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength")
) | frozenset(("pattern", "items", "properties", "required", "additionalProperties", "anyOf"))

MAX_INT32 = 2**31 - 1
"""Largest number in Kubernetes' fields."""

KUBERNETES = Path("scripts/kubernetes_types.json")
_SAID_BY_GUARDS = (
    "Affinity",
    "EnvFromSource",
    "HorizontalPodAutoscalerBehavior",
    "HostAlias",
    "LifecycleHandler",
    "NetworkPolicyEgressRule",
    "NetworkPolicyIngressRule",
    "NetworkPolicyPeer",
    "PodSecurityContext",
    "SecurityContext",
    "Toleration",
    "TopologySpreadConstraint",
    "VolumeMount",
)
"""Types whose unknown keys the chart's templates refuse, with a list of the known ones."""

Json = dict[str, Any]


@dataclass
class Value:
    """One key of values.yaml."""

    place: tuple[str, ...]
    default: Any
    meaning: str = ""
    schema: Json = field(default_factory=dict)
    is_settings: bool = False
    is_open: bool = False
    section: str = ""
    """The section of the README that starts with this key, if any."""

    @property
    def is_group(self) -> bool:
        """Whether each of its keys has a description."""
        described = self.is_settings or "additionalProperties" in self.schema
        return isinstance(self.default, dict) and bool(self.default) and not described

    @property
    def name(self) -> str:
        """Its name, such as `image.tag`."""
        return ".".join(self.place)


def read(text: str) -> Iterator[Value]:
    """Yields every key with a comment, or in a group, in order.

    Raises ValueError if a key that is not a group has no comment.
    """
    defaults = yaml.safe_load(text)
    open_groups: list[str] = []
    comment: list[str] = []
    inside: int | None = None
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip().removeprefix("#").strip())
            continue
        found = _KEY.match(line)
        depth = len(found["indent"]) // 2 if found else 0
        if found is None or (inside is not None and depth > inside):
            comment = comment if line.strip() else []
            continue
        inside = None
        open_groups[depth:] = [found["name"]]
        value = _value(tuple(open_groups), defaults, comment)
        comment = []
        if not value.is_group:
            inside = depth
            if not value.meaning:
                raise ValueError(f"{CHART}/values.yaml: {value.name} has no comment that says what it means")
        yield value


def _value(place: tuple[str, ...], defaults: Any, comment: list[str]) -> Value:
    for name in place:
        defaults = defaults[name]
    value = Value(place, defaults)
    words = []
    for line in comment:
        if line.startswith("@schema "):
            value.schema |= json.loads(line.removeprefix("@schema "))
        elif line == "@settings":
            value.is_settings = True
        elif line == "@texts":
            value.schema = {"additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
        elif line.startswith("@kubernetes "):
            value.schema |= _kubernetes(line.removeprefix("@kubernetes "))
        elif line == "@open":
            value.is_open = True
        elif line.startswith("@section "):
            value.section = line.removeprefix("@section ")
        else:
            words.append(line)
    value.meaning = " ".join(words)
    return value


def _kubernetes(kind: str) -> Json:
    name = kind.strip("[]")
    if name not in _definitions():
        raise ValueError(f"{CHART}/values.yaml: {KUBERNETES} has no type {name}")
    one = {"$ref": f"#/definitions/{name}"}
    return {"items": one} if kind.startswith("[") else one


def _definitions() -> Json:
    found: Json = json.loads((ROOT / KUBERNETES).read_text(encoding="utf-8"))
    for name in _SAID_BY_GUARDS:
        del found[name]["additionalProperties"]
    # A guard asks for quotes around a number.
    found["Toleration"]["properties"]["value"]["type"] = ["string", "number", "boolean", "null"]
    return found


# --- the schema -------------------------------------------------------------------------------------------------------


def schema(values: list[Value]) -> Json:
    """The JSON Schema (draft 7, which every Helm 3 reads) of values.yaml; unknown keys are faults."""
    whole = _group("Values of the chart tidewire. Made by scripts/chart_reference.py.")
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", **whole}
    whole["properties"]["enabled"] = {"description": "For a parent's `condition`; this chart does not read it."}
    for value in values:
        _group_of(whole, value.place)[value.place[-1]] = _schema_of(value)
    for place in other_names():
        _group_of(whole, place).setdefault(place[-1], {})
    places = [value.place for value in values if value.place[0] not in ("settings", "global")]
    settings = list(setting_places(setting_names(settings_schema()), ("settings",)))
    for place in (*places, *settings):
        for slip in sorted(slips(place[-1])):
            _group_of(whole, place).setdefault(slip, {})
    for name in (each for place in settings for each in (place[-1], camel_case(place[-1]))):
        whole["properties"]["settings"]["properties"].setdefault(name, {})  # without its group
    return {**whole, "definitions": _definitions()}


def slips(name: str) -> set[str]:
    """Returns other spellings: camelCase, snake_case, kebab-case, one word, plural or singular. Templates suggest the right
    one."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    written = {parts, parts.replace("_", "-"), parts.replace("_", ""), camel_case(parts), name}
    return {one for each in written for one in (each, f"{each}s", each.removesuffix("s"))} - {name}


def camel_case(name: str) -> str:
    """Returns maxAge for max_age."""
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


def _group_of(whole: Json, place: tuple[str, ...]) -> Json:
    """Returns the properties that contain a place."""
    for name in place[:-1]:
        whole = whole["properties"][name]
    properties: Json = whole.setdefault("properties", {})
    return properties


def other_names() -> list[tuple[str, ...]]:
    """Returns the places of names that other charts use."""
    names = yaml.safe_load((ROOT / CHART / "files" / "other-names.yaml").read_text(encoding="utf-8"))
    return [tuple(name.split(".")) for name in names]


def _group(meaning: str, *, is_open: bool = False) -> Json:
    return {
        **({"description": meaning} if meaning else {}),
        "type": "object",
        "additionalProperties": is_open,
        "properties": {},
    }


def _schema_of(value: Value) -> Json:
    if value.is_group:
        return {**_group(value.meaning, is_open=value.is_open), **value.schema}
    described = {"description": value.meaning}
    if value.is_settings:
        return {**settings_schema(), **described}
    typed = _typed(value.default)
    if value.schema.get("additionalProperties") is False and "properties" not in value.schema:
        typed["properties"] = {name: _typed(default) for name, default in value.default.items()}
    return {**described, **typed, **value.schema}


def _typed(default: Any) -> Json:
    match default:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "integer", "maximum": MAX_INT32}
        case str():
            return {"type": "string"}
        case list():
            return {"type": "array"}
        case dict():
            return {"type": "object"}
        case None:
            return {}
    raise TypeError(f"a default of {type(default).__name__} has no type in a schema")


def settings_schema() -> Json:
    """Returns the schema of the service's settings in a ConfigMap.

    It accepts secrets and what the chart sets itself: the chart's guards refuse those with a remedy.
    """
    whole = Settings.model_json_schema()
    found: Json = _inlined(whole, whole["$defs"])
    properties = found["properties"]
    for name in ("contract", "port", "ops_port", "workers", "demo"):
        properties[name] = {}
    for group, names in {
        "auth": ("secret",),
        "api": ("key", "keys"),
        "broker": ("password", "sentinel_password", "ca", "certificate", "private_key"),
    }.items():
        properties[group]["properties"].update({name: {} for name in names})
    properties["auth"]["properties"]["issuers"]["items"]["properties"]["secret"] = {}
    return found


def setting_names(part: Json) -> Json:
    """Returns the names of the service's settings as a tree; null for a setting that is not a group."""
    return {
        name: setting_names(inside) if "properties" in inside else None for name, inside in part["properties"].items()
    }


def setting_places(names: Json, below: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yields the place of each setting and each group."""
    for name, inside in names.items():
        yield (*below, name)
        yield from setting_places(inside or {}, (*below, name))


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    """Inlines references, and removes what only pydantic uses."""
    if not isinstance(part, dict):
        return [_inlined(one, definitions) for one in part] if isinstance(part, list) else part
    if reference := part.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        found = _inlined(definitions[name], definitions)
        if name == "Rate":  # each part has a default
            del found["required"]
        return found
    kept = {name: value for name, value in part.items() if name in _KEPT}
    if "properties" in kept:
        named = {name: _inlined(value, definitions) for name, value in kept.pop("properties").items()}
        return {**kept, "properties": named}
    return {name: _inlined(value, definitions) for name, value in kept.items()}


# --- the README -------------------------------------------------------------------------------------------------------


def table(values: list[Value]) -> str:
    """Returns a Markdown table of values for each section, after links to the sections."""
    links = [f"[{value.section}](#{_anchor(value.section)})" for value in values if value.section]
    lines = [" · ".join(links)]
    for value in values:
        if value.section:
            lines += ["", f"### {value.section}", "", "| value | default | meaning |", "|---|---|---|"]
        if not value.is_group:
            lines.append(f"| `{value.name}` | {_shown(value.default)} | {_cell(value.meaning)} |")
    return "\n".join(lines)


def _anchor(heading: str) -> str:
    """Returns the anchor that GitHub generates."""
    return re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")


def _shown(default: Any) -> str:
    if default is None:
        return "–"
    text = default if isinstance(default, str) and default else json.dumps(default, ensure_ascii=False)
    return f"`{text}`".replace("|", "\\|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_PLACES = {
    "ingress": "ingress.preset: {}",
    "gateway": "gateway.implementation: {}",
    "autoscaling": "autoscaling.{}",
    "monitoring": "serviceMonitor, podMonitor, prometheusRule",
}
_VERSIONS = {
    "ingress": "ingress.presetVersion",
    "gateway": "gateway.implementationVersion",
    "autoscaling": "autoscaling.keda.version",
}


def versions(controllers: Json, pins: Json) -> str:
    """Returns the controller and its versions for each preset, as a Markdown table."""
    rows = [
        f"| {', '.join(f'`{place}`' for place in _PLACES[group].format(preset).split(', '))} | {_versions_of(group, one, pins)} |"
        for group, presets in controllers.items()
        for preset, one in presets.items()
    ]
    columns = (
        "values",
        "controller",
        "all features from",
        "with an older version set",
        "Gateway API CRDs",
        "checked CRDs",
    )
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *rows])


def _versions_of(group: str, one: Json, pins: Json) -> str:
    since, least = one.get("since", {}), one.get("least")
    newest = max([*since.values(), *([least] if least else [])], key=_parts, default="any maintained")
    left_out = ", ".join(
        f"no `{field}` before {version}" for field, version in sorted(since.items(), key=_newest_first)
    )
    older = f"`{_VERSIONS[group]}`{f' from {least}' if least else ''}: {left_out}" if left_out else "–"
    checked = ", ".join(_minors(pins[one["crds"]]["sums"])) if "crds" in one else "–"
    return " | ".join([one["name"], newest, older, one.get("gatewayApi", "–"), checked])


def _newest_first(field: tuple[str, str]) -> list[int]:
    return [-part for part in _parts(field[1])]


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.removeprefix("v").split(".")]


def _minors(full: Iterable[str]) -> list[str]:
    """Returns the minor versions in order, such as 1.8 for v1.8.0."""
    return list(dict.fromkeys(".".join(map(str, _parts(one)[:2])) for one in sorted(full, key=_parts)))


# --- replacements of null ---------------------------------------------------------------------------------------------


def without_null(values: list[Value]) -> str:
    """Returns the replacement of null values: an empty list or map, false, or the default. Skips values that may be null."""
    whole: Json = {}
    for value in values:
        if value.is_settings or value.default is None or "null" in value.schema.get("type", ()):
            continue
        holder = whole
        for name in value.place[:-1]:
            holder = holder[name]
        has_nothing = isinstance(value.default, (bool, list, dict))
        holder[value.place[-1]] = type(value.default)() if has_nothing else value.default
    head = "# What templates find where a value is null. Made by scripts/chart_reference.py from values.yaml.\n"
    return head + yaml.safe_dump({**whole, "settings": {}}, sort_keys=False)


def main() -> int:
    """Writes the files, or names those that are out of date."""
    values = list(read((ROOT / CHART / "values.yaml").read_text(encoding="utf-8")))
    controllers = yaml.safe_load((ROOT / CHART / "files" / "versions.yaml").read_text(encoding="utf-8"))
    pins = yaml.safe_load((ROOT / PINS).read_text(encoding="utf-8"))
    tables = {"values": table(values), "versions": versions(controllers, pins)}
    readme = (ROOT / CHART / "README.md").read_text(encoding="utf-8")
    wanted = {
        "values.schema.json": json.dumps(schema(values), indent=2, ensure_ascii=False) + "\n",
        "README.md": _TABLE.sub(lambda marks: f"{marks[1]}{tables[marks[2]]}\n{marks[3]}", readme),
        "files/without-null.yaml": without_null(values),
        "files/settings-names.yaml": "# Names of the service's settings, for hints. Made by scripts/chart_reference.py.\n"
        + yaml.safe_dump(setting_names(settings_schema()), sort_keys=False),
    }
    return update({CHART / name: text for name, text in wanted.items()})


if __name__ == "__main__":
    sys.exit(main())
