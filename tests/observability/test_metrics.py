"""Rules and dashboards read what services and exporters really tell."""

from __future__ import annotations

import shutil
import subprocess
import time
from functools import cache

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kgents_devstack.servers import NatsServer
from kgents_devstack.servers.process import free_port
from kgents_devstack.stack import EVERYTHING, Stack
from kgents_observability import promql
from kgents_observability.inventory import declared
from kgents_observability.rendering import HOME

from .conftest import Rule, all_rules

# What Prometheus adds to each series, and to its own.
FROM_SCRAPE = {"job", "instance"}
OF_PROMETHEUS = {
    "up": set(),
    "process_start_time_seconds": set(),
    "process_open_fds": set(),
    "process_max_fds": set(),
}
NATS_EXPORTER = HOME / "exporters" / "nats.txt"
NATS_EXPORTER_FLAGS = (
    "-connz",
    "-routez",
    "-subz",
    "-varz",
    "-healthz",
    "-jsz=all",
    "-prefix=nats",
    "-use_internal_server_id",
)


@cache
def known() -> dict[str, set[str]]:
    """Series to the labels they may have."""
    found: dict[str, set[str]] = {name: set(labels) for name, labels in OF_PROMETHEUS.items()}
    for metric in declared():
        for series in metric.series():
            found.setdefault(series, set()).update(metric.series_labels(series))
    for line in NATS_EXPORTER.read_text().splitlines():
        if not line.startswith("#"):
            name, *labels = line.split()
            found[name] = set(labels)
    for rule in all_rules():
        if not rule.is_alert:
            kept = promql.grouping_labels(rule.expr) - {"le"}
            found.setdefault(rule.name, set()).update(kept, rule.body.get("labels", {}), {"slo"})
    return found


def test_a_name_is_declared_once_in_a_service() -> None:
    """Rule: one meaning, one place."""
    names = [(metric.name, metric.package) for metric in declared()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rule", all_rules(), ids=lambda rule: f"{rule.group}-{rule.name}")
def test_a_rule_reads_metrics_and_labels_that_exist(rule: Rule) -> None:
    """Rule: a renamed metric, or a label it does not have, is seen here and not when the alert is needed."""
    exist = known()
    for reading in promql.readings(rule.expr):
        assert reading.metric in exist, reading.metric
        missing = reading.labels - exist[reading.metric] - FROM_SCRAPE
        assert not missing, f"{reading.metric} has no {missing}"
    asked = promql.grouping_labels(rule.expr) - FROM_SCRAPE
    available = set().union(*(exist[reading.metric] for reading in promql.readings(rule.expr)))
    assert asked <= available


def test_running_services_tell_what_their_source_declares(stack: Stack) -> None:
    """Rule: names and labels, both ways."""
    told: dict[str, set[str]] = {}
    for service in EVERYTHING:
        text = httpx.get(f"{stack.service(service).operations_url}/metrics").raise_for_status().text
        for family in text_string_to_metric_families(text):
            if family.name.startswith("kgents_") and not family.name.endswith("_created"):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                labels = {label for sample in family.samples for label in sample.labels}
                told.setdefault(name, set()).update(labels - {"le"})
    source = {metric.name: set(metric.labels) for metric in declared()}
    assert set(told) == set(source)
    for name, labels in told.items():
        assert labels <= source[name], name


def test_what_operators_see_is_on_their_port_alone(stack: Stack) -> None:
    """Rule: metrics, the contract and its page are on no port that callers reach; of health the status is."""
    described = ("/docs", "/openapi.json")
    healths = ("/health", "/health/live", "/health/ready", "/health/saas")
    shown: dict[str, set[str]] = {}
    told: dict[str, set[str]] = {}
    refused: set[str] = set()
    with httpx.Client() as client:
        for name in EVERYTHING:
            service = stack.service(name)
            outside = {p: client.get(service.url + p) for p in ("/metrics", "/metrics/", *described)}
            shown[name] = {path for path, answer in outside.items() if answer.status_code != 404}
            healthy = {p: client.get(service.url + p) for p in healths if name == "api" or p != healths[-1]}
            shown[name] |= {path for path, answer in healthy.items() if set(answer.json()) != {"status"}}
            inside = {p: client.get(service.operations_url + p) for p in ("/metrics", "/health", *described)}
            told[name] = {path for path, answer in inside.items() if answer.status_code == 200}
            assert inside["/health"].json()["checks"]
            refused.update(a.headers["content-type"] for a in outside.values() if a.status_code == 404)
    assert shown == {name: set() for name in EVERYTHING}
    assert refused == {"application/problem+json"}
    contracts = {"api": {*described}, "reads": {"/openapi.json"}}
    assert told == {name: {"/metrics", "/health", *contracts.get(name, ())} for name in EVERYTHING}


def test_the_recorded_names_of_the_nats_exporter_are_its_own(own_nats: NatsServer) -> None:
    """Rule: what the record says, a real exporter told; where none is installed, nobody has looked."""
    exporter = shutil.which("prometheus-nats-exporter")
    if exporter is None:
        pytest.skip("prometheus-nats-exporter is not installed: its names are as they were recorded")
    port = free_port()
    process = subprocess.Popen(
        [exporter, "-addr", "127.0.0.1", "-port", str(port), *NATS_EXPORTER_FLAGS, own_nats.monitor_url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        text = ""
        deadline = time.monotonic() + 60
        while "nats_healthz_status_value" not in text and time.monotonic() < deadline:
            time.sleep(0.1)
            try:
                text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
            except httpx.TransportError:
                continue
    finally:
        process.terminate()
        process.wait()
    told = {family.name for family in text_string_to_metric_families(text) if family.name.startswith("nats_")}
    recorded = {
        line.split()[0] for line in NATS_EXPORTER.read_text().splitlines() if not line.startswith("#")
    }
    # A server without streams tells nothing of streams and consumers.
    assert {name for name in recorded if name.startswith(("nats_varz", "nats_connz", "nats_healthz"))} <= told
