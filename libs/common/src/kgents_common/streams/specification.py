"""The two streams and their durable consumers as data; it talks to no server."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from kgents_common import subjects

MIB = 1024**2
GIB = 1024**3
# What JetStream stores of a message beside its subject, headers and body (nats-server filestore.go).
STORED_BYTES = 30
# In the metadata of a stream that is being restored: whoever else looks leaves it alone.
RESTORE_MARK = "kgents.restore"


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream. Bytes bound it, not age alone: full, it refuses the publisher and drops nothing.

    Attributes:
        narrowed_from: Subjects that an earlier release stored; to store less than these is what is wanted.
        left_out: Below `narrowed_from`, what is ephemeral: what the stream still holds of it is purged.
    """

    name: str
    subjects: tuple[str, ...]
    description: str
    max_bytes: int
    max_age: timedelta
    duplicate_window: timedelta = timedelta(minutes=2)
    narrowed_from: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """One durable pull consumer: everything from the start, explicit acks, endless delivery.

    Attributes:
        filter_subject: `EVERYTHING` for every message of the stream.
        widened_from: Filters that an earlier release gave it and that this one's holds.
    """

    stream: str
    name: str
    filter_subject: str
    description: str
    ack_wait: timedelta = timedelta(seconds=20)
    max_ack_pending: int = 4096
    widened_from: tuple[str, ...] = ()

    def config(self) -> dict[str, Any]:
        """In the terms of `$JS.API.CONSUMER.CREATE`."""
        return {
            "durable_name": self.name,
            "name": self.name,
            "description": self.description,
            "filter_subject": self.filter_subject,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": _nanoseconds(self.ack_wait),
            "max_deliver": -1,
            "max_ack_pending": self.max_ack_pending,
            "replay_policy": "instant",
        }


AGENTESE = StreamSpec(
    subjects.AGENTESE, ("agentese.>",), "What agents did", max_bytes=6 * GIB, max_age=timedelta(days=30)
)
EVENTS = StreamSpec(
    subjects.EVENTS,
    ("events.stripe.>", "events.billing.>", "events.backup.>", "events.deadletter.>"),
    "The system's own bus, what must last of it",
    max_bytes=2 * GIB,
    max_age=timedelta(days=35),
    narrowed_from=("events.>",),
    left_out=("events.heartbeat.>",),
)
STREAMS = (AGENTESE, EVENTS)

# A server stores a subject with the byte 0x7F and keeps it in no index (nats-server `stree`, up to 2.15.1 at
# least): a consumer with any other filter may pass over it, and over what comes right behind it.
EVERYTHING = ">"
METERING = ConsumerSpec(
    subjects.AGENTESE,
    "metering",
    EVERYTHING,
    "Metering applies events to the ledger",
    widened_from=("agentese.>",),
)
METERING_BILLING_FACTS = ConsumerSpec(
    subjects.EVENTS, "metering-billing-facts", "events.billing.>", "Metering turns billing facts into events"
)
BILLING = ConsumerSpec(
    subjects.EVENTS,
    "billing-worker",
    "events.stripe.>",
    "Billing turns Stripe events into facts",
    ack_wait=timedelta(seconds=30),
    max_ack_pending=256,
)
CONSUMERS = (METERING, METERING_BILLING_FACTS, BILLING)


def stream_config(spec: StreamSpec, *, replicas: int) -> dict[str, Any]:
    """A stream in the terms of `$JS.API.STREAM.CREATE`."""
    return {
        "name": spec.name,
        "description": spec.description,
        "subjects": list(spec.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_bytes": spec.max_bytes,
        "max_age": _nanoseconds(spec.max_age),
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": _nanoseconds(spec.duplicate_window),
        "num_replicas": replicas,
        "deny_delete": False,
        "allow_direct": True,
    }


def for_rate(
    spec: StreamSpec, *, events_per_second: float, event_bytes: int, days: float | None = None
) -> StreamSpec:
    """The same stream, large enough for a rate in the long run: what comes in its life and a quarter more.

    Args:
        event_bytes: What a message takes on average, headers and all.
        days: How long messages stay; the specification's age where None.
    """
    age = spec.max_age if days is None else timedelta(days=days)
    wanted = events_per_second * age.total_seconds() * (event_bytes + STORED_BYTES) * 1.25
    return replace(spec, max_bytes=max(MIB, math.ceil(wanted)), max_age=age)


def scaled(streams: Sequence[StreamSpec], max_bytes: int) -> tuple[StreamSpec, ...]:
    """The same streams with another byte limit each, for small machines and for tests of a full stream."""
    return tuple(replace(stream, max_bytes=max_bytes) for stream in streams)


def _nanoseconds(duration: timedelta) -> int:
    return int(duration / timedelta(microseconds=1)) * 1000
