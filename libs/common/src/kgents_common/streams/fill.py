"""How full the streams are, and when they will be, as every process may know it; it makes no room.

A full stream refuses its publishers. What can wait or is kept elsewhere, too, leaves the last tenth of EVENTS
to what cannot: webhooks and facts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Gauge

from kgents_common.clock import Clock
from kgents_common.connection import Connection
from kgents_common.health import Check, Status
from kgents_common.streams.jetstream_api import request
from kgents_common.streams.specification import STREAMS

EVERY_SECONDS = 5.0
# Growth is measured over so many looks: ten minutes.
LOOKS = 120
NEARLY_FULL = 0.8
RESERVE = 0.1
SOON_SECONDS = 24 * 3600.0
STALE_SECONDS = 60.0


@dataclass(slots=True)
class Level:
    """One stream: the looks at it as (monotonic seconds, bytes), and its limit."""

    max_bytes: int = 0
    looks: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=LOOKS))

    @property
    def used_bytes(self) -> int:
        """What it holds, as last seen."""
        return self.looks[-1][1] if self.looks else 0

    @property
    def ratio(self) -> float:
        """From 0 to 1; 0 where it has no limit or was not seen."""
        return self.used_bytes / self.max_bytes if self.max_bytes > 0 else 0.0

    @property
    def seconds_to_full(self) -> float:
        """If it goes on growing as it did; infinite where it does not grow."""
        if len(self.looks) < 2 or self.max_bytes <= 0:
            return math.inf
        (start, before), (end, now) = self.looks[0], self.looks[-1]
        grown = now - before
        if grown <= 0 or end <= start:
            return math.inf
        return max(0, self.max_bytes - now) * (end - start) / grown


class StreamFill:
    """Looks at the streams now and then, as a round's work; tells metrics, health, and who should rest."""

    def __init__(self, connection: Connection, registry: CollectorRegistry, clock: Clock) -> None:
        self._connection = connection
        self._clock = clock
        self.levels = {spec.name: Level() for spec in STREAMS}
        self._seen_at: float | None = None
        self._used = Gauge("kgents_stream_bytes", "What the stream holds", ["stream"], registry=registry)
        self._limit = Gauge(
            "kgents_stream_max_bytes", "What the stream may hold", ["stream"], registry=registry
        )
        self._ratio = Gauge(
            "kgents_stream_fill_ratio",
            "What the stream holds of what it may, 0 to 1",
            ["stream"],
            registry=registry,
        )
        self._to_full = Gauge(
            "kgents_stream_seconds_to_full",
            "Until the stream is full, if it grows as in the last ten minutes; +Inf where it does not",
            ["stream"],
            registry=registry,
        )

    async def look(self) -> bool:
        """One look at each; False, as there is no more to do at once.

        Raises:
            KgentsError: JetStream does not answer, or a stream is missing.
        """
        for name, level in self.levels.items():
            info = await request(self._connection.client, f"STREAM.INFO.{name}")
            self.note(level, int(info["state"]["bytes"]), int(info["config"].get("max_bytes", -1)))
            self._used.labels(name).set(level.used_bytes)
            self._limit.labels(name).set(level.max_bytes)
            self._ratio.labels(name).set(level.ratio)
            self._to_full.labels(name).set(level.seconds_to_full)
        self._seen_at = self._clock.monotonic()
        return False

    def note(self, level: Level, used_bytes: int, max_bytes: int) -> None:
        """What a look found."""
        level.max_bytes = max_bytes
        level.looks.append((self._clock.monotonic(), used_bytes))

    def has_reserve(self, stream: str) -> bool:
        """Whether more than the reserve is free: only then may what can wait be published."""
        return self.levels[stream].ratio < 1 - RESERVE

    def leaving_room(self, stream: str, work: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[bool]]:
        """The same work, done only while more than the reserve of the stream is free."""

        async def rested() -> bool:
            return await work() if self.has_reserve(stream) else False

        return rested

    def check(self) -> Check:
        """For the health document: degraded from four fifths on, or from a half where it soon is full."""
        if self._seen_at is None:
            return Check(Status.OK, "not seen yet")
        if self._clock.monotonic() - self._seen_at > STALE_SECONDS:
            return Check(Status.DEGRADED, "not seen lately")
        told = [
            f"{name} is {level.ratio:.0%} full" + _when(level.seconds_to_full)
            for name, level in self.levels.items()
            if level.ratio >= NEARLY_FULL or (level.ratio >= 0.5 and level.seconds_to_full < SOON_SECONDS)
        ]
        return Check(Status.DEGRADED, "; ".join(told)) if told else Check(Status.OK, self._levels())

    def _levels(self) -> str:
        return ", ".join(f"{name} {level.ratio:.0%}" for name, level in self.levels.items())


def _when(seconds: float) -> str:
    return "" if math.isinf(seconds) else f", and wholly in {seconds / 3600:.1f} h"
