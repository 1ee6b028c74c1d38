"""Who may talk to whom: the evaluator is right, and the policies allow the table's edges and not one more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from .network import End, is_allowed
from .rendered import COMBINED, WITH_SENTINELS, Object, overlay, ports_of, workloads

NAME = "app.kubernetes.io/name"
T, A, O, DNS = "kgents-triad", "kgents-agents", "kgents-observability", "kube-system"  # noqa: E741 the seed's three
OUTSIDE = End("internet", address="203.0.113.9")
PRIVATE = End("neighbour", address="10.99.0.4")

# The seed's edges and the design's, for each that calls: whom, and at which ports.
SERVICES = ("kgent-api", "kgent-metering", "kgent-metering-reads", "kgent-billing")
EDGES: dict[str, set[tuple[str, int]]] = {
    "internet": {("triad-kong", 8000), ("triad-kong", 8443)},
    "neighbour": {("triad-kong", 8000), ("triad-kong", 8443)},
    "stranger": {("triad-kong", 8000), ("triad-kong", 8443)},
    "keda-operator": {("triad-kong", 8000), ("triad-kong", 8443)},
    # In a namespace that is marked as the agents'.
    "agent": {("triad-kong", 8000), ("triad-kong", 8443), ("nats", 4222)},
    "kgent-agents": {("nats", 4222), ("triad-redis", 6379), ("otel-collector", 4318)},
    "triad-kong": {
        ("kgent-api", 8000),
        ("kgent-api", 9000),
        ("kgent-metering-reads", 8001),
        ("kgent-billing", 8002),
        ("otel-collector", 4318),
    },
    "kgent-api": {
        ("nats", 4222),
        ("triad-redis", 6379),
        ("kgent-metering-reads", 8001),
        ("otel-collector", 4318),
    },
    "kgent-metering": {
        ("nats", 4222),
        ("triad-postgres", 5432),
        ("otel-collector", 4318),
        ("internet", 443),
    },
    "kgent-metering-reads": {("nats", 4222), ("triad-postgres", 5432), ("otel-collector", 4318)},
    "kgent-billing": {
        ("nats", 4222),
        ("triad-postgres", 5432),
        ("triad-redis", 6379),
        ("otel-collector", 4318),
        ("internet", 443),
    },
    "kgent-backup": {("nats", 4222), ("triad-postgres", 5432), ("otel-collector", 4318)},
    "kgent-backup-daily": {("nats", 4222), ("triad-postgres", 5432), ("otel-collector", 4318)},
    "kgents-streams": {("nats", 4222)},
    "kgents-meters": {("triad-postgres", 5432)},
    "nats": {("nats", 6222)},
    "prometheus": {
        ("kgent-api", 9000),
        ("kgent-metering", 9001),
        ("kgent-metering-reads", 9001),
        ("kgent-billing", 9002),
        ("kgent-backup", 9003),
        ("triad-kong", 8100),
        ("nats", 7777),
        ("keda-operator", 443),
        ("stranger", 443),
        ("agent", 443),
        ("kgent-agents", 9004),
    },
    # Both ask the Kubernetes API, whose address no policy can name: 443 of whatever is not the system's.
    "log-collector": {("keda-operator", 443), ("stranger", 443), ("agent", 443)},
}
OFFSITE = {("internet", 443)}
LEAF_OUT = {(end, 7422) for end in ("internet", "neighbour", "stranger", "keda-operator", "agent")}
# What an overlay's components add.
MORE: dict[str, dict[str, set[tuple[str, int]]]] = {
    "local": {},
    "production": {
        "kgent-backup": OFFSITE,
        "kgent-backup-daily": OFFSITE,
        "keda-operator": {("nats", 8222), ("nats", 7422)},
        "internet": {("nats", 7422)},
        "neighbour": {("nats", 7422)},
        "stranger": {("nats", 7422)},
        "agent": {("nats", 7422)},
    },
    "dr": {"kgent-backup": OFFSITE, "kgent-backup-daily": OFFSITE, "nats": LEAF_OUT},
}
MORE[WITH_SENTINELS] = {
    **MORE["production"],
    **{client: {("triad-redis", 26379)} for client in ("kgent-api", "kgent-agents", "kgent-billing")},
    "triad-redis": {("triad-redis", 6379), ("triad-redis", 26379)},
}
# Asked of every target besides its own ports.
OTHER_PORTS = (22, 53, 80, 443, 4222, 5432, 6222, 6379, 7422, 8222)


def ends_of(name: str) -> list[End]:
    """Every workload's pod, the ends that are not ours, and strangers."""
    ends = [
        End(w.name if w.kind != "CronJob" else w.labels[NAME], w.namespace, w.labels, ports=dict(ports_of(w)))
        for w in workloads(overlay(name))
    ]
    known = {end.labels[NAME] for end in ends}
    for label, port in (("prometheus", 9090), ("otel-collector", 4318)):
        if label not in known:
            ends.append(End(label, O, {NAME: label}, ports={"http": port}))
    return [
        *ends,
        End("keda-operator", "keda", {NAME: "keda-operator"}),
        End("agent", "acme", {NAME: "agent"}, namespace_labels={"kgents.io/agents": "allowed"}),
        End("stranger", "default", {NAME: "kgent-api"}),
        OUTSIDE,
        PRIVATE,
    ]


