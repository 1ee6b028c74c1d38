"""What is optional and in no overlay: each component with the overlay it is meant for."""

from __future__ import annotations

import kubernetes_validate
import pytest

from . import custom_resources
from .network import End, is_allowed
from .rendered import Object, find, is_custom, name_of, with_component, workloads

NAME = "app.kubernetes.io/name"
T, A = "kgents-triad", "kgents-agents"
PRIVATE = End("neighbour", address="10.99.0.4")


@pytest.fixture(
    scope="module", params=[("production", "external-postgres"), ("production", "external-redis")]
)
def rendered(request: pytest.FixtureRequest) -> tuple[str, tuple[Object, ...]]:
    """The component's name, and every object."""
    overlay, component = request.param
    return component, with_component(overlay, component)


def test_what_it_adds_is_valid(rendered: tuple[str, tuple[Object, ...]]) -> None:
    """As every other object: its schema, or its project's word."""
    for found in rendered[1]:
        if is_custom(found):
            custom_resources.check(found)
        elif "external" in found["metadata"]["name"] or found["kind"] == "Deployment":
            kubernetes_validate.validate(found, "1.29", strict=True)


def test_what_it_replaces_is_gone_and_nobody_still_looks_for_it(
    rendered: tuple[str, tuple[Object, ...]],
) -> None:
    """Neither its pods, nor its Service and policy, nor its address in what the services are told."""
    component, objects = rendered
    gone = f"triad-{component.removeprefix('external-')}"

    left = [name_of(o) for o in objects if o["metadata"]["name"] == gone and o["kind"] != "ExternalSecret"]
    assert left == []
    assert f"{gone}.{T}.svc" not in str([o for o in objects if o["kind"] != "ExternalSecret"])


def test_an_external_database_is_reached_by_those_who_have_one_and_by_nobody_else() -> None:
    """At its port, wherever it is."""
    policies = [o for o in with_component("local", "external-postgres") if o["kind"] == "NetworkPolicy"]

    for name in ("kgent-metering", "kgent-metering-reads", "kgents-meters", "kgent-billing"):
        assert is_allowed(policies, End(name, T, {NAME: name}), PRIVATE, 5432), name
    for name in ("kgent-backup", "kgent-backup-daily"):
        assert is_allowed(policies, End(name, A, {NAME: name}), PRIVATE, 5432), name
    for name in ("kgent-api", "triad-kong", "triad-redis"):
        assert not is_allowed(policies, End(name, T, {NAME: name}), PRIVATE, 5432), name


def test_an_external_redis_is_reached_by_the_door_and_billing_with_the_secret_s_url() -> None:
    """And its port by nobody else."""
    objects = with_component("production", "external-redis")
    policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
    secret = find(objects, "ExternalSecret", "triad-redis", T)

    for name in ("kgent-api", "kgent-agents", "kgent-billing"):
        assert is_allowed(policies, End(name, T, {NAME: name}), PRIVATE, 6380), name
        assert is_allowed(policies, End(name, T, {NAME: name}), PRIVATE, 26379), name
        container = next(w for w in workloads(objects) if w.name == name).pod["containers"][0]
        told = [v for v in container["env"] if v["name"] == "REDIS_URL"]
        wanted = {"name": secret["spec"]["target"]["name"], "key": secret["spec"]["data"][0]["secretKey"]}
        assert told == [{"name": "REDIS_URL", "valueFrom": {"secretKeyRef": wanted}}]
    for name in ("kgent-metering", "triad-kong"):
        assert not is_allowed(policies, End(name, T, {NAME: name}), PRIVATE, 6380), name
