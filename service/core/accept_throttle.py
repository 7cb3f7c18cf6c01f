"""The turnstile: lets so many in a second, and tells each of those it turns away another moment to come back. Pure."""

from __future__ import annotations

from service.core.limits import LONGEST_WAIT, Rate, TokenBucket

MOST = LONGEST_WAIT
"""Seconds that anybody is told to stay away, at most."""
_STEP = 0.618_033_988_749_895
"""Multiples of the golden ratio, less their whole parts, lie evenly in 0 to 1."""


class AcceptThrottle:
    """Whoever is turned away gets the next place of a line that moves at the rate: so a crowd comes back as it can be let in, and
    not in waves. Places are not kept: whoever comes while there is a token is let in, and one who stays away costs nobody."""

    __slots__ = ("_bucket", "_last", "_place", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._bucket = TokenBucket(rate, now)
        self._last = now
        """When the turn of the last place comes."""
        self._place = 0.0

    def enter(self, now: float, share: float = 1.0) -> float:
        """Takes a token and returns 0.0; or takes none and returns after how many seconds to come back.

        `share` is how much of a place is given: less than one to somebody who asks twice before coming back.
        """
        return self._turn_away(now, share) if self._bucket.take(now) else 0.0

    def look(self, now: float, share: float = 1.0) -> float:
        """The same, and takes no token."""
        wait = self.enter(now, share)
        if not wait:
            self.leave()
        return wait

    def leave(self) -> None:
        """Gives the token back: it was for nothing."""
        self._bucket.give_back()

    def change(self, rate: Rate, now: float) -> None:
        """Goes on at another rate."""
        self._rate = rate
        self._bucket.change(rate, now)

    def _turn_away(self, now: float, share: float) -> float:
        self._last = max(self._last, now) + share / self._rate.per_second
        if self._last <= now + MOST:
            return self._last - now
        # A line this long: all beyond its end are spread over its second half, and get new places then.
        self._last = now + MOST
        self._place = (self._place + _STEP) % 1.0
        return MOST * (1.0 + self._place) / 2
