"""The CloudEvents 1.0 envelope: reading it strictly, stamping it, and its one identity; no transport.

Sources of the rules: CloudEvents 1.0.2 section 3 (attributes), its JSON format section 3 and its HTTP
binding; RFC 3339 for `time` (`rfc3339`); `scalars` for what a number and a text are; OpenMeter's event schema
for `data` (an object or null), as every event is delivered there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, auto
from typing import Protocol

import msgspec

from kgents_common import http_binding, rfc3339, scalars, subjects
from kgents_common.errors import EnvelopeError, Violation

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

# The door stamps the time it received an event that came without one, and says so: such a time is not part
# of what the producer said, so the same event sent again is a duplicate and not a conflict.
TIME_ORIGIN = "timeorigin"
TIME_ORIGIN_RECEIVED = "received"

# An extension attribute: which agent the event is from. The door vouches for it where a session was shown.
AGENT = "agent"

# Types of events that the system makes itself, from facts; nobody else may send one.
RESERVED_TYPES = "billing."

MAX_ID_CHARACTERS = 512
MAX_SOURCE_CHARACTERS = 1024
MAX_AGENT_CHARACTERS = 128
MAX_SCHEMA_CHARACTERS = 2048
# What a text attribute is made of (no control characters), and an attribute's name.
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"
ATTRIBUTE_NAME_PATTERN = r"^[a-z0-9_]{1,64}$"
MAX_FUTURE = timedelta(minutes=5)
# Older than the Unix epoch or beyond what a date type holds is a broken clock, not a late event.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ATTRIBUTE_NAME = re.compile(r"[a-z0-9_]{1,64}")
# Read by rules of their own; every other attribute is an extension.
_CORE = frozenset(
    ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data")
)
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_STRING = msgspec.json.Decoder(str)
_ENCODER = msgspec.json.Encoder()
_EXACT = msgspec.json.Decoder(float_hook=Decimal)
_CANONICAL = msgspec.json.Encoder(order="sorted", decimal_format="number")


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """One event, checked and complete.

    Attributes:
        body: The structured JSON CloudEvent as it is published, subject and time set.
        data: The JSON text of `data`, an object; `{}` where the producer sent none.
        time: When it happened, aware, in UTC, cut to microseconds.
        digest_time: The same as the payload's digest has it: see `rfc3339.rounded`.
        time_is_received: The time is the door's, not the producer's.
    """

    id: str
    source: str
    type: str
    tenant: str
    time: datetime
    time_is_received: bool
    data: bytes
    body: bytes
    digest_time: datetime

    @property
    def subject(self) -> str:
        """The NATS subject it is published under."""
        return subjects.agentese(self.tenant, self.type)

    @property
    def key(self) -> bytes:
        """The 16-byte identity: see `identity`."""
        return identity(self.tenant, self.source, self.id)

    def payload_hash(self) -> bytes:
        """16 bytes over the canonical type, time, subject and data.

        Two events with one key and one hash are the same event sent twice; with two hashes they contradict
        each other. Object members are compared without their order, numbers as they are written. It is
        frozen, as the identity is: another digest of what was accepted once would make it a conflict.
        """
        time = b"" if self.time_is_received else self.digest_time.isoformat().encode()
        data = _CANONICAL.encode(_EXACT.decode(self.data))
        return _digest(self.type.encode(), time, self.tenant.encode(), data)


def identity(tenant: str, source: str, event_id: str) -> bytes:
    """blake2b-128 of tenant, source and id, each preceded by its length in bytes (4 bytes, big endian).

    It is the `Nats-Msg-Id` (in hexadecimal), the ledger's permanent key, and what OpenMeter deduplicates by.
    Changing it re-bills everything: it is frozen.
    """
    return _digest(tenant.encode(), source.encode(), event_id.encode())


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def read(
    body: bytes | msgspec.Raw,
    *,
    tenant: str | Tenants,
    now: datetime,
    place: str = "",
    max_future: timedelta = MAX_FUTURE,
    agent: str | None = None,
    sources: Collection[str] = (),
    as_stored: bool = False,
) -> Envelope:
    """Check one structured CloudEvent and set its subject to `tenant` and, where absent, its time to `now`.

    Args:
        body: The JSON text.
        tenant: Whose it is, from credentials or from the NATS subject; a different `subject` is refused. Or
            which tenants it may be of: then its `subject` must name one of them.
        now: The moment of receipt, aware, in UTC.
        place: What to put before a field's name in a violation, e.g. `[3].`.
        max_future: How far ahead of `now` a time may be.
        agent: The only agent it may be from, set as the attribute `agent`; None where any may be named.
        sources: The only sources it may have; empty for any.
        as_stored: It is in the stream already: take too what doors took before the rules of `scalars` (an
            escaped U+0000, integers beyond float64, longer exponents, any bytes in extensions), as far as it
            can be counted. What was acknowledged once is never set aside by a newer release.

    Raises:
        EnvelopeError: With every violated rule; status 403 where the only fault is a foreign tenant or agent.
    """
    try:
        attributes = _OBJECT.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise EnvelopeError([Violation(place.rstrip("."), f"must be a JSON object: {error}")]) from None
    return _check(
        attributes,
        body,
        tenant=tenant,
        now=now,
        place=place,
        max_future=max_future,
        agent=agent,
        sources=sources,
        as_stored=as_stored,
    )


def _check(
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
        elif _CONTROL.search(value):
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
        if not _ATTRIBUTE_NAME.fullmatch(name):
            fail(name[:64], "attribute names are 1 to 64 lower-case letters, digits or '_'")
        elif name not in _CORE and not as_stored:
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


def read_batch(
    body: bytes,
    *,
    tenant: str | Tenants,
    now: datetime,
    limit: int,
    agent: str | None = None,
    sources: Collection[str] = (),
) -> list[Envelope]:
    """Check a JSON array of CloudEvents; all are good or none is taken.

    Raises:
        EnvelopeError: With the violations of every wrong event, `[3].subject` naming event 3 (from 0);
            status 413 for more than `limit` events, 403 where foreign tenants are the only fault.
    """
    found = read_each(body, tenant=tenant, now=now, limit=limit, agent=agent, sources=sources)
    wrong = [one for one in found if isinstance(one, EnvelopeError)]
    if wrong:
        violations = [violation for error in wrong for violation in error.violations]
        raise EnvelopeError(violations, status=403 if all(e.status == 403 for e in wrong) else 400)
    return [one for one in found if isinstance(one, Envelope)]


def read_each(
    body: bytes,
    *,
    tenant: str | Tenants,
    now: datetime,
    limit: int,
    agent: str | None = None,
    sources: Collection[str] = (),
) -> list[Envelope | EnvelopeError]:
    """Check a JSON array of CloudEvents, each by itself: the event, or what is wrong with it.

    Raises:
        EnvelopeError: It is no such array; status 413 for more than `limit` events.
    """
    try:
        items = _ARRAY.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise EnvelopeError([Violation("", f"must be a JSON array of events: {error}")]) from None
    if not items:
        raise EnvelopeError([Violation("", "must hold at least one event")])
    if len(items) > limit:
        raise EnvelopeError([Violation("", f"must hold at most {limit} events")], status=413)
    found: list[Envelope | EnvelopeError] = []
    for index, item in enumerate(items):
        place = f"[{index}]."
        try:
            found.append(read(item, tenant=tenant, now=now, place=place, agent=agent, sources=sources))
        except EnvelopeError as error:
            found.append(error)
    return found


def read_binary(
    headers: Mapping[str, str],
    body: bytes,
    *,
    tenant: str | Tenants,
    now: datetime,
    agent: str | None = None,
    sources: Collection[str] = (),
) -> Envelope:
    """Check an event in the HTTP binding's binary mode: attributes as `ce-` headers, the body as its data.

    `headers` has lower-case names; their values are read as `http_binding.attributes` says.

    Raises:
        EnvelopeError: As `read` does.
    """
    attributes = {
        name: msgspec.Raw(_ENCODER.encode(value)) for name, value in http_binding.attributes(headers).items()
    }
    for name in ("data", "datacontenttype"):
        if name in attributes:
            raise EnvelopeError([Violation(name, "must not be a header in binary mode")])
    content_type = headers.get("content-type", "")
    if content_type and not http_binding.is_json(content_type):
        raise EnvelopeError([Violation("datacontenttype", f"must be {http_binding.JSON_RULE}")])
    attributes["datacontenttype"] = msgspec.Raw(b'"application/json"')
    if body.strip():
        attributes["data"] = msgspec.Raw(body.strip())
    envelope = _check(attributes, b"", tenant=tenant, now=now, place="", agent=agent, sources=sources)
    if envelope.body:
        return envelope
    return msgspec.structs.replace(envelope, body=_ENCODER.encode(attributes))


class Tenants(Protocol):
    """The tenants of credentials that have several."""

    def allows(self, tenant: str, /) -> bool:
        """Whether an event may be this tenant's."""


class _Fail(Protocol):
    """The callback that notes a violation."""

    def __call__(self, field: str, rule: str) -> None: ...
