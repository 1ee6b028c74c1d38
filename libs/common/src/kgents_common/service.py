"""Running one service: start its parts in order, serve HTTP, and on SIGTERM finish what was begun and stop.

Order of a stop: readiness turns false; for the drain delay new connections are still served, as a load
balancer sends them until it has heard; the HTTP server closes its port and finishes its requests; the parts
stop in reverse order; telemetry is flushed. All of it within the drain time; a part whose stop fails or hangs
keeps no other from being stopped.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import structlog
import uvloop
from prometheus_client import CollectorRegistry
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from kgents_common import certificates
from kgents_common.application import application
from kgents_common.errors import ConfigurationError, KgentsError
from kgents_common.health import Health, operations_routes
from kgents_common.http_server import HttpServer
from kgents_common.settings import ServiceSettings
from kgents_common.telemetry import Tracing, configure_logs

_log = structlog.get_logger()

# The port opens when the process is ready, or after so long: liveness needs no neighbour.
READY_SECONDS = 2.0
READY_LOOKS = 200
# What each part has for its stop, however long others took.
LEAST_SECONDS_A_PART = 0.5

Settings = TypeVar("Settings", bound=ServiceSettings)


class Part(Protocol):
    """Something with a life: a connection, a loop, a pool."""

    async def start(self) -> None:
        """Begin; what it raises stops the service from starting."""

    async def stop(self) -> None:
        """End, having finished what was begun."""


async def serve(
    *,
    settings: ServiceSettings,
    health: Health,
    app: ASGIApp,
    parts: Sequence[Part],
    tracing: Tracing,
    registry: CollectorRegistry,
    operations: Sequence[BaseRoute] = (),
    before_drain: Callable[[], Awaitable[None]] | None = None,
    stalled_seconds: float = 30,
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        parts: Started in this order, stopped in reverse.
        registry: What `/metrics` tells, on the operators' port: it opens first and closes last.
        operations: Routes of the service's own on that port.
        before_drain: Called once the port is closed, e.g. to end streams that would never end by themselves.
        stalled_seconds: How long a client may take nothing of its answer before its connection is cut.

    Raises:
        ConfigurationError: A part refuses to start, or the port cannot be had.
    """
    certificates.watch(settings.certificate_files, registry)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)

    begun: list[Part] = []
    server = HttpServer(
        app,
        stalled_seconds=stalled_seconds,
        request_seconds=settings.request_seconds,
        drain_seconds=(settings.drain_seconds - settings.drain_delay_seconds) * 0.6,
    )
    serving: asyncio.Task[None] | None = None
    own = HttpServer(
        application([*operations_routes(health, registry), *operations]),
        stalled_seconds=stalled_seconds,
        request_seconds=settings.request_seconds,
        drain_seconds=1,
        port_setting="KGENTS_OPERATIONS_PORT",
    )
    telling = asyncio.create_task(own.serve_at(settings.host, settings.operations_at), name="operations")
    listens = asyncio.create_task(own.listens.wait())
    await asyncio.wait({telling, listens}, return_when=asyncio.FIRST_COMPLETED)
    listens.cancel()
    if telling.done():
        await telling
    try:
        for part in parts:
            begun.append(part)  # also one whose start fails, or is given up, has begun something
            start = asyncio.create_task(part.start())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not start.done():  # asked to stop while a part still waits for a neighbour
                start.cancel()
                await asyncio.wait({start})
                return
            await start
        await _until_ready(health, stop)
        serving = asyncio.create_task(server.serve_at(settings.host, settings.port), name="http")
        _settle_memory()
        _log.info("service.started", port=settings.port, operations_port=settings.operations_at)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if serving.done():
            await serving
    finally:
        _log.info("service.draining")
        health.is_draining = True
        server.begin_drain()
        ending = _Ending(settings.drain_seconds)
        if serving is not None and not serving.done():
            await ending.step("drain_delay", lambda: asyncio.sleep(settings.drain_delay_seconds))
        # Before the streams end: their clients come back at once, and must not find this process.
        await ending.step("port", server.stop_listening)
        if before_drain is not None:
            await ending.step("before_drain", before_drain)
        if serving is not None and not serving.done():
            server.should_exit = True
            await ending.step("http", functools.partial(_finished, serving))
        for left, part in zip(range(len(begun) - 1, -1, -1), reversed(begun), strict=True):
            await ending.step(type(part).__name__, part.stop, left=left)
        own.should_exit = True
        await ending.step("operations", functools.partial(_finished, telling))
        await ending.step("tracing", lambda: asyncio.to_thread(tracing.stop))
        _log.info("service.stopped", failed=ending.failed)


async def _finished(serving: asyncio.Task[None]) -> None:
    await serving


class _Ending:
    """The steps of a stop: each is taken, whatever became of those before it, and each failure is told.

    Args:
        seconds: For all of them. A step that takes longer is cut short, and leaves a moment to each that is
            left.
    """

    def __init__(self, seconds: float) -> None:
        self._now = asyncio.get_running_loop().time
        self._deadline = self._now() + seconds
        self.failed: list[str] = []

    async def step(self, name: str, work: Callable[[], Awaitable[object]], *, left: int = 0) -> None:
        """Do one; with how many are left after it."""
        allowed = self._deadline - self._now() - left * LEAST_SECONDS_A_PART
        try:
            async with asyncio.timeout(max(LEAST_SECONDS_A_PART, allowed)):
                await work()
        except TimeoutError:
            _log.error("service.drain_cut_short", step=name)
            self.failed.append(name)
        except asyncio.CancelledError:
            # A library's own, e.g. of a socket that died under its goodbye; else somebody ends this task.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            _log.error("service.step_cancelled", step=name)
            self.failed.append(name)
        except Exception:
            _log.exception("service.step_failed", step=name)
            self.failed.append(name)


async def _until_ready(health: Health, stop: asyncio.Event) -> None:
    """Wait for a moment, so that who comes at once is served and not told to come back."""
    for _ in range(READY_LOOKS):
        if health.is_ready() or stop.is_set():
            break
        await asyncio.sleep(READY_SECONDS / READY_LOOKS)


def _settle_memory() -> None:
    """Keep what was loaded at start out of the collector's rounds: they were most of the p99."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def run(
    name: str, settings_type: type[Settings], main: Callable[[Settings], Coroutine[Any, Any, None]]
) -> int:
    """Read settings and run `main(settings)`; `--check` prints the settings, secrets masked, and exits.

    Returns:
        The exit code: 0 after a stop, 2 where the process must not start like this.
    """
    try:
        settings = settings_type.from_environment()
        if "--check" in sys.argv[1:]:
            for field, value in settings.masked().items():
                print(f"{field}={value}")  # noqa: T201 the command's answer
            return 0
        configure_logs(service=name, instance=settings.instance, level=settings.log_level)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(settings))
    except ConfigurationError as error:
        print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)  # noqa: T201 may precede logging
        return 2
    except KgentsError as error:
        _log.critical("service.failed", error=str(error), hint=error.hint)
        return 1
    return 0
