"""The gateway's routes: strictly read, each with a handler behind it; what is the system's own is not routed.

What the api answers on each of its routes is `tests/api/test_gateway_routes.py`.
"""

from __future__ import annotations

import re
from typing import Any, cast

import pytest
from starlette.routing import Match, Route

from kgents_api.settings import ApiSettings
from kgents_billing.handlers import reads as billing
from kgents_common import usage_contract

from . import gateway

KONG = gateway.load()

# A request of each route, and whose it is.
REQUESTS = [
    ("events", "POST", "/v1/events", "kgent-api"),
    ("openmeter-ingest", "POST", "/api/v1/events", "kgent-api"),
    ("sessions", "POST", "/v1/sessions", "kgent-api"),
    ("sessions", "DELETE", "/v1/sessions/current", "kgent-api"),
    ("documentation", "GET", "/openapi.json", "kgent-api"),
    ("documentation", "GET", "/docs", "kgent-api"),
    ("health", "GET", "/health", "kgent-api"),
    ("stripe-webhooks", "POST", "/webhooks/stripe", "kgent-api"),
    ("live-events", "GET", "/v1/events/stream", "kgent-api"),
    ("meters", "GET", "/api/v1/meters", "kgent-metering-reads"),
    ("meters", "GET", "/api/v1/meters/tokens", "kgent-metering-reads"),
    ("meters", "GET", "/api/v1/meters/tokens/subjects", "kgent-metering-reads"),
    ("meters", "GET", "/api/v1/meters/tokens/group-by/model/values", "kgent-metering-reads"),
    ("meter-queries", "GET", "/api/v1/meters/tokens/query", "kgent-metering-reads"),
    ("meter-queries", "POST", "/api/v1/meters/tokens/query", "kgent-metering-reads"),
    ("conflicts", "GET", "/v1/conflicts", "kgent-metering-reads"),
    ("conflicts", "GET", "/v1/conflicts/1", "kgent-metering-reads"),
    ("conflicts", "GET", "/v1/bad-events", "kgent-metering-reads"),
    ("counted-events", "GET", "/api/v1/events", "kgent-metering-reads"),
    ("counted-events", "GET", "/api/v2/events", "kgent-metering-reads"),
    ("subscription", "GET", "/v1/billing/subscription", "kgent-billing"),
    ("entitlements", "GET", "/v1/billing/entitlements", "kgent-billing"),
    ("entries", "GET", "/v1/billing/entries", "kgent-billing"),
]


def test_the_file_is_one_that_kong_s_schema_takes() -> None:
    """Entities and the five plugins, strictly; what was checked against Kong's own is in ADR 0051."""
    for plugin in [*KONG.plugins, *(p for s in KONG.services for r in s.routes for p in r.plugins)]:
        plugin.configuration()
    names = [route.name for service in KONG.services for route in service.routes]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "method", "path", "service"), REQUESTS)
def test_a_request_takes_its_route_and_no_other(name: str, method: str, path: str, service: str) -> None:
    """Two routes for one request would leave it to chance."""
    taken = KONG.taken(method, path)

    assert [route.name for _, route in taken] == [name]
    assert taken[0][0].url.startswith(f"http://{service}.")


def test_every_route_has_a_request_in_this_table() -> None:
    """A route that nobody tested may lead nowhere."""
    assert {name for name, _, _, _ in REQUESTS} == {r.name for s in KONG.services for r in s.routes}


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/health/saas",
        "/health/ready",
        "/health/live",
        "/v1/events/",
        "/v1/events/streams",
        "/webhooks/stripe/x",
        "/admin",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_is_the_system_s_own_is_not_routed(path: str, method: str) -> None:
    """Metrics and the whole system's health are for inside; a path is whole, not a beginning."""
    assert KONG.taken(method, path) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/meters"),
        ("PUT", "/api/v1/meters/tokens"),
        ("DELETE", "/api/v1/meters/tokens"),
        ("GET", "/v1/meter-changes"),
        ("GET", "/v1/meters/tokens/progress"),
    ],
)
def test_who_changes_meters_comes_from_inside(method: str, path: str) -> None:
    """What an operator's key may do is not a matter of the internet's, whoever has the key."""
    assert KONG.taken(method, path) == []


