"""The circuit breaker; what counts as a failure is the caller's to say, and how to wait is in `retry`.

It is ours: of the field's four, three let every waiting call through when half-open and one does not work
on asyncio (see the decision record on the breaker).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from enum import IntEnum

from kgents_common.clock import Clock, SystemClock
from kgents_common.errors import TransientError


class CircuitState(IntEnum):
    """The value of the `kgents_*_circuit_state` gauges."""

    CLOSED = 0
    OPEN = 1
    HALF_OPEN = 2


class CircuitOpenError(TransientError):
    """The call was not made: the neighbour failed lately and is left alone for a while."""

    def __init__(self, name: str, retry_after: timedelta) -> None:
        super().__init__(f"{name}: circuit open")
        self.retry_after = retry_after


class CircuitBreaker:
    """Opens when the neighbour fails too often, then lets one probe at a time find out whether it is back.

    Closed, it opens once `threshold` of the last `window` calls failed (and at least `threshold` were made).
    Open, every call is refused for `rest`, doubled up to `longest_rest` by each failed probe. Half-open,
    exactly one call is let through: its success closes the circuit, its failure opens it, and its
    cancellation decides nothing and frees the probe for the next call.
    """

    def __init__(
        self,
        name: str,
        *,
        threshold: int = 5,
        window: int = 10,
        rest: timedelta = timedelta(seconds=1),
        longest_rest: timedelta = timedelta(seconds=30),
        is_failure: Callable[[BaseException], bool] = lambda _: True,
        on_change: Callable[[CircuitState], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self._threshold = threshold
        self._rest = rest.total_seconds()
        self._longest = longest_rest.total_seconds()
        self._is_failure = is_failure
        self._on_change = on_change
        self._clock = clock or SystemClock()
        self._recent: deque[bool] = deque(maxlen=window)
        self._state = CircuitState.CLOSED
        self._current_rest = self._rest
        self._opened_at = 0.0
        self._is_probing = False

    @property
    def state(self) -> CircuitState:
        """The state a call made now would meet."""
        if self._state is CircuitState.OPEN and self._wait() <= 0:
            return CircuitState.HALF_OPEN
        return self._state

    @property
    def retry_after(self) -> timedelta:
        """How long until a call may be let through; zero when it may now."""
        return timedelta(seconds=max(0.0, self._wait())) if self._state is CircuitState.OPEN else timedelta()

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[None]:
        """Run the body as one call.

        Raises:
            CircuitOpenError: Open, or half-open with the probe already under way.
        """
        is_probe = self.admit()
        try:
            yield
        except asyncio.CancelledError:
            self.release(is_probe)
            raise
        except BaseException as error:
            if self._is_failure(error):
                self.failed(is_probe)
            else:
                self.succeeded(is_probe)
            raise
        else:
            self.succeeded(is_probe)

    def admit(self) -> bool:
        """Let one call through, or refuse it; whether it is the probe.

        For callers that cannot use `guard`; each admitted call ends with `succeeded`, `failed` or `release`.

        Raises:
            CircuitOpenError: As `guard`.
        """
        if self._state is CircuitState.CLOSED:
            return False
        if self._state is CircuitState.OPEN and self._wait() <= 0:
            self._become(CircuitState.HALF_OPEN)
        if self._state is CircuitState.HALF_OPEN and not self._is_probing:
            self._is_probing = True
            return True
        raise CircuitOpenError(self.name, timedelta(seconds=max(0.1, self._wait())))

    def succeeded(self, is_probe: bool) -> None:
        """Note a call that worked."""
        if is_probe:
            self._is_probing = False
            self._recent.clear()
            self._current_rest = self._rest
            self._become(CircuitState.CLOSED)
        elif self._state is CircuitState.CLOSED:
            self._recent.append(True)

    def failed(self, is_probe: bool) -> None:
        """Note a call that failed."""
        if is_probe:
            self._is_probing = False
            self._current_rest = min(self._current_rest * 2, self._longest)
            self._open()
        elif self._state is CircuitState.CLOSED:
            self._recent.append(False)
            if self._recent.count(False) >= self._threshold:
                self._open()

    def release(self, is_probe: bool) -> None:
        """Note a call that was cancelled: it says nothing about the neighbour."""
        if is_probe:
            self._is_probing = False

    def _wait(self) -> float:
        return self._opened_at + self._current_rest - self._clock.monotonic()

    def _open(self) -> None:
        self._opened_at = self._clock.monotonic()
        self._recent.clear()
        self._become(CircuitState.OPEN)

    def _become(self, state: CircuitState) -> None:
        if state is not self._state:
            self._state = state
            self._on_change(state)
