"""The commands of clients: one module each, and HANDLERS, which maps messages to them.

A new command is a message in protocol/messages.py, a module here, and its line in HANDLERS.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from service.protocol import messages
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.commands import (
    call,
    hello,
    history,
    ping,
    presence,
    presence_update,
    publish,
    ready,
    refresh,
    subscribe,
    unsubscribe,
)

Handler = Callable[[Node, Connection, Any], Awaitable[object] | None]
"""Carries out a command. Returns what has to be waited for; None if the command is done. A `Pending` needs no task."""

HANDLERS: Mapping[type[messages.Command], Handler] = {
    messages.Hello: hello.handle,
    messages.Ready: ready.handle,
    messages.Subscribe: subscribe.handle,
    messages.Unsubscribe: unsubscribe.handle,
    messages.History: history.handle,
    messages.Presence: presence.handle,
    messages.PresenceUpdate: presence_update.handle,
    messages.Refresh: refresh.handle,
    messages.Ping: ping.handle,
    messages.Call: call.handle,
    messages.Publish: publish.handle,
    messages.Remove: publish.handle_removal,
}
