"""Says why a Redis server cannot be used, in sentences for operators that never quote what this node sent."""

from __future__ import annotations

import ssl

from service.adapters.redis.connections.link import LinkLost, ReplyError
from service.core.descriptors import EXHAUSTED, is_exhaustion

Endpoint = tuple[str, int]
"""Host and port of a server."""

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
"""What the first word of an error reply means."""
_SNAPSHOT = "it cannot write its snapshot to disk (stop-writes-on-bgsave-error)"
_AOF = "AOF file"

_PERMANENT = {
    "WRONGPASS": "refuses the user or the password (broker.user, broker.password)",
    "NOAUTH": "wants a password (broker.password)",
    "NOPERM": "does not let the user do what is needed; docs/guarantees.md names the ACL rules",
}
"""Error replies to a connecting node after which a retry is useless."""
_PERMANENT_TEXTS = {
    "DB index is out of range": "has no database of that number",
    "cluster support disabled": "belongs to no Redis Cluster, but broker.url begins with redis+cluster://",
}
"""The same for replies whose code does not name the reason."""


class NoServerError(ConnectionError):
    """No server could be found or reached. `is_permanent`: another try will not change that."""

    def __init__(self, message: str, *, is_permanent: bool = False) -> None:
        super().__init__(message)
        self.is_permanent = is_permanent


def error_code(error: BaseException | str) -> str:
    """Returns the first word of an error reply. The rest may quote what the server was sent."""
    text = str(error)
    if "user executing the script" in text or "ACL failure in script" in text:
        return "NOPERM"  # the wording of Redis and Valkey for a command within a script
    return text.partition(" ")[0]


def explain_reply(error: BaseException | str) -> str | None:
    """Says what an error reply means, with the operating system's reason if the reply has one; None if unknown."""
    text, code = str(error), error_code(error)
    if code != "MISCONF":
        return MEANINGS.get(code)
    if _AOF in text:  # "MISCONF Errors writing to the AOF file: No space left on device"
        reason = text.partition(f"{_AOF}:")[2].partition(" script:")[0].strip(" .,")
        return f"it cannot write its append-only file: {reason or 'no reason given'}"
    return _SNAPSHOT if "RDB" in text else MEANINGS[code]


def explain_failure(error: BaseException) -> str:
    """Says why a connection failed; the subject of the sentence is the server."""
    if isinstance(error, LinkLost):
        code, text = "", str(error)
    elif isinstance(error, ReplyError):
        code, text = str(error).partition(" ")[0], str(error)
    elif isinstance(error, TimeoutError):
        return "does not answer"
    elif isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is not trusted (broker.ca): {error.verify_message}"
    elif isinstance(error, ssl.SSLError):
        return f"fails TLS: {error.reason or type(error).__name__}"
    elif is_exhaustion(error):
        return f"cannot be reached: {EXHAUSTED}"
    else:
        return f"cannot be reached: {getattr(error, 'strerror', None) or type(error).__name__}"
    for part, sentence in _PERMANENT_TEXTS.items():
        if part in text:
            return sentence
    known = _PERMANENT.get(code or text.partition(" ")[0])
    return known or (f"refuses: {explain_reply(text) or code}" if code else text)


def is_permanent(error: BaseException) -> bool:
    """Whether another try will not change the failure of a connection."""
    if isinstance(error, NoServerError):
        return error.is_permanent
    if isinstance(error, ssl.SSLError):
        return True
    text = str(error)
    if isinstance(error, LinkLost) and text.startswith("TLS: "):
        return True
    return text.partition(" ")[0] in _PERMANENT or any(part in text for part in _PERMANENT_TEXTS)


def name_of(endpoint: Endpoint) -> str:
    """A server in a sentence."""
    return f"{endpoint[0]} port {endpoint[1]}"


def no_server(endpoint: Endpoint, error: BaseException) -> NoServerError:
    """Returns the error of a server that could not be used."""
    if isinstance(error, NoServerError):
        return NoServerError(f"{name_of(endpoint)} {error}", is_permanent=error.is_permanent)
    return NoServerError(f"{name_of(endpoint)} {explain_failure(error)}", is_permanent=is_permanent(error))
