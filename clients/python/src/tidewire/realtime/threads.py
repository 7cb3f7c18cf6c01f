"""The channel for threads: runs the one for asyncio on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar

from tidewire.errors import ConfigurationError, DeadlineExceededError, EventsMissedError
from tidewire.events import Event, Position
from tidewire.realtime.channel import AsyncChannel, ChannelCore, missed_error
from tidewire.results import History, Presence, Published

T = TypeVar("T")
OnMissed: TypeAlias = Callable[[EventsMissedError], None]
CLOSE_TIMEOUT = 5.0


class LoopThread:
    """An event loop in a daemon thread, until `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_closing = False
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="tidewire", daemon=True)
        self._thread.start()

    @property
    def is_usable(self) -> bool:
        """Whether it runs in this process: a child of a fork has no such thread."""
        return self._pid == os.getpid() and not self._is_closing

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it there, and returns its result."""
        with self._lock:
            if not self.is_usable:
                work.close()
                raise ConfigurationError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._waiting.add(future)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ConfigurationError("the client is closed") from None
        except BaseException:
            future.cancel()  # Ctrl-C: nothing waits any more
            raise
        finally:
            with self._lock:
                self._waiting.discard(future)

    def close(self) -> None:
        """Ends the thread. Calls that still wait end with ConfigurationError."""
        with self._lock:
            if not self.is_usable:
                return
            self._is_closing = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_TIMEOUT)
        with self._lock:
            for future in self._waiting:
                future.cancel()


class Channel:
    """A channel of a client for threads, made by `Tidewire.channel`.

    >>> for event in client.channel("room:42"):
    ...     print(event.type, event.data)
    """

    def __init__(self, thread: LoopThread, core: ChannelCore, on_missed: OnMissed | None) -> None:
        self._thread = thread
        self._core = core
        self._async = AsyncChannel(core, None)
        self._on_missed = on_missed

    def __repr__(self) -> str:
        return f"Channel({self._core.channel!r})"

    @property
    def name(self) -> str:
        """The name of the channel."""
        return self._core.channel

    @property
    def position(self) -> Position | None:
        """The position of the last event that has been handled: keep it, and pass it as `since` to continue there."""
        return self._core.handled

    @property
    def present(self) -> Presence | None:
        """Who is in the channel, while subscribed; None if it has no presence, or the token does not allow to see it."""
        return self._core.stream.presence

    @property
    def dropped(self) -> int:
        """Ephemeral events that were lost because `max_queue` events waited."""
        return self._core.dropped

    def __iter__(self) -> Channel:
        return self

    def __next__(self) -> Event:
        """Returns the next event. The one before counts as handled.

        Raises EventsMissedError where durable events may be missing, unless there is `on_missed`.
        """
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    def next(self, timeout: float) -> Event:
        """Returns the next event. Raises DeadlineExceededError if none comes in time."""
        event = self._next(timeout)
        if event is None:
            raise ConfigurationError(f"the channel {self.name} is closed")
        return event

    def _next(self, timeout: float | None) -> Event | None:
        while True:
            taken = self._thread.run(self._take(timeout))
            if taken is None or isinstance(taken, Event):
                return taken
            error = missed_error(self.name, taken)
            if self._on_missed is None:
                raise error
            self._on_missed(error)

    async def _take(self, timeout: float | None) -> Any:
        try:
            return await asyncio.wait_for(self._core.take(), timeout)
        except asyncio.TimeoutError:
            raise DeadlineExceededError(f"{self.name}: no event within {timeout:g} s") from None

    def ready(self, timeout: float = 10.0) -> None:
        """Subscribes, and waits until that is done. An iteration subscribes by itself."""
        self._thread.run(self._async.ready(timeout))

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribes. Iterations end."""
        if self._thread.is_usable:
            self._thread.run(self._async.close())

    def publish(
        self,
        type: str,
        data: Any,
        *,
        id: str | None = None,
        key: str | None = None,
        if_rev: int | None = None,
        deadline: float | None = None,
    ) -> Published:
        """Publishes an event as the user of the token, over the connection. It is sent again with its id until it has a reply."""
        return self._thread.run(self._async.publish(type, data, id=id, key=key, if_rev=if_rev, deadline=deadline))

    def remove_value(
        self,
        type: str,
        key: str,
        *,
        id: str | None = None,
        if_rev: int | None = None,
        deadline: float | None = None,
    ) -> Published:
        """Removes the value of a key, as the user of the token."""
        return self._thread.run(self._async.remove_value(type, key, id=id, if_rev=if_rev, deadline=deadline))

    def history(
        self,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 50,
        deadline: float | None = None,
    ) -> History:
        """Reads a page of durable events: the first after the offset `after`, or the last before `before`."""
        return self._thread.run(self._async.history(after=after, before=before, limit=limit, deadline=deadline))

    def presence(self, *, deadline: float | None = None) -> Presence:
        """Asks who is in the channel."""
        return self._thread.run(self._async.presence(deadline=deadline))

    def set_presence(self, info: Any, *, deadline: float | None = None) -> None:
        """Sets what presence shows of the user in this channel."""
        self._thread.run(self._async.set_presence(info, deadline=deadline))
