"""Which words nobody may write, and which ones are masked. Your own rules, or a service that knows more words, go here."""

from __future__ import annotations

import re

REFUSED = ("casino", "lottery")
MASKED = ("damn", "crap")

_refused = re.compile(rf"\b({'|'.join(REFUSED)})s?\b", re.IGNORECASE)
_masked = re.compile(rf"\b({'|'.join(MASKED)})\b", re.IGNORECASE)


def reason_to_refuse(text: str) -> str | None:
    """Returns why a message is refused, in words for its author; None if it is not."""
    found = _refused.search(text)
    return found and f"Advertising is not allowed here (“{found[0]}”)."


def masked(text: str) -> str:
    """Returns the text with d**n in place of bad words."""
    return _masked.sub(lambda found: found[0][0] + "*" * (len(found[0]) - 2) + found[0][-1], text)
