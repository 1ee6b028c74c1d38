"""A stream's messages in order from a sequence on, whole, through an ephemeral pull consumer of our own.

No durable is needed and nothing is acknowledged: where to go on is the reader's to know. It works on every
server from 2.10 (batched direct get needs 2.11) and on mirrors. A lost message or a lost consumer shows in
the consumer's own count, and reading starts anew right after the last good one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.segment import Message
from kgents_backup.sources.verbatim import VerbatimClient, raw_headers
from kgents_common.errors import KgentsError
from kgents_common.streams import JetStreamApiError, request

BATCH_MESSAGES = 2000
BATCH_BYTES = 8 * 1024 * 1024
PATIENCE_SECONDS = 2.0
INACTIVE_SECONDS = 60

_log = structlog.get_logger()


class MessageReader:
    """Reads one stream forward, a batch at a time.

    Args:
        start: The first sequence wanted; reading begins with the first stored one from there.
        api: The API's prefix; another for a stream behind a domain, e.g. `$JS.dr.API`.
    """

    def __init__(self, client: VerbatimClient, stream: str, *, start: int = 1, api: str = "$JS.API") -> None:
        self._client = client
        self._stream = stream
        self._next = max(1, start)
        self._api = api
        self._consumer = ""
        self._delivered = 0
        self._pending: int | None = None

    @property
    def next_sequence(self) -> int:
        """Where reading goes on."""
        return self._next

    @property
    def is_open(self) -> bool:
        """Whether its consumer stands, as far as known; a lost one is opened anew by the next batch.

        Whoever must not read on into another stream of the same name looks before that.
        """
        return bool(self._consumer)

    @property
    def pending(self) -> int | None:
        """Messages that were still to come when the last one was sent; None before the first."""
        return self._pending

    async def open(self) -> None:
        """Make the consumer, where there is none; errors as `batch`."""
        if not self._consumer:
            await self._open()

    async def batch(
        self, *, limit: int = BATCH_MESSAGES, limit_bytes: int = BATCH_BYTES, wait_seconds: float = 1.0
    ) -> list[Message]:
        """The next messages; fewer than `limit` or none where there are no more within `wait_seconds`.

        Raises:
            JetStreamApiError: The stream is gone.
            TransientError: The server does not answer.
        """
        await self.open()
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
        found: list[Message] = []
        try:
            ask = {"batch": limit, "max_bytes": limit_bytes, "expires": int(wait_seconds * 1e9)}
            await self._client.publish(
                f"{self._api}.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
                json.dumps(ask).encode(),
                reply=inbox,
            )
            while len(found) < limit:
                message = await subscription.next_msg(timeout=wait_seconds + PATIENCE_SECONDS)
                if message.headers and "Status" in message.headers and not message.reply:
                    if message.headers["Status"] in ("404", "408") or _is_full(message):
                        break
                    self._consumer = ""  # deleted, or its leader is away: the next batch opens another
                    break
                taken = self._take(message)
                if taken is None:
                    self._consumer = ""
                    break
                found.append(taken)
        except (NatsError, TimeoutError):
            # No status within the patience: the consumer may be gone. What was read is good.
            self._consumer = ""
        finally:
            with contextlib.suppress(NatsError):
                await subscription.unsubscribe()
        return found

    async def read(self, until: int) -> AsyncIterator[Message]:
        """Every stored message up to `until`, which the stream must have passed.

        Raises:
            JetStreamApiError, TransientError: As `batch`.
            ProtocolError: No progress for half a minute.
        """
        loop = asyncio.get_running_loop()
        seen_at = loop.time()
        while self._next <= until:
            messages = await self.batch(wait_seconds=1)
            for message in messages:
                if message.sequence > until:
                    return
                yield message
            if messages:
                seen_at = loop.time()
                continue
            state = (await self._info())["state"]
            if state["last_seq"] < self._next or (state["messages"] == 0):
                return
            if self._pending == 0 and self._consumer:
                return  # only gaps are left
            if loop.time() - seen_at > 30:
                raise ProtocolError(f"{self._stream} gives nothing after {self._next - 1}")

    async def close(self) -> None:
        """Let go of the consumer; the server would, after a minute."""
        if self._consumer:
            with contextlib.suppress(KgentsError, NatsError):
                await self._request(f"CONSUMER.DELETE.{self._stream}.{self._consumer}")
            self._consumer = ""

    def _take(self, message: Msg) -> Message | None:
        fields = (message.reply or "").split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>, or with a
        # domain and an account hash before the stream and a token after pending (ADR-15).
        tail = fields[4:9] if len(fields) == 9 else fields[6:11]
        _, sequence, consumer_sequence, time, pending = (int(field) for field in tail)
        if consumer_sequence != self._delivered + 1 or sequence < self._next:
            _log.warning("messages.out_of_order", stream=self._stream, at=self._next)
            return None
        self._delivered = consumer_sequence
        self._next = sequence + 1
        self._pending = pending
        return Message(sequence, time, message.subject, raw_headers(message), message.data)

    async def _open(self) -> None:
        config = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._next,
            "ack_policy": "none",
            "max_deliver": 1,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": INACTIVE_SECONDS * 1_000_000_000,
            "description": "backup reads forward",
        }
        answer = await self._request(
            f"CONSUMER.CREATE.{self._stream}", {"stream_name": self._stream, "config": config}
        )
        self._consumer = answer["name"]
        self._delivered = 0
        self._pending = answer.get("num_pending")

    async def _info(self) -> dict[str, Any]:
        return await self._request(f"STREAM.INFO.{self._stream}")

    async def _request(self, subject: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        return await api_request(self._client, self._api, subject, payload)


async def api_request(
    client: VerbatimClient, api: str, subject: str, payload: dict[str, Any] | None = None
) -> dict[str, Any]:
    """As `kgents_common.streams.request`, under another prefix than `$JS.API`.

    Raises:
        JetStreamApiError: The server refused it.
        TransientError: No answer.
    """
    if api == "$JS.API":
        return await request(client, subject, payload)
    try:
        body = json.dumps(payload).encode() if payload is not None else b""
        message = await client.request(f"{api}.{subject}", body, timeout=5)
    except (NatsError, OSError, TimeoutError) as error:
        raise ProtocolError(f"jetstream: {type(error).__name__} on {api}.{subject}") from error
    answer: dict[str, Any] = json.loads(message.data)
    fault = answer.get("error")
    if isinstance(fault, dict):
        raise JetStreamApiError(fault.get("description", ""), fault.get("code", 0), fault.get("err_code", 0))
    return answer


def _is_full(message: Msg) -> bool:
    """A batch that ended because its bytes were used up (409 Message Size Exceeds MaxBytes)."""
    headers = message.headers or {}
    return headers.get("Status") == "409" and "MaxBytes" in headers.get("Description", "")
