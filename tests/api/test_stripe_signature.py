"""The webhook verifier agrees with Stripe's own library, and differs only where that library is wrong."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest
import stripe
from stripe import WebhookSignature

from kgents_api.model.stripe_signature import SignatureError, verify

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
AT = int(NOW.timestamp())
BODY = b'{"id":"evt_1","object":"event"}'
OLD, NEW = "whsec_old", "whsec_new"


def signed(body: bytes = BODY, secret: str = NEW, at: int = AT) -> str:
    return str(WebhookSignature.generate_signature_header(body.decode(), secret, timestamp=at))


def accepts(body: bytes, header: str) -> bool:
    try:
        verify(body, header, [NEW.encode(), OLD.encode()], now_seconds=AT)
    except SignatureError:
        return False
    return True


def test_either_secret_is_good_while_one_replaces_the_other() -> None:
    """Rule: several secrets, for rotation."""
    assert accepts(BODY, signed())
    assert accepts(BODY, signed(secret=OLD))
    assert not accepts(BODY, signed(secret="whsec_other"))


@pytest.mark.parametrize(("age", "good"), [(299, True), (301, False), (-299, True), (-301, False)])
def test_it_is_recent_in_both_directions(age: int, good: bool) -> None:
    """Rule: recency both ways; Stripe's library takes any time in the future."""
    assert accepts(BODY, signed(at=AT - age)) is good


def test_twenty_thousand_broken_headers_never_raise_anything_else() -> None:
    """Rule: yes or a SignatureError, whatever is sent; never yes where Stripe's library says no."""
    roll = random.Random(5)
    good = signed()
    for _ in range(20_000):
        header = list(good)
        for _ in range(roll.randrange(1, 4)):
            place = roll.randrange(len(header) + 1)
            edit = roll.choice(("drop", "insert", "swap"))
            if edit == "drop" and header:
                header.pop(min(place, len(header) - 1))
            elif edit == "insert":
                header.insert(place, roll.choice("0123456789abcdef,=tv1 \u00e9\u0660\x00-"))
            elif header:
                header[min(place, len(header) - 1)] = roll.choice("0af9,=tv\u00e9 ")
        text = "".join(header)
        if accepts(BODY, text):
            assert reference(text), text


def reference(header: str) -> bool:
    """Stripe's library, with a clock that stands where ours does."""
    for secret in (NEW, OLD):
        try:
            WebhookSignature.verify_header(BODY.decode(), header.replace(" ", ""), secret, tolerance=None)
        except (stripe.SignatureVerificationError, ValueError, TypeError):
            continue
        return True
    return False


def test_a_changed_body_is_refused() -> None:
    """Rule: the signature is over the raw bytes."""
    assert not accepts(BODY + b" ", signed())
