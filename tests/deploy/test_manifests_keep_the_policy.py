"""What every pod has, whoever writes it: limits, probes, rights, budgets; no secret where all can read."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from .rendered import (
    COMBINED,
    KEEP_RUNNING,
    OVERLAYS,
    ROOT,
    WITH_SENTINELS,
    Workload,
    find,
    is_selected,
    name_of,
    overlay,
    workloads,
)

PARTS = [(name, workload) for name in OVERLAYS for workload in workloads(overlay(name))]
PARTS += [(WITH_SENTINELS, one) for one in workloads(overlay(WITH_SENTINELS)) if one.name == "triad-redis"]
NAMED = pytest.mark.parametrize(
    ("name", "workload"), PARTS, ids=[f"{name}-{workload.name}" for name, workload in PARTS]
)
# Who asks the Kubernetes API, and so needs a token.
ASKS_KUBERNETES = {"prometheus", "log-collector"}
SECRETS = re.compile(r"://[^/\s:]+:[^@\s]+@|kg_[A-Za-z0-9]|whsec_|sk_(live|test)_|-----BEGIN [A-Z ]*PRIVATE")
VERSION = re.compile(r"v?\d+\.\d+(\.\d+)?(-[a-z0-9.]+)*(@sha256:[0-9a-f]{64})?")
SECRET_NAMES = re.compile(r"password|secret|token|api[-_]?key|seed", re.IGNORECASE)


def main_containers(workload: Workload) -> list[Mapping[str, Any]]:
    """Those that serve as long as the pod lives."""
    return list(workload.pod["containers"]) if workload.kind in KEEP_RUNNING else []


@NAMED
def test_every_container_says_what_it_needs_and_may_have(name: str, workload: Workload) -> None:
    """Requests place a pod; limits keep it from its neighbours."""
    for container in workload.containers:
        for part in ("requests", "limits"):
            assert set(container["resources"][part]) >= {"cpu", "memory"}, container["name"]


@NAMED
def test_every_pod_has_no_more_rights_than_pod_security_s_restricted_allows(
    name: str, workload: Workload
) -> None:
    """And besides: a user by number, a root file system that nobody writes to, no token of the API."""
    pod = workload.pod
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert [v for v in pod.get("volumes", ()) if "hostPath" in v] == []
    if workload.name not in ASKS_KUBERNETES:
        assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] not in ("", "default")
    for container in workload.containers:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "runAsUser"} & set(context)


@NAMED
def test_every_image_is_of_a_version(name: str, workload: Workload) -> None:
    """`latest`, or no tag, is another image tomorrow."""
    for container in workload.containers:
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        assert VERSION.fullmatch(tag), container["image"]


def test_our_images_are_of_the_project_s_version() -> None:
    """`make images` tags with it; the manifests follow."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    ours = {c["image"] for _, w in PARTS for c in w.containers if "kgents/" in c["image"]}

    assert {image.rpartition(":")[2] for image in ours} == {version}
    assert {i.rpartition("/")[2].partition(":")[0] for i in ours} == {"api", "metering", "billing", "backup"}


@NAMED
def test_every_container_that_stays_is_probed(name: str, workload: Workload) -> None:
    """Readiness says where work is sent, liveness what to start anew; neither needs a shell of our images."""
    for container in main_containers(workload):
        assert {"readinessProbe", "livenessProbe"} <= set(container), container["name"]
        if "kgents/" in container["image"]:
            assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
            asked = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")]
            # The door is ready once, and then answers for itself: 503 with Retry-After while NATS is away.
            is_door = workload.name == "kgent-api"
            assert asked == (
                ["/health/ready", "/health/live"] if is_door else ["/health/live", "/health/ready"]
            )


@NAMED
def test_a_pod_has_the_time_that_its_drain_takes(name: str, workload: Workload) -> None:
    """Killed before, it would leave requests unanswered: KGENTS_DRAIN_SECONDS and five more."""
    if workload.kind not in KEEP_RUNNING or not any("kgents/" in c["image"] for c in workload.containers):
        return
    settings = find(overlay(name), "ConfigMap", "kgents-settings", workload.namespace)["data"]
    drain, delay = (int(settings[f"KGENTS_DRAIN_{part}SECONDS"]) for part in ("", "DELAY_"))

    assert workload.pod["terminationGracePeriodSeconds"] >= drain + 5
    assert 0 < delay < drain
    # A sleep before the signal would take from the drain what the delay already gives.
    assert not any("lifecycle" in c for c in workload.containers)


