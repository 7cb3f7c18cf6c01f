"""The limit of open files that a process starts with."""

from __future__ import annotations

import resource

import pytest

from service import process

INFINITY = resource.RLIM_INFINITY


class Kernel:
    """Limits of open files, of which the kernel takes a soft one up to `most`."""

    def __init__(self, soft: int, hard: int, most: int) -> None:
        self.limits = soft, hard
        self._most = most

    def get(self, which: int) -> tuple[int, int]:
        assert which == resource.RLIMIT_NOFILE
        return self.limits

    def set(self, which: int, limits: tuple[int, int]) -> None:
        assert which == resource.RLIMIT_NOFILE
        soft, _ = limits
        if soft == INFINITY or soft > self._most:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("soft", "hard", "most", "raised"),
    [
        (1_024, 20_000, 1_048_576, 20_000),
        (20_000, 20_000, 1_048_576, 20_000),
        (256, INFINITY, 10_240, 10_240),
        (1_024, INFINITY, 1_048_576, 1_048_576),
        (65_536, INFINITY, 65_536, 65_536),
        (1_024, 2_000_000, 1_048_576, 1_024),
    ],
)
def test_soft_limit_is_raised_to_what_hard_limit_and_kernel_allow(
    soft: int, hard: int, most: int, raised: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Kernel(soft, hard, most)
    monkeypatch.setattr(resource, "getrlimit", kernel.get)
    monkeypatch.setattr(resource, "setrlimit", kernel.set)
    process.raise_file_limit()
    assert kernel.limits == (raised, hard)
