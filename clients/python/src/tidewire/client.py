"""The client for threads. Its methods are those of the client for asyncio."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import httpx

from tidewire.errors import ConfigurationError
from tidewire.events import Event, NewEvent, Position, new_id
from tidewire.http import operations
from tidewire.http.flow import Call, Credential, Deadline, Flow, RetryPolicy, Send, attempts
from tidewire.http.transport import CallCounter, SyncTransport
from tidewire.options import (
    DEADLINE,
    MAX_CONNECTIONS,
    MAX_WAITING,
    SyncToken,
    check_deadline,
    http_options,
    realtime_options,
    required_token,
    retry_policy,
)
from tidewire.realtime.channel import MAX_QUEUE, ChannelCore
from tidewire.realtime.connection import Connection
from tidewire.realtime.link import Dial
from tidewire.realtime.threads import Channel, LoopThread, OnMissed
from tidewire.results import (
    BatchResult,
    ChannelInfo,
    ChannelList,
    Disconnected,
    Erased,
    EventRemoved,
    History,
    HistoryPage,
    Presence,
    Published,
    Purged,
    State,
    Subscriptions,
    Ticket,
    TokenRevoked,
    UserRevoked,
    WebhookDeadLetters,
    WebhookEntries,
    WebhookList,
)

T = TypeVar("T")


class Tidewire:
    """A client of one service. Threads may share it.

    >>> with Tidewire("https://events.example.com", api_key=key) as client:
    ...     client.publish("room:42", "chat.message", {"text": "hi"})
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        token: SyncToken | None = None,
        deadline: float = DEADLINE,
        retries: int | RetryPolicy = 4,
        max_connections: int = MAX_CONNECTIONS,
        max_waiting: int = MAX_WAITING,
        verify: bool | ssl.SSLContext = True,
        proxy: str | None = None,
        trust_env: bool = True,
        transport: httpx.BaseTransport | None = None,
        dial: Dial | None = None,
    ) -> None:
        """Opens no connection yet.

        Args:
            url: of the service, such as `https://events.example.com`.
            api_key: for the backend API.
            token: of a user, to subscribe; or a function that returns one.
            deadline: seconds for each call, with its retries.
            retries: how often a call is repeated after an error that may pass.
            max_connections: connections for HTTP requests.
            max_waiting: calls that run or wait for a connection; above that, a call fails at once.
            verify: False, or a context, for certificates that the system does not know.
            proxy: an HTTP proxy; by default that of the environment (`HTTPS_PROXY`, `NO_PROXY`), if `trust_env`.
            transport, dial: send requests, and open WebSockets, in another way, as the fake for tests does.
        """
        options = http_options(url, api_key, max_connections, max_waiting, verify, proxy, trust_env)
        self._deadline = check_deadline(deadline)
        self._policy = retry_policy(retries)
        self._http = SyncTransport(options, transport)
        self._calls = CallCounter(max_waiting)
        self._token = token
        self._dial = dial
        self._random = random.random
        self._lock = threading.Lock()
        self._thread: LoopThread | None = None
        self._connection: Connection | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Tidewire({self._http.options.address.http!r})"

    def __enter__(self) -> Tidewire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._is_closed = True
        with self._lock:
            thread, connection = self._thread, self._connection
            self._thread = None
        if thread is not None and thread.is_usable:
            if connection is not None:
                thread.run(connection.close())
            thread.close()
        self._http.close()

    # --- publishing -----------------------------------------------------------------------------------------------

    def publish(
        self,
        channel: str,
        type: str,
        data: Any,
        *,
        id: str | None = None,
        key: str | None = None,
        if_rev: int | None = None,
        sender: str | None = None,
        exclude: str | None = None,
        deadline: float | None = None,
    ) -> Published:
        """Publishes one event. It is repeated with the same id, so that the service stores it once.

        Args:
            data: JSON, dataclasses, msgspec structs, dates …
            id: 1 to 64 visible ASCII characters; random if None. After an error, it is `error.event_id`.
            key: of a latest event; it must be what the contract finds in the data.
            if_rev: only if the value of the key has this `rev`; 0: only if there is none. Else ConflictError.
            sender: the user on whose behalf the backend publishes (`from`).
            exclude: a connection of that user that does not get the event.
        """
        call = operations.publish(channel, type, data, id=id, key=key, if_rev=if_rev, sender=sender, exclude=exclude)
        return self._call(call, deadline)

    def publish_many(self, events: Iterable[NewEvent], *, deadline: float | None = None) -> BatchResult:
        """Publishes events in order, each in its channel. One that is refused does not affect the others.

        Raises an error if nothing was accepted or refused. The same objects can be published again: they have their ids.
        """
        flow = operations.publish_many(events, self._policy, self._until(deadline))
        return self._run(flow)

    def remove_value(
        self,
        channel: str,
        type: str,
        key: str,
        *,
        id: str | None = None,
        if_rev: int | None = None,
        sender: str | None = None,
        deadline: float | None = None,
    ) -> Published:
        """Removes the value of a key. Its event type is `removable` in the contract."""
        call = operations.remove_value(channel, type, key, id=id, if_rev=if_rev, sender=sender)
        return self._call(call, deadline)

    # --- reading --------------------------------------------------------------------------------------------------

    def channels(self, prefix: str = "", *, limit: int = 100, deadline: float | None = None) -> ChannelList:
        """Lists channels with subscribers, history or state, by name."""
        return self._call(operations.channels(prefix, limit=limit), deadline)

    def channel_info(self, channel: str, *, deadline: float | None = None) -> ChannelInfo:
        """Shows a channel's position, subscribers and contract."""
        return self._call(operations.channel_info(channel), deadline)

    def history(
        self,
        channel: str,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 50,
        deadline: float | None = None,
    ) -> History:
        """Reads a page of durable events: the first after the offset `after`, or the last before `before`."""
        call = operations.history(channel, after=after, before=before, limit=limit)
        return self._call(call, deadline)

    def iter_history(self, channel: str, *, after: int = 0, page: int = 500) -> Iterator[Event]:
        """Yields all durable events after an offset, oldest first, page by page."""
        more = True
        while more:
            found = self.history(channel, after=after, limit=page)
            for event in found.events:
                yield event
                after = event.offset or after
            more = found.more and bool(found.events)

    def history_page(self, address: str, *, deadline: float | None = None) -> HistoryPage:
        """Reads the page at `older` or `newer` of a history. It needs no key: the address is signed."""
        return self._call(operations.history_page(address), deadline)

    def state(
        self, channel: str, *, after: int | None = None, limit: int = 1000, deadline: float | None = None
    ) -> State:
        """Reads the newest event of every key, by `rev`."""
        return self._call(operations.state(channel, after=after, limit=limit), deadline)

    def presence(self, channel: str, *, deadline: float | None = None) -> Presence:
        """Lists who is in the channel."""
        return self._call(operations.presence(channel), deadline)

    def presence_counts(self, channels: Sequence[str], *, deadline: float | None = None) -> dict[str, int]:
        """Counts the users of up to 1000 channels."""
        return self._call(operations.presence_counts(channels), deadline)

    def asyncapi(self, *, deadline: float | None = None) -> dict[str, Any]:
        """Returns the contract as an AsyncAPI 3.0 document."""
        return self._call(operations.asyncapi(), deadline)

    def openapi(self, *, deadline: float | None = None) -> dict[str, Any]:
        """Returns the OpenAPI description of the backend API."""
        return self._call(operations.openapi(), deadline)

    # --- taking back ----------------------------------------------------------------------------------------------

    def remove_event(
        self, channel: str, id: str, *, offset: int | None = None, deadline: float | None = None
    ) -> EventRemoved:
        """Takes back one durable event, or the value that it has set, and tells subscribers."""
        return self._call(operations.remove_event(channel, id, offset=offset), deadline)

    def purge(self, channel: str, *, deadline: float | None = None) -> Purged:
        """Drops a channel's history and state."""
        return self._call(operations.purge(channel), deadline)

    def erase_user(self, user: str, *, cursor: str | None = None, deadline: float | None = None) -> Erased:
        """Takes back what a user has published, in all channels. Each page has the whole deadline.

        After an error, continue with `cursor=error.details["cursor"]`, if that is there.
        """
        flow = operations.erase_user(user, self._policy, self._until(deadline), cursor)
        return self._run(flow)

    # --- users ----------------------------------------------------------------------------------------------------

    def disconnect_user(self, user: str, *, reason: str | None = None, deadline: float | None = None) -> Disconnected:
        """Closes the user's connections. The user can connect again while the token is valid."""
        return self._call(operations.disconnect_user(user, reason=reason), deadline)

    def subscribe_user(
        self, user: str, channel: str, *, rights: Sequence[str] | None = None, deadline: float | None = None
    ) -> Subscriptions:
        """Subscribes the user's open connections to a channel, with these rights there."""
        return self._call(operations.subscribe_user(user, channel, rights=rights), deadline)

    def unsubscribe_user(self, user: str, channel: str, *, deadline: float | None = None) -> Subscriptions:
        """Ends the user's subscriptions to a channel."""
        return self._call(operations.unsubscribe_user(user, channel), deadline)

    def revoke_user(
        self, user: str, *, before: float | None = None, reason: str | None = None, deadline: float | None = None
    ) -> UserRevoked:
        """Refuses the user's tokens that were issued before a time (Unix seconds; now if None)."""
        return self._call(operations.revoke_user(user, before=before, reason=reason), deadline)

    def revoke_token(self, jti: str, *, reason: str | None = None, deadline: float | None = None) -> TokenRevoked:
        """Refuses one token, by its `jti`."""
        return self._call(operations.revoke_token(jti, reason=reason), deadline)

    def ticket(
        self, channels: Sequence[str] | None = None, *, token: str | None = None, deadline: float | None = None
    ) -> Ticket:
        """Gets a ticket for the address of a WebSocket, or with `channels` for that of an EventSource.

        Args:
            token: of the user; the client's own if None.
        """
        return self._call(operations.ticket(channels), deadline, token)

    # --- webhooks -------------------------------------------------------------------------------------------------

    def webhooks(self, *, deadline: float | None = None) -> WebhookList:
        """Lists the endpoints of webhooks, with the status of their queues."""
        return self._call(operations.webhooks(), deadline)

    def webhook_entries(
        self,
        endpoint: str,
        queue: int = 0,
        *,
        after: str | None = None,
        since: int | None = None,
        limit: int = 100,
        deadline: float | None = None,
    ) -> WebhookEntries:
        """Reads what an endpoint is told, delivered or not, page by page. Changes nothing.

        Args:
            after: `next` of the page before; None for the oldest entries that are kept.
            since: only entries told at this time or later, in milliseconds since the Unix epoch.
        """
        call = operations.webhook_entries(endpoint, queue, after=after, since=since, limit=limit)
        return self._call(call, deadline)

    def webhook_dead_letters(
        self, endpoint: str, *, after: int | None = None, limit: int = 50, deadline: float | None = None
    ) -> WebhookDeadLetters:
        """Reads the entries that an endpoint did not accept, oldest first, page by page: `after` is `next` of the page before."""
        return self._call(operations.webhook_dead_letters(endpoint, after=after, limit=limit), deadline)

    def replay_webhooks(
        self,
        endpoint: str,
        *,
        ids: Sequence[str] | None = None,
        since: int | None = None,
        dead_letters: bool = False,
        deadline: float | None = None,
    ) -> int:
        """Tells an endpoint entries again, with the same ids: exactly one of the arguments. Returns their number.

        Args:
            ids: of dead letters, or of entries that are still kept.
            since: all kept entries told at this time or later, in milliseconds since the Unix epoch.
            dead_letters: all of them.
        """
        call = operations.replay_webhooks(endpoint, ids=ids, since=since, dead_letters=dead_letters)
        return self._call(call, deadline)

    def drop_webhooks(
        self,
        endpoint: str,
        *,
        ids: Sequence[str] | None = None,
        dead_letters: bool = False,
        deadline: float | None = None,
    ) -> int:
        """Drops dead letters: those with these ids, or all. Returns their number."""
        return self._call(operations.drop_webhooks(endpoint, ids=ids, dead_letters=dead_letters), deadline)

    # --- following ------------------------------------------------------------------------------------------------

    def channel(
        self,
        name: str,
        *,
        since: Position | str | None = None,
        tail: int = 0,
        token: SyncToken | None = None,
        presence: bool = False,
        on_missed: OnMissed | None = None,
        max_queue: int = MAX_QUEUE,
    ) -> Channel:
        """Returns a channel to iterate over. It subscribes with the first step, and resumes after each lost connection.

        Args:
            since: the position from which to continue, such as the `position` of an earlier channel, or its text.
            tail: the last events that come first, 0 to 100; for a channel without `since`.
            token: a subscription token, or a function that returns one (`TokenSigner.subscription_token`).
            presence: whether the iteration has `presence.joined`, `presence.left` and `presence.count` too.
            on_missed: called where durable events may be missing; without it, the iteration raises EventsMissedError there.
            max_queue: events that wait for the iteration. Above that, ephemeral events are lost, and others come later.
        """
        thread = self._loop_thread()

        async def make() -> ChannelCore:
            return ChannelCore(
                self._realtime(),
                name,
                since=Position.parse(since) if isinstance(since, str) else since,
                tail=tail,
                get_token=None if token is None else required_token(token, in_thread=True),
                presence=presence,
                max_queue=max_queue,
                deadline=self._deadline,
            )

        return Channel(thread, thread.run(make()), on_missed)

    # --- calls ----------------------------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        data: Any = None,
        *,
        id: str | None = None,
        retry: bool = False,
        deadline: float | None = None,
    ) -> Any:
        """Asks the backend over the client's WebSocket, as the user of the token. Returns the data of its reply.

        The contract declares calls. A call is sent once, because the backend may have acted when the connection is lost: then it
        raises ConnectionFailedError. An error of the backend is a CallFailedError, which has a `reason`. While as many calls are
        under way as the service allows, further ones wait.

        Args:
            data: JSON, dataclasses, msgspec structs, dates …
            id: 1 to 64 visible ASCII characters, by which the backend recognises a repeated call; random if None. After an
                error, it is `error.event_id`.
            retry: sends it again with the same id, after a lost connection and after errors that may pass.
        """
        seconds = self._deadline if deadline is None else check_deadline(deadline)
        call_id = new_id() if id is None else id

        async def ask() -> Any:
            return await self._realtime().call(name, data, seconds, id=call_id, repeats=retry)

        return self._loop_thread().run(ask())

    def _loop_thread(self) -> LoopThread:
        """Returns the thread of the WebSocket; starts it at the first time, and after a fork."""
        if self._is_closed:
            raise ConfigurationError("the client is closed")
        with self._lock:
            if self._thread is None or not self._thread.is_usable:
                self._thread, self._connection = LoopThread(), None
            return self._thread

    @property
    def connection_id(self) -> str | None:
        """The id of the open WebSocket, for `exclude`; None without one."""
        connection = self._connection
        return str(connection.welcome["connection"]) if connection is not None and connection.is_ready else None

    def _realtime(self) -> Connection:
        if self._connection is None:
            self._connection = Connection(
                realtime_options(
                    self._http.options, self._token, self._dial, self._policy, self._random, in_thread=True
                )
            )
        return self._connection

    # --- how ------------------------------------------------------------------------------------------------------

    def _until(self, deadline: float | None) -> Deadline:
        return Deadline(self._deadline if deadline is None else check_deadline(deadline))

    def _call(self, call: Call[T], deadline: float | None, token: str | None = None) -> T:
        if call.credential is Credential.TOKEN and token is None:
            token = self._current_token()
        return self._run(attempts(call, self._policy, self._until(deadline)), token)

    def _current_token(self) -> str | None:
        token = self._token
        return token() if callable(token) else token

    def _run(self, flow: Flow[T], token: str | None = None) -> T:
        with self._calls.one():
            try:
                step = next(flow)
                while True:
                    if isinstance(step, Send):
                        step = flow.send(self._http.send(step, token))
                    else:
                        time.sleep(step.seconds)
                        step = flow.send(None)
            except StopIteration as done:
                result: T = done.value
                return result
