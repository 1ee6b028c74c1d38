"""Running one service: start its parts in order, serve HTTP, and on SIGTERM finish what was begun and stop.

Order of a stop: readiness turns false, the HTTP server finishes its requests, the parts stop in reverse
order, telemetry is flushed. All of it within the drain time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kgents_common.errors import ConfigurationError, KgentsError
from kgents_common.health import Health
from kgents_common.settings import ServiceSettings
from kgents_common.telemetry import Tracing, configure_logs

_log = structlog.get_logger()

Settings = TypeVar("Settings", bound=ServiceSettings)


class Part(Protocol):
    """Something with a life: a connection, a loop, a pool."""

    async def start(self) -> None:
        """Begin; what it raises stops the service from starting."""

    async def stop(self) -> None:
        """End, having finished what was begun."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the service owns the order of a stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with an end to waiting for clients that do not read.

    uvicorn waits for ever while a client takes nothing, and a connection closed with unsent bytes lingers as
    long. Here it is cut when the bytes above the transport's high-water mark are not taken in time.
    """

    stalled_seconds = 30.0
    unsent_bytes = 128 * 1024

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Else the kernel takes megabytes for a client before this process notices that it does not read.
        # It bounds what waits to be sent, not what is under way, so it costs a fast client nothing.
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            with contextlib.suppress(OSError):  # a kernel without it
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.unsent_bytes)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cut = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._keep()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._keep()
        super().connection_lost(exc)

    def _keep(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None


async def serve(
    *,
    settings: ServiceSettings,
    health: Health,
    app: ASGIApp,
    parts: Sequence[Part],
    tracing: Tracing,
    before_drain: Callable[[], Awaitable[None]] | None = None,
    limit_concurrency: int | None = None,
    stalled_seconds: float = 30,
) -> None:
    """Run until SIGTERM or SIGINT.

    Args:
        parts: Started in this order, stopped in reverse.
        before_drain: Called when the stop begins, e.g. to end streams that would never end by themselves.
        stalled_seconds: How long a client may take nothing of its answer before its connection is cut.

    Raises:
        ConfigurationError: A part refuses to start.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)

    started: list[Part] = []
    server = _Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="none",
            http=type("Protocol", (_Protocol,), {"stalled_seconds": stalled_seconds}),
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=True,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, int(settings.drain_seconds * 0.6)),
            limit_concurrency=limit_concurrency,
            backlog=2048,
        )
    )
    serving: asyncio.Task[None] | None = None
    try:
        for part in parts:
            start = asyncio.create_task(part.start())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not start.done():  # asked to stop while a part still waits for a neighbour
                start.cancel()
                return
            await start
            started.append(part)
        serving = asyncio.create_task(server.serve(), name="http")
        _settle_memory()
        _log.info("service.started", port=settings.port)
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if serving.done():
            raise ConfigurationError(
                f"the port {settings.port} cannot be served", hint="set KGENTS_PORT to a free one"
            )
    finally:
        _log.info("service.draining")
        health.is_draining = True
        try:
            async with asyncio.timeout(settings.drain_seconds):
                if before_drain is not None:
                    await before_drain()
                if serving is not None and not serving.done():
                    server.should_exit = True
                    await serving
                for part in reversed(started):
                    await part.stop()
        except TimeoutError:
            _log.error("service.drain_cut_short", seconds=settings.drain_seconds)
        await asyncio.to_thread(tracing.stop)
        _log.info("service.stopped")


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
