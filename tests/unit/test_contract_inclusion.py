"""Comparing schemas: no gap is a proof, and each kind of gap is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator

from service.contract.compare.inclusion import Assumptions, Inclusion
from service.contract.export.bundle import PREFIX
from tests.support.examples import examples

STRICT = Assumptions(declared_only=False, reads_known=False)
PUBLISHERS, SUBSCRIBERS = Assumptions(), Assumptions(reads_known=True)

_NAMES = st.sampled_from(["a", "b", "c"])
DATA = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 2, -1, 1.5, 3.0, "", "a", "ab", "abc", "x@y.z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=6,
)
_SMALL = st.integers(-1, 3)
_COUNTS = st.integers(0, 3)
_TYPES = st.sampled_from(["null", "boolean", "object", "array", "string", "integer", "number"])


def _keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    named = st.dictionaries(_NAMES, inner, max_size=2)
    several = st.lists(inner, min_size=1, max_size=2)
    possible = {
        "type": _TYPES | st.lists(_TYPES, min_size=1, max_size=3, unique=True),
        "enum": st.lists(DATA, min_size=1, max_size=3),
        "const": DATA,
        "minimum": _SMALL,
        "maximum": _SMALL,
        "exclusiveMinimum": _SMALL,
        "exclusiveMaximum": _SMALL,
        "multipleOf": st.sampled_from([1, 2, 0.5, 1.5]),
        "minLength": _COUNTS,
        "maxLength": _COUNTS,
        "pattern": st.sampled_from(["^a", "b$"]),
        "format": st.just("email"),
        "required": st.lists(_NAMES, max_size=2, unique=True),
        "properties": named,
        "additionalProperties": inner,
        "patternProperties": st.dictionaries(st.sampled_from(["^a", "[bc]"]), inner, max_size=2),
        "propertyNames": inner,
        "minProperties": _COUNTS,
        "maxProperties": _COUNTS,
        "dependentRequired": st.dictionaries(_NAMES, st.lists(_NAMES, max_size=2, unique=True), max_size=2),
        "dependentSchemas": named,
        "prefixItems": several,
        "items": inner,
        "minItems": _COUNTS,
        "maxItems": _COUNTS,
        "uniqueItems": st.booleans(),
        "contains": inner,
        "maxContains": _COUNTS,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
        "anyOf": several,
        "oneOf": several,
        "allOf": several,
        "unevaluatedProperties": inner,
        "unevaluatedItems": inner,
        "$ref": st.sampled_from([f"{PREFIX}x", f"{PREFIX}y"]).map(str),
        "description": st.just("says nothing"),
    }
    chosen = st.lists(st.sampled_from(sorted(possible)), min_size=1, max_size=3, unique=True)
    return chosen.flatmap(lambda keys: st.fixed_dictionaries({key: possible[key] for key in keys}))


SCHEMAS = st.recursive(st.booleans() | st.just({}) | _keywords(st.booleans()), _keywords, max_leaves=5)


def _guarded(schema: Any) -> Any:
    """Puts a schema below a property, so that a reference cannot lead to itself without data between."""
    return {"type": ["object", "string"], "properties": {"a": schema}}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Two schemas, often with a part in common, and the components of each."""
    first = draw(SCHEMAS)
    other = draw(SCHEMAS)
    related = st.sampled_from(
        [other, {"allOf": [first, other]}, {"anyOf": [first, other]}, {"anyOf": [other, first]}, first]
    )
    second = draw(related)
    if isinstance(first, dict) and draw(st.booleans()):
        second = {key: value for key, value in first.items() if draw(st.booleans())}
    shared = draw(SCHEMAS)
    old = {"x": _guarded(draw(SCHEMAS)), "y": _guarded(shared)}
    new = {"x": old["x"] if draw(st.booleans()) else _guarded(draw(SCHEMAS)), "y": _guarded(shared)}
    return (*((first, second) if draw(st.booleans()) else (second, first)), old, new)


