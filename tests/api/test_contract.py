"""`/openapi.json` against the running door, by schemathesis: it answers and takes what it says."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import one_of
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kgents_common import scalars
from kgents_devstack.services import ServiceProcess

from .conftest import WholeDoor

LIVE = "/v1/events/stream"
OPERATIONS = [
    ("POST", "/v1/events"),
    ("POST", "/api/v1/events"),
    ("POST", "/v1/sessions"),
    ("DELETE", "/v1/sessions/{id}"),
    ("POST", "/webhooks/stripe"),
    ("GET", "/health"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/health/saas"),
]
CREDENTIALS = ["key", "session", "reader", "none", "unknown"]
# What a good event may still be refused for: JSON Schema knows neither the time nor whose the caller is.
BEYOND_A_SCHEMA = ("time", "subject")
# What no value may hold, at any depth of data and extensions.
BEYOND_ANY_SCHEMA = (f"must be {scalars.TEXT_RULE}", f"must be {scalars.NUMBER_RULE}")


@dataclass
class Contract:
    """A door with all it can have, and what it says of itself."""

    service: ServiceProcess
    schema: schemathesis.BaseSchema
    tokens: dict[str, str]

    def check(self, method: str, path: str, credentials: str, examples: int) -> None:
        """Generate requests, of the schema and against it; each answer is one that is described."""
        operation = self.schema[path][method]
        token = self.tokens[credentials]
        headers = {"authorization": f"Bearer {token}"} if token else {}

        @settings(
            max_examples=examples,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if examples > 100 else [])],
            derandomize=examples < 100,  # the default run is the same for everybody; the long one explores
        )
        @given(
            case=one_of(
                operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
                operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
            )
        )
        def each(case: schemathesis.Case) -> None:
            case.headers.pop("Authorization", None)
            case.headers.pop("X-API-Key", None)
            answer = case.call(headers=headers)
            case.validate_response(answer, checks=CHECKS)
            if case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE:
                _check_taken(answer, path)

        each()


# Whether what is taken is right is asked in `_check_taken` and tests of their own: who may do what, too.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def _check_taken(answer: schemathesis.Response, path: str) -> None:
    """A request as the schema has it is refused for what no schema can say alone."""
    if answer.status_code == 400 and path != "/webhooks/stripe":
        wrong = answer.json().get("invalid_parameters", [])
        assert wrong, answer.text
        fields = {v["field"].rpartition(".")[2] for v in wrong if v["rule"] not in BEYOND_ANY_SCHEMA}
        assert fields <= {*BEYOND_A_SCHEMA}, (answer.text, answer.request.body)


@pytest.fixture(scope="module")
def contract(whole_door: WholeDoor) -> Contract:
    service = whole_door.service
    schema = schemathesis.openapi.from_url(f"{service.operations_url}/openapi.json")
    schema.config.update(base_url=service.url)
    return Contract(whole_door.service, schema, whole_door.tokens)


def test_every_operation_is_asked(contract: Contract) -> None:
    """Rule: no operation is left out but the stream, which has no end; its statuses are asked one by one."""
    described = {
        (method.upper(), path)
        for path, methods in contract.schema.raw_schema["paths"].items()
        for method in methods
    }
    assert described == {*OPERATIONS, ("GET", LIVE)}


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_described(contract: Contract, method: str, path: str) -> None:
    """Rule: with a good key, no 5xx, no status, type or shape that is not described; and what the schema
    allows is taken."""
    contract.check(method, path, "key", 40 if method == "POST" else 15)


@pytest.mark.parametrize("credentials", CREDENTIALS[1:])
@pytest.mark.parametrize(("method", "path"), [o for o in OPERATIONS if "/v1/" in o[1]])
def test_answers_to_other_credentials_are_as_described(
    contract: Contract, method: str, path: str, credentials: str
) -> None:
    """Rule: the same with a session's token, a key without the scope, nothing, and what nobody minted."""
    contract.check(method, path, credentials, 8)


@pytest.mark.long
@pytest.mark.parametrize("credentials", CREDENTIALS)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_many_answers_are_as_described(contract: Contract, method: str, path: str, credentials: str) -> None:
    contract.check(method, path, credentials, 500)


@pytest.mark.parametrize(
    ("credentials", "query", "headers", "status"),
    [
        ("key", "", {}, 200),
        ("session", "?type=llm.*", {"last-event-id": "0"}, 200),
        ("key", "?type=%3E", {}, 400),
        ("key", "", {"last-event-id": "x"}, 400),
        ("none", "", {}, 401),
        ("unknown", "", {}, 401),
    ],
)
async def test_the_live_stream_answers_as_described(
    contract: Contract, credentials: str, query: str, headers: dict[str, str], status: int
) -> None:
    """Rule: as above, for the answer's head and its first bytes."""
    described = contract.schema.raw_schema["paths"][LIVE]["get"]["responses"]
    token = contract.tokens[credentials]
    sent = {**headers, **({"authorization": f"Bearer {token}"} if token else {})}
    async with (
        httpx.AsyncClient(base_url=contract.service.url, timeout=20) as client,
        client.stream("GET", LIVE + query, headers=sent) as answer,
    ):
        assert answer.status_code == status
        assert answer.headers["content-type"] in described[str(status)]["content"]
        async for chunk in answer.aiter_bytes():
            assert chunk
            break


@pytest.mark.parametrize(("method", "path"), [*OPERATIONS, ("GET", LIVE)])
@pytest.mark.parametrize("wrong", ["TRACE", "PATCH", "PUT", "GET", "POST", "DELETE"])
def test_another_method_is_405_and_says_which_are_taken(
    contract: Contract, method: str, path: str, wrong: str
) -> None:
    if wrong == method:
        pytest.skip("the right one")
    answer = httpx.request(wrong, contract.service.url + path.replace("{id}", "x"))
    assert answer.status_code == 405
    assert method in answer.headers["allow"]
    assert answer.headers["content-type"] == "application/problem+json"
