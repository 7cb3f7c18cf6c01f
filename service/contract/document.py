"""Reads YAML and JSON files with the line of each value, so that every fault can name its line.

Plain scalars follow YAML 1.2: `yes` and `on` are text, `1e5` is a number, and every key is text.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from service.protocol.unique_keys import DuplicateKeyError, reject_duplicate_keys

Place = tuple[str | int, ...]
"""The path from the root of a document to a value."""

MAX_VALUES = 200_000
"""Values in one document. The limit stops aliases of aliases, which grow exponentially."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in a file, or in an environment variable. Then `file` is the variable's name, and `line` is None."""

    file: str
    line: int | None
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}" if self.line is None else f"{self.file}:{self.line}: {self.reason}"


class Faults(Exception):  # noqa: N818  # several faults, not one error
    """All faults, not only the first one."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(faults, key=lambda fault: (fault.file, fault.line or 0)))
        super().__init__("\n".join(map(str, self.faults)))


@dataclass(frozen=True, slots=True)
class Document:
    """The content of a file."""

    file: str
    """The path as the user wrote it. The text of every fault starts with it."""
    value: Any
    lines: dict[Place, int] = field(repr=False)

    def line(self, place: Sequence[str | int]) -> int:
        """Returns the line of a value, or of the innermost known value that contains it."""
        for length in range(len(place), -1, -1):
            if found := self.lines.get(tuple(place[:length])):
                return found
        return 1

    def fault(self, place: Sequence[str | int], reason: str) -> Fault:
        """Returns a fault at a place in this file."""
        return Fault(self.file, self.line(place), reason)


def read(path: Path, faults: list[Fault]) -> Document | None:
    """Reads a file: JSON if its name ends in .json, else YAML. Adds its faults to `faults`; returns None if it is unusable."""
    file = str(path)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        faults.append(Fault(file, None, "is not UTF-8 text"))
        return None
    except OSError as error:
        faults.append(Fault(file, None, f"cannot be read: {error.strerror}"))
        return None
    return _read_json(file, text, faults) if path.suffix == ".json" else _read_yaml(file, text, faults)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns a hint for an unknown name, such as `; did you mean 'history'?`; empty without a similar name."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _read_yaml(file: str, text: str, faults: list[Fault]) -> Document | None:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        faults.append(Fault(file, mark.line + 1 if mark else None, f"is not YAML: {error.problem or error.context}"))
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        faults.append(Fault(file, line, f"is not YAML: {error.reason}"))
        return None
    except RecursionError:
        faults.append(Fault(file, None, "is nested too deeply"))
        return None
    if node is None:
        faults.append(Fault(file, 1, "is empty"))
        return None
    return _build(file, node, faults)


def _read_json(file: str, text: str, faults: list[Fault]) -> Document | None:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        faults.append(Fault(file, error.lineno, f"is not JSON: {error.msg}"))
        return None
    except (ValueError, RecursionError) as error:
        faults.append(Fault(file, None, f"is not JSON: {error}"))
        return None
    # The YAML parser rejects some valid JSON, so the json module reads the values, and the YAML parser finds only their lines.
    # Tabs are only between tokens, because JSON strings cannot contain them.
    try:
        node = yaml.compose(text.replace("\t", " "), Loader=_Loader)
    except (yaml.YAMLError, RecursionError):
        _refuse_duplicates(file, text, faults)
        return Document(file, value, {})
    return Document(file, value, _build(file, node, faults).lines if node else {})


def _refuse_duplicates(file: str, text: str, faults: list[Fault]) -> None:
    """Checks for duplicate keys if no lines are known. If they are, `_Builder` checks."""
    try:
        json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except DuplicateKeyError as error:
        faults.append(Fault(file, None, str(error)))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _build(file: str, node: Node, faults: list[Fault]) -> Document:
    builder = _Builder(file, faults)
    return Document(file, builder.value(node, ()), builder.lines)


class _Builder:
    """Builds values from YAML nodes, and records their lines."""

    def __init__(self, file: str, faults: list[Fault]) -> None:
        self.lines: dict[Place, int] = {}
        self._file = file
        self._faults = faults
        self._open: set[int] = set()
        self._is_too_large = False

    def value(self, node: Node, place: Place) -> Any:
        if isinstance(node, ScalarNode):
            self.lines[place] = _line(node)
            return self._scalar(node)
        self.lines.setdefault(place, _line(node))
        if id(node) in self._open:
            return self._refuse(node, "an alias refers to a value around it")
        if len(self.lines) > MAX_VALUES:
            return self._overflow(node)
        self._open.add(id(node))
        value = self._mapping(node, place) if isinstance(node, MappingNode) else self._sequence(node, place)
        self._open.discard(id(node))
        return value

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._refuse(key, "a key must be text, not a list or a mapping")
                continue
            if key.value in mapping:
                first = self.lines[(*place, key.value)]
                self._refuse(key, f"{key.value!r} is a duplicate key; the first is in line {first}")
                continue
            self.lines[(*place, key.value)] = _line(key)
            mapping[key.value] = self.value(value, (*place, key.value))
        return mapping

    def _sequence(self, node: Node, place: Place) -> list[Any]:
        assert isinstance(node, SequenceNode)  # noqa: S101  # YAML has three kinds of nodes
        return [self.value(child, (*place, index)) for index, child in enumerate(node.value)]

    def _scalar(self, node: ScalarNode) -> Any:
        text = node.value
        match node.tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" if _INT.fullmatch(text) and len(text) <= _MAX_DIGITS:
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            case "float" if _FLOAT.fullmatch(text):
                return float(text)
            case "str":
                return self._text(node)
        return self._refuse(node, f"a value of the kind {node.tag[:60]!r} is not allowed here")

    def _text(self, node: ScalarNode) -> Any:
        try:  # "\ud83d\ude00" is one character in JSON, but two surrogates for the YAML parser
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            return self._refuse(node, "holds half a surrogate pair")

    def _overflow(self, node: Node) -> None:
        if not self._is_too_large:
            self._is_too_large = True
            self._refuse(node, f"the file holds more than {MAX_VALUES} values")

    def _refuse(self, node: Node, reason: str) -> None:
        self._faults.append(Fault(self._file, _line(node), reason))


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


_TAG = "tag:yaml.org,2002:"
_MAX_DIGITS = 300
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")


class _Loader(yaml.SafeLoader):
    """A parser with the scalar rules of the core schema of YAML 1.2, without infinity and NaN, which JSON lacks."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  # replaces the parent's


_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(rf"^(?:{_INT.pattern})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))
