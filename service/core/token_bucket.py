"""Rate limits: a token bucket, and buckets by key. Pure: `now` is in monotonic seconds.

bucket = TokenBucket(Rate(per_second=20, burst=100), now=0.0)
bucket.acquire(now=0.0)   # 0.0: acquired; else the seconds to wait
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from math import inf

from service.core.backoff import next_retry_slot
from service.core.limits import Rate


class TokenBucket:
    """Allows `rate.per_second` over time and `rate.burst` at once."""

    __slots__ = ("_last_retry", "_rate", "_tokens", "_updated")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst)
        self._updated = now
        self._last_retry = 0.0
        """The time at which the last refused caller should retry."""

    def acquire(self, now: float, cost: float = 1.0) -> float:
        """Removes `cost` tokens and returns 0.0. With too few, removes none and returns the seconds to wait (inf: forever)."""
        # As `_refill`, written out because it runs for every connection.
        tokens = self._tokens + (now - self._updated) * self._rate.per_second
        if tokens > self._rate.burst:
            tokens = self._rate.burst
        self._tokens, self._updated = tokens, now
        if tokens >= cost:
            self._tokens = tokens - cost
            return 0.0
        if cost > self._rate.burst:
            return inf
        return (cost - tokens) / self._rate.per_second

    def schedule_retry(self, now: float, cost: float = 1.0) -> float:
        """Returns the seconds after which a refused caller should retry.

        Each refused caller gets a later time, so that most retries succeed. No tokens are reserved.
        """
        rate = self._rate
        soonest = (cost - self._refill(now)) / rate.per_second
        self._last_retry, wait = next_retry_slot(
            self._last_retry, now, soonest, cost / rate.per_second, rate.burst / rate.per_second
        )
        return wait

    def charge(self, cost: float) -> None:
        """Removes `cost` tokens, even if there are fewer. Later callers wait until the bucket is refilled."""
        self._tokens -= cost

    def refund(self, cost: float = 1.0) -> None:
        """Returns acquired tokens."""
        self._tokens = min(self._rate.burst, self._tokens + cost)

    def set_rate(self, rate: Rate, now: float) -> None:
        """Changes the rate. Tokens above the new burst are lost."""
        self._refill(now)
        self._rate = rate
        self._tokens = min(rate.burst, self._tokens)

    def is_full(self, now: float) -> bool:
        """True if the bucket is full, as a new one is."""
        return self._tokens + (now - self._updated) * self._rate.per_second >= self._rate.burst

    def _refill(self, now: float) -> float:
        self._tokens = min(self._rate.burst, self._tokens + (now - self._updated) * self._rate.per_second)
        self._updated = now
        return self._tokens


class KeyedBuckets:
    """One bucket per key, for at most `max_keys` keys. One more key evicts the key that is idle longest."""

    __slots__ = ("_buckets", "_max_keys", "_rate")

    def __init__(self, rate: Rate, max_keys: int) -> None:
        self._rate = rate
        self._max_keys = max_keys
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def acquire(self, key: Hashable, now: float, cost: float = 1.0) -> float:
        """Calls `TokenBucket.acquire` on the bucket of the key."""
        return self.bucket(key, now).acquire(now, cost)

    def bucket(self, key: Hashable, now: float) -> TokenBucket:
        """Returns the bucket of the key. Use it at once: a later call may evict it."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
            if len(self._buckets) > self._max_keys:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def evict_full(self, now: float, max_evictions: int) -> None:
        """Removes full buckets, first those that are idle longest."""
        for _ in range(max_evictions):
            key = next(iter(self._buckets), None)
            if key is None or not self._buckets[key].is_full(now):
                return
            del self._buckets[key]

    def __len__(self) -> int:
        return len(self._buckets)
