"""Real stores for tests, on free local ports: Redis and Valkey (alone, with Sentinels, as a Cluster) and NATS."""

from tests.stores.certificates import Certificates
from tests.stores.cluster import Cluster, ClusterNode
from tests.stores.kinds import STORES, broker_of
from tests.stores.nats_server import NatsServer
from tests.stores.process import MissingProgramError, ServerFailedError
from tests.stores.redis_server import FLAVOURS, Flavour, RedisServer, shared_redis
from tests.stores.sentinels import Sentinel, Sentinels

__all__ = [
    "FLAVOURS",
    "STORES",
    "Certificates",
    "Cluster",
    "ClusterNode",
    "Flavour",
    "MissingProgramError",
    "NatsServer",
    "RedisServer",
    "Sentinel",
    "Sentinels",
    "ServerFailedError",
    "broker_of",
    "shared_redis",
]
