"""Messages of AGENTESE as values, for tests that need no stream."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from kgents_metering.model.event import Dead, Event, Message, classify

EPOCH = datetime(2026, 11, 1, tzinfo=UTC)
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def body(event_id: str = "e1", **changes: object) -> bytes:
    """A structured CloudEvent; None removes an attribute."""
    attributes: dict[str, object] = {
        "specversion": "1.0",
        "id": event_id,
        "source": "agents/a1",
        "type": "llm.tokens",
        "subject": "acme",
        "time": "2026-11-23T11:59:30Z",
        "data": {"tokens": 10, "model": "m1"},
        **changes,
    }
    return msgspec.json.encode({k: v for k, v in attributes.items() if v is not None})


def message(
    seq: int,
    payload: bytes,
    *,
    subject: str = "agentese.acme.llm.tokens",
    epoch: datetime = EPOCH,
    headers: dict[str, str] | None = None,
) -> Message:
    """A stored message."""
    at = NOON + timedelta(milliseconds=seq)
    return Message(subject, headers or {}, payload, epoch, seq, at, "AGENTESE")


def event(seq: int, event_id: str = "e1", **changes: object) -> Event:
    """A message that is an event."""
    subject = f"agentese.{changes.get('subject') or 'acme'}.{changes.get('type', 'llm.tokens')}"
    found = classify(message(seq, body(event_id, **changes), subject=subject))
    assert isinstance(found, Event), found
    return found


def dead(seq: int, payload: bytes = b"{") -> Dead:
    """A message that is none."""
    found = classify(message(seq, payload))
    assert isinstance(found, Dead)
    return found
