"""The ports on Redis and Valkey: one server, Sentinel or Cluster.

broker = RedisBroker(RedisConfig(parse_redis_url("redis://localhost:6379")), Metrics())
await broker.start(sink)

Reading order: `broker.py` (one method for each operation) → `command_executor.py` (retries and deadlines) →
`connections/shard_map.py` (which server) → `connections/shard.py` → `connections/reconnecting_link.py` →
`connections/link.py` (one connection). The scripts are in `lua/`; begin with `channel.lua` and `publish.lua`.
`stores/` has presence, tickets and quotas.
"""
