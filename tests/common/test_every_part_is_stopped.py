"""A stop reaches every part, whatever became of the others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

import pytest
import structlog
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from structlog.testing import capture_logs

from kgents_common import service
from kgents_common.health import Health
from kgents_common.settings import ServiceSettings
from kgents_common.telemetry import Tracing


class Part:
    """Notes that it was stopped; fails, is cancelled or hangs where it is told to."""

    def __init__(self, stopped: list[str], name: str, *, start: str = "", stop: str = "") -> None:
        self._stopped = stopped
        self._name = name
        self._ways = {"start": start, "stop": stop}

    async def start(self) -> None:
        await self._go("start")

    async def stop(self) -> None:
        self._stopped.append(self._name)
        await self._go("stop")

    async def _go(self, where: str) -> None:
        if self._ways[where] == "fails":
            raise RuntimeError(self._name)
        if self._ways[where] == "cancels":
            raise asyncio.CancelledError
        if self._ways[where] == "hangs":
            await asyncio.Event().wait()


async def serve(parts: Sequence[Part], *, drain_seconds: float = 3) -> list[dict[str, object]]:
    """Run a service of these parts until it was told to stop; what it logged meanwhile."""
    settings = ServiceSettings(
        nats_servers=("nats://127.0.0.1:1",), host="127.0.0.1", port=0, drain_seconds=drain_seconds
    )
    tracing = Tracing(service="test", instance="test", endpoint=None)
    with capture_logs() as logs:
        running = asyncio.create_task(
            service.serve(
                settings=settings,
                health=Health("test", "test"),
                app=Starlette(),
                parts=parts,
                tracing=tracing,
                registry=CollectorRegistry(),
            )
        )
        while not running.done() and not any(log["event"] == "service.started" for log in logs):
            await asyncio.sleep(0.01)
        if not running.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await running
    return [dict(log) for log in logs]


@pytest.fixture(autouse=True)
def _signals() -> None:
    structlog.reset_defaults()


async def test_one_that_fails_and_one_that_hangs_keep_no_other_from_it() -> None:
    """Rule: in reverse order, each part is stopped and each failure told."""
    stopped: list[str] = []
    logs = await serve(
        [
            Part(stopped, "first"),
            Part(stopped, "hangs", stop="hangs"),
            Part(stopped, "second"),
            Part(stopped, "fails", stop="fails"),
            Part(stopped, "cancels", stop="cancels"),
            Part(stopped, "last"),
        ]
    )
    assert stopped == ["last", "cancels", "fails", "second", "hangs", "first"]
    assert [log["step"] for log in logs if "step" in log] == ["Part", "Part", "Part"]
    assert logs[-1] == {"event": "service.stopped", "failed": ["Part", "Part", "Part"], "log_level": "info"}


async def test_parts_begun_are_stopped_where_one_does_not_start() -> None:
    """Rule: also the one that failed may have begun something; its failure is the service's."""
    stopped: list[str] = []
    with pytest.raises(RuntimeError, match="broken"):
        await serve([Part(stopped, "first"), Part(stopped, "broken", start="fails"), Part(stopped, "never")])
    assert stopped == ["broken", "first"]
