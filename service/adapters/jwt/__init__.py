"""JSON Web Tokens: whom the configured issuers vouch for, and nobody else (docs/adr/0018-tokens.md).

A token is never believed about how to verify it: the algorithm and the keys are the issuer's; `jku`, `jwk` and `x5u` are not
read; `crit` refuses the token. Before its signature is verified, only `iss` is read, to choose the issuer, and `kid`, to choose
one of the issuer's keys.

authenticator = JwtAuthenticator([Issuer("https://id.example", "tidewire", "RS256", jwks_url=url)], clock, HttpFetch())
identity = await authenticator.authenticate(token)
"""
