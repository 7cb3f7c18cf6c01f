"""Names for parts of a description: safe in a JSON Pointer, as a file name and in JavaScript, and each given once."""

from __future__ import annotations

import re

MAX_NAME = 100

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_NO_LETTER = re.compile(r"^[^A-Za-z]+")


class Names:
    """Gives each part a name of its own. The same calls in the same order give the same names."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def give(self, wish: str) -> str:
        """Returns the wish with `_` in place of unsafe characters, and with a number if the name is taken."""
        base = _NO_LETTER.sub("", _UNSAFE.sub("_", wish)).rstrip("_")[:MAX_NAME] or "unnamed"
        name, number = base, 1
        while name.lower() in self._given:  # also by case, for file systems and type names
            number += 1
            name = f"{base}_{number}"
        self._given.add(name.lower())
        return name
