"""The page's addresses: its files, the stack's state, the feed, the form, runbooks, a door for spans."""

from __future__ import annotations

import asyncio
import contextlib
import html
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psycopg
from markdown_it import MarkdownIt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from kgents_devstack.page.feed import Feed
from kgents_devstack.page.figures import Figures
from kgents_devstack.page.spans import Spans
from kgents_devstack.page.way import Ways
from kgents_devstack.stack import Stack

FILES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/plot.js": "plot.js",
    "/icon.svg": "icon.svg",
}
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
USAGE_MINUTES = 30
FIRST = "tokens"
PING_SECONDS = 15.0
DOCS = Path(__file__).resolve().parents[5] / "docs"


class Page:
    """What the page knows; empty until a stack is shown."""

    def __init__(self) -> None:
        self.spans = Spans()
        self.feed = Feed()
        self.client = httpx.AsyncClient(timeout=10)
        self.stack: Stack | None = None
        self._figures: Figures | None = None
        self._ways: Ways | None = None
        self._following: asyncio.Task[None] | None = None
        self._playing: asyncio.Task[None] | None = None

    async def show(self, stack: Stack) -> None:
        """From now on this stack is shown."""
        self._figures = Figures(stack, self.client)
        self._ways = Ways(stack, self.client, self.spans)
        await self.feed.start(stack.nats.url)
        self._following = asyncio.create_task(self._figures.follow(), name="page.figures")
        self.stack = stack

    async def play(self) -> None:
        """Send a little traffic of every tenant until the end."""
        assert self._ways is not None
        self._playing = asyncio.create_task(self._ways.play(), name="page.traffic")

    async def stop(self) -> None:
        """Stop looking."""
        for task in (self._following, self._playing):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        await self.feed.stop()
        await self.client.aclose()

    async def state(self, _: Request) -> Response:
        """Everything but the feed."""
        if self.stack is None or self._figures is None:
            return JSONResponse({"starting": True})
        about = {"tenants": list(self.stack.keys), "links": _links(self.stack)}
        return JSONResponse({**self._figures.state, **about})

    async def usage(self, request: Request) -> Response:
        """A meter's usage by tenant and minute, as the tenants themselves would ask for it."""
        if self.stack is None:
            return JSONResponse({"meters": [], "tenants": {}})
        meter = ""
        start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=USAGE_MINUTES - 1)
        url = f"{self.stack.reads.url}/api/v1/meters"
        tenants: dict[str, list[tuple[str, float]]] = {}
        meters: list[str] = []
        for tenant, key in self.stack.keys.items():
            headers = {"authorization": f"Bearer {key}"}
            listed = await self.client.get(url, headers=headers)
            if listed.status_code != 200:
                continue
            meters = [meter["slug"] for meter in listed.json()]
            meter = request.query_params.get("meter") or (FIRST if FIRST in meters else meters[0])
            if meter not in meters:
                return _problem(404, "there is no such meter")
            asked = {"windowSize": "MINUTE", "from": start.isoformat().replace("+00:00", "Z")}
            answer = await self.client.get(f"{url}/{meter}/query", params=asked, headers=headers)
            if answer.status_code == 200:
                rows = answer.json()["data"]
                tenants[tenant] = [(row["windowStart"], float(row["value"])) for row in rows]
        return JSONResponse(
            {
                "meters": meters,
                "meter": meter,
                "from": start.isoformat(),
                "minutes": USAGE_MINUTES,
                "tenants": tenants,
            }
        )

    async def listen(self, _: Request) -> Response:
        """The feed, as server-sent events."""

        async def lines() -> AsyncIterator[bytes]:
            yield b": hello\n\n"
            items = self.feed.listen()
            following = asyncio.ensure_future(anext(items))
            try:
                while True:
                    done, _ = await asyncio.wait({following}, timeout=PING_SECONDS)
                    if not done:
                        yield b": still here\n\n"
                        continue
                    yield b"data: " + msgspec.json.encode(following.result()) + b"\n\n"
                    following = asyncio.ensure_future(anext(items))
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                    await following
                await items.aclose()  # type: ignore[attr-defined]

        return StreamingResponse(
            lines(), media_type="text/event-stream", headers={"cache-control": "no-store"}
        )

    async def publish(self, request: Request) -> Response:
        """The form's event, through the door."""
        if self._ways is None or self.stack is None:
            return _problem(503, "the stack is still starting")
        try:
            asked = msgspec.json.decode(await request.body(), type=dict[str, Any])
            tenant, kind, event_id = (str(asked[name]) for name in ("tenant", "type", "id"))
            data = asked["data"]
        except (msgspec.MsgspecError, KeyError) as error:
            return _problem(400, f"tenant, type, id and data are needed: {error}")
        if tenant not in self.stack.keys:
            return _problem(404, "there is no such tenant")
        return JSONResponse(await self._ways.publish(tenant, kind, data, event_id))

    async def garbage(self, _: Request) -> Response:
        """A message that nobody can read, past the door."""
        if self.stack is None:
            return _problem(503, "the stack is still starting")
        await self.feed.publish_garbage(next(iter(self.stack.keys)))
        return JSONResponse({"published": True})

    async def way(self, request: Request) -> Response:
        """How far an event has come."""
        if self._ways is None:
            return _problem(503, "the stack is still starting")
        asked = request.query_params
        try:
            return JSONResponse(
                await self._ways.find(asked.get("tenant", ""), asked.get("id", ""), asked.get("trace", ""))
            )
        except psycopg.Error as error:
            return _problem(503, f"Postgres does not answer: {type(error).__name__}")

    async def spans_in(self, request: Request) -> Response:
        """OTLP over HTTP, as a collector takes it."""
        try:
            self.spans.take(await request.body())
        except ValueError:
            return _problem(400, "not an OTLP request in protobuf")
        return Response(b"", media_type="application/x-protobuf")


