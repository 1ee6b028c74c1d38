"""A worker's requests are counted by what it declares; nothing that a stranger writes becomes a label."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kgents_common.application import application
from kgents_common.request_metrics import RequestMetrics


async def _answer(request: Request) -> Response:
    if request.path_params["meter"] == "broken":
        raise ZeroDivisionError
    return Response(status_code=204)


async def test_requests_are_counted_by_declared_route_method_and_code() -> None:
    """Rule: one series for a route, whatever its parameters; other paths and methods share one."""
    registry = CollectorRegistry()
    routes = [Route("/v1/meters/{meter}", _answer, methods=["GET"])]
    app = application(routes, requests=RequestMetrics(registry))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/v1/meters/a", "/v1/meters/b", "/nowhere/a", "/nowhere/b"):
            await client.get(path)
        await client.post("/v1/meters/a")
        await client.request("BREW", "/v1/meters/a")
        with pytest.raises(ZeroDivisionError):
            await client.get("/v1/meters/broken")
    counted = {
        (sample.labels["route"], sample.labels["method"], sample.labels["code"]): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "kgents_http_requests_total"
    }
    route = "/v1/meters/{meter}"
    assert counted == {
        (route, "GET", "204"): 2,
        ("other", "GET", "404"): 2,
        (route, "POST", "405"): 1,
        (route, "other", "405"): 1,
        (route, "GET", "500"): 1,
    }
