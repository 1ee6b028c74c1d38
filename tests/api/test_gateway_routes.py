"""Behind each of the gateway's routes to the api, the running api has a handler."""

from __future__ import annotations

import httpx
import pytest
from tests.deploy import gateway

from .conftest import WholeDoor

# What each answers to a caller who shows nothing: its own refusal, and neither 404 nor 405.
ANSWERS = [
    ("events", "POST", "/v1/events", 401),
    ("openmeter-ingest", "POST", "/api/v1/events", 401),
    ("sessions", "POST", "/v1/sessions", 401),
    ("sessions", "DELETE", "/v1/sessions/current", 401),
    ("documentation", "GET", "/openapi.json", 200),
    ("documentation", "GET", "/docs", 200),
    ("health", "GET", "/health", 200),
    ("stripe-webhooks", "POST", "/webhooks/stripe", 400),
    ("live-events", "GET", "/v1/events/stream", 401),
]


@pytest.mark.parametrize(("route", "method", "path", "status"), ANSWERS)
def test_the_route_ends_at_a_handler(
    whole_door: WholeDoor, route: str, method: str, path: str, status: int
) -> None:
    """The gateway sends the request on with its path as it is."""
    assert [r.name for _, r in gateway.load().taken(method, path)] == [route]

    service = whole_door.service
    at = service.operations_url if route == "documentation" else service.url
    answer = httpx.request(method, at + path, content=b"{}" if method == "POST" else None)

    assert answer.status_code == status, answer.text


def test_every_route_to_the_api_is_in_the_table() -> None:
    """Those that lead elsewhere are tested beside the manifests."""
    to_api = {r.name for s in gateway.load().services if "//kgent-api." in s.url for r in s.routes}

    assert {name for name, _, _, _ in ANSWERS} == to_api


# For inside: a node's probes, Prometheus, and whoever looks at the whole system.
INSIDE = {"/health/saas", "/health/live", "/health/ready", "/metrics", "/metrics/"}


def test_everything_that_the_api_describes_can_be_reached(whole_door: WholeDoor) -> None:
    """A route that is made and not let through would be found by its first user."""
    described = httpx.get(f"{whole_door.service.operations_url}/openapi.json").json()["paths"]
    unreachable = [
        (method, path)
        for path, methods in described.items()
        for method in methods
        if path not in INSIDE and not gateway.load().taken(method.upper(), path.replace("{id}", "x"))
    ]

    assert unreachable == []
