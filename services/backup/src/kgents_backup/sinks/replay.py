"""Messages published back into a stream at their own sequences; the server's time cannot be set.

Each message's original time travels in `Kgents-Original-Time`. Sequences that the stream did not hold are
published as fillers and purged at the end, so that every message comes to stand at its own sequence. Headers
in which the publisher spoke to the server (`Nats-Expected-…`, `Nats-TTL`, `Nats-Rollup`) are obeyed again;
where the server refuses one now, the message is stored without such headers, and counted.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import Any

from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from kgents_backup.model import moments
from kgents_backup.model.configurations import FILLER, SHORTEST_DUPLICATE_WINDOW
from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.segment import Message
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.streams import request

ORIGINAL_TIME = "Kgents-Original-Time"
WINDOW = 1000
ACK_SECONDS = 30.0
_HEADER_LINE = b"NATS/1.0\r\n"
_END = b"\r\n\r\n"
_SPOKEN = b"nats-"
_MESSAGE_ID = b"nats-msg-id"


class Replay:
    """Publishes a tail, in order, after `last_sequence`.

    Args:
        prefix: The fence's subject prefix; only this replay publishes below it.
    """

    def __init__(self, client: VerbatimClient, stream: str, prefix: str, *, last_sequence: int) -> None:
        self._client = client
        self._stream = stream
        self._prefix = prefix
        self.last_sequence = last_sequence
        self.fillers = 0
        self.messages = 0
        self.stripped = 0
        self._inbox = client.new_inbox()
        self._acks: Subscription | None = None
        self._waiting = 0
        self._acknowledged = last_sequence
        self._recent: OrderedDict[bytes, float] = OrderedDict()

    async def publish(self, message: Message) -> None:
        """Store one message at its sequence, after fillers for what is missing before it.

        Raises:
            ProtocolError: The server stored it elsewhere or not at all; the stream is not usable.
        """
        while self.last_sequence + 1 < message.sequence:
            await self._send(FILLER, b"", b"")
            self.fillers += 1
        headers = with_original_time(message.headers, message.time)
        if len(headers) + len(message.body) > self._client.max_payload:
            headers = message.headers
        identifier, is_spoken = _read_headers(message.headers)
        await self._wait_out(identifier)
        if is_spoken:
            await self.drain()
            await self._send_alone(message, headers)
        else:
            await self._send(message.restored_subject, headers, message.body)
        self.messages += 1

    async def skip_to(self, sequence: int) -> None:
        """Use up every sequence to this one; errors as `publish`."""
        while self.last_sequence < sequence:
            await self._send(FILLER, b"", b"")
            self.fillers += 1

    async def finish(self) -> None:
        """Wait for every acknowledgement, then purge the fillers.

        Raises:
            ProtocolError: As `publish`.
        """
        await self.drain()
        if self._acks is not None:
            await self._acks.unsubscribe()
            self._acks = None
        if self.fillers:
            await request(
                self._client, f"STREAM.PURGE.{self._stream}", {"filter": FILLER}, timeout_seconds=120
            )

    async def drain(self) -> None:
        """Wait for every acknowledgement."""
        while self._waiting:
            await self._take_ack()

    async def _send(self, subject: str, headers: bytes, body: bytes) -> None:
        if self._acks is None:
            self._acks = await self._client.subscribe(
                self._inbox, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        if self._waiting >= WINDOW:
            await self._take_ack()
        await self._client.publish_verbatim(f"{self._prefix}.{subject}", self._inbox, headers, body)
        self._waiting += 1
        self.last_sequence += 1

    async def _send_alone(self, message: Message, headers: bytes) -> None:
        await self._send(message.restored_subject, headers, message.body)
        answer = await self._next_answer()
        if "error" in answer:
            self.stripped += 1
            self.last_sequence -= 1
            await self._send(message.restored_subject, without_spoken(headers), message.body)
            answer = await self._next_answer()
        self._check(answer)

    async def _take_ack(self) -> None:
        self._check(await self._next_answer())

    async def _next_answer(self) -> dict[str, Any]:
        assert self._acks is not None  # noqa: S101 whoever waits has sent
        try:
            message = await self._acks.next_msg(timeout=ACK_SECONDS)
        except (NatsError, TimeoutError) as error:
            raise ProtocolError(
                f"the replay stopped after sequence {self._acknowledged}: {type(error).__name__}",
                hint="run the restore again with --replace",
            ) from error
        self._waiting -= 1
        if not message.data:
            raise ProtocolError("the replay reached no stream", hint="run the restore again with --replace")
        answer: dict[str, Any] = json.loads(message.data)
        return answer

    def _check(self, answer: dict[str, Any]) -> None:
        expected = self._acknowledged + 1
        if answer.get("error") or answer.get("duplicate") or answer.get("seq") != expected:
            fault = answer.get("error", {}).get("description", "")
            where = "as a duplicate" if answer.get("duplicate") else f"at {answer.get('seq')}"
            raise ProtocolError(
                f"the message of sequence {expected} was "
                + (f"refused: {fault}" if fault else f"stored {where}"),
                hint="run the restore again with --replace",
            )
        self._acknowledged = expected

    async def _wait_out(self, identifier: bytes) -> None:
        """Let the duplicate window pass before an id comes a second time."""
        if not identifier:
            return
        loop = asyncio.get_running_loop()
        window = SHORTEST_DUPLICATE_WINDOW / moments.NANOSECONDS
        now = loop.time()
        while self._recent:
            oldest = next(iter(self._recent))
            if self._recent[oldest] > now - 20 * window:
                break
            del self._recent[oldest]
        if identifier in self._recent:
            # Until the server certainly forgot: it sweeps its table once a window.
            await self.drain()
            await asyncio.sleep(3 * window)
            del self._recent[identifier]
        self._recent[identifier] = loop.time()


def with_original_time(headers: bytes, time: int) -> bytes:
    """The header block with the message's original time; one that already says it stays, and one that nobody
    can read."""
    if f"{ORIGINAL_TIME}:".lower().encode() in headers.lower():
        return headers
    line = f"{ORIGINAL_TIME}: {moments.from_nanoseconds(time)}".encode()
    if not headers:
        return _HEADER_LINE + line + _END
    if not headers.startswith(b"NATS/1.0") or not headers.endswith(_END):
        return headers
    return headers[: -len(_END)] + b"\r\n" + line + _END


def original_time(headers: bytes) -> str:
    """The original time that a replay wrote into the header block; empty for none."""
    marker = f"\r\n{ORIGINAL_TIME}: ".encode()
    start = headers.find(marker)
    if start < 0:
        return ""
    start += len(marker)
    return headers[start : headers.find(b"\r\n", start)].decode("latin-1")


def without_original_time(headers: bytes) -> bytes:
    """The header block as it was before a replay added the time; empty where nothing else was in it."""
    marker = f"\r\n{ORIGINAL_TIME}:".encode()
    start = headers.find(marker)
    if start < 0:
        return headers
    end = headers.find(b"\r\n", start + 2)
    rest = headers[:start] + headers[end:]
    return b"" if rest == _HEADER_LINE + b"\r\n" or rest == b"NATS/1.0" + _END else rest


def _read_headers(headers: bytes) -> tuple[bytes, bool]:
    """The message's id, and whether it holds other headers that the server acts upon."""
    identifier, is_spoken = b"", False
    for line in headers.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        lowered = name.strip().lower()
        if lowered == _MESSAGE_ID:
            identifier = value.strip()
        elif lowered.startswith(_SPOKEN):
            is_spoken = True
    return identifier, is_spoken


def without_spoken(headers: bytes) -> bytes:
    """The header block without what the publisher said to the server, but for the message's id."""
    kept = [
        line
        for line in headers.split(b"\r\n")
        if not line.lower().startswith(_SPOKEN) or line.lower().startswith(_MESSAGE_ID)
    ]
    return b"\r\n".join(kept)
