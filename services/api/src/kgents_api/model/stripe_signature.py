"""Whether a webhook is Stripe's: its signature checked over the raw bytes, without Stripe's library.

Scheme (docs.stripe.com/webhooks, "Verify webhook signatures manually"): the header is
`t=<unix>,v1=<hex>,...`; a `v1` is the HMAC-SHA256, keyed with an endpoint's secret, of `t`, a dot and the
body. Stripe's library costs a hundred times this, takes a time in the future, one secret only, and turns a
non-ASCII signature into a TypeError: none of it here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import timedelta

from kgents_common.errors import PermanentError

TOLERANCE = timedelta(minutes=5)
MAX_HEADER_CHARACTERS = 4096
MAX_SIGNATURES = 16
MAX_TIME_DIGITS = 12
SIGNATURE_CHARACTERS = 64


class SignatureError(PermanentError):
    """Not Stripe's, or not now. `reason` is a label; body, header and secrets are not kept.

    Attributes:
        reason: `missing`, `malformed`, `no_signature`, `too_old`, `too_new` or `mismatch`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"webhook signature: {reason.replace('_', ' ')}")
        self.reason = reason


def verify(
    body: bytes,
    header: str,
    secrets: Sequence[bytes],
    *,
    now_seconds: float,
    tolerance: timedelta = TOLERANCE,
) -> int:
    """The index of the secret that signed this body.

    Every signature is compared with every secret, in constant time and without an early end.

    Args:
        body: The request's raw bytes.
        header: `Stripe-Signature`; empty where there is none.
        secrets: `whsec_...` as bytes; several while one replaces another.
        now_seconds: The present, in seconds since the epoch.
        tolerance: How far the signed time may be from now, either way.

    Raises:
        SignatureError: No secret signed it, or its time is not now.
    """
    signed_at, signatures = _parse(header)
    signed = signed_at + b"." + body
    found = -1
    for index, secret in enumerate(secrets):
        expected = hmac.new(secret, signed, hashlib.sha256).hexdigest().encode()
        for signature in signatures:
            if hmac.compare_digest(expected, signature) and found < 0:
                found = index
    if found < 0:
        raise SignatureError("mismatch")
    _check_age(signed_at, now_seconds, tolerance)
    return found


def check_header(header: str, *, now_seconds: float, tolerance: timedelta = TOLERANCE) -> None:
    """What can be said before the body is there.

    Raises:
        SignatureError: No body could make this header Stripe's, or its time is not now.
    """
    signed_at, _ = _parse(header)
    _check_age(signed_at, now_seconds, tolerance)


def _check_age(signed_at: bytes, now_seconds: float, tolerance: timedelta) -> None:
    age = now_seconds - int(signed_at)
    if age > tolerance.total_seconds():
        raise SignatureError("too_old")
    if -age > tolerance.total_seconds():
        raise SignatureError("too_new")


def _parse(header: str) -> tuple[bytes, list[bytes]]:
    """The signed time's digits and the `v1` signatures."""
    if not header:
        raise SignatureError("missing")
    if len(header) > MAX_HEADER_CHARACTERS or not header.isascii():
        raise SignatureError("malformed")
    signed_at = ""
    signatures: list[bytes] = []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t" and not signed_at:
            if not value.isdigit() or len(value) > MAX_TIME_DIGITS:
                raise SignatureError("malformed")
            signed_at = value
        elif name == "v1" and len(value) == SIGNATURE_CHARACTERS:
            signatures.append(value.encode())
            if len(signatures) > MAX_SIGNATURES:
                raise SignatureError("malformed")
    if not signed_at:
        raise SignatureError("malformed")
    if not signatures:
        raise SignatureError("no_signature")
    return signed_at.encode(), signatures
