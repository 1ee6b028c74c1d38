"""A Stripe event as billing works on it: both shapes brought to one; it decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kgents_common import stripe_events
from kgents_common.errors import PermanentError
from kgents_common.stripe_events import StripeEnvelope

Json = Mapping[str, Any]
THIN_PREFIX = "v1."
MAX_ID_CHARACTERS = 255
# The end of the year 9999.
LAST_SECOND = 253_402_300_799


class MalformedEventError(PermanentError):
    """A stored message that is not an event anybody could handle: a dead letter."""


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """One event.

    Attributes:
        type: As snapshot events name it; a thin event's `v1.` is taken off.
        second: When Stripe made it, in whole seconds since the epoch: shared by distinct events.
        object: The object as it was then; None for a thin event.
        previous: The changed fields' old values; None where the event does not say.
        twin: On a thin event, the id of the snapshot event about the same change.
    """

    id: str
    type: str
    second: int
    livemode: bool
    account: str | None
    api_version: str | None
    object: Json | None
    previous: Json | None = None
    related_id: str | None = None
    related_type: str | None = None
    twin: str | None = None
    is_thin: bool = False

    @property
    def object_id(self) -> str | None:
        """The id of the object it is about; `invoice.upcoming` has none."""
        if self.object is None:
            return self.related_id
        return reference(self.object.get("id"))

    @property
    def source(self) -> str:
        """`/stripe/<account>`, or `/stripe/self` for our own account."""
        return f"{stripe_events.CE_SOURCE}/{self.account or 'self'}"


class _Data(msgspec.Struct):
    object: dict[str, Any]
    previous_attributes: dict[str, Any] | None = None


_DATA = msgspec.json.Decoder(_Data)


def read(body: bytes) -> StripeEvent:
    """An event from a stored message.

    Raises:
        MalformedEventError: It is none, or a snapshot without an object.
    """
    try:
        envelope = stripe_events.read(body)
    except PermanentError as error:
        raise MalformedEventError(str(error)) from None
    return _thin(envelope) if envelope.is_thin else _snapshot(envelope)


def _snapshot(envelope: StripeEnvelope) -> StripeEvent:
    try:
        data = _DATA.decode(envelope.data)
    except msgspec.ValidationError as error:  # a field and types, never a value
        raise MalformedEventError(f"not a Stripe event: in `data`: {error}"[:200]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedEventError("not a Stripe event: `data` is none that could be read") from None
    return StripeEvent(
        id=envelope.id,
        type=envelope.type,
        second=int(envelope.created_at.timestamp()),
        livemode=envelope.livemode,
        account=envelope.account,
        api_version=envelope.api_version,
        object=data.object,
        previous=data.previous_attributes,
    )


def _thin(envelope: StripeEnvelope) -> StripeEvent:
    related = envelope.related_object
    return StripeEvent(
        id=envelope.id,
        type=envelope.type.removeprefix(THIN_PREFIX),
        second=int(envelope.created_at.timestamp()),
        livemode=envelope.livemode,
        account=envelope.account or envelope.context,
        api_version=None,
        object=None,
        related_id=related.id if related else None,
        related_type=related.type if related else None,
        twin=envelope.snapshot_event,
        is_thin=True,
    )


def reference(value: object) -> str | None:
    """The id behind a reference, whether Stripe sent the id or the expanded object.

    Raises:
        MalformedEventError: A text that cannot be an id.
    """
    if isinstance(value, Mapping):
        value = value.get("id")
    if not isinstance(value, str) or not value:
        return None
    if len(value) > MAX_ID_CHARACTERS or min(value) < " ":
        raise MalformedEventError(
            "not a Stripe event: an id is longer than ids are, or has control characters"
        )
    return value


def second_of(value: object, name: str) -> int | None:
    """A moment as Stripe sends it, in whole seconds since the epoch; None where it is no number.

    Raises:
        MalformedEventError: It is beyond any date.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    if not 0 <= value <= LAST_SECOND:
        raise MalformedEventError(f"not a Stripe event: `{name}` is beyond any date")
    return value


def at(value: object, *path: str) -> Any:
    """What lies at a path of names; None where anything on the way is missing or of another kind."""
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value