@pytest.mark.parametrize("name", COMBINED)
def test_the_table_s_edges_are_open_and_no_other_is(name: str) -> None:
    """Every pair of ends, at every port that any of them has: allowed if it is in the table, else refused."""
    ends = ends_of(name)
    policies = [found for found in overlay(name) if found["kind"] == "NetworkPolicy"]
    ports = sorted({port for end in ends for port in end.ports.values()} | set(OTHER_PORTS))

    open_edges: dict[str, set[tuple[str, int]]] = {}
    for source in ends:
        for target in ends:
            # What the observability's own parts say to each other is their tests' matter.
            is_theirs = source.namespace == O and target.namespace in (O, None)
            if is_theirs or (source.namespace is None and target.namespace is None):
                continue
            if source.namespace not in (T, A, O) and target.namespace not in (T, A, O):
                continue
            for port in ports:
                if is_allowed(policies, source, target, port):
                    open_edges.setdefault(source.name, set()).add((target.name, port))

    wanted = {name: set(edges) for name, edges in EDGES.items()}
    for source_name, edges in MORE[name].items():
        wanted.setdefault(source_name, set()).update(edges)
    assert {source: sorted(edges) for source, edges in open_edges.items()} == {
        source: sorted(edges) for source, edges in wanted.items()
    }


@pytest.mark.parametrize("namespace", [T, A, O])
def test_every_pod_may_ask_for_names_and_nothing_else_of_the_system(namespace: str) -> None:
    """DNS by both protocols at kube-system, and there at no other port."""
    policies = [found for found in overlay("production") if found["kind"] == "NetworkPolicy"]
    pod, names = End("any", namespace, {}), End("dns", DNS, {})

    assert [p for p in (53, 443, 6443) if is_allowed(policies, pod, names, p, "UDP")] == [53]
    assert [p for p in (53, 443, 6443) if is_allowed(policies, pod, names, p, "TCP")] == [53]


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "172.20.0.3", "192.168.1.1", "169.254.169.254", "100.64.0.9"]
)
def test_what_may_go_out_of_the_cluster_does_not_reach_inside_or_the_clouds_metadata(address: str) -> None:
    """Billing may ask Stripe; it may not ask the node's metadata for the node's credentials."""
    policies = [found for found in overlay("production") if found["kind"] == "NetworkPolicy"]
    billing = End("kgent-billing", T, {NAME: "kgent-billing"})

    assert is_allowed(policies, billing, OUTSIDE, 443)
    assert not is_allowed(policies, billing, End("inside", address=address), 443)


def policy(namespace: str, **spec: Any) -> Object:
    """A policy for the evaluator's own tests."""
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


A_POD, B_POD = End("a", "x", {"app": "a"}), End("b", "y", {"app": "b"}, ports={"http": 8080})
NAMED_Z = {"podSelector": {"matchLabels": {"app": "z"}}}
FROM_X = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "x"}}}
ANY, NOT_TEN = {"cidr": "0.0.0.0/0"}, {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}


@pytest.mark.parametrize(
    ("policies", "is_open"),
    [
        ([], True),
        ([policy("y", policyTypes=["Ingress"])], False),
        ([policy("y", policyTypes=["Egress"])], True),
        ([policy("x", policyTypes=["Egress"])], False),
        ([policy("y", ingress=[{}])], True),
        # A pod selector alone means the policy's own namespace.
        ([policy("y", ingress=[{"from": [{"podSelector": {}}]}])], False),
        ([policy("y", ingress=[{"from": [{"namespaceSelector": {}}]}])], True),
        ([policy("y", ingress=[{"from": [FROM_X]}])], True),
        (
            [policy("y", ingress=[{"from": [{**FROM_X, **NAMED_Z}]}])],
            False,
        ),
        # Two peers of one rule are either; two rules are either.
        ([policy("y", ingress=[{"from": [{"podSelector": {}}, {"namespaceSelector": {}}]}])], True),
        ([policy("y", ingress=[{"ports": [{"port": 80}]}, {"ports": [{"port": "http"}]}])], True),
        ([policy("y", ingress=[{"ports": [{"port": 8000, "endPort": 8090}]}])], True),
        ([policy("y", ingress=[{"ports": [{"port": 8080, "protocol": "UDP"}]}])], False),
        ([policy("y", ingress=[{"from": [{"ipBlock": ANY}]}])], True),
        ([policy("y", ingress=[{"from": [{"ipBlock": NOT_TEN}]}])], False),
    ],
)
def test_the_evaluator_reads_policies_as_kubernetes_does(
    policies: list[Mapping[str, Any]], is_open: bool
) -> None:
    """The rules of the API's reference, one by one."""
    assert is_allowed(policies, A_POD, B_POD, 8080) is is_open
