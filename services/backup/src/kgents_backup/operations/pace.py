"""How fast the server stores small messages, measured on a stream of its own that is deleted again."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

from nats.errors import Error as NatsError

from kgents_backup.model.plan import Pace
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.errors import KgentsError
from kgents_common.streams import request, server_version

SECONDS = 0.5
WINDOW = 64
BODY = b"x" * 200
# From here on a snapshot is restored message by message.
BY_MESSAGE_SINCE = (2, 15)


async def measure(client: VerbatimClient) -> Pace:
    """Publish for half a second and see how much is acknowledged.

    Raises:
        JetStreamApiError: The server makes no such stream.
        TransientError: It does not answer.
    """
    token = secrets.token_hex(4)
    name, subject = f"kgents-pace-{token}", f"kgents.pace.{token}"
    await request(
        client,
        f"STREAM.CREATE.{name}",
        {"name": name, "subjects": [subject], "storage": "file", "retention": "limits", "num_replicas": 1},
    )
    loop = asyncio.get_running_loop()
    inbox = client.new_inbox()
    try:
        answers = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
        began = loop.time()
        stored = waiting = 0
        with contextlib.suppress(NatsError, TimeoutError):
            while loop.time() - began < SECONDS:
                while waiting < WINDOW:
                    await client.publish_verbatim(subject, inbox, b"", BODY)
                    waiting += 1
                await answers.next_msg(timeout=5)
                waiting -= 1
                stored += 1
        seconds = loop.time() - began
        await answers.unsubscribe()
    finally:
        with contextlib.suppress(KgentsError):
            await request(client, f"STREAM.DELETE.{name}")
    return Pace(max(1.0, stored / seconds), is_by_message=server_version(client) >= BY_MESSAGE_SINCE)
