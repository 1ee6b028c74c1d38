"""Streams for the backup tests: how one is made, filled with awkward messages, and compared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from kgents_backup.model.segment import Message
from kgents_backup.operations.archiving import Archiver
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import SystemClock
from kgents_common.streams import request

STREAM = "AGENTESE"


async def make_stream(client: VerbatimClient, name: str = STREAM, **config: Any) -> None:
    """A stream like ours, small."""
    subject = {"AGENTESE": "agentese.>", "EVENTS": "events.>"}.get(name, f"{name.lower()}.>")
    await request(
        client,
        f"STREAM.CREATE.{name}",
        {
            "name": name,
            "subjects": [subject],
            "storage": "file",
            "retention": "limits",
            "discard": "new",
            "max_bytes": 1_000_000_000,
            "max_age": 30 * 86400 * 10**9,
            "duplicate_window": 120 * 10**9,
            "allow_direct": True,
            "num_replicas": 1,
            **config,
        },
    )


async def fill(
    client: VerbatimClient, count: int, *, size: int = 200, start: int = 0, subject: str = "agentese.acme.llm"
) -> None:
    """Publish `count` messages with ids, headers of every kind, and bodies that do not compress."""
    randomness = random.Random(start)
    inbox = client.new_inbox()
    acks = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    waiting = 0
    for number in range(start, start + count):
        headers = [f"Nats-Msg-Id: id-{number}"]
        if number % 5 == 1:
            headers += ["Twice: one", "Twice:two", "traceparent:  00-ab-cd-01", "Umlaut: grün"]
        block = ("NATS/1.0\r\n" + "\r\n".join(headers) + "\r\n\r\n").encode() if number % 7 else b""
        await client.publish_verbatim(f"{subject}.{number % 11}", inbox, block, randomness.randbytes(size))
        waiting += 1
        if waiting > 500:
            await acks.next_msg(timeout=20)
            waiting -= 1
    for _ in range(waiting):
        await acks.next_msg(timeout=20)
    await acks.unsubscribe()


async def delete(client: VerbatimClient, *sequences: int, stream: str = STREAM) -> None:
    """Make gaps."""
    for sequence in sequences:
        await request(client, f"STREAM.MSG.DELETE.{stream}", {"seq": sequence})


async def read_all(client: VerbatimClient, stream: str = STREAM) -> list[Message]:
    """Every message of a stream."""
    last = (await request(client, f"STREAM.INFO.{stream}"))["state"]["last_seq"]
    reader = MessageReader(client, stream)
    found = [message async for message in reader.read(last)]
    await reader.close()
    return found


async def add_consumer(
    client: VerbatimClient, name: str = "metering", stream: str = STREAM, **more: Any
) -> None:
    """A durable pull consumer like ours."""
    config = {"durable_name": name, "name": name, "ack_policy": "explicit", "deliver_policy": "all"}
    await request(
        client,
        f"CONSUMER.DURABLE.CREATE.{stream}.{name}",
        {"stream_name": stream, "config": config | {"max_ack_pending": -1, "ack_wait": 60 * 10**9} | more},
    )


async def consume(
    client: VerbatimClient, count: int, *, acknowledge: int, name: str = "metering", stream: str = STREAM
) -> list[int]:
    """Fetch `count` messages, acknowledge the first so many; the sequences fetched."""
    subscription = await client.jetstream().pull_subscribe_bind(durable=name, stream=stream)
    messages: list[Any] = []
    while len(messages) < count:
        messages += await subscription.fetch(min(500, count - len(messages)), timeout=10)
    for message in messages[:acknowledge]:
        await message.ack()
    await client.flush()
    await subscription.unsubscribe()
    return [message.metadata.sequence.stream for message in messages]


async def archive(client: VerbatimClient, vault: Vault, stream: str = STREAM) -> int:
    """Archive everything the stream holds now; the last sequence stored."""

    async def give() -> VerbatimClient:
        return client

    archiver = Archiver(give, vault, stream, clock=SystemClock())
    last = await archiver.catch_up()
    await archiver.close()
    return last


def shown(messages: Sequence[Message]) -> list[tuple[int, str, bytes, bytes]]:
    """Messages without their times."""
    return [(m.sequence, m.subject, m.headers, m.body) for m in messages]
