"""The schemas of a contract as one document (OpenAPI, which has no root type) for a generator of Python types.

Contracts may be hostile. So the document has only what types can express, names that this module has made, and texts without
control characters: nothing that a generator could read, fetch, import or copy unescaped. `check_module` reads the result again.
Types are wider than schemas where Python has no word for a keyword.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from service.contract import pointer
from service.contract.export.bundle import PREFIX, Bundle
from service.contract.model import Contract

MAX_SCHEMAS = 20_000
"""Schemas of one contract."""
MAX_DEPTH = 40
MAX_LITERALS = 200
"""Values of an enum that a type lists."""
MAX_DESCRIPTION = 500
_TYPES = frozenset({"null", "boolean", "object", "array", "string", "integer", "number"})
_WORD = re.compile(r"[A-Za-z0-9]+")
_SPACE = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\\\"'`]+")
_RESERVED = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), "Any", "Literal", "TypedDict", "BaseModel", "Struct"}
)

Schema = dict[str, Any]
_ANY: Schema = {}


class TypesFault(ValueError):  # noqa: N818  # a fault of a contract, as those of the loader
    """No types can be made of the contract. The message says why."""


class PythonTypes:
    """The types of one contract: `document` for the generator, and the class of each event type of each channel (`events`), and
    of both sides of each call (`calls`)."""

    def __init__(self, contract: Contract) -> None:
        self._bundle = Bundle(contract)
        self._left = MAX_SCHEMAS
        self._names: dict[str, str] = {}
        self._taken: set[str] = set()
        self._definitions: dict[str, Schema] = {}
        self.events: dict[tuple[str, str], str | None] = {}
        for channel in contract.channels:
            for event in channel.events.values():
                reference = self._bundle.reference(event)
                name = None if reference is None else self._class_of(reference["$ref"])
                self.events[channel.pattern.text, event.type] = name
        self.calls: dict[str, tuple[str | None, str | None]] = {}
        """The classes of the request and of the reply, by name."""
        for call in contract.calls.values():
            request, reply = map(self._bundle.reference, (call.request, call.reply))
            self.calls[call.name] = (
                None if request is None else self._class_of(request["$ref"]),
                None if reply is None else self._class_of(reply["$ref"]),
            )
        self.document: Schema = {
            "openapi": "3.1.0",
            "info": {"title": "types", "version": "1"},
            "paths": {},
            "components": {"schemas": self._definitions},
        }

    @property
    def is_empty(self) -> bool:
        """Whether no event and no call has a schema."""
        return not self._definitions

    def _class_of(self, reference: str) -> str:
        """Returns the class of what a reference points to; makes it at the first time."""
        if reference not in self._names:
            name = self._names[reference] = self._give(reference.removeprefix(PREFIX))
            self._definitions[name] = {}  # its place, also while it refers to itself
            self._definitions[name] = self._clean(self._resolve(reference), 0, is_named=True)
        return self._names[reference]

    def _give(self, wish: str) -> str:
        words = _WORD.findall(unquote(wish)[:200])
        base = "".join(word[0].upper() + word[1:] for word in words)[:80] or "Type"
        base = base if base[0].isalpha() else f"Type{base}"
        name, number = base, 1
        while name in self._taken or name in _RESERVED:
            number += 1
            name = f"{base}{number}"
        self._taken.add(name)
        return name

    def _resolve(self, reference: str) -> Any:
        component, _, place = reference.removeprefix(PREFIX).partition("/")
        found: Any = self._bundle.components[component]
        for step in pointer.parse(f"/{unquote(place)}") if place else ():
            found = found[int(step)] if isinstance(found, list) else found[step]
        return found

    def _clean(self, schema: Any, depth: int, *, is_named: bool = False) -> Schema:
        self._left -= 1
        if self._left < 0:
            raise TypesFault(f"the contract has more than {MAX_SCHEMAS} schemas")
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return _ANY
        if isinstance(schema.get("$ref"), str):
            return {"$ref": f"{PREFIX}{self._class_of(schema['$ref'])}"}
        cleaned = self._own(schema, depth)
        if is_named and cleaned and isinstance(schema.get("description"), str):
            text = _SPACE.sub(" ", schema["description"]).strip()[:MAX_DESCRIPTION]
            cleaned = {**cleaned, **({"description": text} if text else {})}
        return cleaned

    def _own(self, schema: Schema, depth: int) -> Schema:
        literals = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(literals, list) and 0 < len(literals) <= MAX_LITERALS and all(map(_is_literal, literals)):
            return {"enum": literals}
        if literals is not None:
            return _ANY
        typed = self._typed(schema, depth)
        if typed:
            return typed
        for name in ("anyOf", "oneOf"):
            if isinstance(schema.get(name), list):
                parts = [self._clean(one, depth + 1) for one in schema[name]]
                return {"anyOf": parts} if all(parts) else _ANY
        # Each part of an intersection is wider than the whole.
        parts = [self._clean(one, depth + 1) for one in schema.get("allOf") or ()]
        return next(filter(None, parts), _ANY)

    def _typed(self, schema: Schema, depth: int) -> Schema:
        kinds = schema.get("type")
        names = [kinds] if isinstance(kinds, str) else list(kinds) if isinstance(kinds, list) else []
        if not names and isinstance(schema.get("properties"), dict):
            names = ["object"]
        parts = [self._kind(name, schema, depth) for name in names if name in _TYPES]
        return {"anyOf": parts} if len(parts) > 1 else parts[0] if parts else _ANY

    def _kind(self, name: str, schema: Schema, depth: int) -> Schema:
        if name == "array":
            has_items = isinstance(schema.get("items"), dict) and "prefixItems" not in schema
            return {"type": "array", "items": self._clean(schema["items"], depth + 1) if has_items else _ANY}
        if name != "object":
            return {"type": name}
        properties = schema.get("properties")
        if isinstance(properties, dict) and properties:
            cleaned = {key: self._clean(one, depth + 1) for key, one in properties.items()}
            required = [key for key in schema.get("required") or () if key in cleaned]
            return {"type": "object", "properties": cleaned, **({"required": required} if required else {})}
        more = schema.get("additionalProperties", True)
        is_schema = isinstance(more, dict) and not schema.get("patternProperties")
        return {"type": "object", "additionalProperties": self._clean(more, depth + 1) if is_schema else True}


def _is_literal(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int)


_MODULES = frozenset({"__future__", "typing", "collections.abc", "pydantic"})
_CALLS = frozenset({"TypedDict", "Field", "ConfigDict"})
_STATEMENTS = (ast.ImportFrom, ast.ClassDef, ast.AnnAssign, ast.Assign, ast.Expr, ast.Pass)
_EXPRESSIONS = (
    ast.Name, ast.Attribute, ast.Constant, ast.Subscript, ast.Tuple, ast.List, ast.Dict, ast.BinOp, ast.BitOr, ast.Call,
    ast.keyword, ast.alias, ast.Load, ast.Store, ast.UnaryOp, ast.USub,
)  # fmt: skip


def check_module(source: str) -> None:
    """Raises TypesFault unless a module has declarations of types only: no statement that does anything when it is imported."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise TypesFault(f"the generator has made no Python: {error}") from error
    for node in ast.walk(tree):
        fault = _fault(node)
        if fault is not None:
            raise TypesFault(f"the generated types have {fault} in line {getattr(node, 'lineno', 0)}")


