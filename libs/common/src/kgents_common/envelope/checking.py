"""The rules of an envelope, applied to attributes that were taken apart; it decodes no whole text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Protocol

import msgspec

from kgents_common import http_binding, rfc3339, scalars, subjects
from kgents_common.envelope.attributes import (
    AGENT,
    EARLIEST,
    MAX_AGENT_CHARACTERS,
    MAX_FUTURE,
    MAX_ID_CHARACTERS,
    MAX_SCHEMA_CHARACTERS,
    MAX_SOURCE_CHARACTERS,
    RESERVED_TYPES,
    TIME_ORIGIN,
    TIME_ORIGIN_RECEIVED,
)
from kgents_common.envelope.event import Envelope
from kgents_common.errors import EnvelopeError, Violation

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9_]{1,64}")
# Read by rules of their own; every other attribute is an extension.
_CORE = frozenset(
    ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data")
)
_STRING = msgspec.json.Decoder(str)
_ENCODER = msgspec.json.Encoder()


def check(
    attributes: dict[str, msgspec.Raw],
    body: bytes | msgspec.Raw,
    *,
    tenant: str | Tenants,
    now: datetime,
    place: str,
    max_future: timedelta = MAX_FUTURE,
    agent: str | None = None,
    sources: Collection[str] = (),
    as_stored: bool = False,
) -> Envelope:
    """Check an event's attributes and stamp what is absent; the arguments are those of `reading.read`.

    Args:
        body: The text they were read from; empty for binary mode, which has none.

    Raises:
        EnvelopeError: As `reading.read`.
    """
    wrong: list[Violation] = []

    def fail(field: str, rule: str) -> None:
        wrong.append(Violation(place + field, rule))

    def text(field: str, limit: int, *, required: bool = True) -> str:
        raw = attributes.get(field)
        if raw is None:
            if required:
                fail(field, "is required")
            return ""
        try:
            value = _STRING.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            fail(field, "must be a string")
            return ""
        if not value:
            fail(field, "must not be empty")
        elif len(value) > limit:
            fail(field, f"must be at most {limit} characters")
        elif not value.isprintable() and _CONTROL.search(value):
            fail(field, "must not contain control characters")
        else:
            return value
        return ""

    specversion = text("specversion", 8)
    if specversion and specversion != "1.0":
        fail("specversion", "must be '1.0'")
    event_id = text("id", MAX_ID_CHARACTERS)
    source = text("source", MAX_SOURCE_CHARACTERS)
    event_type = text("type", 255)
    if event_type and not subjects.is_type(event_type):
        fail("type", f"must be {subjects.TYPE_RULE}")
    elif event_type.startswith(RESERVED_TYPES):
        fail("type", f"must not begin with '{RESERVED_TYPES}': such events are the system's own")
    content_type = _optional(attributes, "datacontenttype")
    if content_type is not None:
        media_type = text("datacontenttype", 256)
        if media_type and not http_binding.is_json(media_type):
            fail("datacontenttype", f"must be {http_binding.JSON_RULE}")
    if _optional(attributes, "dataschema") is not None:
        text("dataschema", MAX_SCHEMA_CHARACTERS)
    if "data_base64" in attributes:
        fail("data_base64", "binary data cannot be metered; send a JSON object as data")
    for name in attributes:
        if name in _CORE:
            continue
        if not _ATTRIBUTE_NAME.fullmatch(name):
            fail(name[:64], "attribute names are 1 to 64 lower-case letters, digits or '_'")
        elif not as_stored:
            try:
                scalars.check_json(bytes(attributes[name]))
            except ValueError as error:
                fail(name, str(error))

    time, digest_time, origin = _time(attributes, now, max_future, fail)
    data = _data(attributes, fail, as_stored=as_stored)

    foreign = 0
    if not isinstance(tenant, str):
        named = text("subject", 64)
        if named and not subjects.is_tenant(named):
            fail("subject", f"must be {subjects.TENANT_RULE}")
        elif named and not tenant.allows(named):
            foreign += 1
            fail("subject", "must be one of the tenants of the credentials")
        tenant = named
    elif _optional(attributes, "subject") is not None:
        subject = text("subject", 64)
        if subject and subject != tenant:
            foreign += 1
            fail("subject", "must be the tenant of the credentials, or absent")
    if sources and source and source not in sources:
        foreign += 1
        fail("source", "must be one of the session's")
    names_agent = _optional(attributes, AGENT) is not None
    if agent is not None and names_agent:
        speaker = text(AGENT, MAX_AGENT_CHARACTERS)
        if speaker and speaker != agent:
            foreign += 1
            fail(AGENT, "must be the agent of the session, or absent")
    if wrong:
        raise EnvelopeError(wrong, status=403 if foreign == len(wrong) else 400)

    stamped = {}
    if agent is not None and not names_agent:
        stamped[AGENT] = msgspec.Raw(_ENCODER.encode(agent))
    if _optional(attributes, "subject") is None:
        stamped["subject"] = msgspec.Raw(_ENCODER.encode(tenant))
    if _optional(attributes, "time") is None:
        stamped["time"] = msgspec.Raw(_ENCODER.encode(time))
        stamped[TIME_ORIGIN] = msgspec.Raw(_ENCODER.encode(TIME_ORIGIN_RECEIVED))
    elif origin is _Origin.NEW_NOTATION:  # a reader of the release before must not set it aside
        stamped["time"] = msgspec.Raw(_ENCODER.encode(time))
    # Unchanged bytes are published as they came: cheaper, and nothing of the producer's can get lost.
    published = _ENCODER.encode({**attributes, **stamped}) if stamped else bytes(body)
    received = origin is _Origin.RECEIVED
    return Envelope(event_id, source, event_type, tenant, time, received, data, published, digest_time)


def _optional(attributes: Mapping[str, msgspec.Raw], field: str) -> msgspec.Raw | None:
    raw = attributes.get(field)
    return None if raw is None or bytes(raw) == b"null" else raw


class _Origin(Enum):
    """Whose the time is, and whether a release before this one reads it."""

    RECEIVED = auto()
    PRODUCER = auto()
    NEW_NOTATION = auto()


def _time(
    attributes: Mapping[str, msgspec.Raw], now: datetime, max_future: timedelta, fail: _Fail
) -> tuple[datetime, datetime, _Origin]:
    """The time, the same for the digest, and whose it is."""
    raw = _optional(attributes, "time")
    if raw is None:
        return now, now, _Origin.RECEIVED
    try:
        text = _STRING.decode(raw)
        time = rfc3339.moment(text)
        digest_time = rfc3339.rounded(text, time)
    except (ValueError, UnicodeDecodeError):  # msgspec's errors are ValueErrors
        fail("time", f"must be {rfc3339.RULE}")
        return now, now, _Origin.PRODUCER
    if time > now + max_future:
        fail("time", f"must not be more than {max_future} ahead of the time of receipt")
    elif time < EARLIEST:
        fail("time", "must not be before 1970")
    stamped = attributes.get(TIME_ORIGIN)
    if stamped is not None and bytes(stamped) == b'"received"':
        return time, digest_time, _Origin.RECEIVED
    return time, digest_time, _Origin.PRODUCER if rfc3339.is_common(text) else _Origin.NEW_NOTATION


def _data(attributes: Mapping[str, msgspec.Raw], fail: _Fail, *, as_stored: bool) -> bytes:
    raw = _optional(attributes, "data")
    if raw is None:
        return b"{}"
    text = bytes(raw)
    if not text.startswith(b"{"):
        fail("data", "must be a JSON object or null")
        return b"{}"
    try:
        if as_stored:
            scalars.check_stored_json(text)
        else:
            scalars.check_json(text)
    except ValueError as error:
        fail("data", str(error))
        return b"{}"
    return text


class Tenants(Protocol):
    """The tenants of credentials that have several."""

    def allows(self, tenant: str, /) -> bool:
        """Whether an event may be this tenant's."""


class _Fail(Protocol):
    """The callback that notes a violation."""

    def __call__(self, field: str, rule: str) -> None: ...
