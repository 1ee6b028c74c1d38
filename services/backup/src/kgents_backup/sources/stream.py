"""What a stream is and where its consumers stand, through JetStream's API; it reads no message but one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client

from kgents_backup.model import moments
from kgents_backup.model.documents import ConsumerRecord
from kgents_common.streams import JetStreamApiError, request

NOT_FOUND = 404
# How many sequences before the last are asked for: of more that were deleted at the end nothing is said.
LOOKS_BACK = 100


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A stream at one moment: what `$JS.API.STREAM.INFO` says of it."""

    name: str
    created: str
    config: dict[str, Any]
    state: dict[str, Any]

    @property
    def first_sequence(self) -> int:
        """The first stored message's sequence, or the next one's where none is stored."""
        return max(1, int(self.state["first_seq"]))

    @property
    def last_sequence(self) -> int:
        """The last sequence ever given."""
        return int(self.state["last_seq"])

    @property
    def last_time(self) -> int:
        """The last message's time, Unix nanoseconds; 0 for none."""
        return moments.to_nanoseconds(self.state["last_ts"])

    @property
    def messages(self) -> int:
        """How many are stored."""
        return int(self.state["messages"])


async def stream_info(client: Client, name: str) -> StreamInfo | None:
    """The stream; None where there is none.

    Raises:
        TransientError: The server does not answer.
    """
    try:
        answer = await request(client, f"STREAM.INFO.{name}")
    except JetStreamApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    return StreamInfo(name, answer["created"], answer["config"], answer["state"])


async def message_time(client: Client, stream: str, sequence: int) -> int | None:
    """When the message was stored, Unix nanoseconds; None where the stream does not hold it.

    Raises:
        TransientError: The server does not answer.
    """
    try:
        answer = await request(client, f"STREAM.MSG.GET.{stream}", {"seq": sequence})
    except JetStreamApiError as error:
        if error.code == NOT_FOUND:
            return None
        raise
    return moments.to_nanoseconds(answer["message"]["time"])


async def last_held(client: Client, stream: str, last: int) -> int | None:
    """The last sequence up to `last` that the stream holds a message at; None where it is far before that.

    Asked for the last message of any subject, a server finds none where that was deleted (2.10 and 2.15 do).

    Raises:
        TransientError: The server does not answer.
    """
    for sequence in range(last, max(0, last - LOOKS_BACK), -1):
        if await message_time(client, stream, sequence) is not None:
            return sequence
    return None


def reached(consumer: Mapping[str, Any]) -> int:
    """The sequence up to which a consumer is done; one made to begin later is done with what is before.

    Servers of 2.10 say 0 until it has acknowledged something.
    """
    before = int(consumer["config"].get("opt_start_seq") or 1) - 1
    return max(int(consumer["ack_floor"]["stream_seq"]), before)


async def durable_consumers(client: Client, stream: str) -> list[ConsumerRecord]:
    """Every durable consumer and where it stands.

    Raises:
        JetStreamApiError: There is no such stream.
        TransientError: The server does not answer.
    """
    found: list[ConsumerRecord] = []
    offset = 0
    while True:
        answer = await request(client, f"CONSUMER.LIST.{stream}", {"offset": offset})
        page = answer.get("consumers") or []
        found += [
            ConsumerRecord(c["name"], c["config"], reached(c))
            for c in page
            if c["config"].get("durable_name")
        ]
        offset += len(page)
        if not page or offset >= answer["total"]:
            return found
