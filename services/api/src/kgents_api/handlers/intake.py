"""From a body and its content type to checked envelopes; the same for every door that takes events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.request import media_type
from kgents_api.model.caller import Caller
from kgents_api.model.receipts import RefusedEvent, WrongField
from kgents_common import envelope
from kgents_common.envelope import Envelope
from kgents_common.errors import EnvelopeError, Violation

JSON = "application/json"
MAX_WRONG_FIELDS = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may hold."""

    event_bytes: int
    batch_bytes: int
    batch_events: int


def body_limit(headers: dict[str, str], limits: Limits) -> int:
    """The most bytes a body of this content type may have; application/json may hold a batch."""
    return limits.batch_bytes if media_type(headers) in (envelope.BATCH, JSON) else limits.event_bytes


def read_events(
    headers: dict[str, str], body: bytes, *, caller: Caller, now: datetime, limits: Limits
) -> list[Envelope]:
    """The events of a request, all good.

    Raises:
        Refused: 400, 403, 413 or 415, naming every wrong field.
    """
    kind = media_type(headers)
    tenant, agent, sources = caller.tenants or caller.tenant, caller.agent, caller.sources
    try:
        if kind == envelope.STRUCTURED:
            events = [envelope.read(body, tenant=tenant, now=now, agent=agent, sources=sources)]
        elif kind == envelope.BATCH:
            events = envelope.read_batch(
                body, tenant=tenant, now=now, limit=limits.batch_events, agent=agent, sources=sources
            )
        elif "ce-specversion" in headers and kind in (JSON, ""):
            # Without a content type the data is JSON (CloudEvents 1.0 section 3.1.1, datacontenttype).
            events = [
                envelope.read_binary(headers, body, tenant=tenant, now=now, agent=agent, sources=sources)
            ]
        elif kind == JSON and body.lstrip()[:1] == b"[":
            events = envelope.read_batch(
                body, tenant=tenant, now=now, limit=limits.batch_events, agent=agent, sources=sources
            )
        elif kind == JSON:
            events = [envelope.read(body, tenant=tenant, now=now, agent=agent, sources=sources)]
        else:
            raise Refused(
                415,
                f"the content type must be {envelope.STRUCTURED}, {envelope.BATCH} or {JSON}",
                reason="unsupported_type",
                headers={"accept": f"{envelope.STRUCTURED}, {envelope.BATCH}, {JSON}"},
            )
    except EnvelopeError as error:
        raise _refusal(error) from None
    too_large = [
        Violation(f"[{index}]" if len(events) > 1 else "", f"must be at most {limits.event_bytes} bytes")
        for index, event in enumerate(events)
        if len(event.body) > limits.event_bytes
    ]
    if too_large:
        raise _refusal(EnvelopeError(too_large, status=413))
    return events


def prefers_leniency(headers: dict[str, str]) -> bool:
    """Whether each event of a batch is to be judged by itself: `Prefer: handling=lenient` (RFC 7240)."""
    if "prefer" not in headers:
        return False
    preferences = headers["prefer"].lower().split(",")
    return any(
        preference.partition(";")[0].replace(" ", "").replace('"', "") == "handling=lenient"
        for preference in preferences
    )


def is_batch(headers: dict[str, str], body: bytes) -> bool:
    """Whether the body is to be read as an array of events."""
    kind = media_type(headers)
    if kind == envelope.BATCH:
        return True
    return kind == JSON and "ce-specversion" not in headers and body.lstrip()[:1] == b"["


def read_each(
    body: bytes, *, caller: Caller, now: datetime, limits: Limits
) -> tuple[list[Envelope], list[RefusedEvent]]:
    """The good events of a batch, and what is wrong with the others.

    Raises:
        Refused: 400 or 413 where it is no batch, or too large a one, or no event of it is good.
    """
    try:
        found = envelope.read_each(
            body,
            tenant=caller.tenants or caller.tenant,
            now=now,
            limit=limits.batch_events,
            agent=caller.agent,
            sources=caller.sources,
        )
    except EnvelopeError as error:
        raise _refusal(error) from None
    events: list[Envelope] = []
    refused: list[RefusedEvent] = []
    first: EnvelopeError | None = None
    for index, one in enumerate(found):
        if isinstance(one, Envelope) and len(one.body) > limits.event_bytes:
            rule = f"must be at most {limits.event_bytes} bytes"
            one = EnvelopeError([Violation(f"[{index}]", rule)], status=413)
        if isinstance(one, Envelope):
            events.append(one)
            continue
        first = first or one
        wrong = [WrongField(v.field, v.rule) for v in one.violations[:MAX_WRONG_FIELDS]]
        refused.append(RefusedEvent(index, one.status, wrong))
    if not events and first is not None:
        raise _refusal(first)
    return events, refused


def _refusal(error: EnvelopeError) -> Refused:
    fields = {violation.field.rpartition(".")[2] for violation in error.violations}
    foreign = "foreign_tenant" if "subject" in fields else "foreign_agent"
    reason = {403: foreign, 413: "too_large"}.get(error.status, "invalid_event")
    count = len(error.violations)
    return Refused(
        error.status,
        f"nothing was stored: {count} {'field is' if count == 1 else 'fields are'} wrong"
        if error.status != 413
        else "nothing was stored: the request is too large",
        reason=reason,
        violations=error.violations,
    )