def validator(schema: Any, components: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({"allOf": [schema], "components": {"schemas": components}}, validate_formats=True)


@settings(max_examples=examples(100))
@given(pair=pairs(), data=st.lists(DATA, min_size=25, max_size=25))
def test_no_gap_means_that_all_data_fits(
    pair: tuple[Any, Any, dict[str, Any], dict[str, Any]], data: list[Any]
) -> None:
    narrow, wide, old, new = pair
    if Inclusion(old, new, STRICT).gaps(narrow, wide):
        return
    allows, fits = validator(narrow, old), validator(wide, new)
    for value in data:
        assert not allows.is_valid(value) or fits.is_valid(value), value


@given(schema=SCHEMAS)
def test_schema_has_no_gap_to_itself(schema: Any) -> None:
    components = {"x": _guarded(schema), "y": _guarded({"$ref": f"{PREFIX}x"})}
    for assumptions in (STRICT, PUBLISHERS, SUBSCRIBERS):
        assert Inclusion(components, components, assumptions).gaps(schema, schema) == []


OBJECT = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
CASES: list[tuple[Any, Any, str]] = [
    ({"type": "string"}, {"type": "integer"}, "may be of type string"),
    ({"type": "number"}, {"type": "integer"}, "may be of type number"),
    ({"type": ["string", "null"]}, {"type": "string"}, "may be of type null"),
    ({"enum": ["a", "b"]}, {"enum": ["a"]}, 'may be "b"'),
    ({"type": "boolean"}, {"const": True}, "may be false"),
    ({"type": "string"}, {"enum": ["a"]}, 'may be something else than "a"'),
    ({"type": "integer", "minimum": 1}, {"minimum": 2}, "may be below 2"),
    ({"type": "integer", "minimum": 2}, {"exclusiveMinimum": 2}, "may be 2 or below"),
    ({"type": "integer", "maximum": 9}, {"maximum": 5}, "may be above 5"),
    ({"type": "integer", "maximum": 5}, {"exclusiveMaximum": 5}, "may be 5 or above"),
    ({"type": "integer"}, {"multipleOf": 5}, "may be no multiple of 5"),
    ({"type": "string"}, {"minLength": 1}, "may be shorter than 1"),
    ({"type": "string", "maxLength": 9}, {"maxLength": 8}, "may be longer than 8"),
    ({"type": "string"}, {"pattern": "^a"}, 'may not match pattern "^a"'),
    ({"type": "string"}, {"format": "email"}, 'may not match format "email"'),
    ({"type": "object"}, {"required": ["a"]}, 'may lack "a"'),
    (OBJECT, {"properties": {"a": {"maxLength": 2}}}, "may be longer than 2"),
    (OBJECT, {"additionalProperties": False}, 'may have "a"'),
    (OBJECT, {"properties": {"a": {}}, "additionalProperties": False}, "may have undeclared properties"),
    (OBJECT, {"additionalProperties": {"type": "null"}}, 'in "a" may be of type string'),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, {"patternProperties": {"^x": {"type": "string"}}},
     "may be of type integer"),
    ({"type": "object"}, {"minProperties": 1}, "may have fewer than 1 properties"),
    ({"type": "object"}, {"maxProperties": 1}, "may have more than 1 properties"),
    ({"type": "object"}, {"dependentRequired": {"a": ["b"]}}, 'may have "a" without "b"'),
    ({"type": "object"}, {"propertyNames": {"maxLength": 3}}, "in names of properties may be longer than 3"),
    ({"type": "array", "items": {"type": "string"}}, {"items": {"type": "integer"}}, "may be of type string"),
    ({"type": "array"}, {"prefixItems": [{"type": "null"}], "maxItems": 1}, "may have more than 1 items"),
    ({"type": "array"}, {"minItems": 1}, "may have fewer than 1 items"),
    ({"type": "array"}, {"uniqueItems": True}, "may have equal items"),
    ({"type": "integer"}, {"anyOf": [{"type": "string"}, {"type": "null"}]}, "may fit none of the alternatives"),
    ({"type": "integer"}, {"oneOf": [{"minimum": 0}, {"maximum": 5}]}, "may fit none of the alternatives"),
    ({"type": "integer"}, {"oneOf": [{"type": "integer"}, {"multipleOf": 5}]}, "may fit several of the alternatives"),
    ({"type": "object"}, {"not": {"required": ["a"]}}, "may not match 'not', which cannot be compared"),
    ({"type": "object"}, {"if": {"required": ["a"]}, "then": False}, "may not match 'if', which cannot be compared"),
    ({"type": "object"}, {"unevaluatedProperties": False}, "may not match 'unevaluatedProperties', which cannot be compared"),
    ({}, False, "is not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("narrow", "wide", "reason"), CASES, ids=[reason for _, _, reason in CASES])
def test_gap_says_what_the_data_may_be(narrow: Any, wide: Any, reason: str) -> None:
    assert reason in [gap.reason for gap in Inclusion({}, {}, STRICT).gaps(narrow, wide)]


def test_gap_names_the_place_in_the_wide_schema() -> None:
    wide = {"properties": {"a": {"allOf": [{"maxLength": 2}]}}}
    [gap] = Inclusion({}, {}, PUBLISHERS).gaps(OBJECT, wide)
    assert gap.place == ("properties", "a", "allOf", 0, "maxLength")
    assert gap.is_certain


def test_new_optional_property_is_no_gap_unless_strict() -> None:
    wide = {**OBJECT, "properties": {**OBJECT["properties"], "b": {"type": "integer"}}}  # type: ignore[dict-item]  # a dict
    assert Inclusion({}, {}, PUBLISHERS).gaps(OBJECT, wide) == []
    assert [gap.place for gap in Inclusion({}, {}, STRICT).gaps(OBJECT, wide)] == [("properties", "b", "type")]


def test_subscribers_ignore_properties_that_they_do_not_know() -> None:
    closed = {**OBJECT, "additionalProperties": False}
    more = {**closed, "properties": {"a": {"type": "string"}, "b": {}}}
    assert Inclusion({}, {}, SUBSCRIBERS).gaps(more, closed) == []
    assert [gap.reason for gap in Inclusion({}, {}, PUBLISHERS).gaps(more, closed)] == ['may have "b"']


def test_recursive_schemas_are_compared_to_the_end() -> None:
    def tree(leaf: str) -> dict[str, Any]:
        children = {"type": "array", "items": {"$ref": f"{PREFIX}t"}}
        return {"t": {"type": "object", "properties": {"leaf": {"type": leaf}, "children": children}}}

    both = {"$ref": f"{PREFIX}t"}
    assert Inclusion(tree("integer"), tree("number"), PUBLISHERS).gaps(both, both) == []
    [gap] = Inclusion(tree("number"), tree("integer"), PUBLISHERS).gaps(both, both)
    assert (gap.place, gap.reason) == (("$ref", "properties", "leaf", "type"), "may be of type number")


def test_tagged_alternatives_are_compared_one_by_one() -> None:
    def tagged(*kinds: str) -> dict[str, Any]:
        return {
            "oneOf": [{"type": "object", "required": ["kind"], "properties": {"kind": {"const": k}}} for k in kinds]
        }

    assert Inclusion({}, {}, STRICT).gaps(tagged("a", "b"), tagged("b", "c", "a")) == []
    [gap] = Inclusion({}, {}, STRICT).gaps(tagged("a", "b"), tagged("a"))
    assert gap.is_certain


def test_endless_references_and_huge_schemas_are_not_followed_for_ever() -> None:
    loop = {"x": {"anyOf": [{"$ref": f"{PREFIX}y"}]}, "y": {"anyOf": [{"$ref": f"{PREFIX}x"}, {"$ref": f"{PREFIX}y"}]}}
    Inclusion(loop, loop, STRICT).gaps({"$ref": f"{PREFIX}x"}, {"type": "string"})
    deep: dict[str, Any] = {"type": "string"}
    other: dict[str, Any] = {"type": "string", "maxLength": 5}
    for _ in range(100):
        deep, other = {"type": "array", "items": deep}, {"type": "array", "items": other}
    [gap] = Inclusion({}, {}, STRICT).gaps(deep, other)
    assert "too large" in gap.reason
    assert not gap.is_certain
