"""How a consumed message ends: acknowledged, asked for again later, or set aside; nothing else decides it.

A message is acknowledged only after what it caused is committed. A message that can never be handled is not
dropped: its service stores it as a dead letter first (`dead_letters`), then acknowledges it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_common.cancelling import cancelled


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
        await cancelled(task)
