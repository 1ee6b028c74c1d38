"""The circuit breaker lets one probe through and forgets cancelled calls."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kgents_common.clock import ManualClock
from kgents_common.resilience import CircuitBreaker, CircuitOpenError, CircuitState


def breaker(clock: ManualClock, threshold: int = 3) -> CircuitBreaker:
    return CircuitBreaker("neighbour", threshold=threshold, window=5, rest=timedelta(seconds=1), clock=clock)


def opened(clock: ManualClock) -> CircuitBreaker:
    found = breaker(clock)
    for _ in range(3):
        found.failed(found.admit())
    return found


def test_it_opens_after_the_threshold_and_says_when_to_come_back() -> None:
    """Rule: open, a call is refused at once and told how long to wait."""
    found = opened(ManualClock())
    assert found.state is CircuitState.OPEN
    with pytest.raises(CircuitOpenError) as error:
        found.admit()
    assert error.value.retry_after == timedelta(seconds=1)


def test_successes_push_old_failures_out_of_the_window() -> None:
    """Rule: only the last `window` calls count."""
    found = breaker(ManualClock())
    for outcome in [False, False, True, True, True, True, False, False]:
        (found.succeeded if outcome else found.failed)(found.admit())
    assert found.state is CircuitState.CLOSED


async def test_half_open_lets_exactly_one_of_fifty_through() -> None:
    """Rule: a neighbour that may be back is asked once, not by everybody who waited."""
    clock = ManualClock()
    found = opened(clock)
    clock.advance(timedelta(seconds=1))
    reached = 0
    release = asyncio.Event()

    async def call() -> None:
        nonlocal reached
        async with found.guard():
            reached += 1
            await release.wait()

    calls = [asyncio.create_task(call()) for _ in range(50)]
    await asyncio.sleep(0)
    release.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert reached == 1
    assert sum(isinstance(o, CircuitOpenError) for o in outcomes) == 49
    assert found.state is CircuitState.CLOSED


async def test_a_cancelled_probe_decides_nothing() -> None:
    """Rule: cancellation says nothing about the neighbour; the next call is the probe."""
    clock = ManualClock()
    found = opened(clock)
    clock.advance(timedelta(seconds=1))

    async def hang() -> None:
        async with found.guard():
            await asyncio.Event().wait()

    probe = asyncio.create_task(hang())
    await asyncio.sleep(0)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert found.state is CircuitState.HALF_OPEN
    assert found.admit() is True


async def test_an_error_that_is_no_failure_keeps_it_closed() -> None:
    """Rule: what counts as a failure is the caller's to say."""
    found = CircuitBreaker("x", threshold=1, window=1, is_failure=lambda e: not isinstance(e, ValueError))
    with pytest.raises(ValueError, match="bad request"):
        async with found.guard():
            raise ValueError("bad request")
    assert found.state is CircuitState.CLOSED


def test_each_failed_probe_doubles_the_rest() -> None:
    """Rule: the longer a neighbour is away, the less often it is asked, up to the limit."""
    clock = ManualClock()
    found = opened(clock)
    waits = []
    for _ in range(7):
        waits.append(found.retry_after.total_seconds())
        clock.advance(found.retry_after)
        found.failed(found.admit())
    assert waits == [1, 2, 4, 8, 16, 30, 30]


class Breaker(RuleBasedStateMachine):
    """Any interleaving of calls, outcomes and time."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.breaker = breaker(self.clock)
        self.running: list[bool] = []

    @rule()
    def call(self) -> None:
        with contextlib.suppress(CircuitOpenError):
            self.running.append(self.breaker.admit())

    @rule(how=st.sampled_from(["succeeded", "failed", "release"]))
    def end(self, how: str) -> None:
        if self.running:
            getattr(self.breaker, how)(self.running.pop(0))

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.clock.advance(timedelta(seconds=seconds))

    @invariant()
    def at_most_one_probe(self) -> None:
        assert self.running.count(True) <= 1

    @invariant()
    def never_stuck(self) -> None:
        if self.breaker.state is CircuitState.HALF_OPEN and True not in self.running:
            is_probe = self.breaker.admit()
            assert is_probe
            self.breaker.release(is_probe)


TestAnyInterleaving = Breaker.TestCase
TestAnyInterleaving.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
