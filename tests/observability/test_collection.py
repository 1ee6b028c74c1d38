"""Telemetry arrives: configurations real parsers take, one trace from door to bill, lines that name it."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rich.console import Console

from kgents_devstack.demo import subscription
from kgents_devstack.servers.process import Server, free_port
from kgents_devstack.stack import EVERYTHING, Stack, StackOptions
from kgents_devstack.waiting import until
from kgents_observability.rendering import HOME

from .conftest import ROOT, program

COLLECTORS = ("otelcol-contrib", "otelcol-kgents", "otelcol")
TRACE = "0af7651916cd43dd8448eb211c80319c"
# Marks a message as a repeat with other contents: metering says so in its log.
CONFLICTING = "4bf92f3577b34da6a3ce929d0e0e4736"


def collector() -> str:
    """An OpenTelemetry collector that knows our components; the test is skipped where there is none."""
    found = next((path for name in COLLECTORS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"none of {', '.join(COLLECTORS)} is installed: no real collector read its configuration")
    return found


def test_a_real_collector_takes_its_configuration() -> None:
    """Rule: every component and every key of it exist."""
    checked = subprocess.run(
        [collector(), "validate", "--config", str(HOME / "collector" / "config.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_prometheus_and_alertmanager_take_theirs(tmp_path: Path) -> None:
    """Rule: as above; Debian's Prometheus knows no Kubernetes, so its discovery is left out here."""
    document = yaml.safe_load((HOME / "prometheus" / "prometheus.yaml").read_text())
    for scrape in document["scrape_configs"]:
        if scrape.pop("kubernetes_sd_configs", None):
            scrape["file_sd_configs"] = [{"files": ["none.json"]}]
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(document))
    promtool = [program("promtool"), "check", "config", "--syntax-only", str(path)]
    amtool = [program("amtool"), "check-config", str(HOME / "alertmanager" / "alertmanager.yaml")]
    for command in (promtool, amtool):
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_tempo_loki_and_alloy_take_theirs() -> None:
    """Rule: as above, by each program's own check where it is installed; the rest is skipped by name."""
    checks = {
        "tempo": ["-config.verify", f"-config.file={HOME / 'tempo' / 'config.yaml'}"],
        "loki": ["-verify-config", f"-config.file={HOME / 'loki' / 'config.yaml'}"],
        "alloy": ["validate", str(HOME / "logs" / "config.alloy")],
    }
    missing = [name for name in checks if shutil.which(name) is None]
    for name, arguments in checks.items():
        if name not in missing:
            checked = subprocess.run([name, *arguments], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{name}: {checked.stdout}{checked.stderr}"
    if missing:
        pytest.skip(f"not installed, so nobody read the configuration of {', '.join(missing)}")


def test_every_rule_and_dashboard_is_mounted() -> None:
    """Rule: a file that was added is in a ConfigMap too."""
    generated = yaml.safe_load((HOME / "kustomization.yaml").read_text())["configMapGenerator"]
    files = {name.rpartition("=")[2] for one in generated for name in one["files"]}
    for folder, kind in (("prometheus/rules", "yaml"), ("dashboards", "json")):
        assert {f"{folder}/{path.name}" for path in (HOME / folder).glob(f"*.{kind}")} <= files
    assert all((HOME / name).is_file() for name in files)


def test_prometheus_finds_every_service_by_a_port_that_it_has() -> None:
    """Rule: the ports that discovery keeps are container ports of the manifests."""
    ports: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "deploy" / "k8s" / "base").rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if (document or {}).get("kind") in ("Deployment", "StatefulSet"):
                pod = document["spec"]["template"]
                name = pod["metadata"]["labels"]["app.kubernetes.io/name"]
                for container in pod["spec"]["containers"]:
                    ports[name] |= {port["name"] for port in container.get("ports", ())}
    for name in ("kgent-api", "kgent-metering", "kgent-metering-reads", "kgent-billing", "kgent-backup"):
        assert "operations" in ports[name], name
    assert "metrics" in ports["nats"]
    assert "status" in ports["triad-kong"]


def test_data_sources_lead_to_each_other() -> None:
    """Rule: metric → trace → logs and back name data sources that exist."""
    sources = yaml.safe_load((HOME / "grafana" / "datasources.yaml").read_text())["datasources"]
    by_uid = {source["uid"]: source["jsonData"] for source in sources}
    metric = by_uid["prometheus"]["exemplarTraceIdDestinations"][0]
    assert (metric["name"], metric["datasourceUid"]) == ("trace_id", "tempo")
    assert by_uid["tempo"]["tracesToLogsV2"]["datasourceUid"] == "loki"
    assert by_uid["loki"]["derivedFields"][0]["datasourceUid"] == "tempo"


