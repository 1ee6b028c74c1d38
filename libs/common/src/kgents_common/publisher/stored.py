"""Which messages a stream already holds, by their `Nats-Msg-Id`: for resending once JetStream forgot them.

JetStream recognises a repeated id within its duplicate window (two minutes here). Whoever does not know
whether an older publish was stored looks here first, and sends only what is missing.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from nats.errors import Error as NatsError

from kgents_common.connection import Connection
from kgents_common.errors import TransientError
from kgents_common.publisher.pipeline import MESSAGE_ID
from kgents_common.pull import Forward
from kgents_common.streams.jetstream_api import JetStreamApiError

# JetStream recognises an id for two minutes; half of that leaves room for clocks and for the publish itself.
SURELY_REMEMBERED = timedelta(minutes=1)
# How much earlier than we sent it a message may seem to be stored, the two machines' clocks differing.
CLOCK_SKEW = timedelta(minutes=1)
BATCH = 500
BATCH_BYTES = 8 * 1024 * 1024
# The consumer goes by itself, should this process not live to delete it.
FORGOTTEN_AFTER = timedelta(seconds=30)


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
        client = connection.client
        forward = await Forward.opened(
            client,
            stream,
            start=since,
            filter_subject=subject,
            description="Looks for what is stored",
            inactive=FORGOTTEN_AFTER,
        )
        try:
            while missing and not forward.is_at_end:
                messages = await forward.batch(
                    limit=BATCH, wait=None, max_bytes=max(BATCH_BYTES, 2 * client.max_payload)
                )
                for message, place in messages:
                    name = (message.headers or {}).get(MESSAGE_ID, "")
                    if name in missing:
                        missing.discard(name)
                        found[name] = place.sequence
                if forward.is_lost:
                    raise TransientError("jetstream: the consumer was lost while looking for messages")
        finally:
            await forward.close()
    except (NatsError, OSError, TimeoutError, JetStreamApiError) as error:
        raise TransientError(f"jetstream: {type(error).__name__} while looking for messages") from error
    return found
