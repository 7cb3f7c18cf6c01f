"""query_values gives what aiohttp's own parsing gives."""

from __future__ import annotations

from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.web.client_info import query_values

PIECES = st.sampled_from(["channels", "ticket", "=", "&", "?", "#", "%3A", "%", "+", ",", "room:1", "", ";", "é"])


@settings(deadline=None)  # the first request imports parts of aiohttp
@given(st.sampled_from(["/ws", "http://example.com/ws", "/ws?", "/ws#"]), st.lists(PIECES, max_size=8))
@example("http://example.com/ws#", ["?", "ticket", "=", "x"])
@example("/ws?", ["channels", "=", "room:1", "#", "&", "channels", "=", "room:1"])
def test_query_values_agree_with_aiohttp(start: str, pieces: list[str]) -> None:
    request = make_mocked_request("GET", start + "".join(pieces))
    for name in ("channels", "ticket"):
        assert list(query_values(request, name)) == request.query.getall(name, [])
