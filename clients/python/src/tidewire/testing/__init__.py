"""A Tidewire in memory, for tests of applications.

>>> fake = FakeTidewire()
>>> application(fake.client())
>>> assert [event.data for event in fake.events("room:42")] == [{"text": "hi"}]

It checks no contract, no schema and no token. Its clients run the same code as with a service: ids, retries, order.
"""

from __future__ import annotations

from tidewire.testing.fake import Called, FakeTidewire, Request, call_failed

__all__ = ["Called", "FakeTidewire", "Request", "call_failed"]
