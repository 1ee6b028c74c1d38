"""What the contract says is what the reads take: one list of names for all."""

from __future__ import annotations

from kgents_common import usage_contract
from kgents_metering.model import query


def test_a_query_takes_what_the_contract_names() -> None:
    """Rule: no parameter is taken that is not described, and none described that is not taken."""
    described = set(usage_contract.PARAMETERS[usage_contract.QUERY])
    assert {name.removesuffix("[]") for name in query.PARAMETERS} == described


def test_every_path_is_described_with_its_methods_and_refusals() -> None:
    """Rule: operations have names of their own, and say what a refusal is."""
    paths = usage_contract.openapi_paths()
    assert {path: {*map(str.upper, operations)} for path, operations in paths.items()} == {
        path: set(methods) for path, methods in usage_contract.ROUTES.items()
    }
    operations = [operation for path in paths.values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert {"200", "400", "401", "403", "422", "429", "503"} <= set(operation["responses"])
