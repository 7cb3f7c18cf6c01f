"""Every contract of the repository, and random contracts with hostile texts and schemas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
_FILES = re.compile(r"<!-- file: (?P<name>\S+) -->\n```\w*\n(?P<text>.*?)```", re.DOTALL)
_FAULTY = {"five_faults.yaml", "shared.yaml"}


def contract_files() -> list[Path]:
    """Every contract that the repository contains as a file."""
    found = [ROOT / "demo" / "contract.yaml", ROOT / "helm" / "tidewire" / "files" / "contract.yaml"]
    found += sorted((ROOT / "benchmarks").rglob("contract.yaml"))
    found += [path for path in sorted((ROOT / "tests").rglob("*.yaml")) if _is_contract(path)]
    return found


def _is_contract(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    named = path.name == "contract.yaml" or "contracts" in parts or path.name == "promise.yaml"
    return named and "node_modules" not in parts and path.name not in _FAULTY


def write_documented_contract(folder: Path) -> Path:
    """Writes the example of docs/contract.md, and returns its contract file."""
    for found in _FILES.finditer((ROOT / "docs" / "contract.md").read_text(encoding="utf-8")):
        (folder / found["name"]).parent.mkdir(exist_ok=True)
        (folder / found["name"]).write_text(found["text"], encoding="utf-8")
    return folder / "contract.yaml"


_TEXTS = st.sampled_from(
    [
        "*/", "/*", "`", "${x}", "\n", "\r\n", "\u2028", "\\", '"', "'", "//", "__proto__", "constructor", "toString", "$ref",
        "[k: string]", "a b", "", "export", "class", "</script>", "@deprecated", "#/nowhere", "file:///etc/passwd", "é", "😀",
    ]
)  # fmt: skip
_NAMES = st.lists(_TEXTS, min_size=1, max_size=2).map("".join)
_DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1e9, 1e9) | _NAMES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=2),
    max_leaves=4,
)
_NOTES = st.fixed_dictionaries(
    {}, optional={"title": _NAMES, "description": _NAMES, "deprecated": st.booleans(), "examples": st.lists(_DATA, max_size=1),
                  "tsType": _NAMES, "x-note": _NAMES, "discriminator": _NAMES, "default": _DATA}
)  # fmt: skip


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    named = st.dictionaries(_NAMES, inner, max_size=3)
    shapes = (
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": named},
            optional={"required": st.lists(_NAMES, max_size=2, unique=True), "additionalProperties": inner},
        )
        | st.fixed_dictionaries(
            {"type": st.just("array"), "items": inner}, optional={"maxItems": st.integers(0, 10**6)}
        )
        | st.fixed_dictionaries({"type": st.just("array"), "prefixItems": several}, optional={"items": inner})
        | several.map(lambda found: {"anyOf": found})
        | several.map(lambda found: {"oneOf": found})
        | several.map(lambda found: {"allOf": found})
        | inner.map(lambda found: {"not": found})
        | named.map(lambda found: {"type": "object", "dependentSchemas": found})
    )
    return st.tuples(shapes, _NOTES).map(lambda both: {**both[1], **both[0]})


_LEAVES = (
    st.booleans()
    | _DATA.map(lambda value: {"const": value})
    | st.lists(_DATA, min_size=1, max_size=3).map(lambda values: {"enum": values})
    | st.sampled_from(["string", "integer", "number", "boolean", "null", "object", "array"]).map(lambda t: {"type": t})
    | st.sampled_from(["#", "#/$defs/a", "#/$defs/b"]).map(lambda target: {"type": "array", "items": {"$ref": target}})
)


def _with_definitions(parts: tuple[Any, Any, Any]) -> Any:
    schema, a, b = parts
    return {**(schema if isinstance(schema, dict) else {"allOf": [schema]}), "$defs": {"a": a, "b": b}}


SCHEMAS = st.tuples(*[st.recursive(_LEAVES, _around, max_leaves=8)] * 3).map(_with_definitions)
"""JSON Schemas with names and texts that try to get out of what is made of them."""


def contract_of(*schemas: Any) -> str:
    """Returns a contract with one event type for each schema."""
    events = {
        f"event.e{number}": {"publish": "subscriber", "delivery": "ephemeral", "schema": schema}
        for number, schema in enumerate(schemas)
    }
    return json.dumps({"channels": {"room:{room}": {"subscribe": "grant", "events": events}}})
