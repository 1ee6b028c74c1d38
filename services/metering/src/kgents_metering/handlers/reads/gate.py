"""What every read passes: who asks, whether there is a place for it, and an end when the caller goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from kgents_common.errors import TransientError
from kgents_common.problems import problem
from kgents_metering.handlers.reads.admission import Admission, BusyError, GoneError, while_caller_waits
from kgents_metering.metrics import ReadMetrics
from kgents_metering.model.query import QueryError
from kgents_metering.sinks.ledger.reads import NARROW

MAX_BODY_BYTES = 64 * 1024

Handler = Callable[[Request, str], AbstractAsyncContextManager[Response]]


def whole(answer: Callable[[Request, str], Awaitable[Response]]) -> Handler:
    """A handler from a function that has its whole answer before any of it is sent."""

    @asynccontextmanager
    async def handler(request: Request, tenant: str) -> AsyncIterator[Response]:
        yield await answer(request, tenant)

    return handler


class Gate:
    """Lets known callers in, each tenant to its places, and ends the work for those who go.

    Args:
        tenant_of: Who asks; raises HTTPException where they may not.
    """

    def __init__(
        self, tenant_of: Callable[[Request], str], admission: Admission, metrics: ReadMetrics
    ) -> None:
        self._tenant_of = tenant_of
        self._admission = admission
        self._metrics = metrics
        metrics.running.set_function(lambda: admission.running)
        metrics.waiting.set_function(lambda: admission.waiting)

    def __call__(self, handler: Handler) -> ASGIApp:
        """The handler as an application."""
        return _Gated(self, handler)

    async def serve(self, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            QueryError, HTTPException, TransientError: See `EXCEPTION_HANDLERS`.
        """
        request = Request(scope, receive)
        tenant = self._tenant_of(request)
        await _read_body(request)
        began = time.perf_counter()
        outcome = "failed"

        async def work() -> None:
            async with (
                self._admission.place(tenant),
                asyncio.timeout(self._admission.seconds),
                handler(request, tenant) as response,
            ):
                await response(scope, receive, send)

        try:
            await while_caller_waits(receive, work)
            outcome = "answered"
        except GoneError:
            outcome = "gone"
        except BusyError:
            outcome = "busy"
            raise HTTPException(
                429, "too many reads of this tenant are under way: ask again later", {"retry-after": "1"}
            ) from None
        except TimeoutError:
            outcome = "refused"
            raise QueryError(
                f"the answer took more than {self._admission.seconds:g} s: {NARROW}", 422
            ) from None
        except (QueryError, HTTPException):
            outcome = "refused"
            raise
        finally:
            self._metrics.reads.labels(outcome).inc()
            self._metrics.seconds.observe(time.perf_counter() - began)


class _Gated:
    def __init__(self, gate: Gate, handler: Handler) -> None:
        self._gate = gate
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gate.serve(self._handler, scope, receive, send)


async def _read_body(request: Request) -> None:
    """Read it whole: from then on the connection tells whether the caller is still there."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise HTTPException(413, f"the body must be at most {MAX_BODY_BYTES} bytes")
    request.state.body = body


async def _answer_problem(_: Request, error: Exception) -> Response:
    if isinstance(error, QueryError):
        return problem(error.status, str(error))
    if isinstance(error, HTTPException):
        return problem(error.status_code, error.detail, headers=error.headers)
    return problem(503, str(error), headers={"retry-after": "2"})


EXCEPTION_HANDLERS = {
    QueryError: _answer_problem,
    HTTPException: _answer_problem,
    TransientError: _answer_problem,
}
