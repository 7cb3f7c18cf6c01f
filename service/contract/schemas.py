"""The JSON Schemas of one contract: inline, and in files below its folder. Nothing is fetched from the network."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from jsonschema_rs import Draft202012Validator, ReferencingError, RegexOptions, Registry, ValidationError

from service.contract import pointer
from service.contract.document import Document, Fault, Place, did_you_mean, read
from service.contract.keywords import REFERENCES, references
from service.contract.text import shorten

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BASE = "tidewire:///"
"""Base URI of schema files. No such scheme exists, so nothing can be fetched by accident."""
_FILE = re.compile(r"[A-Za-z0-9_./-]+")
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")

_dialect = Draft202012Validator({"$ref": DIALECT}, validate_formats=True, offline=True)


class Schemas:
    """Compiles schemas, and adds their faults with file and line."""

    def __init__(self, contract: Path, faults: list[Fault]) -> None:
        self._contract = contract
        # Links are not resolved: references use names, and in a Kubernetes volume every file is a link to the current version.
        self._folder = Path(os.path.abspath(contract.parent))  # noqa: PTH100  # Path.absolute keeps `..`
        self._own = self._folder / contract.name
        self._faults = faults
        self._names = {_real(self._own): self._own}
        """The name of each file, by its resolved path."""
        self._files: dict[Path, Document | None] = {}
        self._sound: dict[Path, bool] = {}

    def files(self) -> dict[str, Any]:
        """The content of each schema file in use, by its path below the contract's folder."""
        return {
            path.relative_to(self._folder).as_posix(): document.value
            for path, document in self._files.items()
            if document is not None
        }

    def compile(self, document: Document, place: Place) -> Draft202012Validator | None:
        """Compiles the schema at a place of the contract. Returns None if the schema, or a file that it uses, has a fault."""
        schema = document.value
        for step in place:
            schema = schema[step]
        if not self._check(document, place, schema, self._own):
            return None
        # Checks all files, so that each reports its faults.
        unsound = [file for file in self._files if not self._is_sound(file)]
        return None if unsound else self._build(document, place, schema, self._own)

    def _build(self, document: Document, place: Place, schema: Any, path: Path) -> Draft202012Validator | None:
        try:
            return Draft202012Validator(
                _without_id(schema),
                registry=self._registry(),
                base_uri=self._uri(path),
                offline=True,
                validate_formats=True,
                # A regex engine that runs in linear time, so no data can make a pattern slow.
                pattern_options=RegexOptions(),
            )
        except ValidationError as error:
            self._faults.append(document.fault((*place, *error.instance_path), _reason(error)))
        except (ReferencingError, ValueError) as error:
            self._faults.append(document.fault(place, f"the schema cannot be used: {str(error)[:300]}"))
        return None

    def _registry(self) -> Registry:
        found = [(self._uri(path), _without_id(document.value)) for path, document in self._files.items() if document]
        return Registry(found)

    def _uri(self, path: Path) -> str:
        return _BASE + path.relative_to(self._folder).as_posix()

    def _is_sound(self, path: Path) -> bool:
        """True if a schema file compiles by itself. Checked once, so that its faults are reported once, with its own lines."""
        if path not in self._sound:
            document = self._files[path]
            self._sound[path] = document is not None and self._build(document, (), document.value, path) is not None
        return self._sound[path]

    # --- checks before compiling: the compiler stops at the first fault and knows no lines ---------------------------

    def _check(self, document: Document, place: Place, schema: Any, path: Path) -> bool:
        faults = (
            document.fault((*place, *error.instance_path), _reason(error)) for error in _dialect.iter_errors(schema)
        )
        found = list(dict.fromkeys(faults))  # each vocabulary of the dialect may report the same fault
        self._faults.extend(found)
        sound = not found
        for at, keyword, value in references(schema):
            follow = keyword in REFERENCES
            reason = self._follow(value, schema, path) if follow else _misnamed(keyword, value, at)
            if reason:
                sound = False
                if reason is not _REPORTED:
                    self._faults.append(document.fault((*place, *at, keyword), reason))
        return sound

    def _follow(self, reference: str, schema: Any, path: Path) -> str | None:
        """Checks the target of a reference. Returns why it cannot be used, or None."""
        name, _, fragment = reference.partition("#")
        if not name:
            return _missing(schema, fragment, "this schema")
        if not _FILE.fullmatch(name) or name.startswith("/"):
            return f"{reference[:100]!r} is not a file below the contract's folder, and nothing is fetched"
        target = Path(os.path.normpath(path.parent / name))
        real = _real(target)
        if not target.is_relative_to(self._folder) or not real.is_relative_to(self._folder.resolve()):
            return f"{name!r} is outside the contract's folder"
        known = self._names.get(real, target)
        if known == self._own:
            return "a schema cannot refer to the contract file; put what is shared into a file of its own"
        shown = self._shown(target)
        if not _is_file(target):
            return f"there is no file {shown}"
        if known != target:  # a file may have one name only: a link to its own folder would make endless names
            return f"{name!r} is a link to {self._shown(known)}, which is referred to elsewhere: refer to that here too"
        self._names[real] = target
        document = self._open(target, shown)
        return _missing(document.value, fragment, str(shown)) if document else _REPORTED

    def _shown(self, path: Path) -> Path:
        """Returns the path as the author of the contract would write it."""
        return self._contract.parent / path.relative_to(self._folder)

    def _open(self, path: Path, shown: Path) -> Document | None:
        if path in self._files:
            return self._files[path]
        before = len(self._faults)
        document = self._files[path] = read(shown, self._faults)
        if document is None or len(self._faults) > before:
            self._files[path] = None
            return None
        if not self._check(document, (), document.value, path):
            self._files[path] = None
        return self._files[path]


def _real(path: Path) -> Path:
    """Resolves links. Returns the path itself if the links form a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # an impossible file name
        return False


_REPORTED = "reported in the file itself"
"""The reason for a reference to a file whose own faults are reported."""


def _misnamed(keyword: str, value: str, place: Place) -> str | None:
    """Returns why a $schema or $id is not allowed here, or None."""
    if keyword == "$schema" and value.rstrip("#") != DIALECT:
        return f"schemas are of the dialect {DIALECT}, not {value[:100]}"
    if keyword == "$id" and place:
        return "an $id inside a schema would change what every $ref below it means; leave it out"
    return None


def _missing(schema: Any, fragment: str, where: str) -> str | None:
    """Returns why a fragment has no target; None if it has one, or is an anchor, which the compiler checks."""
    if not fragment.startswith("/"):
        return None
    try:
        pointer.find(schema, pointer.parse(unquote(fragment)))
    except (LookupError, ValueError):
        return f"{where} has nothing at #{fragment[:100]}"
    return None


def _without_id(schema: Any) -> Any:
    """Removes $id, the public name of a schema file. Here, references are relative to the path of the file."""
    return {key: value for key, value in schema.items() if key != "$id"} if isinstance(schema, dict) else schema


def _reason(error: ValidationError) -> str:
    if error.instance_path and error.instance_path[-1] == "type" and isinstance(error.instance, str):
        return f"{error.instance[:40]!r} is not a JSON Schema type{did_you_mean(error.instance, _TYPES)}"
    if error.message.endswith('is not a "regex"'):
        return f"{error.message}; patterns run in linear time, so without look-around and back-references"
    return f"not a usable JSON Schema: {shorten(error.message)}"
