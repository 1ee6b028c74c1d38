"""A service's HTTP application: its routes, and a problem document for every refusal; it knows no path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from kgents_common.problems import problem
from kgents_common.request_metrics import RequestMetrics

ExceptionHandlers = Mapping[type[Exception], Callable[[Any, Any], Any]]

_DETAILS = {404: "there is nothing at this path", 405: "this path takes another method"}


def application(
    routes: Sequence[BaseRoute],
    handlers: ExceptionHandlers | None = None,
    *,
    requests: RequestMetrics | None = None,
) -> ASGIApp:
    """An application that answers every refusal as a problem document.

    Starlette's own would answer what fails with plain text before the server's last handler can; here
    exceptions that no handler is named for go on to it.

    Args:
        handlers: Exceptions of the service's own to what answers them.
        requests: Told of every request; None where something else counts them.
    """
    router = Router(routes)
    every: dict[Any, Callable[[Any, Any], Any]] = {HTTPException: answer_http_exception, **(handlers or {})}
    handling = ExceptionMiddleware(router, handlers=every)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = router  # with it, a router raises for what it does not find and answers nothing itself
        await handling(scope, receive, send)

    return app if requests is None else requests.around(app, routes)


async def answer_http_exception(_: Request, error: HTTPException) -> Response:
    """Starlette's refusal as a problem document."""
    is_plain = not error.detail or error.detail in ("Not Found", "Method Not Allowed")
    detail = _DETAILS.get(error.status_code, error.detail) if is_plain else error.detail
    return problem(error.status_code, detail, headers=error.headers)
