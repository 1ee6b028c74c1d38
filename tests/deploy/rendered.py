"""The overlays as a cluster gets them, rendered once while nothing changes; how to find one's way in them."""

from __future__ import annotations

import hashlib
import json
import os
import runpy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
MANIFESTS = runpy.run_path(str(ROOT / "deploy" / "manifests.py"))
OVERLAYS: tuple[str, ...] = MANIFESTS["OVERLAYS"]
# And with what is in none of them, but keeps the same rules: overlay+component.
WITH_SENTINELS = "production+redis-sentinel"
COMBINED = (*OVERLAYS, WITH_SENTINELS)
Object = Mapping[str, Any]

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
KEEP_RUNNING = ("Deployment", "StatefulSet", "DaemonSet")
# Of which each has its schema in a CRD and not in Kubernetes.
CUSTOM = ("cert-manager.io", "external-secrets.io", "keda.sh", "argoproj.io", "kustomize.toolkit.fluxcd.io")


@cache
def _state() -> str:
    """What everything that is rendered depends on."""
    files = sorted(path for path in (ROOT / "deploy").rglob("*") if path.is_file() and path.suffix != ".pyc")
    told = hashlib.sha256()
    for file in files:
        told.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
        told.update(file.read_bytes())
    return told.hexdigest()


def _kept(name: str, render: Callable[[], str]) -> tuple[Object, ...]:
    """What was rendered under this name, by this process, one beside it or one before, of the same files."""
    kept = Path(tempfile.gettempdir()) / f"kgents-rendered-{os.geteuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    file = kept / f"{_state()[:32]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
    if kept.stat().st_uid != os.geteuid() or not file.exists():
        for old in sorted(kept.iterdir(), key=lambda one: one.stat().st_mtime)[:-100]:
            old.unlink(missing_ok=True)
        objects = parsed(render())
        descriptor, fresh = tempfile.mkstemp(dir=kept)
        with os.fdopen(descriptor, "w") as writing:
            json.dump(objects, writing)
        Path(fresh).replace(file)
    found: list[Object] = json.loads(file.read_text())
    return tuple(found)


@cache
def overlay(name: str) -> tuple[Object, ...]:
    """Every object of an overlay, or of `overlay+component`."""
    if "+" in name:
        return with_component(*name.split("+"))
    return _kept(f"overlay {name}", lambda: MANIFESTS["overlay"](name))


@cache
def directory(path: str) -> tuple[Object, ...]:
    """Every object of a kustomization under deploy/k8s."""
    return _kept(f"directory {path}", lambda: MANIFESTS["render"](K8S / path))


@cache
def with_component(name: str, component: str) -> tuple[Object, ...]:
    """An overlay with one component more, as a user of both would write it."""

    def render() -> str:
        with tempfile.TemporaryDirectory() as made:
            up = os.path.relpath(K8S, Path(made).resolve())
            (Path(made) / "kustomization.yaml").write_text(
                "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
                f"resources: [{up}/overlays/{name}]\ncomponents: [{up}/components/{component}]\n"
            )
            return str(MANIFESTS["render"](Path(made)))

    return _kept(f"{name} with {component}", render)


def parsed(text: str) -> tuple[Object, ...]:
    """The documents of a YAML stream."""
    return tuple(found for found in yaml.load_all(text, yaml.CSafeLoader) if found)


def name_of(found: Object) -> str:
    """`Kind namespace/name`, as messages name an object."""
    metadata = found["metadata"]
    return f"{found['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


def is_custom(found: Object) -> bool:
    """Whether its schema is a CRD's."""
    return str(found["apiVersion"]).partition("/")[0] in CUSTOM


def find(objects: tuple[Object, ...], kind: str, name: str, namespace: str | None = None) -> Object:
    """The one object of that kind and name; a generated name may have its hash.

    Raises:
        LookupError: There is none.
    """
    for found in objects:
        metadata = found["metadata"]
        own = metadata["name"]
        is_named = own == name or (own.startswith(name + "-") and len(own) == len(name) + 11)
        if found["kind"] == kind and is_named and namespace in (None, metadata.get("namespace")):
            return found
    raise LookupError(f"no {kind} {namespace}/{name}")


@dataclass(frozen=True, slots=True)
class Workload:
    """What makes pods, and what its pods are like."""

    source: Object

    @property
    def kind(self) -> str:
        """Deployment, StatefulSet, DaemonSet, Job or CronJob."""
        return str(self.source["kind"])

    @property
    def name(self) -> str:
        """Its own name."""
        return str(self.source["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Where its pods are."""
        return str(self.source["metadata"]["namespace"])

    @property
    def template(self) -> Object:
        """The pods' metadata and spec."""
        spec = self.source["spec"]
        found: Object = (spec["jobTemplate"]["spec"] if self.kind == "CronJob" else spec)["template"]
        return found

    @property
    def pod(self) -> Object:
        """The pods' spec."""
        found: Object = self.template["spec"]
        return found

    @property
    def labels(self) -> Mapping[str, str]:
        """The pods' labels."""
        found: Mapping[str, str] = self.template["metadata"]["labels"]
        return found

    @property
    def containers(self) -> list[Object]:
        """All of them, those that come first included."""
        return [*self.pod.get("initContainers", ()), *self.pod["containers"]]

    @property
    def claims(self) -> list[str]:
        """Volumes that a StatefulSet claims for each pod."""
        return [str(c["metadata"]["name"]) for c in self.source["spec"].get("volumeClaimTemplates", ())]


def workloads(objects: tuple[Object, ...]) -> list[Workload]:
    """Whatever makes pods."""
    return [Workload(found) for found in objects if found["kind"] in WORKLOADS]


def ports_of(workload: Workload) -> Iterator[tuple[str, int]]:
    """Name and number of each port that its containers open."""
    for container in workload.containers:
        for port in container.get("ports", ()):
            yield port["name"], port["containerPort"]


def is_selected(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector (matchLabels, matchExpressions) takes these labels; an empty one takes all."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for expression in selector.get("matchExpressions", ()):
        value, operator = labels.get(expression["key"]), expression["operator"]
        values = expression.get("values", ())
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds[operator]:
            return False
    return True
