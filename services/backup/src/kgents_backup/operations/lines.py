"""Finding out which line a live stream is on, by asking the server for one message."""

from __future__ import annotations

from nats.aio.client import Client

from kgents_backup.model import lines
from kgents_backup.model.catalogue import Catalogue
from kgents_backup.model.keys import Line
from kgents_backup.sources.stream import StreamInfo, message_time


async def current_line(client: Client, catalogue: Catalogue, info: StreamInfo) -> Line:
    """The line of the live stream; see `model.lines.current`.

    Raises:
        TransientError: The server does not answer.
    """
    known = lines.newest_with(catalogue, info.created)
    head = catalogue.lines[known].head if known else None
    time = await message_time(client, info.name, head[0]) if head and head[0] else None
    return lines.current(
        catalogue,
        created=info.created,
        first_sequence=info.first_sequence,
        last_sequence=info.last_sequence,
        last_time_ms=info.last_time // 1_000_000,
        time_ms_at_head=None if time is None else time // 1_000_000,
    )
