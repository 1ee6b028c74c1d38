"""From a body and its content type to checked envelopes; the same for every door that takes events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.request import media_type
from kgents_api.model.caller import Caller
from kgents_common import envelope
from kgents_common.envelope import Envelope
from kgents_common.errors import EnvelopeError, Violation

JSON = "application/json"


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
