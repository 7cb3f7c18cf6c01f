"""Who may talk to the nodes of the suite: two tenants, whose channels have the same names."""

from __future__ import annotations

import time

import jwt

SECRET = "a secret of the fault suite, long enough for HS256"
TENANTS = ("red", "blue")
API_KEYS = {tenant: f"an-api-key-of-{tenant}-0123456789" for tenant in TENANTS}


def token(user: str, tenant: str, ttl: float = 86_400) -> str:
    """A token that the nodes accept."""
    now = int(time.time())
    claims = {"iss": "tidewire", "aud": "tidewire", "sub": user, "iat": now, "exp": now + int(ttl), "tenant": tenant}
    return jwt.encode(claims, SECRET, algorithm="HS256")
