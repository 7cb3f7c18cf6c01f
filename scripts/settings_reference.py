#!/usr/bin/env python3
"""Writes the table in docs/settings.md from the settings' classes. `--check` writes nothing and fails if it differs."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works before the project is installed

from service.core.limits import Rate  # noqa: E402  # needs the path above
from service.settings.model import Setting, Settings, all_settings  # noqa: E402  # needs the path above

PAGE = Path("docs/settings.md")
_TABLE = re.compile(r"(<!-- generated: settings -->\n).*?(<!-- /generated -->)", re.DOTALL)


def meanings(owner: type) -> dict[str, str]:
    """What stands below each field of a class, as one line."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    return found


def meaning(setting: Setting) -> str:
    """What a setting says of itself; the two parts of a rate go by what the rate says."""
    *_, name = setting.place
    if setting.owner is Rate:
        holder = type(getattr(Settings(), setting.place[0]))
        about = meanings(holder).get(setting.place[-2], "")
        return f"{about} {'Per second over time.' if name == 'per_second' else 'At once.'}".strip()
    return meanings(setting.owner).get(name) or f"{name.replace('_', ' ').capitalize()}."


def table() -> str:
    """Every setting as a Markdown table."""
    rows = [
        f"| `{setting.name}` | `{setting.variable}` | {_default(setting)} | {meaning(setting)} |"
        for setting in all_settings()
    ]
    return "\n".join(["| setting | variable | default | meaning |", "|---|---|---|---|", *rows])


def _default(setting: Setting) -> str:
    if setting.default is None:
        return "–"
    if setting.default == ():
        return "`[]`"
    if isinstance(setting.default, bool):
        return f"`{str(setting.default).lower()}`"
    return f"`{setting.default}`"


def main(check: bool) -> int:
    """Writes the page, or says that it is out of date."""
    file = ROOT / PAGE
    text = file.read_text(encoding="utf-8")
    wanted = _TABLE.sub(lambda marks: f"{marks[1]}{table()}\n{marks[2]}", text)
    if text != wanted and not check:
        file.write_text(wanted, encoding="utf-8")
    if text != wanted:
        print(f"{PAGE}: {'differs from the settings; run `make fmt`' if check else 'written'}")
    return int(check and text != wanted)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
