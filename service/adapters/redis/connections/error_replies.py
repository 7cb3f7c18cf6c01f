"""What a Redis server's error replies mean, in words that repeat nothing of what it was told."""

from __future__ import annotations

MEANINGS = {
    "OOM": "it is out of memory (maxmemory)",
    "NOREPLICAS": "too few replicas are there (min-replicas-to-write)",
    "MISCONF": "it cannot write to its disk, so it takes no writes",
    "NOPERM": "the user may not do that; docs/guarantees.md names the ACL rules",
    "NOAUTH": "it wants a password (broker.password)",
    "WRONGPASS": "it refuses the user or the password (broker.user, broker.password)",
    "READONLY": "it is a replica",
    "MASTERDOWN": "it is a replica that has lost its master",
    "LOADING": "it is loading its data",
    "BUSY": "a script has been running for too long",
    "CLUSTERDOWN": "the Redis Cluster does not serve this slot",
    "MOVED": "it belongs to a Redis Cluster; broker.url must begin with redis+cluster://",
}
_SNAPSHOT = "it cannot write its snapshot to disk (stop-writes-on-bgsave-error)"
_AOF = "AOF file"


def word_of(error: BaseException | str) -> str:
    """The kind of an error reply: its first word. The rest may quote what the server was told."""
    text = str(error)
    if "user executing the script" in text or "ACL failure in script" in text:
        return "NOPERM"  # as Redis and Valkey say it of what a script does
    return text.partition(" ")[0]


def meaning(error: BaseException | str) -> str | None:
    """What an error reply means, with the reason that the server gives where that is the system's; None: unknown."""
    text, word = str(error), word_of(error)
    if word != "MISCONF":
        return MEANINGS.get(word)
    if _AOF in text:  # "MISCONF Errors writing to the AOF file: No space left on device"
        reason = text.partition(f"{_AOF}:")[2].partition(" script:")[0].strip(" .,")
        return f"it cannot write its append-only file: {reason or 'no reason given'}"
    return _SNAPSHOT if "RDB" in text else MEANINGS[word]
