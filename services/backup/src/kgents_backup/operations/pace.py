"""How fast the server stores small messages, measured on a stream of its own that is deleted again.

And how fast this machine computes now, which the rest of a restore takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time

from nats.errors import Error as NatsError

from kgents_backup.model import moments
from kgents_backup.model.plan import Pace
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.errors import KgentsError
from kgents_common.streams import request, server_version

SECONDS = 0.5
WINDOW = 64
BODY = b"x" * 200
# Older than this, a measurement's stream is nobody's any more.
LONGEST_NANOSECONDS = 60 * 10**9
_PREFIX = "kgents-pace-"
# From here on a snapshot is restored message by message.
BY_MESSAGE_SINCE = (2, 15)

# So many rounds of hashing took so long on the machine that the rates of `plan` were measured on.
ROUNDS = 200_000
ROUNDS_SECONDS = 0.125


async def measure(client: VerbatimClient) -> Pace:
    """Publish for half a second and see how much is acknowledged; compute for a moment, too.

    Raises:
        JetStreamApiError: The server makes no such stream.
        TransientError: It does not answer.
    """
    token = secrets.token_hex(4)
    name, subject = f"{_PREFIX}{token}", f"kgents.pace.{token}"
    made = await request(
        client,
        f"STREAM.CREATE.{name}",
        {"name": name, "subjects": [subject], "storage": "file", "retention": "limits", "num_replicas": 1},
    )
    await _sweep(client, made["created"])
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
    return Pace(
        max(1.0, stored / seconds),
        is_by_message=server_version(client) >= BY_MESSAGE_SINCE,
        speed=await asyncio.to_thread(_speed),
    )


async def _sweep(client: VerbatimClient, now: str) -> None:
    """Remove the streams of measurements that were killed."""
    long_ago = moments.to_nanoseconds(now) - LONGEST_NANOSECONDS
    with contextlib.suppress(KgentsError):
        found = await request(client, "STREAM.LIST", {"subject": "kgents.pace.>", "offset": 0})
        for one in found.get("streams") or []:
            name = one["config"]["name"]
            if name.startswith(_PREFIX) and moments.to_nanoseconds(one["created"]) < long_ago:
                await request(client, f"STREAM.DELETE.{name}")


def _speed() -> float:
    """How fast this process computes now against that machine when it was quiet; little under load."""
    begun = time.monotonic()
    found = b""
    for number in range(ROUNDS):
        found = hashlib.blake2b(found + number.to_bytes(8, "big"), digest_size=16).digest()
    return ROUNDS_SECONDS / (time.monotonic() - begun)
