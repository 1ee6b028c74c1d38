"""Durable consumers made where a record says they stood."""

from __future__ import annotations

from collections.abc import Sequence

from kgents_backup.model.documents import ConsumerRecord
from kgents_backup.sources.stream import durable_consumers
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.streams import request


async def make_consumers(client: VerbatimClient, stream: str, records: Sequence[ConsumerRecord]) -> list[str]:
    """Make those that are not there; their names.

    Raises:
        JetStreamApiError: The server refuses one.
    """
    made: list[str] = []
    present = {c.name for c in await durable_consumers(client, stream)}
    for record in records:
        if record.name in present:
            continue
        config = {k: v for k, v in record.config.items() if k not in ("opt_start_time", "metadata")}
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": record.ack_floor + 1}
        await request(
            client,
            f"CONSUMER.DURABLE.CREATE.{stream}.{record.name}",
            {"stream_name": stream, "config": config},
        )
        made.append(record.name)
    return made
