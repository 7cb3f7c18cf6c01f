"""The face of webhooks: what the publisher, the sources of entries and the backend API use."""

from __future__ import annotations

from collections.abc import Sequence

from service.core.event import Publication
from service.core.webhooks import (
    Cursor,
    DeadLetterPage,
    Entry,
    EntryPage,
    QueueStatus,
    Reservation,
    WebhookEndpoint,
)


class Webhooks:
    """Keeps the promises of the ports in core/webhooks.py: EventWebhooks, WebhookTeller, Webhooks."""

    def has(self, endpoint: str, tenant: str) -> bool:
        """True if the endpoint has the tenant. Otherwise nothing is told."""
        raise NotImplementedError

    async def tell(self, endpoint: str, tenant: str, order_key: str, entry: Entry) -> None:
        """Appends an entry to a queue, as `WebhookTeller.tell` promises. Raises ServiceError."""
        raise NotImplementedError

    def dropped(self, endpoint: str, count: int = 1) -> None:
        """Counts entries that their source has given up."""
        raise NotImplementedError

    async def reserve(self, endpoint: str, publication: Publication) -> Reservation | None:
        """Writes the intent to publish an event, as `EventWebhooks.reserve` promises. Raises ServiceError."""
        raise NotImplementedError

    def endpoints(self, tenant: str) -> Sequence[WebhookEndpoint]:
        """Returns the endpoints of a tenant, by name."""
        raise NotImplementedError

    async def status(self, endpoint: str, tenant: str) -> Sequence[QueueStatus]:
        """Returns the status of each queue. Raises ServiceError."""
        raise NotImplementedError

    async def read(
        self, endpoint: str, tenant: str, queue: int, after: Cursor | None, limit: int, since: int | None = None
    ) -> EntryPage:
        """Reads entries in the order of delivery, as `Webhooks.read` promises. Raises ServiceError."""
        raise NotImplementedError

    async def dead_letters(self, endpoint: str, tenant: str, after: int | None, limit: int) -> DeadLetterPage:
        """Reads dead letters after an offset, oldest first. Raises ServiceError."""
        raise NotImplementedError

    async def replay(
        self,
        endpoint: str,
        tenant: str,
        *,
        ids: Sequence[str] = (),
        since: int | None = None,
        dead_letters: bool = False,
    ) -> int:
        """Appends entries to their queues again. Returns their number. Raises ServiceError."""
        raise NotImplementedError

    async def drop(self, endpoint: str, tenant: str, *, ids: Sequence[str] = (), dead_letters: bool = False) -> int:
        """Drops dead letters. Returns their number. Raises ServiceError."""
        raise NotImplementedError
