"""core/receipt.py and cluster/session_endings.py: no text but a signed one is a receipt, and what has ended stays ended."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from service.core.receipt import Receipt, ReceiptChannel, ReceiptSigner
from service.realtime.cluster import session_endings
from service.realtime.cluster.session_endings import (
    MAX_DELAY,
    MAX_SKEW,
    RECEIPT_TTL,
    SessionEndings,
    session_ended,
    subscription_ended,
    user_ended,
)
from service.telemetry.metrics import Metrics

NOW = 1_795_374_000.0
RECEIPT = Receipt(
    "acme",
    "ann",
    "c-1",
    NOW,
    NOW,
    NOW + RECEIPT_TTL,
    {"room:1": ReceiptChannel(NOW), "room:2": ReceiptChannel(NOW + 60, "e", 7, "m-7", 3)},
)
SIGNER = ReceiptSigner(b"a key of all nodes")


CHANNELS = st.builds(
    ReceiptChannel,
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=64),
    st.integers(0, 2**53),
    st.none() | st.text(max_size=64),
    st.integers(0, 2**53),
)


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=20), CHANNELS))
def test_receipt_is_read_back_by_every_holder_of_the_key(user: str, channels: dict[str, ReceiptChannel]) -> None:
    receipt = structs.replace(RECEIPT, user=user, channels=channels)
    text = SIGNER.sign(receipt)
    assert ReceiptSigner(b"a key of all nodes").verify(text) == receipt
    assert ReceiptSigner(b"another key").verify(text) is None


@given(st.data())
def test_receipt_with_any_other_character_is_refused(data: st.DataObject) -> None:
    text = SIGNER.sign(RECEIPT)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters().filter(lambda other: other != text[at])) + text[at + 1 :]
    assert SIGNER.verify(changed) is None


@pytest.mark.parametrize("text", ["", ".", "..", "v1", "v1..", "x" * 70_000])
def test_other_text_is_no_receipt(text: str) -> None:
    assert SIGNER.verify(text) is None


def test_receipt_for_another_user_under_an_old_signature_is_refused() -> None:
    version, body, signature = SIGNER.sign(RECEIPT).split(".")
    content = json.loads(base64.urlsafe_b64decode(body)) | {"user": "ben"}
    forged = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    assert SIGNER.verify(f"{version}.{forged}.{signature}") is None


@pytest.mark.parametrize("ended", [session_ended("c-1"), user_ended("acme", "ann")])
def test_session_that_began_before_its_ending_has_ended(ended: session_endings.Ended) -> None:
    endings = SessionEndings(Metrics())
    endings.record([ended], NOW + 10)
    assert endings.has_ended(RECEIPT)
    assert endings.has_ended(structs.replace(RECEIPT, started_at=NOW + 10 + MAX_SKEW))
    assert not endings.has_ended(structs.replace(RECEIPT, started_at=NOW + 11 + MAX_SKEW))


def test_endings_of_others_end_nothing() -> None:
    endings = SessionEndings(Metrics())
    endings.record(
        [
            session_ended("c-2"),
            user_ended("acme", "ben"),
            user_ended("other", "ann"),
            subscription_ended("acme", "ben", "room:1"),
        ],
        NOW + 10,
    )
    assert not endings.has_ended(RECEIPT)
    assert endings.is_subscribed(RECEIPT, "room:1")
    assert not endings.is_subscribed(RECEIPT, "room:3")


def test_subscription_ends_alone_and_only_if_it_is_older() -> None:
    endings = SessionEndings(Metrics())
    endings.record([subscription_ended("acme", "ann", channel) for channel in ("room:1", "room:2")], NOW + 30)
    assert not endings.has_ended(RECEIPT)
    assert not endings.is_subscribed(RECEIPT, "room:1")
    assert endings.is_subscribed(RECEIPT, "room:2"), "subscribed to again afterwards"


def test_endings_are_forgotten_after_every_receipt_has_expired() -> None:
    endings = SessionEndings(Metrics())
    endings.record([session_ended("c-1")], NOW)
    endings.record([session_ended("c-2")], NOW + RECEIPT_TTL)
    assert len(endings) == 2
    endings.record([session_ended("c-3")], NOW + RECEIPT_TTL + MAX_DELAY + MAX_SKEW + 1)
    assert len(endings) == 2


def issued(user: str, seconds: float, tenant: str = "acme") -> Receipt:
    return structs.replace(RECEIPT, tenant=tenant, user=user, session="x", issued_at=NOW + MAX_DELAY + seconds)


def test_user_with_too_many_endings_loses_only_receipts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_endings, "MAX_USER_ENDINGS", 2)
    endings = SessionEndings(Metrics())
    endings.record([session_ended("b-1", "acme", "ben")], NOW)
    for number in range(50):
        endings.record([session_ended(f"a-{number}", "acme", "ann")], NOW + number)
    assert len(endings) == 4  # two of ann, the mark that others are forgotten, and ben's
    assert endings.has_ended(structs.replace(RECEIPT, user="ben", session="b-1"))
    assert endings.has_ended(issued("ann", 46))
    assert not endings.has_ended(issued("ann", 47))
    assert not endings.has_ended(issued("ben", 0))


def test_tenant_with_most_endings_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_endings, "MAX_ENDINGS", 6)
    endings = SessionEndings(Metrics())
    endings.record([user_ended("other", "ben")], NOW)
    for number in range(50):
        endings.record([user_ended("acme", f"user-{number}")], NOW + number)
    assert len(endings) == 6
    assert endings.has_ended(structs.replace(RECEIPT, tenant="other", user="ben"))
    assert endings.has_ended(issued("zoe", 44))
    assert not endings.has_ended(issued("zoe", 46))
    assert not endings.has_ended(issued("zoe", 0, "other"))
    for tenant in range(8):
        endings.record([user_ended(f"tenant-{tenant}", "ann")], NOW + 60 + tenant)
    assert len(endings) == 6


def test_forgotten_ending_without_a_user_ends_every_receipt_from_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_endings, "MAX_ENDINGS", 2)
    endings = SessionEndings(Metrics())
    for number in range(3):
        endings.record([session_ended(f"c-{number}")], NOW + number)
    assert len(endings) == 2
    assert endings.has_ended(structs.replace(RECEIPT, session="x", issued_at=NOW + MAX_DELAY - 1))
    assert not endings.has_ended(structs.replace(RECEIPT, session="x", issued_at=NOW + MAX_DELAY))
