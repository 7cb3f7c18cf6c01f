"""One difference between two versions of a contract, and what it means for each side."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from service.contract.document import Place
from service.protocol.json_path import json_path


class Effect(Enum):
    """What a change does to programs that were written for the old contract."""

    NONE = "none"
    """They go on working."""
    POSSIBLE = "possibly breaking"
    """It depends on what they do, or it is not known."""
    BREAKING = "breaking"
    """Some of what they do no longer works."""

    def __or__(self, other: Effect) -> Effect:
        """Returns the worse of two effects."""
        order = (Effect.NONE, Effect.POSSIBLE, Effect.BREAKING)
        return max(self, other, key=order.index)


@dataclass(frozen=True, slots=True)
class Change:
    """One change."""

    place: Place
    """The path in the new contract; for what was removed, in the old one."""
    text: str
    publishers: Effect = Effect.NONE
    subscribers: Effect = Effect.NONE
    widens: bool = False
    """True if somebody may do or see more than before."""

    @property
    def path(self) -> str:
        """The place as text."""
        return json_path("$", self.place)

    @property
    def is_compatible(self) -> bool:
        """True if nothing breaks, and no right is widened."""
        return self.publishers is Effect.NONE and self.subscribers is Effect.NONE and not self.widens
