"""A Stripe event's outer shape and where it is stored in EVENTS; it verifies nothing and knows no Stripe
library.

The door and the reconciliation store events through the same function: one subject for each event id,
appended only where that subject is still empty, so that an event is there once however often and by
whichever way it comes. Both shapes are known: snapshot events (`object: event`) and thin ones (`object:
v2.core.event`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from kgents_common import subjects
from kgents_common.errors import PermanentError
from kgents_common.publisher import EXPECTED_LAST_SUBJECT_SEQUENCE

# Stripe's own are at most 100 kB; NATS takes 1 MiB for headers and payload together.
MAX_BODY_BYTES = 512 * 1024
SNAPSHOT = "event"
THIN = "v2.core.event"
CE_SOURCE = "/stripe"

_ID = re.compile(r"[A-Za-z0-9_]{1,120}")
_TYPE = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_HEADER_VALUE = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class NotStripeEventError(PermanentError):
    """A body that is not an event of either shape."""


class RelatedObject(msgspec.Struct, frozen=True):
    """What a thin event is about: its id, its type and where to get it."""

    id: str
    type: str
    url: str = ""


class StripeEnvelope(msgspec.Struct, frozen=True):
    """An event without its data.

    Attributes:
        created: Seconds since the epoch (snapshot) or an RFC 3339 text (thin).
        snapshot_event: On a thin event, the id of the snapshot event about the same change.
        data: The untouched JSON of `data`.
    """

    id: str
    type: str
    object: str
    created: int | str
    livemode: bool = False
    api_version: str | None = None
    account: str | None = None
    context: str | None = None
    related_object: RelatedObject | None = None
    snapshot_event: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def is_thin(self) -> bool:
        """Whether it carries no object, only a reference."""
        return self.object == THIN

    @property
    def subject(self) -> str:
        """The one subject of this event, a function of nothing else."""
        return subjects.stripe(livemode=self.livemode, event_type=self.type, event_id=self.id)

    @property
    def message_id(self) -> str:
        """Its `Nats-Msg-Id`."""
        return f"stripe:{self.id}"

    @property
    def created_at(self) -> datetime:
        """When Stripe made it, aware, in UTC."""
        if isinstance(self.created, int):
            return datetime.fromtimestamp(self.created, UTC)
        return datetime.fromisoformat(self.created).astimezone(UTC)


_DECODER = msgspec.json.Decoder(StripeEnvelope)


def read(body: bytes) -> StripeEnvelope:
    """The outer shape of an event.

    Raises:
        NotStripeEventError: Not JSON, not an event, or an id or a type that cannot be a subject's token.
    """
    try:
        event = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotStripeEventError(f"not a Stripe event: {_safe(error)}") from None
    if event.object not in (SNAPSHOT, THIN):
        raise NotStripeEventError("not a Stripe event: `object` is neither event nor v2.core.event")
    if not _ID.fullmatch(event.id):
        raise NotStripeEventError("not a Stripe event: `id` must be letters, digits and '_'")
    if len(event.type) > 120 or not _TYPE.fullmatch(event.type):
        raise NotStripeEventError("not a Stripe event: `type` must be dotted letters, digits and '_'")
    try:
        _ = event.created_at
    except (ValueError, OverflowError, OSError):
        raise NotStripeEventError("not a Stripe event: `created` is not a moment") from None
    return event


def _safe(error: Exception) -> str:
    """The fault without any of the body: msgspec names a field or a byte's place, never a value of text."""
    return str(error)[:200] if isinstance(error, msgspec.ValidationError) else type(error).__name__


def headers(event: StripeEnvelope, *, received_at: datetime, via: str) -> dict[str, str]:
    """The headers it is appended with; `via` is `webhook` or `poll`."""
    made = {
        EXPECTED_LAST_SUBJECT_SEQUENCE: "0",
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-source": f"{CE_SOURCE}/{event.account or 'self'}" if _is_plain(event.account) else CE_SOURCE,
        "ce-type": event.type,
        "ce-time": event.created_at.isoformat().replace("+00:00", "Z"),
        "Kg-Received-At": received_at.isoformat(),
        "Kg-Via": via,
    }
    if event.api_version and _HEADER_VALUE.fullmatch(event.api_version):
        made["Stripe-Api-Version"] = event.api_version
    return made


def _is_plain(account: str | None) -> bool:
    return account is None or _ID.fullmatch(account) is not None


@dataclass(frozen=True, slots=True)
class Append:
    """A publish to make: only where the subject is still empty (else `AlreadyThereError`)."""

    subject: str
    body: bytes
    message_id: str
    headers: Mapping[str, str]


def append(
    event: StripeEnvelope,
    body: bytes,
    *,
    received_at: datetime,
    via: str,
    trace: Mapping[str, str] | None = None,
) -> Append:
    """The publish that stores an event, verbatim; the same for every way it came."""
    made = headers(event, received_at=received_at, via=via)
    return Append(event.subject, body, event.message_id, {**made, **(trace or {})})
