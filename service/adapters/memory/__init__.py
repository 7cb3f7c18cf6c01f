"""The ports of a service that runs as one node, without a store.

broker = MemoryBroker(clock, idempotency_window=300, idempotency_entries=100_000, channels=10_000, max_bytes=256_000_000)
await broker.start(sink)
"""
