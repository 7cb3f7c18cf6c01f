"""The settings of the realtime core in one value."""

from __future__ import annotations

from dataclasses import dataclass, field

from service.core.limits import (
    MAX_HOOK_ANSWERS,
    MAX_REVOCATIONS,
    MAX_TOTAL_REVOCATIONS,
    PRESENCE_MEMBERS,
    PRESENCE_TTL,
    PRESENCE_UPDATE_BYTES,
    REVOCATION_TTL,
    UNREADY_AFTER,
    Compression,
    Deadlines,
    HistoryPages,
    Limits,
    OutboxLimits,
    Probing,
    RepairLimits,
    Rollout,
)
from service.core.webhooks import WebhookLimits


@dataclass(frozen=True, slots=True)
class Bounds:
    """The settings that concern the realtime core."""

    limits: Limits = field(default_factory=Limits)
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    compression: Compression = field(default_factory=Compression)
    repair: RepairLimits = field(default_factory=RepairLimits)
    history_pages: HistoryPages = field(default_factory=HistoryPages)
    deadlines: Deadlines = field(default_factory=Deadlines)
    rollout: Rollout = field(default_factory=Rollout)
    unready_after: float = UNREADY_AFTER
    """Seconds without the broker after which the node is not ready."""
    presence_members: int = PRESENCE_MEMBERS
    """A channel with more users shows presence as a count."""
    presence_ttl: float = PRESENCE_TTL
    """Seconds after which a presence entry expires unless it is renewed."""
    presence_update_bytes: int = PRESENCE_UPDATE_BYTES
    """Bytes of `data` in a `presence.update`."""
    anonymous_tenant: str | None = None
    """The tenant of connections without credentials; None if they are refused."""
    revocation_ttl: float = REVOCATION_TTL
    """Seconds that a revocation lasts."""
    revocations: int = MAX_REVOCATIONS
    """Revocations kept for one tenant, at most."""
    revocations_total: int = MAX_TOTAL_REVOCATIONS
    """Revocations kept for all tenants together, at most."""
    hook_answers: int = MAX_HOOK_ANSWERS
    """Answers about reads that are remembered."""
    webhooks: WebhookLimits = field(default_factory=WebhookLimits)
    probe: Probing = field(default_factory=Probing)