class Collector(Server):
    """A real collector with our configuration, that writes what it keeps into a file instead of to Tempo."""

    name = "otelcol"

    def __init__(self, directory: Path, command: str) -> None:
        super().__init__(directory)
        self._command_path = command
        self.port = free_port()
        self.health, self.own, self.spans_port = free_port(), free_port(), free_port()
        self.kept = directory / "traces.jsonl"

    def _prepare(self) -> None:
        config = yaml.safe_load((HOME / "collector" / "config.yaml").read_text())
        config["receivers"]["otlp"]["protocols"]["http"]["endpoint"] = f"127.0.0.1:{self.port}"
        config["extensions"]["health_check"]["endpoint"] = f"127.0.0.1:{self.health}"
        config["exporters"]["prometheus"]["endpoint"] = f"127.0.0.1:{self.spans_port}"
        reader = config["service"]["telemetry"]["metrics"]["readers"][0]["pull"]["exporter"]["prometheus"]
        reader.update(host="127.0.0.1", port=self.own)
        config["exporters"]["file"] = {"path": str(self.kept), "flush_interval": "200ms"}
        del config["exporters"]["otlphttp/tempo"]
        config["service"]["pipelines"]["traces/keep"]["exporters"] = ["file"]
        sampling = config["processors"]["tail_sampling"]
        sampling["policies"][-1]["probabilistic"]["sampling_percentage"] = 100
        sampling["decision_wait"] = "5s"
        config["connectors"]["spanmetrics"]["metrics_flush_interval"] = "1s"
        (self.directory / "config.yaml").write_text(yaml.safe_dump(config))

    def _command(self) -> Sequence[str]:
        return [self._command_path, "--config", "config.yaml"]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.health}/").status_code == 200
        except httpx.TransportError:
            return False

    def traces(self) -> dict[str, set[tuple[str, str]]]:
        """Trace to the services and names of its spans; a batch's span is in each trace that it links to."""
        found: dict[str, set[tuple[str, str]]] = defaultdict(set)
        for line in self.kept.read_text().splitlines() if self.kept.exists() else ():
            for resource in json.loads(line)["resourceSpans"]:
                attributes = {
                    a["key"]: a["value"].get("stringValue", "") for a in resource["resource"]["attributes"]
                }
                for scope in resource["scopeSpans"]:
                    for span in scope["spans"]:
                        what = (attributes["service.name"], span["name"])
                        for trace in (span["traceId"], *(link["traceId"] for link in span.get("links", ()))):
                            found[trace].add(what)
        return found


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Collector]]:
    """A stack whose spans go to a real collector."""
    command = collector()
    directory = tmp_path_factory.mktemp("collected")
    with Collector(directory / "otelcol", command) as running:
        telling = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{running.port}"}
        options = StackOptions(services=EVERYTHING, environment=dict.fromkeys(EVERYTHING, telling))
        with Stack(directory / "stack", options) as stack:
            yield stack, running


def post(stack: Stack, event_id: str, trace: str, **data: Any) -> None:
    event = {"specversion": "1.0", "id": event_id, "source": "agents/a1", "type": "llm.tokens", "data": data}
    httpx.post(
        f"{stack.service('api').url}/v1/events",
        json=event,
        headers={
            "authorization": f"Bearer {stack.keys['acme']}",
            "content-type": "application/cloudevents+json",
            "traceparent": f"00-{trace}-b7ad6b7169203331-01",
        },
    ).raise_for_status()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_event_and_a_webhook_are_one_trace_each_at_a_real_collector(
    collected: tuple[Stack, Collector],
) -> None:
    """Rule: HTTP → NATS → ledger → OpenMeter; webhook → billing → fact → ledger; both are kept."""
    stack, running = collected
    post(stack, "traced", TRACE, tokens=3)
    event = {
        ("kgent-api", "POST /v1/events"),
        ("kgent-metering", "metering apply"),
        ("kgent-metering", "metering deliver"),
    }
    until(lambda: event <= running.traces()[TRACE], state=running.traces)
    subscription.run(Console(file=StringIO()), stack, random.Random(1))
    webhook = {
        ("kgent-api", "POST /webhooks/stripe"),
        ("kgent-billing", "billing process"),
        ("kgent-metering", "metering apply"),
    }
    until(lambda: any(webhook <= spans for spans in running.traces().values()), state=running.traces)
    counted = httpx.get(f"http://127.0.0.1:{running.spans_port}/metrics").text
    assert "kgents_spans_" in counted


@pytest.mark.long
@pytest.mark.timeout(600)
def test_log_lines_and_exemplars_name_their_trace(collected: tuple[Stack, Collector]) -> None:
    """Rule: from a line to the trace and from a slow request to the trace."""
    stack, _ = collected
    post(stack, "contradicted", TRACE, tokens=3)
    time.sleep(0.1)
    post(stack, "contradicted", CONFLICTING, tokens=4)
    log = stack.service("metering").log_path

    def lines() -> list[dict[str, Any]]:
        read = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [line for line in read if line["event"] == "apply.not_counted"]

    until(lambda: bool(lines()), state=log.read_text)
    assert lines()[-1]["trace_id"] == CONFLICTING
    openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
    text = httpx.get(f"{stack.service('api').operations_url}/metrics", headers=openmetrics).text
    assert f'trace_id="{CONFLICTING}"' in text
    text = httpx.get(f"{stack.service('metering').operations_url}/metrics", headers=openmetrics).text
    assert f'trace_id="{CONFLICTING}"' in text
