"""The ports on NATS with JetStream (docs/adr/0013-nats.md).

broker = NatsBroker(NatsConfig(parse_nats_url("nats://localhost:4222")), clock, Metrics())
await broker.start(sink)

Reading order: `broker.py` (one method for each operation) → `publish_queue.py` (batches) → `head_store.py`, `seen_heads.py`
(offsets and epochs) → `connection/jetstream.py` (the stream) → `connection/link.py` (reconnects) → `connection/connection.py`.
`stores/` has presence, tickets and quotas.
"""
