"""Which messages a stream already holds, by their `Nats-Msg-Id`: for resending once JetStream forgot them.

JetStream recognises a repeated id within its duplicate window (two minutes here). Whoever does not know
whether an older publish was stored looks here first, and sends only what is missing.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import Error as JetStreamError

from kgents_common.connection import Connection
from kgents_common.errors import TransientError
from kgents_common.publisher.pipeline import MESSAGE_ID

# JetStream recognises an id for two minutes; half of that leaves room for clocks and for the publish itself.
SURELY_REMEMBERED = timedelta(minutes=1)
# How much earlier than we sent it a message may seem to be stored, the two machines' clocks differing.
CLOCK_SKEW = timedelta(minutes=1)
BATCH = 500
FETCH_SECONDS = 5.0
# The consumer goes by itself, should this process not live to delete it.
FORGOTTEN_AFTER_SECONDS = 30.0


async def stored_ids(
    connection: Connection, *, stream: str, subject: str, since: datetime, wanted: Collection[str]
) -> dict[str, int]:
    """Of the wanted message ids, those the stream holds, with the sequence of the first.

    Args:
        subject: Where they were published; may have wildcards.
        since: No earlier than this were they published, by the server's clock; leave room for its skew.

    Raises:
        TransientError: JetStream does not answer, so nothing is known.
    """
    missing = set(wanted)
    found: dict[str, int] = {}
    try:
        subscription = await connection.jetstream().pull_subscribe(
            subject,
            stream=stream,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.BY_START_TIME,
                opt_start_time=since,
                ack_policy=AckPolicy.NONE,
                headers_only=True,
                inactive_threshold=FORGOTTEN_AFTER_SECONDS,
                mem_storage=True,
                num_replicas=1,
            ),
        )
        try:
            left = (await subscription.consumer_info()).num_pending or 0
            while left > 0 and missing:
                messages = await subscription.fetch(min(left, BATCH), timeout=FETCH_SECONDS)
                left -= len(messages)
                for message in messages:
                    name = (message.headers or {}).get(MESSAGE_ID, "")
                    if name in missing:
                        missing.discard(name)
                        found[name] = message.metadata.sequence.stream
        finally:
            await subscription.unsubscribe()
    except (NatsError, JetStreamError, OSError, TimeoutError) as error:
        raise TransientError(f"jetstream: {type(error).__name__} while looking for messages") from error
    return found
