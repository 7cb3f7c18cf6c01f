"""Authenticates JSON Web Tokens of the configured issuers (docs/adr/0018-tokens.md).

A token does not choose how it is verified: the settings name each issuer's algorithm and keys. `jku`, `jwk` and `x5u`
are not read; a token with `crit` is refused. Before its signature is verified, only `iss` is read, to choose the
issuer, and `kid`, to choose one of the issuer's keys.

authenticator = JwtAuthenticator([Issuer("https://id.example", "tidewire", "RS256", jwks_url=url)], clock, HttpFetch())
identity = await authenticator.authenticate(token)
"""
