"""Begins anew what has ended by itself or was killed, and says so; what was stopped stays stopped."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kgents_devstack.servers import StartError
from kgents_devstack.servers.process import Server

# One that ends again at once is not begun anew at once.
LONGEST_REST_SECONDS = 30.0
STEADY_SECONDS = 10.0


@dataclass(slots=True)
class _Watched:
    server: Server
    begun_at: float
    rest_seconds: float = 0.0
    again_at: float | None = None


class Keeper:
    """Looks at servers, never waiting for one.

    Args:
        on_begun: Called after one was begun anew: its process id is another.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        say: Callable[[str], None],
        *,
        on_begun: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._watched = [_Watched(server, clock()) for server in servers]
        self._say = say
        self._on_begun = on_begun
        self._clock = clock

    def look(self) -> None:
        """Look once at each."""
        for one in self._watched:
            code, now = one.server.exit_code, self._clock()
            if code is None:
                one.again_at = None
                continue
            if one.again_at is None:
                was_steady = now - one.begun_at >= STEADY_SECONDS
                one.rest_seconds = (
                    0.0 if was_steady else min(LONGEST_REST_SECONDS, 2 * one.rest_seconds or 1.0)
                )
                one.again_at = now + one.rest_seconds
                when = f"in {one.rest_seconds:.0f} s" if one.rest_seconds else "now"
                self._say(f"{one.server.name} has ended ({_how(code)}): begun anew {when}")
                if one.rest_seconds:
                    self._say(one.server.log_tail(3))
            if now >= one.again_at:
                self._begin(one, now)

    def _begin(self, one: _Watched, now: float) -> None:
        one.begun_at, one.again_at = now, None
        try:
            one.server.begin()
        except StartError as error:
            self._say(str(error))
        else:
            self._on_begun()


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
