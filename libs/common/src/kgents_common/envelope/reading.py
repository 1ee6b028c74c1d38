"""Reading an event, or a batch of them, from the forms it comes in; the rules are in `checking`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

import msgspec

from kgents_common import http_binding
from kgents_common.envelope.attributes import MAX_FUTURE
from kgents_common.envelope.checking import Tenants, check
from kgents_common.envelope.event import Envelope
from kgents_common.errors import EnvelopeError, Violation

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ARRAY = msgspec.json.Decoder(list[msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


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
    return check(
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
    envelope = check(attributes, b"", tenant=tenant, now=now, place="", agent=agent, sources=sources)
    if envelope.body:
        return envelope
    return msgspec.structs.replace(envelope, body=_ENCODER.encode(attributes))
