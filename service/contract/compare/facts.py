"""What a JSON Schema certainly says about the data that it allows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Any
from urllib.parse import unquote

from service.contract import pointer
from service.contract.export.bundle import PREFIX, canonical

TYPES = frozenset({"null", "boolean", "object", "array", "string", "integer", "fraction"})
"""The types of data. A `number` is an integer or a fraction."""
ANNOTATIONS = frozenset(
    {
        "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$defs", "definitions",
        "contentEncoding", "contentMediaType", "contentSchema",
    }
)  # fmt: skip
"""Keywords that refuse no data."""


def types_of(schema: Mapping[str, Any]) -> frozenset[str]:
    """Returns the types that the keyword `type` allows."""
    declared = schema.get("type", ())
    names = {declared} if isinstance(declared, str) else set(declared)
    if not names:
        return TYPES
    return frozenset(names - {"number"} | ({"integer", "fraction"} if "number" in names else set()))


def values_of(schema: Mapping[str, Any]) -> list[Any] | None:
    """Returns the values that `const` or `enum` list; None without them."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def resolve(reference: str, components: Mapping[str, Any]) -> Any:
    """Returns the schema that a reference of a bundle points to."""
    return pointer.find(components, pointer.parse(f"/{unquote(reference.removeprefix(PREFIX))}"))


def flatten(schemas: Iterable[Any], components: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Splits a conjunction of schemas into parts without $ref and allOf; None if one of them allows nothing."""
    parts: list[dict[str, Any]] = []
    seen: set[str] = set()
    waiting = list(schemas)
    while waiting:
        schema = waiting.pop()
        if schema is False:
            return None
        if not isinstance(schema, dict):
            continue
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            seen.add(reference)
            waiting.append(resolve(reference, components))
        waiting.extend(schema.get("allOf", ()))
        if own := {
            key: value for key, value in schema.items() if key not in ("$ref", "allOf") and key not in ANNOTATIONS
        }:
            parts.append(own)
    return parts


def equal(first: Any, second: Any, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """True if two schemas have the same text, and so has everything that they refer to."""
    seen: set[str] = set()
    pairs = [(first, second)]
    while pairs:
        one, other = pairs.pop()
        if canonical(one) != canonical(other):
            return False
        for reference in set(_targets(one)) - seen:
            seen.add(reference)
            try:
                pairs.append((resolve(reference, old), resolve(reference, new)))
            except LookupError:
                return False
    return True


def _targets(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(child, str) and child.startswith(PREFIX):
                yield child
            yield from _targets(child)
    elif isinstance(value, list):
        for child in value:
            yield from _targets(child)


class Facts:
    """What the parts of a conjunction say together. It does not know every keyword, so it may say less than the schema."""

    def __init__(self, parts: list[dict[str, Any]]) -> None:
        self.parts = parts
        self.types = frozenset.intersection(TYPES, *map(types_of, parts))

    def least(self, keyword: str) -> float:
        """The largest of the lower limits; 0 without one."""
        return max((part[keyword] for part in self.parts if keyword in part), default=0)

    def most(self, keyword: str) -> float:
        """The smallest of the upper limits."""
        return min((part[keyword] for part in self.parts if keyword in part), default=inf)

    def has(self, *keywords: str) -> bool:
        """True if some part has one of the keywords."""
        return any(keyword in part for part in self.parts for keyword in keywords)

    def has_value(self, keyword: str, value: Any) -> bool:
        """True if some part has the keyword with this value."""
        return any(keyword in part and canonical(part[keyword]) == canonical(value) for part in self.parts)

    def values(self) -> list[Any] | None:
        """The values that are possible, if they are listed."""
        listed = [values for part in self.parts if (values := values_of(part)) is not None]
        if listed:
            first, *others = sorted(listed, key=len)
            keep = [{canonical(value) for value in values} for values in others]
            return [value for value in first if all(canonical(value) in values for values in keep)]
        if self.types <= {"null", "boolean"}:
            return [None] * ("null" in self.types) + [True, False] * ("boolean" in self.types)
        return None

    # --- objects ------------------------------------------------------------------------------------------------------

    @property
    def required(self) -> set[str]:
        """The properties that every object has."""
        return {name for part in self.parts for name in part.get("required", ())}

    @property
    def declared(self) -> dict[str, None]:
        """The names in `properties`, in their order."""
        return dict.fromkeys(name for part in self.parts for name in part.get("properties", ()))

    def schemas_of(self, name: str) -> list[Any]:
        """Schemas that the property matches, if there is one."""
        found = []
        for part in self.parts:
            if name in part.get("properties", ()):
                found.append(part["properties"][name])
            elif "additionalProperties" in part and "patternProperties" not in part:
                found.append(part["additionalProperties"])
        return found

    @property
    def additional(self) -> list[Any] | None:
        """Schemas that undeclared properties match; None if no part says anything about them."""
        found = [part["additionalProperties"] for part in self.parts if "additionalProperties" in part]
        return found or None

    @property
    def is_closed(self) -> bool:
        """True if objects have only declared properties."""
        return any(part.get("additionalProperties") is False and "patternProperties" not in part for part in self.parts)

    @property
    def patterns(self) -> dict[str, list[Any]]:
        """Schemas of the properties that match each pattern."""
        found: dict[str, list[Any]] = {}
        for part in self.parts:
            for pattern, schema in part.get("patternProperties", {}).items():
                found.setdefault(pattern, []).append(schema)
        return found

    # --- arrays -------------------------------------------------------------------------------------------------------

    @property
    def prefix_length(self) -> int:
        """The number of items with a schema of their own."""
        return max((len(part.get("prefixItems", ())) for part in self.parts), default=0)

    def item(self, index: int) -> list[Any]:
        """Schemas that the item matches."""
        found = []
        for part in self.parts:
            prefix = part.get("prefixItems", ())
            if index < len(prefix):
                found.append(prefix[index])
            elif "items" in part:
                found.append(part["items"])
        return found

    @property
    def max_items(self) -> float:
        """The most items of an array."""
        closed = [len(part.get("prefixItems", ())) for part in self.parts if part.get("items") is False]
        return min([self.most("maxItems"), *closed])


def shown(value: Any) -> str:
    """Returns a value as short JSON."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}…"
