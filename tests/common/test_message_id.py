"""The id that JetStream compares: nobody else can make it, and only a true repeat has the same one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from kgents_common import envelope
from kgents_common.envelope import Envelope
from kgents_common.publisher import MessageIds

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SECRET = b"a secret of the door"


def event(*, tenant: str = "acme", now: datetime = NOW, **changes: object) -> Envelope:
    attributes: dict[str, object] = {
        "specversion": "1.0",
        "id": "e1",
        "source": "agents/a1",
        "type": "llm.tokens",
        "data": {"tokens": 5},
        **changes,
    }
    return envelope.read(msgspec.json.encode(attributes), tenant=tenant, now=now)


def test_the_same_event_sent_again_has_the_same_id() -> None:
    """Rule: also where the door stamped its time, and in another process that knows the secret."""
    again = event(now=NOW + timedelta(seconds=3))
    assert MessageIds(SECRET).of(event()) == MessageIds(SECRET).of(again)


@pytest.mark.parametrize(
    "other",
    [
        event(data={"tokens": 6}),
        event(time="2026-11-25T11:00:00Z"),
        event(type="llm.token"),
        event(id="e2"),
        event(source="agents/a"),
        event(tenant="globex"),
        event(id="1", source="agents/a1\\ne"),
    ],
)
def test_whatever_an_event_says_is_in_its_id(other: Envelope) -> None:
    """Rule: what contradicts reaches the ledger, within the duplicate window too."""
    ids = MessageIds(SECRET)
    assert ids.of(event()) != ids.of(other)


def test_another_secret_makes_other_ids() -> None:
    """Rule: without the secret nobody can claim an id; without one given, none is shared."""
    some = MessageIds(SECRET), MessageIds(SECRET + b"2"), MessageIds(), MessageIds()
    assert len({ids.of(event()) for ids in some}) == 4
