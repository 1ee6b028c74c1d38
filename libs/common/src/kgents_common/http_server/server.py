"""uvicorn's server with the order of a stop given to the service, and bounds on what clients may hold."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from kgents_common.errors import ConfigurationError
from kgents_common.http_server.bounds import Bounds, Limits
from kgents_common.http_server.connection import Protocol, State
from kgents_common.http_server.last_handler import LastHandler

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 75


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the service owns the order of a stop.

    Args:
        stalled_seconds: How long a client may take nothing of its answer before its connection is cut.
        request_seconds: How long a request may take to come whole.
        drain_seconds: How long requests may take to end once it stops.
        limits: What clients may hold.
        port_setting: What an operator sets to choose another port.

    Attributes:
        listens: Set once the port is had.
    """

    server_state: State

    def __init__(
        self,
        app: ASGIApp,
        *,
        stalled_seconds: float,
        request_seconds: float,
        drain_seconds: float,
        limits: Limits | None = None,
        port_setting: str = "KGENTS_PORT",
    ) -> None:
        waits = {"stalled_seconds": stalled_seconds, "request_seconds": request_seconds}
        super().__init__(
            uvicorn.Config(
                LastHandler(app),
                loop="none",
                http=type("Protocol", (Protocol,), waits),
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=True,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=max(1, int(drain_seconds)),
                backlog=BACKLOG,
            )
        )
        # Behind a proxy all clients have its address: who may name the client's (uvicorn's
        # FORWARDED_ALLOW_IPS) is not itself limited as one.
        proxies = ProxyHeadersMiddleware(app, self.config.forwarded_allow_ips).trusted_hosts  # type: ignore[arg-type]
        self.bounds = Bounds(limits or Limits(), proxies)
        self.server_state = State(self.bounds)
        self._listening: socket.socket | None = None
        self._port_setting = port_setting
        self.listens = asyncio.Event()

    async def serve_at(self, host: str, port: int) -> None:
        """Serve until told to exit.

        Raises:
            ConfigurationError: The port cannot be had.
        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise ConfigurationError(
                f"the port {port} cannot be served: {error.strerror}",
                hint=f"set {self._port_setting} to a free one",
            ) from error
        listening.setblocking(False)
        # A second handle: the server closes its own while the kernel may still hold connections for it.
        self._listening = listening.dup()
        self.listens.set()
        await self.serve([listening])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def begin_drain(self) -> None:
        """From now on every answer ends its connection; new connections are still taken."""
        self.server_state.is_draining = True

    async def stop_listening(self) -> None:
        """Take no new connections, but serve those that the kernel has taken already."""
        self.server_state.is_draining = self.server_state.is_closed = True
        for server in getattr(self, "servers", ()):
            server.close()
        listening, self._listening = self._listening, None
        if listening is None:
            return
        listening.setblocking(False)
        taken: list[socket.socket] = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(listening.accept()[0])
        listening.close()
        loop = asyncio.get_running_loop()
        for connection in taken:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server.shutdown`."""
        await self.stop_listening()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """See `uvicorn.Server.on_tick`: ten times a second."""
        if counter % 10 == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Protocol):
                    connection.cut_if_overdue(now)
        return await super().on_tick(counter)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
