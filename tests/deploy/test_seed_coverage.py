"""Every row of the seed is where `docs/seed-coverage.md` says, and has the value that the seed gave it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from .rendered import ROOT, Workload, find, overlay, workloads

T, A, O = "kgents-triad", "kgents-agents", "kgents-observability"  # noqa: E741 the seed's three
OBJECTS = overlay("production")
ROW = re.compile(r"^\| (?P<row>[^|]+) \| (?P<value>[^|]+) \| `(?P<file>[^|`]+)` \| `(?P<test>[^|`]+)` \|$")
ROWS = [
    match.groupdict()
    for line in (ROOT / "docs" / "seed-coverage.md").read_text().splitlines()
    if (match := ROW.match(line))
]


def test_every_row_has_its_file_and_its_test() -> None:
    """A row whose file or test is gone is a promise that nobody keeps."""
    missing = [
        (r["row"], r[kind]) for r in ROWS for kind in ("file", "test") if not (ROOT / r[kind]).is_file()
    ]

    assert missing == []


def test_no_line_of_a_table_is_misread() -> None:
    """Each line of a table is a row, its head, or the line under it."""
    lines = (ROOT / "docs" / "seed-coverage.md").read_text().splitlines()
    tables = [line for line in lines if line.startswith("|")]
    heads = [line for line in tables if line.startswith(("| row |", "|---"))]

    assert len(tables) - len(heads) == len(ROWS)
    assert len(heads) == 2 * len([line for line in lines if line.startswith("## ")])


@pytest.mark.parametrize(
    ("heading", "rows"),
    [
        ("Namespaces", 3),
        ("API", 15),
        ("NATS", 12),
        ("Redis", 8),
        ("Observability", 6),
        ("Network policies", 3),
        ("External dependencies", 12),
        ("Single points", 3),
        ("Resource summary", 7),
    ],
)
def test_no_row_of_the_seed_s_tables_is_left_out(heading: str, rows: int) -> None:
    """So many lines has each of the seed's tables."""
    sections = (ROOT / "docs" / "seed-coverage.md").read_text().split("\n## ")
    section = next(s for s in sections if s.startswith(heading))

    assert len([line for line in section.splitlines() if ROW.match(line)]) >= rows


def workload(name: str) -> Workload:
    """The workload of this name."""
    return next(w for w in workloads(OBJECTS) if w.name == name)


def resources(name: str) -> list[str]:
    """CPU request and limit, memory request and limit, of a workload's first container."""
    found = workload(name).pod["containers"][0]["resources"]
    return [found[part][what] for what in ("cpu", "memory") for part in ("requests", "limits")]


@pytest.mark.parametrize(
    ("name", "namespace", "wanted"),
    [
        ("kgent-api", T, ["100m", "500m", "256Mi", "512Mi"]),
        ("nats", A, ["100m", "500m", "256Mi", "1Gi"]),
        ("triad-redis", T, ["50m", "200m", "64Mi", "256Mi"]),
    ],
)
def test_requests_and_limits_are_the_seed_s(name: str, namespace: str, wanted: list[str]) -> None:
    """By component, in its namespace."""
    assert workload(name).namespace == namespace
    assert resources(name) == wanted


def test_each_component_is_in_the_namespace_that_the_seed_gave_it() -> None:
    """Core data services, the agents' runtime; and what the seed does not place, where its data are."""
    placed = {w.name: w.namespace for w in workloads(OBJECTS)}

    for name in (
        "kgent-api",
        "triad-redis",
        "triad-postgres",
        "triad-kong",
        "kgent-metering",
        "kgent-billing",
    ):
        assert placed[name] == T
    for name in ("nats", "kgent-backup", "nats-backup", "kgents-streams"):
        assert placed[name] == A


def test_the_api_scales_from_two_to_ten_at_seventy_percent_and_keeps_one() -> None:
    """HPA and PDB."""
    spec = find(OBJECTS, "HorizontalPodAutoscaler", "kgent-api", T)["spec"]
    metric = spec["metrics"][0]["resource"]

    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
    assert (metric["name"], metric["target"]) == ("cpu", {"type": "Utilization", "averageUtilization": 70})
    assert find(OBJECTS, "PodDisruptionBudget", "kgent-api", T)["spec"]["minAvailable"] == 1


def ports(name: str) -> set[int]:
    """What a workload's containers open."""
    return {p["containerPort"] for c in workload(name).containers for p in c.get("ports", ())}


def test_ports_are_the_seed_s() -> None:
    """Those of the tables; others may be beside them."""
    assert 8000 in ports("kgent-api")
    assert {4222, 6222, 8222} <= ports("nats")
    assert ports("triad-redis") == {6379}


