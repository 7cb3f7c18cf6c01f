"""Joins the schemas of a contract and its files into one set of components, whose references point only to each other."""

from __future__ import annotations

import json
import posixpath
from typing import Any
from urllib.parse import quote, unquote

from service.contract import pointer
from service.contract.export.names import Names
from service.contract.keywords import DATA, NAMED, REFERENCES, find_anchor
from service.contract.model import Contract, DataSpec, EventSpec

PREFIX = "#/components/schemas/"
_INLINE = ""
"""The folder of an inline schema: that of the contract."""
_LEFT_OUT = frozenset({"$id", "$schema", "$vocabulary", "$anchor", "$dynamicAnchor"})
"""Keywords with no meaning after references are rewritten."""
_MISREAD = frozenset({"discriminator", "externalDocs", "dependencies", "additionalItems"})
"""Keywords with no meaning in this dialect, which mean something in AsyncAPI or in older dialects."""
_PROTO = "__proto__"
_RENAMED = {
    ("properties", _PROTO): ("patternProperties", "^__proto__$"),
    ("properties", "$ref"): ("patternProperties", "^[$]ref$"),
    ("patternProperties", _PROTO): ("patternProperties", "(__proto__)"),
    ("patternProperties", "$ref"): ("patternProperties", "($ref)"),
    ("$defs", _PROTO): ("$defs", "proto"),
    ("$defs", "$ref"): ("$defs", "ref"),
    ("definitions", _PROTO): ("definitions", "proto"),
    ("definitions", "$ref"): ("definitions", "ref"),
}
"""Places with the same meaning, for readers in JavaScript: most mistake these names for an object's prototype, or a reference."""


class Bundle:
    """The schemas of a contract, by name. Equal inline schemas of one event type share a name."""

    def __init__(self, contract: Contract, *, exact: bool = False) -> None:
        """`exact` keeps what other programs misread, such as a key $ref in data, and $dynamicRef beside what it becomes."""
        self._exact = exact
        self.components: dict[str, Any] = {}
        """Each schema. A $ref begins with `PREFIX` and a name."""
        self._names = Names()
        self._files = contract.files
        self._named_files = {path: self._names.give(_stem(path)) for path in sorted(contract.files)}
        self._inline: dict[str, str] = {}
        for path, name in self._named_files.items():
            self.components[name] = _as_object(self._rewrite(contract.files[path], contract.files[path], path, name))

    def reference(self, spec: EventSpec | DataSpec) -> dict[str, Any] | None:
        """Returns a reference to the schema of an event, or of a side of a call; None if it has no schema."""
        if spec.schema is None:
            return None
        if isinstance(spec.schema, dict) and list(spec.schema) == ["$ref"] and spec.schema["$ref"][:1] != "#":
            rewritten: dict[str, Any] = self._rewrite(spec.schema, spec.schema, _INLINE, "")
            return rewritten
        return {"$ref": PREFIX + self._add_inline(spec)}

    def _add_inline(self, spec: EventSpec | DataSpec) -> str:
        text = json.dumps([spec.type, spec.schema], sort_keys=True)
        if text not in self._inline:
            name = self._inline[text] = self._names.give(spec.type)
            self.components[name] = _as_object(self._rewrite(spec.schema, spec.schema, _INLINE, name))
        return self._inline[text]

    def _rewrite(self, schema: Any, root: Any, path: str, name: str) -> Any:
        """Copies a schema of the document `root`, which is the file `path`, or inline and becomes the component `name`."""
        if isinstance(schema, list):
            return [self._rewrite(child, root, path, name) for child in schema]
        if not isinstance(schema, dict):
            return schema
        copy: dict[str, Any] = {}
        for keyword, value in schema.items():
            if self._is_left_out(keyword, value):
                continue
            if keyword in DATA:
                copy[keyword] = _without_duplicates(value) if keyword == "enum" else value
            elif keyword in NAMED and isinstance(value, dict):
                copy.setdefault(keyword, {})
                for key, child in value.items():
                    if (place := self._place(keyword, key)) is not None:
                        copy.setdefault(place[0], {})[place[1]] = self._rewrite(child, root, path, name)
            else:
                copy[keyword] = self._rewrite(value, root, path, name)
        targets = [
            {"$ref": self._target(schema[key], root, path, name)}
            for key in REFERENCES
            if isinstance(schema.get(key), str)
        ]
        if self._exact and "$dynamicRef" in schema:
            copy["$dynamicRef"] = targets[-1]["$ref"]
        return _with_references(copy, targets)

    def _is_left_out(self, keyword: str, value: Any) -> bool:
        if keyword in _LEFT_OUT or (keyword in REFERENCES and isinstance(value, str)):
            return True
        if self._exact:
            return False
        return keyword in (_PROTO, "$ref") or keyword in _MISREAD or (keyword in DATA and _is_misread(value))

    def _place(self, keyword: str, key: str) -> tuple[str, str] | None:
        """Returns where a named schema goes; None if there is no place that all readers understand."""
        if self._exact or key not in (_PROTO, "$ref"):
            return keyword, key
        return _RENAMED.get((keyword, key))

    def _target(self, reference: str, root: Any, path: str, name: str) -> str:
        file, _, fragment = reference.partition("#")
        if file:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), file))
            name, root = self._named_files[target], self._files[target]
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            place = find_anchor(root, fragment)
            assert place is not None, reference  # noqa: S101  # the schemas have been compiled
            fragment = pointer.text_of(place)
        if not self._exact:
            for old, new in _RENAMED.items():
                fragment = _replace_steps(fragment, pointer.text_of(old), pointer.text_of(new))
        return PREFIX + name + quote(fragment, safe="/~")


def _as_object(schema: Any) -> Any:
    """Returns a schema that is no boolean: AsyncAPI allows those only inside others."""
    return ({} if schema else {"not": {}}) if isinstance(schema, bool) else schema


def _with_references(copy: dict[str, Any], targets: list[dict[str, str]]) -> dict[str, Any]:
    """Adds references. Beside other keywords they go to the end of `allOf`: older readers ignore the siblings of a $ref."""
    if not targets:
        return copy
    if not copy and len(targets) == 1:
        return dict(targets[0])
    return {**copy, "allOf": [*copy.get("allOf", ()), *targets]}


def _replace_steps(fragment: str, old: str, new: str) -> str:
    return f"{fragment}/".replace(f"{old}/", f"{new}/")[:-1]


def _is_misread(data: Any) -> bool:
    """True if data holds a key $ref, which readers take for a reference and might fetch, or a key __proto__."""
    if isinstance(data, dict):
        return "$ref" in data or _PROTO in data or any(map(_is_misread, data.values()))
    return isinstance(data, list) and any(map(_is_misread, data))


def _without_duplicates(values: Any) -> Any:
    """Removes equal values of an enum, which other dialects forbid."""
    return list({canonical(value): value for value in reversed(values)}.values())[::-1]


def canonical(value: Any) -> str:
    """Returns JSON that is the same for values which JSON Schema takes for equal."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{json.dumps(key)}:{canonical(value[key])}' for key in sorted(value))}}}"
    return json.dumps(value)


def _stem(path: str) -> str:
    name = posixpath.basename(path)
    return name.rsplit(".", 1)[0] if "." in name else name
