"""Walks JSON Schemas, and tells keywords that hold schemas from keywords that hold data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.contract.document import Place

NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose value maps names to schemas."""
DATA = frozenset({"const", "enum", "default", "examples"})
"""Keywords whose value is data and not a schema."""
REFERENCES = ("$ref", "$dynamicRef")
_POINTERS = (*REFERENCES, "$schema", "$id")


def subschemas(schema: Any) -> Iterator[tuple[Place, Any]]:
    """Yields each value directly in a schema that may be a schema, with its place. Data is left out."""
    if not isinstance(schema, dict):
        return
    for keyword, value in schema.items():
        if keyword in NAMED and isinstance(value, dict):
            for name, child in value.items():
                yield (keyword, name), child
        elif keyword not in DATA:
            yield (keyword,), value
            for index, child in enumerate(value if isinstance(value, list) else ()):
                yield (keyword, index), child


def references(schema: Any, place: Place = ()) -> Iterator[tuple[Place, str, str]]:
    """Yields every $ref, $dynamicRef, $schema and $id that is a keyword and not data, with the place of its schema."""
    if not isinstance(schema, dict):
        return
    for keyword in _POINTERS:
        if isinstance(value := schema.get(keyword), str):
            yield place, keyword, value
    for at, child in subschemas(schema):
        yield from references(child, (*place, *at))


def find_anchor(schema: Any, name: str, place: Place = ()) -> Place | None:
    """Returns the place of the schema with this $anchor or $dynamicAnchor; None if there is none."""
    if not isinstance(schema, dict):
        return None
    if name in (schema.get("$anchor"), schema.get("$dynamicAnchor")):
        return place
    for at, child in subschemas(schema):
        if (found := find_anchor(child, name, (*place, *at))) is not None:
            return found
    return None
