"""How every loop that waits for a neighbour waits: tenacity's exponential backoff with jitter, counted.

What is worth another try, and what to do meanwhile, is the caller's to say; the circuit breaker is elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import TypeVar

import structlog
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential

from kgents_common.errors import KgentsError

_log = structlog.get_logger()
_T = TypeVar("_T")
# Doubling more often than this only makes numbers too large to compute with.
_MAX_DOUBLINGS = 32
# Part of the cap that a wait never falls below: full jitter alone may give a run of waits of nothing.
_LEAST = 0.1


class Backoff:
    """The waits between tries: random under a cap that doubles from `first` to `longest`.

    Source: tenacity's `wait_random_exponential`, which is the "full jitter" of the AWS Architecture Blog.
    """

    def __init__(self, first: timedelta, longest: timedelta) -> None:
        self._first = first.total_seconds()
        self._longest = longest.total_seconds()

    def wait(self, failures: int) -> timedelta:
        """How long to wait after so many failures in a row; at least one is assumed."""
        doublings = min(max(failures, 1) - 1, _MAX_DOUBLINGS)
        cap = min(self._longest, self._first * 2**doublings)
        state = RetryCallState(AsyncRetrying(), None, (), {})
        state.attempt_number = doublings + 1
        chosen = wait_random_exponential(multiplier=self._first, max=self._longest, min=_LEAST * cap)
        return timedelta(seconds=chosen(state))


class Patience:
    """How one loop waits for its neighbour; each wait is logged and counted under the loop's name.

    `until_done` tries one call until it succeeds. A loop that goes on whatever happened calls `wait` after
    a failure and `progressed` after anything else.

    Args:
        name: Dotted, e.g. `metering.apply`; the label of the metrics.
        on: What `until_done` tries again; anything else passes at once.
    """

    def __init__(
        self,
        name: str,
        *,
        first: timedelta = timedelta(seconds=0.2),
        longest: timedelta = timedelta(seconds=10),
        on: type[BaseException] | tuple[type[BaseException], ...] = KgentsError,
    ) -> None:
        self.name = name
        self._backoff = Backoff(first, longest)
        self._on = on
        self._failures = 0
        TALLY.know(name)

    def progressed(self) -> None:
        """The neighbour answered: the next failure is a first one again."""
        self._failures = 0

    async def wait(self, error: BaseException) -> None:
        """Wait after a failure, longer after each in a row."""
        self._failures += 1
        seconds = self._backoff.wait(self._failures).total_seconds()
        self._note(error, self._failures, seconds)
        await asyncio.sleep(seconds)

    async def until_done(
        self, work: Callable[[], Awaitable[_T]], *, before_wait: Callable[[], None] = lambda: None
    ) -> _T:
        """What `work` returns, however often it has to be tried.

        Args:
            before_wait: Called after each failure that is waited out.
        """

        def note(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            seconds = state.next_action.sleep if state.next_action is not None else 0.0
            self._note(error, state.attempt_number, seconds)
            before_wait()

        retrying = AsyncRetrying(
            wait=lambda state: self._backoff.wait(state.attempt_number).total_seconds(),
            retry=retry_if_exception_type(self._on),
            before_sleep=note,
            reraise=True,
        )
        return await retrying(work)

    def _note(self, error: BaseException | None, failures: int, seconds: float) -> None:
        TALLY.add(self.name, seconds)
        _log.warning(
            "retry.waiting",
            loop=self.name,
            error=f"{type(error).__name__}: {error}",
            failures=failures,
            wait_seconds=round(seconds, 2),
        )


class WaitTally(Collector):
    """How often, and how long, each loop of this process has waited for a neighbour."""

    def __init__(self) -> None:
        self._waits: dict[str, int] = {}
        self._seconds: dict[str, float] = {}

    def know(self, loop: str) -> None:
        """Show the loop before it ever waited."""
        self._waits.setdefault(loop, 0)
        self._seconds.setdefault(loop, 0.0)

    def add(self, loop: str, seconds: float) -> None:
        """Count one wait."""
        self.know(loop)
        self._waits[loop] += 1
        self._seconds[loop] += seconds

    def collect(self) -> Iterator[Metric]:
        """`kgents_retry_waits_total` and `kgents_retry_wait_seconds_total`, by `loop`."""
        waits = CounterMetricFamily(
            "kgents_retry_waits", "Waits for a neighbour before another try", labels=["loop"]
        )
        seconds = CounterMetricFamily(
            "kgents_retry_wait_seconds", "Seconds waited for a neighbour before another try", labels=["loop"]
        )
        for loop, count in self._waits.items():
            waits.add_metric([loop], count)
            seconds.add_metric([loop], self._seconds[loop])
        yield waits
        yield seconds


# Of the process, as its memory and CPU are: loops deep in a library need no registry handed down to them.
TALLY = WaitTally()
