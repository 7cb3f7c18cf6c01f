"""The addresses of history pages, and when they expire."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from service.core.page_address import MAX_PATH, PAGE_EVENTS, PageAddress, PageSigner, expiry_of, page_of

NEW, OLD = b"n" * 32, b"o" * 32
ADDRESS = PageAddress("acme", "inbox:auth0%7C+@~=x", "0f1e2d3c2606afc0c8cea", 101, 200, 1_795_374_000)
_NAMES = st.text(string.ascii_letters + string.digits + "_.@~=+-:%", min_size=1, max_size=128)


def signed(signer: PageSigner, address: PageAddress) -> str:
    path = signer.sign(address)
    assert path is not None
    return path


@given(st.builds(replace, st.just(ADDRESS), tenant=_NAMES, channel=_NAMES, epoch=_NAMES))
def test_address_reads_what_was_signed(address: PageAddress) -> None:
    signer = PageSigner([NEW])
    path = signer.sign(address)
    if {address.tenant, address.channel} & {".", ".."}:
        assert path is None
        return
    assert path is not None
    assert len(path) <= MAX_PATH
    assert signer.verify(path) == address


@given(st.data())
def test_changed_address_is_refused(data: st.DataObject) -> None:
    signer = PageSigner([NEW])
    path = signed(signer, ADDRESS)
    place = data.draw(st.integers(0, len(path)))
    text = data.draw(st.text(string.printable, max_size=2))
    changed = path[:place] + text + path[place + data.draw(st.integers(0, 1)) :]
    assert signer.verify(changed) == (ADDRESS if changed == path else None)


@pytest.mark.parametrize(
    "other",
    [
        replace(ADDRESS, tenant="other"),
        replace(ADDRESS, channel="room:1"),
        replace(ADDRESS, epoch="e"),
        replace(ADDRESS, first=1, last=100),
        replace(ADDRESS, expires_at=ADDRESS.expires_at + 1),
    ],
)
def test_signature_of_another_page_is_refused(other: PageAddress) -> None:
    signer = PageSigner([NEW])
    signature = signed(signer, ADDRESS).rpartition(".")[2]
    assert signer.verify(f"{signed(signer, other).rpartition('.')[0]}.{signature}") is None


def test_other_spelling_of_the_same_address_is_refused() -> None:
    signer = PageSigner([NEW])
    path = signed(signer, ADDRESS)
    assert signer.verify(path.replace("inbox:", "inbox%3A")) is None
    assert signer.verify(f"{path}?x=1") is None


def test_new_key_signs_and_the_old_one_still_verifies() -> None:
    by_old = signed(PageSigner([OLD]), ADDRESS)
    both = PageSigner([NEW, OLD])
    assert both.verify(by_old) == ADDRESS
    assert signed(both, ADDRESS) == signed(PageSigner([NEW]), ADDRESS)
    assert PageSigner([NEW]).verify(by_old) is None


@pytest.mark.parametrize(("offset", "page"), [(1, (1, 100)), (100, (1, 100)), (101, (101, 200)), (999, (901, 1000))])
def test_page_of_an_offset_is_the_same_for_all_its_offsets(offset: int, page: tuple[int, int]) -> None:
    assert page_of(offset) == page
    assert page[1] - page[0] + 1 == PAGE_EVENTS


@given(_NAMES, st.floats(0, 4e9), st.integers(60, 86_400))
def test_expiry_is_shared_for_half_of_the_ttl_and_never_later_than_it(channel: str, now: float, ttl: int) -> None:
    expiry = expiry_of("acme", channel, now, ttl)
    window = ttl // 2
    assert window <= expiry - int(now) <= ttl
    assert expiry_of("acme", channel, expiry - 2 * window, ttl) == expiry
    assert expiry_of("acme", channel, expiry - window - 1, ttl) == expiry
    assert expiry_of("acme", channel, expiry - window, ttl) == expiry + window


def test_channels_change_their_addresses_at_different_times() -> None:
    expiries = {expiry_of("acme", f"room:{number}", 1_795_374_000.0, 3_600) for number in range(100)}
    assert len(expiries) > 90
