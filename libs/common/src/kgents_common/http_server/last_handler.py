"""What answers a request that nothing else answered; the server wraps every application in it."""

from __future__ import annotations

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kgents_common.problems import problem

_log = structlog.get_logger()


class LastHandler:
    """Answers 500 as a problem document where nothing else answered, and closes where it says that it does.

    What fails after its answer began cannot be answered any more: the server cuts the connection, so that no
    client takes half an answer for a whole one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = is_whole = False

        async def watching(message: Message) -> None:
            nonlocal is_begun, is_whole
            is_begun = True
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except Exception:
            _log.exception("request.failed", method=scope.get("method"), path=scope.get("path"))
            if is_whole:
                return
            if is_begun:
                raise
            answer = problem(
                500,
                "this is our fault; nothing was stored unless a receipt says so",
                headers={"connection": "close"},
            )
            await answer(scope, receive, send)
