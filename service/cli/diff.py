"""`tidewire diff`: compares two contracts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from service.cli import output
from service.cli.options import Commands
from service.contract.compare.change import Change, Effect
from service.contract.compare.contracts import compare, summarise
from service.contract.load import ContractFaults, load
from service.contract.model import Contract

COMPATIBLE, INCOMPATIBLE, UNUSABLE = 0, 1, 2
"""Exit statuses."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "diff",
        help="compare two contracts",
        description="Compares two contracts. The exit status is 0 if the new one is compatible, 1 if something breaks or a right "
        "is widened, 2 if the arguments are wrong or a contract has a fault.",
    )
    parser.add_argument("old", type=Path, metavar="OLD", help="contract file as it was")
    parser.add_argument("new", type=Path, metavar="NEW", help="contract file as it will be")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="also count undeclared properties: publishers may send them, and subscribers may refuse them",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compares. Returns the exit status."""
    try:
        old, new = load(args.old), load(args.new)
    except ContractFaults as found:
        for fault in found.faults:
            output.note(str(fault))
        return UNUSABLE
    changes = compare(old, new, strict=args.strict)
    is_compatible = all(change.is_compatible for change in changes)
    output.result(_as_json(old, new, changes) if args.json else "\n".join(_lines(changes)))
    return COMPATIBLE if is_compatible else INCOMPATIBLE


def _as_json(old: Contract, new: Contract, changes: Iterable[Change]) -> str:
    listed = list(changes)
    document = {
        "old": old.hash,
        "new": new.hash,
        "compatible": all(change.is_compatible for change in listed),
        "summary": summarise(listed),
        "changes": [
            {
                "path": change.path,
                "text": change.text,
                "publishers": change.publishers.value,
                "subscribers": change.subscribers.value,
                "widens": change.widens,
            }
            for change in listed
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _lines(changes: list[Change]) -> Iterator[str]:
    if not changes:
        yield "the contracts are the same for clients"
        return
    groups = {
        "widened rights (check each: somebody may do or see more)": [c for c in changes if c.widens],
        "for publishers": [c for c in changes if c.publishers is not Effect.NONE],
        "for subscribers": [c for c in changes if c.subscribers is not Effect.NONE],
        "compatible": [c for c in changes if c.is_compatible],
    }
    for title, members in groups.items():
        if members:
            yield f"{title}:"
        for change in members:
            effect = {"for publishers": change.publishers, "for subscribers": change.subscribers}.get(title)
            yield f"  {f'{effect.value}: ' if effect is not None else ''}{change.path}: {change.text}"
