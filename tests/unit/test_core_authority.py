"""Authorities are compared as RFC 3986 §6.2 says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.authority import canonical_origin, parse_authority, same_authority


@pytest.mark.parametrize(
    ("scheme", "one", "other"),
    [
        ("http", "EXAMPLE.com", "example.com"),
        ("http", "example.com:80", "example.com"),
        ("https", "example.com:443", "example.com"),
        ("HTTPS", "example.com:443", "example.com"),
        ("wss", "example.com:443", "example.com"),
        ("http", "example.com:", "example.com"),
        ("http", "example.com:08080", "example.com:8080"),
        ("http", "[::1]", "[0:0:0:0:0:0:0:1]:80"),
        ("http", "[2001:DB8::A]:8080", "[2001:db8::a]:8080"),
        ("http", "ex%61mple.com", "example.com"),
        ("other", "example.com:1", "EXAMPLE.com:1"),
    ],
)
def test_authority_in_another_spelling_is_equal(scheme: str, one: str, other: str) -> None:
    assert same_authority(scheme, one, other)
    assert same_authority(scheme, other, one)


@pytest.mark.parametrize(
    ("scheme", "one", "other"),
    [
        ("http", "example.com", "example.com:443"),
        ("https", "example.com", "example.com:80"),
        ("other", "example.com", "example.com:80"),
        ("http", "example.com", "example.com."),
        ("http", "example.com", "example.com.evil.com"),
        ("http", "example.com", "user@example.com"),
        ("http", "[::1]", "::1"),
        ("http", "[::1]", "[::2]"),
        ("http", "127.0.0.1", "[::ffff:127.0.0.1]"),
        ("http", "", ""),
        ("http", "null", "nul"),
        ("http", "a b", "a b"),
        ("http", "example.com:x", "example.com:x"),
        ("http", "example.com:65536", "example.com:65536"),
        ("http", f"example.com:{'9' * 5000}", "example.com"),
        ("http", "[fe80::1%25eth0]", "[fe80::1%25eth0]"),
        ("http", "[::1", "[::1"),
        ("http", "\u212a.com", "k.com"),
    ],
)
def test_authority_that_differs_is_not_equal(scheme: str, one: str, other: str) -> None:
    assert not same_authority(scheme, one, other)


@pytest.mark.parametrize(
    ("origin", "canonical"),
    [
        ("HTTP://Example.com:80", "http://example.com"),
        ("https://example.com:444", "https://example.com:444"),
        ("https://[::A]:443", "https://[::a]"),
        ("null", None),
        ("", None),
        ("example.com", None),
        ("https://example.com/", None),
        ("https://user@example.com", None),
        ("https://example.com, https://other.com", None),
        ("https://", None),
    ],
)
def test_canonical_origin_is_unique(origin: str, canonical: str | None) -> None:
    assert canonical_origin(origin) == canonical


@given(st.text())
def test_parse_any_text_returns_authority_or_none(text: str) -> None:
    found = parse_authority(text, "http")
    assert found is None or found.host == found.host.lower()
    assert canonical_origin(text) is None or canonical_origin(canonical_origin(text) or "") == canonical_origin(text)