def endpoints(service: str) -> list[Route]:
    """The routes of a service: billing's as it makes them, the reads' as their contract has them."""
    if service == "kgent-billing":
        made = billing.routes(object.__new__(billing.Reads))
        return [route for route in made if isinstance(route, Route)]
    return [
        Route(path, lambda request: None, methods=list(methods))
        for path, methods in usage_contract.ROUTES.items()
    ]


@pytest.mark.parametrize(("method", "path", "service"), [r[1:] for r in REQUESTS if r[3] != "kgent-api"])
def test_a_handler_answers_behind_the_route(method: str, path: str, service: str) -> None:
    """The service's own routes match the request whole, by path and method."""
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    matches = [route.matches(dict(scope))[0] for route in endpoints(service)]

    assert matches.count(Match.FULL) == 1


@pytest.mark.parametrize("service", ["kgent-metering-reads", "kgent-billing"])
def test_every_answer_of_a_service_can_be_reached(service: str) -> None:
    """A route that is made and not let through would be found by its first user."""
    for route in endpoints(service):
        path = re.sub(r"\{[^}]+\}", "x", route.path)
        for method in (route.methods or set()) - {"HEAD"}:
            assert KONG.taken(method, path), (method, path)


def test_bodies_pass_untouched() -> None:
    """Paths stay whole, nothing transforms, and a webhook meets no limit but its size: it is signed."""
    for service in KONG.services:
        for route in service.routes:
            assert route.strip_path is False
            assert {p.name for p in route.plugins} <= {"rate-limiting"}
    assert KONG.taken("POST", "/webhooks/stripe")[0][1].plugins == []
    assert {p.name for p in KONG.plugins} == set(gateway.CONFIGURATIONS) - {"rate-limiting"}


def test_what_writes_is_sent_once() -> None:
    """A try again by the gateway would be one that the caller does not know of."""
    for service in KONG.services:
        if any(m in r.methods for r in service.routes for m in ("POST", "DELETE")) and "api" in service.name:
            assert service.retries == 0


def test_a_live_stream_is_passed_on_as_it_comes_and_outlives_its_silences() -> None:
    """Unbuffered; between two reads there may be twice the door's own beat and more."""
    service, route = KONG.taken("GET", "/v1/events/stream")[0]
    beat = ApiSettings.model_fields["live_heartbeat_seconds"].default

    assert route.response_buffering is False
    assert service.read_timeout / 1000 >= 2 * beat


def test_a_body_that_the_door_takes_passes_the_gateway() -> None:
    """The door's own limit answers first, with a problem document."""
    size = next(p.configuration() for p in KONG.plugins if p.name == "request-size-limiting")

    assert size.allowed_payload_size * 1_000_000 > ApiSettings.model_fields["max_batch_bytes"].default


@pytest.mark.parametrize(
    ("shown", "address"),
    [
        ("203.0.113.9", "203.0.113.9"),
        # A caller who tells of another address tells it to the left of its own.
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 10.0.3.4", "203.0.113.9"),
    ],
)
async def test_the_caller_s_address_is_the_gateway_s_word(shown: str, address: str) -> None:
    """The door believes the cluster's own networks, and of the list the rightmost that is none of them."""
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    from .rendered import find, overlay

    pod = find(overlay("production"), "Deployment", "kgent-api")["spec"]["template"]["spec"]
    told = {v["name"]: v.get("value", "") for v in pod["containers"][0]["env"]}
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["client"][0])

    believing = ProxyHeadersMiddleware(app, trusted_hosts=told["FORWARDED_ALLOW_IPS"])
    for peer in ("10.244.1.7", "203.0.113.77"):
        headers = [(b"x-forwarded-for", shown.encode())]
        scope: Any = {"type": "http", "client": (peer, 1), "headers": headers}
        await believing(scope, cast("Any", None), cast("Any", None))

    assert seen == [address, "203.0.113.77"]
