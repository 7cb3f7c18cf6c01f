"""The parameters of an address, beside aiohttp's reading of them."""

from __future__ import annotations

from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given
from hypothesis import strategies as st

from service.web.client_info import parameters

PIECES = st.sampled_from(["channels", "ticket", "=", "&", "?", "#", "%3A", "%", "+", ",", "room:1", "", ";", "é"])


@given(st.sampled_from(["/ws", "http://example.com/ws", "/ws?", "/ws#"]), st.lists(PIECES, max_size=8))
@example("http://example.com/ws#", ["?", "ticket", "=", "x"])
@example("/ws?", ["channels", "=", "room:1", "#", "&", "channels", "=", "room:1"])
def test_they_are_read_as_aiohttp_reads_them(start: str, pieces: list[str]) -> None:
    request = make_mocked_request("GET", start + "".join(pieces))
    for name in ("channels", "ticket"):
        assert parameters(request, name) == request.query.getall(name, [])
