"""One reader of AGENTESE for each tenant that has live clients, shared by them; it sends to nobody itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from kgents_api.model.live import EventLog, PositionLostError, Tail

MAX_EVENTS = 256
MAX_BYTES = 1024 * 1024

_log = structlog.get_logger()


@dataclass(slots=True)
class _Shared:
    """A tail, the task that makes and feeds it, and how many clients it has."""

    opened: asyncio.Future[Tail]
    feeding: asyncio.Task[None] | None = None
    clients: int = 0


class Tails:
    """Tails by tenant; a tail lives as long as it has clients.

    Args:
        max_events: What a tail holds at most, in events.
        max_bytes: The same in bytes; a single event may be larger.
    """

    def __init__(self, log: EventLog, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._log = log
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._shared: dict[str, _Shared] = {}

    @asynccontextmanager
    async def follow(self, tenant: str) -> AsyncIterator[Tail]:
        """The tenant's tail, opened at the stream's end where there is none.

        Raises:
            TransientError: The stream does not answer.
        """
        shared = self._shared.get(tenant)
        if shared is None or (shared.opened.done() and _has_ended(shared.opened)):
            shared = self._shared[tenant] = _Shared(asyncio.get_running_loop().create_future())
            shared.feeding = asyncio.create_task(self._feed(tenant, shared), name="live.tail")
        shared.clients += 1
        try:
            yield await asyncio.shield(shared.opened)
        finally:
            shared.clients -= 1
            if shared.clients == 0:
                if self._shared.get(tenant) is shared:
                    del self._shared[tenant]
                if shared.feeding is not None:
                    shared.feeding.cancel()

    async def _feed(self, tenant: str, shared: _Shared) -> None:
        try:
            bounds = await self._log.bounds(tenant)
        except asyncio.CancelledError:
            shared.opened.cancel()
            raise
        except Exception as error:
            if self._shared.get(tenant) is shared:
                del self._shared[tenant]
            shared.opened.set_exception(error)
            shared.opened.exception()  # whoever waits gets it; nobody may wait any more
            return
        tail = Tail(bounds.end, bounds.stream, max_events=self._max_events, max_bytes=self._max_bytes)
        shared.opened.set_result(tail)
        reader = self._log.reader(tenant, bounds.last, bounds.stream)
        try:
            while True:
                tail.append(await reader.next())
        except PositionLostError as error:
            _log.warning("live.position_lost", reason=str(error))
            tail.end("position_lost")
        except asyncio.CancelledError:
            tail.end("unused")
            raise
        except Exception:
            _log.exception("live.tail_failed")
            tail.end("failed")
        finally:
            with contextlib.suppress(Exception):
                await reader.close()


def _has_ended(opened: asyncio.Future[Tail]) -> bool:
    return opened.cancelled() or opened.exception() is not None or opened.result().ended is not None
