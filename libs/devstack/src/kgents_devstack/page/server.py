"""The page's life: a thread with a loop and an HTTP server on loopback, from before a stack to after it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import uvicorn

from kgents_devstack.page.app import Page, make_app
from kgents_devstack.servers.process import free_port
from kgents_devstack.stack import Stack

PORT = 8900
# A twentieth of the traces, and every one that the page begins.
SAMPLER = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.05"}


class PageServer:
    """Serves from `__enter__` to `__exit__`; shows a stack once it is told of one."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or (PORT if _is_free(PORT) else free_port())
        self._page = Page()
        self._loop = asyncio.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                make_app(self._page),
                host="127.0.0.1",
                port=self.port,
                lifespan="off",
                access_log=False,
                log_config=None,
                # The feed never ends by itself.
                timeout_graceful_shutdown=1,
            )
        )
        self._thread = threading.Thread(target=self._run, name="page", daemon=True)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.port}"

    def traced(
        self, environment: Mapping[str, Mapping[str, str]], services: tuple[str, ...]
    ) -> dict[str, dict[str, str]]:
        """By service, what it is told so that its spans come here."""
        telling = {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, **SAMPLER}
        return {name: {**telling, **environment.get(name, {})} for name in services}

    def show(self, stack: Stack) -> None:
        """Show this stack, which runs.

        Raises:
            TimeoutError: It does not answer.
        """
        asyncio.run_coroutine_threadsafe(self._page.show(stack), self._loop).result(60)

    def play(self) -> None:
        """Send a little traffic until the end."""
        asyncio.run_coroutine_threadsafe(self._page.play(), self._loop).result(60)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        # Signals are the stack's matter: this is not the main thread.
        await self._server.serve()
        await self._page.stop()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
