"""Durable consumers made where a record says they stood."""

from __future__ import annotations

from collections.abc import Sequence

from kgents_backup.model.documents import ConsumerRecord
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.streams import request


async def make_consumers(
    client: VerbatimClient, stream: str, records: Sequence[ConsumerRecord], *, last: int | None = None
) -> list[str]:
    """Make those that are not there; their names.

    None begins beyond what the stream holds, though it was further in what was lost or is not restored: a
    server of 2.15 would deliver nothing of what is published until its sequence is reached.

    Args:
        last: The last sequence that is of the records' history; what the stream holds after it is another's.

    Raises:
        JetStreamApiError: The server refuses one.
    """
    made: list[str] = []
    info = await stream_info(client, stream)
    end = info.last_sequence if info else 0
    end = end if last is None else min(end, last)
    present = {c.name for c in await durable_consumers(client, stream)}
    for record in records:
        if record.name in present:
            continue
        config = {k: v for k, v in record.config.items() if k not in ("opt_start_time", "metadata")}
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": min(record.ack_floor, end) + 1}
        await request(
            client,
            f"CONSUMER.DURABLE.CREATE.{stream}.{record.name}",
            {"stream_name": stream, "config": config},
        )
        made.append(record.name)
    return made
