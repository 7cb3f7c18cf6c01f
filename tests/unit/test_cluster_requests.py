from __future__ import annotations

import pytest

from service.realtime.cluster.messages import Response
from service.realtime.cluster.requests import Aggregate, PendingRequests

HOUR = 3600.0
"""Seconds; a test that waits for so long does not end."""


def response(request: str, node: str, *counts: int) -> Response:
    return Response(request=request, node=node, counts=list(counts))


async def test_responses_of_all_nodes_are_added_up() -> None:
    requests = PendingRequests()
    with requests.open({"a", "b"}, 2) as pending:
        requests.record(response(pending.id, "a", 1, 2))
        requests.record(response(pending.id, "a", 50, 50))  # a second time
        requests.record(response(pending.id, "c", 10, 20))  # a node that has just started
        requests.record(response("another", "b", 7, 7))
        requests.record(response(pending.id, "b", 100, 200))
        assert await pending.wait(HOUR) == Aggregate([111, 222], nodes=3, is_complete=True)


@pytest.mark.parametrize("counts", [(), (1,), (1, 2, 3)])
async def test_response_of_another_size_is_ignored(counts: tuple[int, ...]) -> None:
    with PendingRequests().open({"a", "b"}, 2) as pending:
        pending.record(response(pending.id, "a", 1, 2))
        pending.record(response(pending.id, "b", *counts))
        assert await pending.wait(0.0) == Aggregate([1, 2], nodes=1, is_complete=False)


async def test_response_after_the_timeout_is_ignored() -> None:
    requests = PendingRequests()
    with requests.open({"a"}) as pending:
        result = await pending.wait(0.0)
    requests.record(response(pending.id, "a", 1))
    assert result == Aggregate([0], nodes=0, is_complete=False)
