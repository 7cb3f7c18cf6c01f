"""Whether a schema allows all data that another one allows. Where that is not known, it says so.

"No gap" is a proof. A gap is `certain` if such data surely exists, as far as the keywords beside it do not exclude it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from operator import ge, gt, le, lt
from typing import Any

from jsonschema_rs import Draft202012Validator, RegexOptions

from service.contract.compare.facts import (
    ANNOTATIONS,
    TYPES,
    Facts,
    equal,
    flatten,
    resolve,
    shown,
    types_of,
    values_of,
)
from service.contract.document import Place
from service.contract.export.bundle import canonical

MAX_STEPS = 20_000
"""Comparisons of two schemas."""
MAX_DEPTH = 64
"""Levels of nesting that are compared."""
MAX_ALTERNATIVES = 64
"""Alternatives of a schema that are compared one by one."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Data that the narrow schema allows, and that the wide one does not."""

    place: Place
    """Where the wide schema refuses it."""
    reason: str
    """Continues a sentence that begins with the name of the data: `may lack "text"`."""
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is taken for granted about data and its readers. JSON Schema by itself grants neither."""

    declared_only: bool = True
    """Data has only properties that its schema declares."""
    reads_known: bool = False
    """The reader ignores properties that its schema does not declare."""


class Inclusion:
    """Compares data of a narrow schema with a wide schema."""

    def __init__(self, narrow: Mapping[str, Any], wide: Mapping[str, Any], assumptions: Assumptions) -> None:
        """Gets the components of the bundles that the schemas are from."""
        self.narrow, self.wide = narrow, wide
        self.assumptions = assumptions
        self._assumed: dict[tuple[str, str], None] = {}
        """Pairs without a known gap, in the order in which they were met."""
        self._failed: dict[tuple[str, str], Gap] = {}
        self._steps = 0
        self._validators: dict[tuple[bool, str], Draft202012Validator] = {}

    def gaps(self, narrow: Any, wide: Any) -> list[Gap]:
        """Returns the gaps; none if all data of the narrow schema fits the wide one."""
        self._assumed.clear()
        self._failed.clear()
        self._steps = 0
        return list(dict.fromkeys(self.compare([narrow], wide, ())))

    def compare(self, narrow: list[Any], wide: Any, place: Place) -> list[Gap]:
        """Returns the gaps between the conjunction of some schemas and the wide schema at this place."""
        if wide is True or wide == {} or (len(narrow) == 1 and equal(narrow[0], wide, self.narrow, self.wide)):
            return []
        self._steps += 1
        if self._steps > MAX_STEPS or len(place) > MAX_DEPTH:
            return [Gap(place, "cannot be compared: the schemas are too large", is_certain=False)]
        pair = (canonical(narrow), canonical(wide))
        if pair in self._assumed:  # a recursive schema: its data ends, so what holds for its parts holds for it
            return []
        if pair in self._failed:
            return [replace(self._failed[pair], place=place)]
        known = len(self._assumed)
        self._assumed[pair] = None
        found = self._compare_alternatives(narrow, wide, place)
        if found:
            self._failed[pair] = found[0]
            while len(self._assumed) > known:  # what was found since may stand on this pair
                self._assumed.popitem()
        return found

    def _compare_alternatives(self, narrow: list[Any], wide: Any, place: Place) -> list[Gap]:
        parts = flatten(narrow, self.narrow)
        if parts is None:
            return []
        alternatives = _alternatives(parts, self.narrow)
        return [gap for found in alternatives for gap in self._compare_one(Facts(found), wide, place)]

    def _compare_one(self, narrow: Facts, wide: Any, place: Place) -> list[Gap]:
        """Compares one alternative of the narrow schema."""
        if not narrow.types:
            return []
        values = narrow.values()
        if values is not None:
            return [
                Gap(place, f"may be {shown(value)}")
                for value in values
                if self._is_valid(narrow.parts, value, is_wide=False)
                and not self._is_valid([wide], value, is_wide=True)
            ]
        if wide is False:
            return [Gap(place, "is not allowed")]
        if not isinstance(wide, dict):
            return []
        return [gap for keyword in wide for gap in _Keyword(self, narrow, wide, keyword, place).gaps()]

    def _is_valid(self, schemas: list[Any], value: Any, *, is_wide: bool) -> bool:
        key = (is_wide, canonical(schemas))
        if key not in self._validators:
            components = self.wide if is_wide else self.narrow
            self._validators[key] = Draft202012Validator(
                {"allOf": schemas, "components": {"schemas": components}},
                validate_formats=True,
                offline=True,
                pattern_options=RegexOptions(),
            )
        return self._validators[key].is_valid(value)


_ABOUT = {
    frozenset({"string"}): ("minLength", "maxLength", "pattern", "format"),
    frozenset({"integer", "fraction"}): ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    frozenset({"object"}): (
        "properties", "required", "additionalProperties", "patternProperties", "propertyNames", "minProperties", "maxProperties",
        "dependentRequired", "dependentSchemas", "unevaluatedProperties",
    ),
    frozenset({"array"}): (
        "items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains", "minContains", "maxContains",
        "unevaluatedItems",
    ),
}  # fmt: skip
_TYPE_OF = {keyword: types for types, keywords in _ABOUT.items() for keyword in keywords}
"""The types that a keyword is about. It says nothing about other types."""
_GROUPS = (("if", "then", "else"), ("contains", "minContains", "maxContains"))
"""Keywords that have a meaning together."""
_SCHEMA_KEYWORDS = frozenset(
    {
        "not",
        "dependentSchemas",
        "dependencies",
        "$dynamicRef",
        "unevaluatedProperties",
        "unevaluatedItems",
        *_GROUPS[0],
        *_GROUPS[1],
    }
)
"""Keywords that are compared only by their text."""


class _Keyword:
    """One keyword of the wide schema, against one alternative of the narrow one."""

    def __init__(
        self, inclusion: Inclusion, narrow: Facts, wide: Mapping[str, Any], keyword: str, place: Place
    ) -> None:
        self._inclusion = inclusion
        self._narrow = narrow
        self._schema = wide
        self._keyword = keyword
        self._around = place

    @cached_property
    def _value(self) -> Any:
        return self._schema[self._keyword]

    @property
    def _place(self) -> Place:
        return (*self._around, self._keyword)

    def gaps(self) -> list[Gap]:
        keyword = self._keyword
        if keyword in ANNOTATIONS or not self._narrow.types & _TYPE_OF.get(keyword, TYPES):
            return []
        if keyword in _SCHEMA_KEYWORDS:
            return self._compare_text()
        check = _CHECKS.get(keyword)
        return list(check(self)) if check is not None else []  # what nobody knows refuses no data

    def _gap(self, reason: str, *, unless: tuple[str, ...] = ()) -> Iterator[Gap]:
        """Yields one gap. It is uncertain if the narrow schema has one of the keywords `unless`."""
        yield Gap(self._place, reason, is_certain=not self._narrow.has(*unless, "not", "if", "$dynamicRef"))

    def _into(self, narrow: list[Any], wide: Any, *steps: str | int) -> list[Gap]:
        return self._inclusion.compare(narrow, wide, (*self._place, *steps))

    def _compare_text(self) -> list[Gap]:
        group = next((group for group in _GROUPS if self._keyword in group), (self._keyword,))
        if self._keyword != next(keyword for keyword in group if keyword in self._schema):
            return []  # its first keyword stands for the group
        own = {keyword: self._schema[keyword] for keyword in group if keyword in self._schema}
        depends_on_others = self._keyword.startswith("unevaluated")
        for part in [] if depends_on_others else self._narrow.parts:
            other = {keyword: part[keyword] for keyword in group if keyword in part}
            if equal(other, own, self._inclusion.narrow, self._inclusion.wide):
                return []
        return [Gap(self._place, f"may not match {self._keyword!r}, which cannot be compared", is_certain=False)]

    # --- any type -----------------------------------------------------------------------------------------------------

    def type(self) -> Iterator[Gap]:
        more = self._narrow.types - types_of(self._schema)
        names = {"number" if name == "fraction" else name for name in more}
        if names:
            yield from self._gap(f"may be of type {' or '.join(sorted(names))}")

    def enum(self) -> Iterator[Gap]:
        values = values_of(self._schema)
        yield from self._gap(
            f"may be something else than {shown(values[0] if values and len(values) == 1 else values)}"
        )

    def reference(self) -> list[Gap]:
        return self._inclusion.compare(self._narrow.parts, resolve(self._value, self._inclusion.wide), self._place)

    def all_of(self) -> list[Gap]:
        return [
            gap for index, schema in enumerate(self._value) for gap in self._into(self._narrow.parts, schema, index)
        ]

    def any_of(self) -> list[Gap]:
        found = []
        for type_ in self._split_types():
            tried = [self._try(type_, schema, index) for index, schema in enumerate(self._value)]
            if all(tried):
                is_certain = all(any(gap.is_certain for gap in gaps) for gaps in tried)
                closest = min(tried, key=len)
                reason = closest[0].reason if len(tried) == 1 else "may fit none of the alternatives"
                found.append(Gap(self._place, reason, is_certain))
        return found

    def one_of(self) -> list[Gap]:
        found = []
        for type_ in self._split_types():
            facts = Facts([*self._narrow.parts, *type_])
            tried = [self._try(type_, schema, index) for index, schema in enumerate(self._value)]
            fitting = [index for index, gaps in enumerate(tried) if not gaps]
            if not fitting:
                is_certain = all(any(gap.is_certain for gap in gaps) for gaps in tried)
                found.append(Gap(self._place, "may fit none of the alternatives", is_certain))
            elif not all(
                index == fitting[0] or self._is_disjoint(facts, schema) for index, schema in enumerate(self._value)
            ):
                found.append(Gap(self._place, "may fit several of the alternatives", is_certain=False))
        return found

    def _split_types(self) -> list[list[dict[str, Any]]]:
        """One part for each type of the data, so that each can fit another alternative."""
        if len(self._narrow.types) == 1:
            return [[]]
        names = {name if name != "fraction" else "number" for name in self._narrow.types}
        return [[{"type": name}] for name in sorted(names - {"integer"} if "number" in names else names)]

    def _try(self, type_: list[dict[str, Any]], schema: Any, index: int) -> list[Gap]:
        """Compares data of one type with one alternative."""
        return self._into([*self._narrow.parts, *type_], schema, index)

    def _is_disjoint(self, narrow: Facts, schema: Any) -> bool:
        parts = flatten([schema], self._inclusion.wide)
        return parts is None or _are_disjoint(narrow, Facts(parts), self._inclusion)

    # --- numbers ------------------------------------------------------------------------------------------------------

    def minimum(self) -> Iterator[Gap]:
        if not self._has_limit("minimum", ge) and not self._has_limit("exclusiveMinimum", ge):
            yield from self._gap(f"may be below {self._value}", unless=("multipleOf",))

    def exclusive_minimum(self) -> Iterator[Gap]:
        if not self._has_limit("exclusiveMinimum", ge) and not self._has_limit("minimum", gt):
            yield from self._gap(f"may be {self._value} or below", unless=("multipleOf",))

    def maximum(self) -> Iterator[Gap]:
        if not self._has_limit("maximum", le) and not self._has_limit("exclusiveMaximum", le):
            yield from self._gap(f"may be above {self._value}", unless=("multipleOf",))

    def exclusive_maximum(self) -> Iterator[Gap]:
        if not self._has_limit("exclusiveMaximum", le) and not self._has_limit("maximum", lt):
            yield from self._gap(f"may be {self._value} or above", unless=("multipleOf",))

    def _has_limit(self, keyword: str, is_enough: Callable[[Any, Any], bool]) -> bool:
        return any(keyword in part and is_enough(part[keyword], self._value) for part in self._narrow.parts)

    def multiple_of(self) -> Iterator[Gap]:
        wanted = Fraction(str(self._value))
        known = [Fraction(str(part["multipleOf"])) for part in self._narrow.parts if "multipleOf" in part]
        if "fraction" not in self._narrow.types:
            known.append(Fraction(1))
        if not any((step / wanted).denominator == 1 for step in known):
            yield from self._gap(f"may be no multiple of {self._value}")

    # --- text ---------------------------------------------------------------------------------------------------------

    def min_length(self) -> Iterator[Gap]:
        if self._narrow.least("minLength") < self._value:
            yield from self._gap(f"may be shorter than {self._value}", unless=("pattern", "format"))

    def max_length(self) -> Iterator[Gap]:
        if self._narrow.most("maxLength") > self._value:
            yield from self._gap(f"may be longer than {self._value}", unless=("pattern", "format"))

    def same(self) -> Iterator[Gap]:
        if not self._narrow.has_value(self._keyword, self._value):
            yield from self._gap(f"may not match {self._keyword} {shown(self._value)}", unless=("pattern", "format"))

    # --- objects ------------------------------------------------------------------------------------------------------

    def required(self) -> Iterator[Gap]:
        for name in self._value:
            if name not in self._narrow.required:
                yield from self._gap(f"may lack {shown(name)}", unless=("dependentRequired", "dependentSchemas"))

    def properties(self) -> list[Gap]:
        narrow = self._narrow
        found = []
        for name, schema in self._value.items():
            is_known = name in narrow.declared or narrow.additional is not None or narrow.patterns
            if is_known or not self._inclusion.assumptions.declared_only:
                found += self._into(narrow.schemas_of(name), schema, name)
        return found

    def additional_properties(self) -> list[Gap]:
        narrow, value, assumptions = self._narrow, self._value, self._inclusion.assumptions
        if assumptions.reads_known and value is False:
            return []
        declared = self._schema.get("properties", {})
        patterns = self._schema.get("patternProperties", {})
        found = []
        for name in narrow.declared:
            if name not in declared and (gaps := self._into(narrow.schemas_of(name), value)):
                found += [_renamed(gap, name, is_certain=not patterns) for gap in gaps]
        for pattern, schemas in narrow.patterns.items():
            if pattern not in patterns and (gaps := self._into(schemas, value)):
                found += [
                    replace(gap, reason=f"in properties that match {shown(pattern)} {gap.reason}") for gap in gaps
                ]
        if narrow.additional is not None:
            found += [_undeclared(gap) for gap in self._into(narrow.additional, value)]
        elif not assumptions.reads_known:
            is_certain = not assumptions.declared_only
            found += [replace(_undeclared(gap), is_certain=is_certain) for gap in self._into([], value)]
        return found

    def pattern_properties(self) -> list[Gap]:
        narrow = self._narrow
        found: list[Gap] = []
        for pattern, schema in self._value.items():
            if pattern in narrow.patterns:
                found += self._into(narrow.patterns[pattern], schema, pattern)
                continue
            candidates = [narrow.schemas_of(name) for name in narrow.declared]
            candidates += list(narrow.patterns.values())
            if narrow.additional is not None:
                candidates.append(narrow.additional)
            elif not self._inclusion.assumptions.declared_only:
                candidates.append([])
            gaps = [gap for candidate in candidates for gap in self._into(candidate, schema, pattern)]
            found += [replace(gap, is_certain=False) for gap in gaps]
        return found

    def property_names(self) -> list[Gap]:
        if self._narrow.is_closed:
            names: list[Any] = [{"enum": [*self._narrow.declared]}]
        else:
            names = [
                {"type": "string"},
                *(part["propertyNames"] for part in self._narrow.parts if "propertyNames" in part),
            ]
        return [replace(gap, reason=f"in names of properties {gap.reason}") for gap in self._into(names, self._value)]

    def min_properties(self) -> Iterator[Gap]:
        if max(self._narrow.least("minProperties"), len(self._narrow.required)) < self._value:
            yield from self._gap(f"may have fewer than {self._value} properties", unless=("dependentRequired",))

    def max_properties(self) -> Iterator[Gap]:
        most = self._narrow.most("maxProperties")
        if self._narrow.is_closed:
            most = min(most, len(self._narrow.declared))
        if most > self._value:
            yield from self._gap(f"may have more than {self._value} properties", unless=("additionalProperties",))

    def dependent_required(self) -> Iterator[Gap]:
        for name, needed in self._value.items():
            known = self._narrow.required.union(
                *(part.get("dependentRequired", {}).get(name, ()) for part in self._narrow.parts)
            )
            for missing in set(needed) - known:
                yield from self._gap(
                    f"may have {shown(name)} without {shown(missing)}", unless=("additionalProperties",)
                )

    # --- arrays -------------------------------------------------------------------------------------------------------

    def prefix_items(self) -> list[Gap]:
        narrow = self._narrow
        return [
            gap
            for index, schema in enumerate(self._value)
            if index < narrow.max_items
            for gap in self._into(narrow.item(index), schema, index)
        ]

    def items(self) -> list[Gap]:
        narrow = self._narrow
        first = len(self._schema.get("prefixItems", ()))
        end = max(first, narrow.prefix_length)
        indices = [index for index in range(first, end + 1) if index < narrow.max_items]
        return [gap for index in indices for gap in self._into(narrow.item(index), self._value)]

    def min_items(self) -> Iterator[Gap]:
        if self._narrow.least("minItems") < self._value:
            yield from self._gap(f"may have fewer than {self._value} items", unless=("contains",))

    def max_items(self) -> Iterator[Gap]:
        if self._narrow.max_items > self._value:
            yield from self._gap(f"may have more than {self._value} items", unless=("uniqueItems", "items"))

    def unique_items(self) -> Iterator[Gap]:
        if self._value and not self._narrow.has_value("uniqueItems", True) and self._narrow.max_items > 1:
            yield from self._gap("may have equal items", unless=("items", "prefixItems"))


_CHECKS: Mapping[str, Callable[[_Keyword], Iterator[Gap] | list[Gap]]] = {
    "$ref": _Keyword.reference,
    "allOf": _Keyword.all_of,
    "anyOf": _Keyword.any_of,
    "oneOf": _Keyword.one_of,
    "type": _Keyword.type,
    "enum": _Keyword.enum,
    "const": _Keyword.enum,
    "minimum": _Keyword.minimum,
    "exclusiveMinimum": _Keyword.exclusive_minimum,
    "maximum": _Keyword.maximum,
    "exclusiveMaximum": _Keyword.exclusive_maximum,
    "multipleOf": _Keyword.multiple_of,
    "minLength": _Keyword.min_length,
    "maxLength": _Keyword.max_length,
    "pattern": _Keyword.same,
    "format": _Keyword.same,
    "required": _Keyword.required,
    "properties": _Keyword.properties,
    "additionalProperties": _Keyword.additional_properties,
    "patternProperties": _Keyword.pattern_properties,
    "propertyNames": _Keyword.property_names,
    "minProperties": _Keyword.min_properties,
    "maxProperties": _Keyword.max_properties,
    "dependentRequired": _Keyword.dependent_required,
    "prefixItems": _Keyword.prefix_items,
    "items": _Keyword.items,
    "minItems": _Keyword.min_items,
    "maxItems": _Keyword.max_items,
    "uniqueItems": _Keyword.unique_items,
}


def _renamed(gap: Gap, name: str, *, is_certain: bool) -> Gap:
    reason = f"may have {shown(name)}" if gap.reason == "is not allowed" else f"in {shown(name)} {gap.reason}"
    return replace(gap, reason=reason, is_certain=gap.is_certain and is_certain)


def _undeclared(gap: Gap) -> Gap:
    reason = (
        "may have undeclared properties" if gap.reason == "is not allowed" else f"in undeclared properties {gap.reason}"
    )
    return replace(gap, reason=reason)


def _alternatives(parts: list[dict[str, Any]], components: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Splits a conjunction at its anyOf and oneOf. Too many alternatives stay together: less is known of them then."""
    done: list[list[dict[str, Any]]] = []
    waiting = [parts]
    for _ in range(MAX_ALTERNATIVES):
        if not waiting:
            break
        current = waiting.pop(0)
        index = next((i for i, part in enumerate(current) if "anyOf" in part or "oneOf" in part), None)
        if index is None:
            done.append(current)
        else:
            waiting += [branch for branch in _branches(current, index, components) if branch != current]
    return done + waiting


def _branches(parts: list[dict[str, Any]], index: int, components: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yields the conjunction once for each branch of the anyOf or oneOf of one part."""
    keyword = "anyOf" if "anyOf" in parts[index] else "oneOf"
    rest = {key: value for key, value in parts[index].items() if key != keyword}
    others = [*parts[:index], *([rest] if rest else []), *parts[index + 1 :]]
    for branch in parts[index][keyword]:
        added = flatten([branch], components)
        if added is not None:
            yield [*others, *(part for part in added if part not in others)]


def _are_disjoint(first: Facts, second: Facts, inclusion: Inclusion, depth: int = 2) -> bool:
    """True if no data fits both: by type, by listed values, or by a property that one of them requires."""
    if not first.types & second.types:
        return True
    one, other = first.values(), second.values()
    if one is not None and other is not None and not {*map(canonical, one)} & {*map(canonical, other)}:
        return True
    if not depth or first.types & second.types != {"object"}:
        return False
    for name in first.required | second.required:
        left = flatten(first.schemas_of(name), inclusion.narrow)
        right = flatten(second.schemas_of(name), inclusion.wide)
        if left is None or right is None or _are_disjoint(Facts(left), Facts(right), inclusion, depth - 1):
            return True
    return False
