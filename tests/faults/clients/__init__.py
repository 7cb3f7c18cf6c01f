"""Clients of every transport, one rule for all of them: docs/protocol.md and docs/streams.md to the letter."""
