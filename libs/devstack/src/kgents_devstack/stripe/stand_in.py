"""Stripe on loopback: lives that are lived in its books, its API where billing reads it, its webhooks.

Contract: docs.stripe.com/api (events, subscriptions, customers, errors, pagination). Lists are newest first,
cut by `limit`, continued by `starting_after`; errors are `{"error": {"type", "code", "message"}}`.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kgents_devstack.servers.process import free_port
from kgents_devstack.stripe.delivery import Chaos, Sender
from kgents_devstack.stripe.events import Books
from kgents_devstack.stripe.life import Life
from kgents_devstack.stripe.random_life import random_life

START_SECONDS = 10.0
MAX_LIMIT = 100


class StripeStandIn:
    """A server in a thread of this process.

    Args:
        chaos: How badly webhooks are delivered, and how closely changes follow each other.

    Attributes:
        books: What happened: told from outside, or lived here.
        is_down: Answer 500 to everything.
        refuses_key: Answer 401 to everything.
        revoked: Connected accounts that took their access back: 403 to everything about them.
        rate_limited: So many of the next requests get 429.
        requests: What was asked, by path.
        accounts: For which connected account each was asked; None for the own one.
    """

    def __init__(self, *, key: str = "rk_test_loopback_only", chaos: Chaos | None = None) -> None:
        self.key = key
        self.chaos = chaos or Chaos()
        self.books = Books()
        self.is_down = False
        self.refuses_key = False
        self.revoked: set[str] = set()
        self.rate_limited = 0
        self.requests: list[str] = []
        self.accounts: list[str | None] = []
        self._delivered = 0
        self._port = free_port()
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`, for `STRIPE_API_BASE`."""
        return f"http://127.0.0.1:{self._port}"

    def tell(self, body: bytes) -> None:
        """Something happened: the event is listed from now on, and its object is as it says."""
        self.books.tell(body)

    def put(self, thing: dict[str, Any]) -> None:
        """An object is so, and no event says it."""
        self.books.put(thing)

    def subscribe(self, **life: Any) -> Life:
        """A customer subscribes; what happens to the `Life` from now on happens here."""
        return Life(books=self.books, with_customer=True, **life)

    def live(self, count: int) -> list[Life]:
        """So many random lives, lived to now; the same chaos, the same lives."""
        roll = random.Random(self.chaos.seed)
        return [
            random_life(roll, self.chaos.same_second, with_money=True, books=self.books) for _ in range(count)
        ]

    def deliver(self, sender: Sender) -> int:
        """Send what happened since the last time, as badly as `chaos` says; how many deliveries that were.

        Raises:
            RuntimeError: One was refused for good, or never taken.
        """
        bodies = self.books.bodies(self._delivered)
        self._delivered += len(bodies)
        return sender.deliver(bodies, self.chaos)

    def start(self) -> Self:
        """Serve."""
        config = uvicorn.Config(
            self._app(), host="127.0.0.1", port=self._port, log_config=None, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="stripe-stand-in", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            if time.monotonic() > deadline:
                raise RuntimeError("the Stripe stand-in did not start")
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        """Stop serving; what was told is kept."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/events", self._list_events),
                Route("/v1/events/{id}", self._event),
                Route("/v1/subscriptions", self._list_subscriptions),
                Route("/v1/checkout/sessions", self._list_objects),
                Route("/v1/checkout/sessions/{id}", self._session),
                Route("/v1/{kind}", self._list_objects),
                Route("/v1/{kind}/{id}", self._object),
            ]
        )

    def _refusal(self, request: Request) -> Response | None:
        self.requests.append(request.url.path)
        self.accounts.append(request.headers.get("stripe-account"))
        if self.is_down:
            return _error(500, "api_error", None, "down")
        if self.refuses_key or request.headers.get("authorization") != f"Bearer {self.key}":
            return _error(401, "invalid_request_error", None, "Invalid API Key provided")
        account = request.headers.get("stripe-account")
        if account in self.revoked:
            text = f"The provided key '{self.key}' does not have access to account '{account}'"
            return _error(403, "invalid_request_error", "account_invalid", text)
        if self.rate_limited > 0:
            self.rate_limited -= 1
            return _error(429, "rate_limit_error", "rate_limit", "Too many requests")
        return None

    async def _list_events(self, request: Request) -> Response:
        since = int(request.query_params.get("created[gte]", "0"))
        account = request.headers.get("stripe-account")
        found = [
            {name: value for name, value in event.items() if name != "account"}
            for event in self.books.events()
            if event["created"] >= since and event.get("account") == account
        ]
        return self._refusal(request) or _page(found, request)

    async def _list_subscriptions(self, request: Request) -> Response:
        found = self.books.objects("subscription")
        if request.query_params.get("status") != "all":
            found = [t for t in found if t["status"] != "canceled"]
        return self._refusal(request) or _page(found, request)

    async def _list_objects(self, request: Request) -> Response:
        asked = request.query_params
        path = request.url.path.removeprefix("/v1/")
        kind = "checkout.session" if path == "checkout/sessions" else path.removesuffix("s")
        since, until = int(asked.get("created[gte]", "0")), int(asked.get("created[lt]", str(2**62)))
        found = [t for t in self.books.objects(kind) if since <= t["created"] < until]
        if "status" in asked:
            found = [t for t in found if t.get("status") == asked["status"]]
        for name in ("payment_intent", "charge"):
            wanted = asked.get(f"payment[{name}]")
            found = [t for t in found if wanted in (None, t.get("payment", {}).get(name))]
            found = [t for t in found if asked.get(name) in (None, t.get(name))]
        found.sort(key=lambda thing: -int(thing["created"]))
        return self._refusal(request) or _page(found, request)

    async def _event(self, request: Request) -> Response:
        name = request.path_params["id"]
        return self._refusal(request) or _one(self.books.event(name), name)

    async def _session(self, request: Request) -> Response:
        return self._stored("checkout.session", request)

    async def _object(self, request: Request) -> Response:
        return self._stored(request.path_params["kind"].removesuffix("s"), request)

    def _stored(self, kind: str, request: Request) -> Response:
        name = request.path_params["id"]
        return self._refusal(request) or _one(self.books.object(kind, name), name)


def _one(found: dict[str, Any] | None, name: str) -> Response:
    if found is None:
        return _error(404, "invalid_request_error", "resource_missing", f"No such object: '{name}'")
    return JSONResponse(found)


def _page(found: list[dict[str, Any]], request: Request) -> Response:
    after = request.query_params.get("starting_after")
    limit = min(int(request.query_params.get("limit", "10")), MAX_LIMIT)
    names = [thing["id"] for thing in found]
    if after is not None and after not in names:
        return _error(400, "invalid_request_error", "resource_missing", f"No such object: '{after}'")
    start = names.index(after) + 1 if after is not None else 0
    page = found[start : start + limit]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "has_more": start + limit < len(found),
            "url": request.url.path,
        }
    )


def _error(status: int, kind: str, code: str | None, message: str) -> Response:
    headers = {"retry-after": "1"} if status == 429 else None
    return JSONResponse({"error": {"type": kind, "code": code, "message": message}}, status, headers)
