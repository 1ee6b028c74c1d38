"""A stream's return through JetStream's restore API, from the bytes of a snapshot; it knows no store.

The protocol: the answer to `$JS.API.STREAM.RESTORE.<stream>` names a subject that takes the chunks, each as a
request whose reply is empty or an error; an empty request ends it and answers the stream's info. The stream
must not exist. Several chunks are under way at once: the server takes them from one queue, in order.

From 2.15 on (the content then begins with `NATSARC1`) the server stores message by message while it takes the
chunks, and gives up after five seconds without one: blocks are made smaller to what it does in half a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.ports import Progress
from kgents_backup.sinks.frames import Frame, FrameReader, plain
from kgents_backup.sources.stream import stream_info
from kgents_common.errors import KgentsError
from kgents_common.streams import request

CHUNK_BYTES = 512 * 1024
BY_MESSAGE = b"NATSARC1"
PIECE_SECONDS = 0.5
SMALLEST_PIECE = 8 * 1024
LARGEST_PIECE = 1024 * 1024
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
    sending = _Sending(client, deliver, inbox, replies, in_flight, progress)
    try:
        await sending.all(content)
    except KgentsError:
        # The server waits for more of it, and keeps what it has: it is told the end, and the half is removed.
        with contextlib.suppress(NatsError, TimeoutError, KgentsError):
            await client.request(deliver, b"", timeout=REPLY_SECONDS)
            await _remove_half(client, config)
        raise
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


class _Sending:
    """The chunks of one restore, at the server's pace."""

    def __init__(
        self,
        client: Client,
        deliver: str,
        inbox: str,
        replies: Subscription,
        in_flight: int,
        progress: Progress,
    ) -> None:
        self._client = client
        self._deliver = deliver
        self._inbox = inbox
        self._replies = replies
        self._in_flight = in_flight
        self._progress = progress
        self._waiting: deque[int] = deque()
        self._replied_at = 0.0
        self._rate = 0.0
        self._is_by_message: bool | None = None

    async def all(self, content: AsyncIterator[bytes]) -> None:
        """Send everything, and wait until the server took it.

        Raises:
            ProtocolError: It did not.
        """
        frames = FrameReader()
        held: list[Frame] = []
        size = 0
        async for part in content:
            for frame in frames.feed(part):
                if self._is_by_message is None and frame.content_bytes:
                    self._is_by_message = frame.open().startswith(BY_MESSAGE)
                if self._is_by_message and frame.content_bytes > self._bytes_at_once():
                    await self._send_frames(held)
                    held, size = [], 0
                    await self._send_in_pieces(frame)
                    continue
                held.append(frame)
                size += len(frame.data)
                if size >= CHUNK_BYTES:
                    await self._send_frames(held)
                    held, size = [], 0
        await self._send_frames(held)
        if frames.rest:
            await self._send(frames.rest, len(frames.rest), self._in_flight)
        while self._waiting:
            await self._take()

    async def _send_frames(self, frames: list[Frame]) -> None:
        data = b"".join(frame.data for frame in frames)
        opened = sum(frame.content_bytes for frame in frames)
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            await self._send(chunk, opened * len(chunk) // len(data), self._in_flight)
            self._progress.advance(len(chunk))

    async def _send_in_pieces(self, frame: Frame) -> None:
        content = await asyncio.to_thread(frame.open)
        position = 0
        while position < len(content):
            piece = content[position : position + self._bytes_at_once()]
            await self._send(plain(piece), len(piece), 1)
            position += len(piece)
        self._progress.advance(len(frame.data))

    def _bytes_at_once(self) -> int:
        """What the server stores in half a second, as far as it is known."""
        return max(SMALLEST_PIECE, min(LARGEST_PIECE, int(self._rate * PIECE_SECONDS)))

    async def _send(self, chunk: bytes, opened: int, in_flight: int) -> None:
        while len(self._waiting) >= in_flight:
            await self._take()
        if not self._waiting:
            self._replied_at = asyncio.get_running_loop().time()
        await self._client.publish(self._deliver, chunk, reply=self._inbox)
        self._waiting.append(opened)

    async def _take(self) -> None:
        await _take_reply(self._replies)
        opened, now = self._waiting.popleft(), asyncio.get_running_loop().time()
        rate = opened / max(now - self._replied_at, 1e-3)
        # A reply tells how long what came before it took: slower is believed at once, faster by and by.
        self._rate = (
            min(rate, self._rate) if rate < self._rate else min(rate, 2 * self._rate + SMALLEST_PIECE)
        )
        self._replied_at = now


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
