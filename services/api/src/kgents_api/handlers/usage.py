"""Usage questions asked at the door: passed on to the reads, and the answers back as they come.

So that one address takes events and answers about them where no gateway routes. Who may ask is the reads' to
say. Connections of their own, a limit of their own: they can hold up no event.
"""

from __future__ import annotations

import asyncio

import httpx
import structlog
from prometheus_client import CollectorRegistry, Counter
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from kgents_api.handlers.refusal import Refused
from kgents_common import usage_contract

MAX_BODY_BYTES = 64 * 1024
MAX_AT_ONCE = 64
CONNECT_SECONDS = 2.0
# Longer than a read may take (KGENTS_READS_SECONDS): its refusal says more than ours.
ANSWER_SECONDS = 75.0

# What means something to the reads, and what of theirs means something to a caller; no hop-by-hop header.
_ASKED = frozenset(
    {b"authorization", b"x-api-key", b"accept", b"content-type", b"traceparent", b"tracestate"}
)
_TOLD = frozenset(
    {"content-type", "content-disposition", "content-length", "retry-after", "www-authenticate"}
)

_log = structlog.get_logger()


class UsageForward:
    """Asks the reads and passes the answer on, as a part and as an ASGI application.

    Args:
        url: Where the reads are: `http://host:port`.
    """

    def __init__(self, url: str, registry: CollectorRegistry) -> None:
        self._url = url.rstrip("/")
        self._client: httpx.AsyncClient | None = None
        self._running = 0
        self._away = Counter(
            "kgents_api_reads_unanswered_total",
            "Usage questions that the reads did not answer",
            registry=registry,
        )

    async def start(self) -> None:
        """Make the client; nothing is asked yet."""
        self._client = httpx.AsyncClient(
            base_url=self._url,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
            limits=httpx.Limits(
                max_connections=MAX_AT_ONCE, max_keepalive_connections=16, keepalive_expiry=30
            ),
            follow_redirects=False,
            trust_env=False,
        )

    async def stop(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one question on.

        Raises:
            Refused: 413, or 503 where the reads do not answer.
        """
        if self._running >= MAX_AT_ONCE:
            raise Refused(
                503, "too many usage questions at once", reason="too_busy", headers={"retry-after": "1"}
            )
        self._running += 1
        try:
            body = await _body(receive)
            asking = asyncio.create_task(self._pass_on(scope, body, send))
            gone = asyncio.create_task(_disconnected(receive))
            await asyncio.wait({asking, gone}, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not asking.done():  # the caller went: so does the question
                asking.cancel()
            await asyncio.gather(asking, gone, return_exceptions=True)
            if not asking.cancelled() and (error := asking.exception()) is not None:
                raise error
        finally:
            self._running -= 1

    async def _pass_on(self, scope: Scope, body: bytes, send: Send) -> None:
        assert self._client is not None, "it is started before the port opens"  # noqa: S101 an invariant
        has_begun = False
        target = httpx.URL(self._url).copy_with(
            raw_path=scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        )
        headers = [(name, value) for name, value in scope["headers"] if name in _ASKED]
        try:
            async with self._client.stream(scope["method"], target, headers=headers, content=body) as answer:
                has_begun = True
                await _send_on(answer, send)
        except httpx.HTTPError as error:
            self._away.inc()
            _log.warning("usage.unanswered", error=type(error).__name__)
            if has_begun:
                raise  # the connection ends without its last chunk: the caller sees that something is missing
            raise Refused(
                503,
                "usage cannot be asked for now; events are taken",
                reason="reads_away",
                headers={"retry-after": "2"},
            ) from None


async def _send_on(answer: httpx.Response, send: Send) -> None:
    headers = answer.headers
    told = [(name.encode(), headers[name].encode("latin-1")) for name in _TOLD if name in headers]
    await send({"type": "http.response.start", "status": answer.status_code, "headers": told})
    async for piece in answer.aiter_raw():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise Refused(413, f"the body must be at most {MAX_BODY_BYTES} bytes", reason="too_large")
        if not message.get("more_body"):
            return bytes(body)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def routes(forward: UsageForward) -> list[BaseRoute]:
    """Every path of the contract."""
    return [Route(path, forward, methods=[*methods]) for path, methods in usage_contract.ROUTES.items()]
