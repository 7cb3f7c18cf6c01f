"""Which channels of two contracts to compare: those that have names in common."""

from __future__ import annotations

from collections.abc import Iterator

from service.contract.model import ChannelSpec, Contract
from service.core.channel import SEPARATOR

_PARAMETER = "{}"


def pair_channels(old: Contract, new: Contract) -> Iterator[tuple[str, ChannelSpec | None, ChannelSpec | None]]:
    """Yields the specs of each kind of channel names, before and after.

    A new pattern can take names from an old one. So names are compared, not patterns: those of each pattern, and those that a
    pattern of one contract shares with one of the other.
    """
    compared: set[tuple[str | None, ...]] = set()
    for shape in dict.fromkeys(_shapes(old, new)):
        before, after = _find(old, shape), _find(new, shape)
        patterns = tuple(spec.pattern.text if spec is not None else None for spec in (before, after))
        if patterns in compared:
            continue
        compared.add(patterns)
        named = next((spec for spec in (after, before) if spec is not None and spec.pattern.shape == shape), None)
        name = named.pattern.text if named is not None else SEPARATOR.join(shape).replace(_PARAMETER, "{any}")
        yield name, before, after


def _shapes(old: Contract, new: Contract) -> Iterator[tuple[str, ...]]:
    for spec in (*new.channels, *old.channels):
        yield spec.pattern.shape
    for one in old.channels:
        for other in new.channels:
            if (meet := _meet(one.pattern.shape, other.pattern.shape)) is not None:
                yield meet


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...] | None:
    """Returns the shape of the names that two patterns share; None if there are none."""
    if len(one) != len(other):
        return None
    pairs = list(zip(one, other, strict=True))
    if any(_PARAMETER not in pair and pair[0] != pair[1] for pair in pairs):
        return None
    return tuple(right if left == _PARAMETER else left for left, right in pairs)


def _find(contract: Contract, shape: tuple[str, ...]) -> ChannelSpec | None:
    """Returns the spec of names with this shape, whose parameters have values that no pattern has as a literal."""
    for spec in contract.channels:
        pattern = spec.pattern.shape
        if len(pattern) == len(shape) and all(
            part in (_PARAMETER, own) for part, own in zip(pattern, shape, strict=True)
        ):
            return spec
    return None
