"""What all of these tests need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.files import as_many_as_may_be


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    with as_many_as_may_be():
        yield