def test_the_services_are_told_the_seed_s_addresses() -> None:
    """`nats.kgents-agents.svc:4222`, `triad-redis.kgents-triad.svc:6379`."""
    settings = find(OBJECTS, "ConfigMap", "kgents-settings", T)["data"]
    api = {v["name"]: v.get("value", "") for v in workload("kgent-api").pod["containers"][0]["env"]}

    assert settings["NATS_SERVERS"].endswith("//nats.kgents-agents.svc:4222")
    assert "triad-redis.kgents-triad.svc:6379" in api["REDIS_URL"]


def image(name: str) -> str:
    """A workload's first image, with its tag."""
    return str(workload(name).pod["containers"][0]["image"]).rpartition("/")[2]


def test_nats_is_three_nodes_of_ten_gibibytes_of_which_two_stay() -> None:
    """StatefulSet, storage, PDB, and a version that is 2.10 or newer."""
    nats = workload("nats").source["spec"]
    major, minor = (int(part) for part in image("nats").removeprefix("nats:").split(".")[:2])

    assert nats["replicas"] == 3
    assert nats["podManagementPolicy"] == "Parallel"
    assert nats["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"] == "10Gi"
    assert find(OBJECTS, "PodDisruptionBudget", "nats", A)["spec"]["minAvailable"] == 2
    assert (major, minor) >= (2, 10)
    assert image("nats").endswith("-alpine")


def test_redis_is_one_of_128_megabytes_that_evicts_and_keeps_nothing() -> None:
    """allkeys-lru, no persistence."""
    redis = workload("triad-redis")
    arguments = redis.pod["containers"][0]["args"]
    told: Mapping[str, Any] = dict(zip(arguments[1::2], arguments[2::2], strict=True))

    assert redis.source["spec"]["replicas"] == 1
    assert image("triad-redis").startswith("redis:7.")
    assert {name: value for name, value in told.items() if "tls" not in name and name != "--port"} == {
        "--maxmemory": "128mb",
        "--maxmemory-policy": "allkeys-lru",
        "--save": "",
        "--appendonly": "no",
    }
    assert [set(v) - {"name"} for v in redis.pod["volumes"]] == [{"secret"}, {"emptyDir"}]


def test_backups_are_made_at_two_in_the_morning_onto_their_own_volume_and_kept_for_seven_days() -> None:
    """CronJob with its time zone, `nats-backup-pvc`, retention; off-site thirty days."""
    cron = find(OBJECTS, "CronJob", "nats-backup", A)["spec"]
    for name in ("kgent-backup", "nats-backup"):
        container = workload(name).pod["containers"][0]
        told = {v["name"]: v.get("value") for v in container["env"]}
        volumes = workload(name).pod["volumes"]
        claims = [v["persistentVolumeClaim"] for v in volumes if "persistentVolumeClaim" in v]
        assert (told["KGENTS_BACKUP_LOCAL_DAYS"], told["KGENTS_BACKUP_OFFSITE_DAYS"]) == ("7", "30")
        assert claims == [{"claimName": "nats-backup-pvc"}]

    assert (cron["schedule"], cron["timeZone"], cron["concurrencyPolicy"]) == (
        "0 2 * * *",
        "Etc/UTC",
        "Forbid",
    )


@pytest.mark.parametrize(
    ("name", "memory", "storage"),
    [
        ("prometheus", "512Mi", "50Gi"),
        ("grafana", "256Mi", "1Gi"),
        ("loki", "256Mi", "10Gi"),
        ("tempo", "256Mi", "10Gi"),
    ],
)
def test_the_observability_s_requests_and_volumes_are_the_seed_s(
    name: str, memory: str, storage: str
) -> None:
    """Each asks for 100m; its data are on a volume."""
    found = workload(name)
    claimed = [c["spec"] for c in found.source["spec"].get("volumeClaimTemplates", ())]
    claimed += [
        find(OBJECTS, "PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"], O)["spec"]
        for v in found.pod["volumes"]
        if "persistentVolumeClaim" in v
    ]

    assert found.namespace == O
    assert (resources(name)[0], resources(name)[2]) == ("100m", memory)
    assert [spec["resources"]["requests"]["storage"] for spec in claimed] == [storage]


def test_metrics_are_kept_for_fifteen_days_logs_and_traces_for_seven() -> None:
    """Told by argument, and by the configurations that the pods mount."""
    loki, tempo = (
        yaml.safe_load(next(iter(find(OBJECTS, "ConfigMap", f"{name}-config", O)["data"].values())))
        for name in ("loki", "tempo")
    )

    assert "--storage.tsdb.retention.time=15d" in workload("prometheus").pod["containers"][0]["args"]
    assert loki["limits_config"]["retention_period"] == "168h"
    assert tempo["compactor"]["compaction"]["block_retention"] == "168h"


def test_there_are_at_least_the_seed_s_eight_alerts() -> None:
    """By name, in what Prometheus mounts."""
    texts = find(OBJECTS, "ConfigMap", "prometheus-rules", O)["data"].values()
    rules = [rule for text in texts for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]

    assert len({rule["alert"] for rule in rules if "alert" in rule}) >= 8