@pytest.mark.parametrize("name", OVERLAYS)
def test_nats_leaves_within_its_grace(name: str) -> None:
    """The lame duck's own time, told by the configuration, fits the pod's."""
    objects = overlay(name)
    config = find(objects, "ConfigMap", "nats-config")["data"]["nats.conf"]
    grace, duration = (
        int(re.search(rf"lame_duck_{part}: (\d+)s", config).group(1))  # type: ignore[union-attr]
        for part in ("grace_period", "duration")
    )
    pod = next(w for w in workloads(objects) if w.name == "nats").pod

    assert pod["terminationGracePeriodSeconds"] >= grace + duration
    assert pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1].startswith("-sl=ldm=")


@NAMED
def test_a_rollout_takes_nothing_away_before_its_replacement_is_ready(name: str, workload: Workload) -> None:
    """Where there are two; the archiver is one by design, and its successor waits for its volume."""
    if workload.kind != "Deployment" or workload.source["spec"].get("replicas") in (0, 1):
        return
    assert workload.source["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


@pytest.mark.parametrize("name", COMBINED)
def test_what_has_replicas_has_a_budget_and_what_has_one_has_none(name: str) -> None:
    """A budget on a single replica would hold up every node's maintenance."""
    objects = overlay(name)
    budgets = [o for o in objects if o["kind"] == "PodDisruptionBudget"]
    for workload in workloads(objects):
        if workload.kind not in ("Deployment", "StatefulSet"):
            continue
        replicas = workload.source["spec"].get("replicas", 2)
        covering = [
            b
            for b in budgets
            if b["metadata"]["namespace"] == workload.namespace
            and is_selected(b["spec"]["selector"], workload.labels)
        ]
        if replicas:
            assert len(covering) == (1 if replicas > 1 else 0), workload.name


@pytest.mark.parametrize("name", OVERLAYS)
def test_a_number_of_replicas_has_one_owner(name: str) -> None:
    """What an autoscaler scales has no `replicas` (each apply would take it back), and one autoscaler."""
    objects = overlay(name)
    scalers = [o for o in objects if o["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    targets = [(o["metadata"]["namespace"], o["spec"]["scaleTargetRef"]["name"]) for o in scalers]

    assert len(targets) == len(set(targets))
    for namespace, target in targets:
        assert "replicas" not in find(objects, "Deployment", target, namespace)["spec"]


@pytest.mark.parametrize("name", COMBINED)
def test_every_object_says_whose_it_is(name: str) -> None:
    """`app.kubernetes.io/part-of` on all, and on every pod its name too."""
    for found in overlay(name):
        assert found["metadata"]["labels"]["app.kubernetes.io/part-of"] == "kgents", name_of(found)
    for workload in workloads(overlay(name)):
        assert "app.kubernetes.io/name" in workload.labels


def readable(name: str) -> Iterator[tuple[str, str, str]]:
    """What whoever may read a ConfigMap or a pod can read: where, name and value."""
    for found in overlay(name):
        if found["kind"] == "ConfigMap":
            for key, value in found["data"].items():
                yield name_of(found), key, value
    for workload in workloads(overlay(name)):
        for container in workload.containers:
            for variable in container.get("env", ()):
                yield workload.name, variable["name"], variable.get("value", "")


@pytest.mark.parametrize("name", COMBINED)
def test_no_secret_is_where_it_can_be_read(name: str) -> None:
    """Neither by what it looks like nor by what it is called, but for a file's path."""
    for where, key, value in readable(name):
        assert not SECRETS.search(value), (where, key)
        if SECRET_NAMES.search(key) and not key.endswith("_FILE"):
            assert value == "", (where, key)


def test_plain_secrets_are_in_the_local_overlay_alone() -> None:
    """Elsewhere a Secret in a manifest would be a secret in git."""
    found = {name: [o for o in overlay(name) if o["kind"] == "Secret"] for name in OVERLAYS}

    assert found["local"]
    assert found["production"] == found["dr"] == []


@pytest.mark.parametrize("name", ["production", "dr"])
def test_secrets_are_asked_for_every_five_minutes(name: str) -> None:
    """An interval of 0 would mean: created once, rotated never."""
    found = [o for o in overlay(name) if o["kind"] == "ExternalSecret"]

    assert found
    assert {(o["spec"]["refreshPolicy"], o["spec"]["refreshInterval"]) for o in found} == {("Periodic", "5m")}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_namespace_enforces_restricted(name: str) -> None:
    """So that a pod somebody adds by hand has no more rights either."""
    namespaces = {
        o["metadata"]["name"]: o["metadata"]["labels"] for o in overlay(name) if o["kind"] == "Namespace"
    }

    assert set(namespaces) == {"kgents-triad", "kgents-agents", "kgents-observability"}
    for labels in namespaces.values():
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        assert labels["pod-security.kubernetes.io/warn"] == "restricted"