def _fault(node: ast.AST) -> str | None:
    if isinstance(node, ast.ImportFrom) and node.module not in _MODULES:
        return f"an import of {node.module}"
    if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        # pydantic resolves types that refer to themselves: Name.model_rebuild()
        if not (
            isinstance(called, ast.Attribute) and called.attr == "model_rebuild" and isinstance(called.value, ast.Name)
        ):
            return "a statement"
    if isinstance(node, ast.ClassDef) and node.decorator_list:
        return "a decorator"
    if isinstance(node, ast.Call):
        called = node.func
        if not (isinstance(called, ast.Name) and called.id in _CALLS) and not (
            isinstance(called, ast.Attribute) and called.attr == "model_rebuild"
        ):
            return "a call"
    if not isinstance(node, (ast.Module, *_STATEMENTS, *_EXPRESSIONS)):
        return f"a {type(node).__name__}"
    return None


def event_table(events: Mapping[tuple[str, str], str | None]) -> str:
    """Returns the lines that name the class of each event type: of data without a schema it is Any."""
    rows = "".join(f"    ({pattern!r}, {kind!r}): {name or 'Any'},\n" for (pattern, kind), name in events.items())
    return f"EVENTS: dict[tuple[str, str], Any] = {{\n{rows}}}\n"


def call_table(calls: Mapping[str, tuple[str | None, str | None]]) -> str:
    """Returns the lines that name the classes of the request and of the reply of each call."""
    rows = "".join(
        f"    {name!r}: ({request or 'Any'}, {reply or 'Any'}),\n" for name, (request, reply) in calls.items()
    )
    return f"CALLS: dict[str, tuple[Any, Any]] = {{\n{rows}}}\n"
