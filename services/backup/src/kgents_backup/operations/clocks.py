"""This machine's clock against the server's: names and retention go by it, so it must not be wrong."""

from __future__ import annotations

from datetime import timedelta

from nats.aio.client import Client

from kgents_backup.model import moments
from kgents_backup.model.faults import ClockError
from kgents_common.clock import Clock
from kgents_common.streams import request

# More than two machines that keep time ever differ by.
TOLERANCE = timedelta(minutes=1)


async def ahead(client: Client, stream: str, clock: Clock) -> timedelta | None:
    """How far this clock is ahead of the server's; None where there is no such stream to ask by.

    Raises:
        JetStreamApiError, TransientError: The server does not answer with its time.
    """
    before = clock.now()
    answer = await request(client, f"STREAM.INFO.{stream}")
    after = clock.now()
    said = answer.get("ts")
    if not said:
        return None
    theirs = moments.to_nanoseconds(said)
    ours = (moments.of(before) + moments.of(after)) // 2
    return timedelta(microseconds=(ours - theirs) // 1000)


async def require(client: Client, stream: str, clock: Clock) -> None:
    """Refuse to name or delete anything by a clock that is wrong.

    Raises:
        ClockError: It differs from the server's.
        JetStreamApiError, TransientError: As `ahead`.
    """
    found = await ahead(client, stream, clock)
    if found is not None and abs(found) > TOLERANCE:
        word = "ahead of" if found > timedelta(0) else "behind"
        raise ClockError(
            f"this machine's clock is {abs(found)} {word} the server's",
            hint="set the clock; archiving goes on, snapshots and pruning wait",
        )
