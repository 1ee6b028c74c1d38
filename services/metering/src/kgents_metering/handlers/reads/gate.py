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
from kgents_common.keyring import KeyRecord
from kgents_common.keyring.reading import SUBJECT, tenants_of
from kgents_common.problems import problem
from kgents_metering.handlers.authorization import named_subjects
from kgents_metering.handlers.reads.admission import Admission, BusyError, GoneError, while_caller_waits
from kgents_metering.metrics import ReadMetrics
from kgents_metering.model.query import QueryError
from kgents_metering.sinks.ledger.reads import NARROW

MAX_BODY_BYTES = 64 * 1024

# Answers a request about these tenants: the key's own, or those it names of its several; none where the
# question is about nobody.
Handler = Callable[[Request, tuple[str, ...]], AbstractAsyncContextManager[Response]]


def whole(answer: Callable[[Request, str], Awaitable[Response]]) -> Handler:
    """A handler about one tenant, from a function that has its whole answer before any of it is sent."""

    async def of_one(request: Request, tenants: tuple[str, ...]) -> Response:
        if len(tenants) != 1:
            raise HTTPException(400, f"{SUBJECT}: name one tenant here")
        return await answer(request, tenants[0])

    return whole_of_several(of_one)


def whole_of_several(answer: Callable[[Request, tuple[str, ...]], Awaitable[Response]]) -> Handler:
    """As `whole`, about all tenants that are named."""

    @asynccontextmanager
    async def handler(request: Request, tenants: tuple[str, ...]) -> AsyncIterator[Response]:
        yield await answer(request, tenants)

    return handler


class Gate:
    """Lets known callers in, each tenant to its places, and ends the work for those who go.

    Args:
        record_of: Who asks; raises HTTPException where they may not.
    """

    def __init__(
        self, record_of: Callable[[Request], KeyRecord], admission: Admission, metrics: ReadMetrics
    ) -> None:
        self._record_of = record_of
        self._admission = admission
        self._metrics = metrics
        metrics.running.set_function(lambda: admission.running)
        metrics.waiting.set_function(lambda: admission.waiting)

    def __call__(self, handler: Handler, *, is_about_nobody: bool = False) -> ASGIApp:
        """The handler as an application.

        Args:
            is_about_nobody: What it tells is no tenant's: a key of several need name none.
        """
        return _Gated(self, handler, is_about_nobody)

    async def serve(
        self, handler: Handler, is_about_nobody: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one request. A question about several tenants takes a place of the key's own.

        Raises:
            QueryError, HTTPException, TransientError: See `EXCEPTION_HANDLERS`.
        """
        request = Request(scope, receive)
        record = self._record_of(request)
        await _read_body(request)
        named = named_subjects(request, request.state.body)
        tenants = () if is_about_nobody and not named else tenants_of(record, named)
        line = tenants[0] if len(tenants) == 1 else record.id
        began = time.perf_counter()
        outcome = "failed"

        async def work() -> None:
            async with (
                self._admission.place(line),
                asyncio.timeout(self._admission.seconds),
                handler(request, tenants) as response,
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
        except OverflowError:  # a minute, a window or a day more than datetimes have
            outcome = "refused"
            raise QueryError(
                f"a time at the beginning of year 1 or the end of year 9999 has no window: {NARROW}", 422
            ) from None
        except (QueryError, HTTPException):
            outcome = "refused"
            raise
        finally:
            self._metrics.reads.labels(outcome).inc()
            self._metrics.seconds.observe(time.perf_counter() - began)


class _Gated:
    def __init__(self, gate: Gate, handler: Handler, is_about_nobody: bool) -> None:
        self._gate = gate
        self._handler = handler
        self._is_about_nobody = is_about_nobody

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gate.serve(self._handler, self._is_about_nobody, scope, receive, send)


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
