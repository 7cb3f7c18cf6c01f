"""Channels over a WebSocket. `stream` and `backoff` are pure, `connection` and `channel` run on asyncio, `threads` runs these."""
