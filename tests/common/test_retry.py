"""Loops that wait for a neighbour wait longer each time, are seen to wait, and try for ever."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import generate_latest

from kgents_common.errors import PermanentError, TransientError
from kgents_common.retry import Backoff, Patience
from kgents_common.telemetry.metrics import new_registry


def test_waits_double_up_to_the_longest_and_are_never_nothing() -> None:
    """Rule: random under a doubling cap, at least a tenth of it, at any number of failures."""
    backoff = Backoff(timedelta(seconds=1), timedelta(seconds=8))
    for failures, cap in ((0, 1), (1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (10_000, 8)):
        waits = [backoff.wait(failures).total_seconds() for _ in range(200)]
        assert cap * 0.1 <= min(waits)
        assert cap * 0.5 < max(waits) <= cap


async def test_a_call_is_tried_until_it_succeeds() -> None:
    """Rule: only what is worth another try is tried again; each failure is told before the wait."""
    tries, told = [], []

    async def work() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise TransientError("away")
        return "done"

    patience = Patience("test.call", first=timedelta(milliseconds=1), longest=timedelta(milliseconds=4))
    assert await patience.until_done(work, before_wait=lambda: told.append(1)) == "done"
    assert (len(tries), len(told)) == (4, 3)


async def test_what_no_second_try_can_mend_passes_at_once() -> None:
    """Rule: an error that is not worth another try is the caller's."""
    tries = []

    async def work() -> None:
        tries.append(1)
        raise PermanentError("never")

    with pytest.raises(PermanentError):
        await Patience("test.permanent", on=TransientError).until_done(work)
    assert len(tries) == 1


async def test_waits_are_in_the_metrics_of_every_service() -> None:
    """Rule: a loop is shown before it ever waits; then how often and for how long it did."""
    patience = Patience("test.seen", first=timedelta(milliseconds=1), longest=timedelta(milliseconds=1))
    registry = new_registry()
    assert registry.get_sample_value("kgents_retry_waits_total", {"loop": "test.seen"}) == 0
    await patience.wait(TransientError("away"))
    await patience.wait(TransientError("away"))
    assert registry.get_sample_value("kgents_retry_waits_total", {"loop": "test.seen"}) == 2
    seconds = registry.get_sample_value("kgents_retry_wait_seconds_total", {"loop": "test.seen"})
    assert seconds is not None
    assert 0 < seconds <= 0.002
    assert b'kgents_retry_waits_total{loop="test.seen"} 2.0' in generate_latest(registry)


async def test_progress_makes_the_next_failure_a_first_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a loop that went on for a while does not wait for what failed long ago."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("kgents_common.retry.asyncio.sleep", sleep)
    patience = Patience("test.progress", first=timedelta(seconds=1), longest=timedelta(seconds=64))
    for _ in range(6):
        await patience.wait(TransientError("away"))
    patience.progressed()
    await patience.wait(TransientError("away"))
    assert max(slept[:6]) > 1
    assert slept[6] <= 1