def make_app(page: Page) -> Starlette:
    """The ASGI application."""
    routes = [Route(path, _file(name)) for path, name in FILES.items()]
    routes += [
        Route("/state", page.state),
        Route("/usage", page.usage),
        Route("/feed", page.listen),
        Route("/way", page.way),
        Route("/events", page.publish, methods=["POST"]),
        Route("/garbage", page.garbage, methods=["POST"]),
        Route("/v1/traces", page.spans_in, methods=["POST"]),
        Route("/runbooks/{name}", document),
        Route("/docs/{name}", document),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(OnlyThisPage)
    return app


class OnlyThisPage:
    """Another site's script may neither read nor write here: the names are loopback's, the origin is ours."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope.get("headers", ())}
        host = headers.get(b"host", "")
        origin = headers.get(b"origin")
        is_ours = re.fullmatch(r"(127\.0\.0\.1|localhost)(:\d+)?", host) is not None
        if not is_ours or (origin is not None and origin != f"http://{host}"):
            await _problem(403, "this page is for this machine alone")(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self._app(scope, receive, guarded)


async def document(request: Request) -> Response:
    """A document or a runbook as a page, its sections with the anchors that others link to."""
    name = request.path_params["name"]
    folder = DOCS / "runbooks" if request.url.path.startswith("/runbooks/") else DOCS
    if name == "asyncapi.json" and folder is DOCS:
        return Response((DOCS / name).read_bytes(), media_type="application/json")
    path = folder / f"{name.removesuffix('.md')}.md"
    if not re.fullmatch(r"[a-z-]+(\.md)?", name) or not path.is_file():
        return _problem(404, "there is no such document")
    if name.endswith(".md"):
        return RedirectResponse(path.stem)
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text())
    body = re.sub(r"<h([23])>(.+?)</h\1>", lambda m: f'<h{m[1]} id="{_anchor(m[2])}">{m[2]}</h{m[1]}>', body)
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(path.stem)}, kgents</title><link rel=stylesheet href=/page.css>"
        "<link rel=icon href=/icon.svg type=image/svg+xml>"
        f"<main class=text><p><a href=/>Back to the stack</a></p>{body}</main></html>"
    )


def _anchor(heading: str) -> str:
    """As repositories on the web make it."""
    words = re.sub(r"<[^>]+>", "", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files("kgents_devstack.page") / "static" / name).read_bytes()

    async def answer(_: Request) -> Response:
        kind = TYPES[name.rpartition(".")[2]]
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return answer


def _links(stack: Stack) -> list[dict[str, str]]:
    api = stack.service("api").operations_url
    return [
        {"what": "The contract of the door", "url": f"{api}/docs"},
        {"what": "Messages (AsyncAPI)", "url": "/docs/messages"},
        {"what": "Health of the whole system", "url": f"{api}/health/saas"},
        {"what": "NATS's monitor", "url": stack.nats.monitor_url},
    ]


def _problem(status: int, detail: str) -> Response:
    return JSONResponse({"status": status, "detail": detail}, status, media_type="application/problem+json")
