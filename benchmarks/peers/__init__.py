"""All measured servers, in table order."""

from __future__ import annotations

from benchmarks.peers.centrifugo import Centrifugo
from benchmarks.peers.limit import Limit
from benchmarks.peers.nchan import Nchan
from benchmarks.peers.peer import Command, Peer, Started, UnavailableError
from benchmarks.peers.python_socketio import PythonSocketIO
from benchmarks.peers.socketio import SocketIO
from benchmarks.peers.tidewire import Tidewire, TidewireThroughRedis
from benchmarks.peers.uws import UWebSockets
from benchmarks.peers.websockets import Websockets
from benchmarks.peers.ws import NodeWs

__all__ = ["Command", "Peer", "Started", "UnavailableError", "everyone"]


def everyone() -> dict[str, Peer]:
    """Creates all peers, by name."""
    peers: tuple[Peer, ...] = (
        Limit(),
        Tidewire(),
        TidewireThroughRedis(),
        UWebSockets(),
        NodeWs(),
        SocketIO(),
        Nchan(),
        Centrifugo(),
        Websockets(),
        PythonSocketIO(),
    )
    return {peer.name: peer for peer in peers}
