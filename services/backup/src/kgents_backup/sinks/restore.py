"""A stream's return through JetStream's restore API, from the bytes of a snapshot; it knows no store.

The protocol: the answer to `$JS.API.STREAM.RESTORE.<stream>` names a subject that takes the chunks, each as a
request whose reply is empty or an error; an empty request ends it and answers the stream's info. The stream
must not exist. Several chunks are under way at once: the server takes them from one queue, in order.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.ports import Progress
from kgents_backup.sources.stream import stream_info
from kgents_common.streams import request

CHUNK_BYTES = 512 * 1024
IN_FLIGHT = 8
REPLY_SECONDS = 60.0
# The last request lets the server read everything back: minutes for a large stream.
FINISH_SECONDS = 900.0


async def restore_snapshot(
    client: Client,
    *,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    content: AsyncIterator[bytes],
    progress: Progress,
    in_flight: int = IN_FLIGHT,
) -> dict[str, Any]:
    """Bring a stream back under `config`; its info, as the server then gives it.

    Raises:
        JetStreamApiError: The server refuses, e.g. there is such a stream.
        ProtocolError: The server did not take it; there is no such stream then.
    """
    answer = await request(
        client, f"STREAM.RESTORE.{config['name']}", {"config": config, "state": state}, timeout_seconds=60
    )
    deliver = answer["deliver_subject"]
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    waiting = 0
    try:
        async for part in content:
            for start in range(0, len(part), CHUNK_BYTES):
                chunk = part[start : start + CHUNK_BYTES]
                if waiting == in_flight:
                    await _take_reply(replies)
                    waiting -= 1
                await client.publish(deliver, chunk, reply=inbox)
                waiting += 1
                progress.advance(len(chunk))
        for _ in range(waiting):
            await _take_reply(replies)
    finally:
        async with asyncio.timeout(5):
            await replies.unsubscribe()
    try:
        end = await client.request(deliver, b"", timeout=FINISH_SECONDS)
    except (NatsError, TimeoutError) as error:
        raise ProtocolError(f"the restore did not finish: {type(error).__name__}") from error
    info: dict[str, Any] = json.loads(end.data)
    if info.get("error"):
        await _remove_half(client, config)
    _raise_fault(info)
    return info


async def _remove_half(client: Client, config: Mapping[str, Any]) -> None:
    """Remove what a refused restore left: 2.15 answers with an error and keeps the stream it could read."""
    found = await stream_info(client, config["name"])
    if found is not None and found.config["subjects"] == config["subjects"]:
        await request(client, f"STREAM.DELETE.{config['name']}")


async def _take_reply(replies: Subscription) -> None:
    try:
        message = await replies.next_msg(timeout=REPLY_SECONDS)
    except (NatsError, TimeoutError) as error:
        raise ProtocolError(
            f"the restore stopped: {type(error).__name__}",
            hint="look into the server's log, then run it again",
        ) from error
    if message.headers and message.headers.get("Status") == "503":
        raise ProtocolError("the server gave the restore up", hint="look into the server's log")
    if message.data:
        _raise_fault(json.loads(message.data))


def _raise_fault(answer: Mapping[str, Any]) -> None:
    fault = answer.get("error")
    if fault:
        raise ProtocolError(
            f"the server refused the restore: {fault.get('description')} ({fault.get('err_code')})"
        )
