"""Webhooks: queues of entries in the broker, and one node at a time that delivers each queue. docs/adr/0064-webhooks.md."""
