"""A stream's full copy through JetStream's snapshot API, as the server sends it; it stores nothing.

The protocol (nats-io/jsm.go `snapshots.go`, nats-server `jetstream_api.go`): the answer to
`$JS.API.STREAM.SNAPSHOT.<stream>` carries `config` and `state`; chunks of an S2-compressed tar follow on the
deliver subject, each with a reply subject that wants an empty message before the window (8 MiB) is full; an
empty message ends it, with status 204 or, for a copy of less than one chunk on 2.12 and later, none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from kgents_backup.model.faults import ProtocolError
from kgents_common.streams import request

# Larger chunks are faster (512 KiB: 910 MB/s of 300,000 x 1 KiB); the server's payload limit is 1 MiB.
CHUNK_BYTES = 512 * 1024
SILENCE_SECONDS = 30.0


@dataclass(slots=True)
class SnapshotStream:
    """A snapshot under way.

    Attributes:
        config: The stream's configuration; a restore needs it.
        state: The stream's state in the snapshot; a restore needs it too.
    """

    config: dict[str, Any]
    state: dict[str, Any]
    _client: Client
    _subscription: Subscription
    _silence: float

    async def chunks(self) -> AsyncIterator[bytes]:
        """The copy, in order; the next chunks are under way while one is worked on, at most a window's worth.

        Raises:
            ProtocolError: The server ended it with an error or fell silent, or the copy is cut short.
        """
        frames = FrameWalk()
        while True:
            try:
                message = await self._subscription.next_msg(timeout=self._silence)
            except (NatsError, TimeoutError) as error:
                raise ProtocolError(
                    f"the snapshot stopped: {type(error).__name__} after {self._silence:.0f} s of silence",
                    hint="run it again; nothing of this attempt is published",
                ) from error
            if not message.data:
                status = (message.headers or {}).get("Status", "204")
                if status != "204":
                    reason = (message.headers or {}).get("Description", "")
                    raise ProtocolError(f"the server ended the snapshot: {status} {reason}".rstrip())
                if not frames.is_whole:
                    raise ProtocolError("the snapshot ends in the middle of a block")
                return
            frames.feed(message.data)
            yield message.data
            # Acknowledged after it was taken: what is in memory is never more than the window.
            if message.reply:
                await self._client.publish(message.reply, b"")


@asynccontextmanager
async def snapshot(
    client: Client,
    stream: str,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    check: bool = False,
    silence_seconds: float = SILENCE_SECONDS,
) -> AsyncIterator[SnapshotStream]:
    """Begin a snapshot with the stream's consumers.

    Args:
        check: Let the server verify every message's checksum first (`jsck`).

    Raises:
        JetStreamApiError: The server refuses, e.g. there is no such stream.
        TransientError: It does not answer.
    """
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
    try:
        answer = await request(
            client,
            f"STREAM.SNAPSHOT.{stream}",
            {"deliver_subject": inbox, "chunk_size": chunk_bytes, "no_consumers": False, "jsck": check},
            timeout_seconds=60,
        )
        yield SnapshotStream(answer["config"], answer["state"], client, subscription, silence_seconds)
    finally:
        async with asyncio.timeout(5):
            await subscription.unsubscribe()


class FrameWalk:
    """Follows the frames of an S2/Snappy stream, to know whether it ends at the end of one.

    A frame is one byte of type, three bytes of length (little endian), then as many bytes (Snappy framing
    format, section 4). The contents are the server's business.
    """

    def __init__(self) -> None:
        self._header = b""
        self._left = 0

    @property
    def is_whole(self) -> bool:
        """Whether what was fed ends at the end of a frame."""
        return not self._header and not self._left

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        position = 0
        while position < len(data):
            if self._left:
                step = min(self._left, len(data) - position)
                self._left -= step
                position += step
                continue
            step = min(4 - len(self._header), len(data) - position)
            self._header += data[position : position + step]
            position += step
            if len(self._header) == 4:
                self._left = int.from_bytes(self._header[1:], "little")
                self._header = b""
