"""Every panel's query returns data from a real Prometheus that scraped the real services at work."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from rich.console import Console

from kgents_devstack.demo import subscription, traffic
from kgents_devstack.demo.traffic import Sent
from kgents_devstack.servers.process import Server, free_port
from kgents_devstack.stack import EVERYTHING, Stack
from kgents_observability.dashboards import BOARDS

from .conftest import RULES, program
from .test_metrics import NATS_EXPORTER_FLAGS

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


class Exporter(Server):
    """prometheus-nats-exporter, as the manifests run it."""

    name = "nats-exporter"

    def __init__(self, directory: Path, command: str, monitor_url: str) -> None:
        super().__init__(directory)
        self.port = free_port()
        self._arguments = [command, "-addr", "127.0.0.1", *NATS_EXPORTER_FLAGS, monitor_url]

    def _command(self) -> Sequence[str]:
        return [*self._arguments[:1], "-port", str(self.port), *self._arguments[1:]]


class Prometheus(Server):
    """A real Prometheus with our rules, that looks every second."""

    name = "prometheus"

    def __init__(self, directory: Path, command: str, targets: dict[str, int]) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.command = command
        self.targets = targets

    def _prepare(self) -> None:
        scrapes = [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for job, port in self.targets.items()
        ]
        document = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES / "*.yaml")],
            "scrape_configs": scrapes,
        }
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(document))

    def _command(self) -> Sequence[str]:
        return [
            self.command,
            "--config.file=prometheus.yml",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--enable-feature=exemplar-storage",
        ]

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/{path}", params=parameters, timeout=30)
        return answer.raise_for_status().json()["data"]


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has watched events, garbage, repeats, a subscription's life and a drill."""
    command = program("prometheus")
    directory = tmp_path_factory.mktemp("prometheus")
    jobs = {"reads": "metering-reads"}  # as its pods are labelled
    targets = {f"kgent-{jobs.get(name, name)}": stack.service(name).operations_port for name in EVERYTHING}
    exporter_command = shutil.which("prometheus-nats-exporter")
    exporter = Exporter(directory, exporter_command, stack.nats.monitor_url) if exporter_command else None
    if exporter is not None:
        exporter.start()
        targets["nats"] = exporter.port
    with Prometheus(directory, command, targets) as server:
        time.sleep(5)  # a rate needs what was before
        work(stack)
        deadline = time.monotonic() + 120
        while not server.ask("query", query="kgents:slo_errors:ratio_rate1h")["result"]:
            assert time.monotonic() < deadline
            time.sleep(1)
        time.sleep(3)
        yield server
    if exporter is not None:
        exporter.stop()


def work(stack: Stack) -> None:
    """What the demo does, on this stack."""
    sent, roll = Sent(), random.Random(1)
    url, key = stack.service("api").url, stack.keys["acme"]
    asyncio.run(traffic.send_burst(sent, url=url, key=key, roll=roll))
    asyncio.run(traffic.publish_directly(sent, url=stack.nats.address, key=key, tenant="acme"))
    console = Console(file=StringIO())
    subscription.run(console, stack, roll)
    for verb in ("snapshot", "drill"):
        done = stack.command("backup", verb)
        assert done.returncode == 0, done.stderr
    headers = {"authorization": f"Bearer {key}"}
    httpx.get(f"{stack.reads.url}/api/v1/meters/tokens/query", headers=headers)


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    """Rule: no panel was never seen with data, but those that are empty while all is well."""
    has_exporter = "nats" in prometheus.targets
    empty, refused = [], []
    for board in BOARDS:
        for panel in (panel for row in board.rows for panel in row.panels):
            for query in panel.queries:
                if "nats_" in query.expr.replace("kgents_nats_", "") and not has_exporter:
                    continue
                expression = query.expr.replace("$__rate_interval", "30s")
                try:
                    found = prometheus.ask("query", query=expression)["result"]
                except httpx.HTTPStatusError as error:
                    refused.append(f"{board.uid} / {panel.title}: {error.response.text}")
                    continue
                if not found and not panel.is_quiet:
                    empty.append(f"{board.uid} / {panel.title}: {query.expr}")
    assert not refused
    assert not empty
    if not has_exporter:
        pytest.skip("all but the panels on NATS's own metrics: prometheus-nats-exporter is not installed")


def test_rules_are_evaluated_without_a_fault_and_nothing_critical_fires(prometheus: Prometheus) -> None:
    """Rule: a healthy system wakes nobody."""
    groups = prometheus.ask("rules")["groups"]
    faulty = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]
    assert not faulty
    alerts = prometheus.ask("alerts")["alerts"]
    critical = {
        alert["labels"]["alertname"]
        for alert in alerts
        if alert["state"] == "firing" and alert["labels"]["severity"] == "critical"
    }
    assert not critical
