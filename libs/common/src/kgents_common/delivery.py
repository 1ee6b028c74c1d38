"""How a consumed message ends: acknowledged, asked for again later, or set aside; nothing else decides it.

A message is acknowledged only after what it caused is committed. A message that can never be handled is not
dropped: its service stores or publishes it as a dead letter first, then terminates it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_common import subjects
from kgents_common.publisher import Publisher

_log = structlog.get_logger()


async def ack(messages: Iterable[Msg]) -> None:
    """Acknowledge what is committed. A lost ack only brings the message again; keys make that harmless."""
    for message in messages:
        with contextlib.suppress(NatsError, OSError):
            await message.ack()


async def nak(messages: Iterable[Msg], *, delay: timedelta) -> None:
    """Ask for the messages again after `delay`; a lost nak only makes it `ack_wait` instead."""
    for message in messages:
        with contextlib.suppress(NatsError, OSError):
            await message.nak(delay=delay.total_seconds())


async def set_aside(
    message: Msg, publisher: Publisher, *, service: str, reason: str, detail: str, message_id: str
) -> None:
    """Publish the message, whole, to `events.deadletter.<service>.<reason>`, then terminate it.

    The original headers are kept; the subject, sequence, reason and detail travel beside them as `Kgents-*`.

    Raises:
        NotDurableError: The dead letter is not stored; the message is not terminated.
    """
    headers = {k: v for k, v in (message.headers or {}).items() if k.lower() != "nats-msg-id"}
    headers = {k: v for k, v in headers.items() if not k.lower().startswith("nats-expected-")}
    headers["Kgents-Original-Subject"] = message.subject
    headers["Kgents-Original-Sequence"] = str(message.metadata.sequence.stream)
    headers["Kgents-Reason"] = reason
    headers["Kgents-Detail"] = header_text(detail)
    await publisher.publish(
        subjects.dead_letter(service, reason), message.data, message_id=message_id, headers=headers
    )
    with contextlib.suppress(NatsError, OSError):
        await message.term()


def header_text(value: str) -> str:
    """`value` as it may stand in a header: printable ASCII, one line, at most 512 characters."""
    return "".join(c if " " <= c <= "~" else "?" for c in value[:512])


@asynccontextmanager
async def in_progress(messages: Sequence[Msg], *, ack_wait: timedelta) -> AsyncIterator[None]:
    """While the body runs, tell JetStream every third of `ack_wait` that these messages are being worked on.

    Without it, whatever waits behind a slow message is delivered again.
    """

    async def extend() -> None:
        while True:
            await asyncio.sleep(ack_wait.total_seconds() / 3)
            for message in messages:
                with contextlib.suppress(NatsError, OSError):
                    await message.in_progress()

    task = asyncio.create_task(extend(), name="delivery.in_progress")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
