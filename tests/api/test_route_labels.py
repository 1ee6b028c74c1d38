"""What a request is counted as: the template of its route, never what a caller wrote."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from kgents_api.handlers.instrument import Instrument
from kgents_api.metrics import Metrics
from kgents_common import usage_contract

SESSION = "/v1/sessions/{id}"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/api/v1/meters", usage_contract.METERS),
        ("/api/v1/meters/tokens", usage_contract.METER),
        ("/api/v1/meters/tokens/query", usage_contract.QUERY),
        ("/api/v1/meters/tokens/group-by/model/values", usage_contract.GROUP_VALUES),
        ("/v1/conflicts/7", usage_contract.CONFLICT),
        ("/v1/sessions/ses_1", SESSION),
        ("/api/v1/meters/tokens/query/x", "other"),
        ("/api/v1/meters//query", "other"),
        ("/v1/sessions/a/b", "other"),
        ("/x", "other"),
    ],
)
async def test_a_path_with_parameters_is_counted_as_its_template(path: str, label: str) -> None:
    """Rule: every question has the label of its route, and its limits: those passed on take no place."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    registry = CollectorRegistry()
    labels = [*usage_contract.ROUTES, SESSION]
    instrument = Instrument(
        app,
        direct={},
        routes={one: one for one in labels},
        metrics=Metrics(registry),
        tracer=None,
        max_concurrency=1,
    )

    async def send(_: object) -> None: ...

    await instrument({"type": "http", "method": "GET", "path": path, "headers": []}, None, send)  # type: ignore[arg-type]
    counted = {"route": label, "method": "GET", "code": "204"}
    assert registry.get_sample_value("kgents_api_requests_total", counted) == 1
