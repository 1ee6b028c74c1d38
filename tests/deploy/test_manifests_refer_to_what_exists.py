"""Whatever one file names, another has: Services, ports, keys, volumes, files, consumers, variables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from kgents_api.settings import AgentsSettings, ApiSettings
from kgents_backup.settings import BackupSettings
from kgents_billing.settings import BillingSettings
from kgents_common import streams
from kgents_common.settings import ServiceSettings
from kgents_devstack.certificates import Authority
from kgents_metering.settings import MeteringSettings

from .rendered import COMBINED, Object, Workload, find, is_selected, name_of, overlay, ports_of, workloads

SETTINGS: dict[str, type[BaseSettings]] = {
    "api": ApiSettings,
    "metering": MeteringSettings,
    "billing": BillingSettings,
    "backup": BackupSettings,
}
# Read by libraries and not by our settings: OpenTelemetry's own, and uvicorn's list of proxies to believe.
# And libpq's, for what a database's URL leaves open.
LIBRARIES = re.compile(r"OTEL_[A-Z_]+|FORWARDED_ALLOW_IPS|PGSSL[A-Z]+")
ADDRESS = re.compile(r"(?:([a-z0-9-]+)\.)?([a-z0-9-]+)\.(kgents-[a-z]+)\.svc(?:\.cluster\.local)?(?::(\d+))?")
A_SECRET = "postgresql://a-secret-of-no-meaning"
PER_OVERLAY = pytest.mark.parametrize("name", COMBINED)


def secret_keys(objects: tuple[Object, ...], name: str, namespace: str) -> set[str] | None:
    """The keys of a Secret, written or asked for from outside; None where there is none."""
    if any(o["kind"] == "Certificate" and o["spec"]["secretName"] == name for o in objects):
        return {"tls.crt", "tls.key", "ca.crt"}
    for kind in ("Secret", "ExternalSecret"):
        try:
            found = find(objects, kind, name, namespace)
        except LookupError:
            continue
        if kind == "ExternalSecret":
            return {str(data["secretKey"]) for data in found["spec"]["data"]}
        return set(found.get("data", {})) | set(found.get("stringData", {}))
    return None


def config_keys(objects: tuple[Object, ...], name: str, namespace: str) -> set[str] | None:
    """The keys of a ConfigMap; None where there is none."""
    try:
        found = find(objects, "ConfigMap", name, namespace)
    except LookupError:
        return None
    return set(found.get("data", {})) | set(found.get("binaryData", {}))


def references(container: Mapping[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """Kind, name, key and whether it may be missing, of each variable taken from elsewhere."""
    for variable in container.get("env", ()):
        source = variable.get("valueFrom", {})
        for kind in ("secretKeyRef", "configMapKeyRef"):
            if kind in source:
                reference = source[kind]
                yield kind, reference["name"], reference["key"], reference.get("optional", False)


@PER_OVERLAY
def test_every_key_that_a_container_takes_a_variable_from_is_there(name: str) -> None:
    """An optional one may be missing as a whole, but not by a misspelt key of what exists."""
    objects = overlay(name)
    for workload in workloads(objects):
        for container in workload.containers:
            for kind, source, key, is_optional in references(container):
                look = secret_keys if kind == "secretKeyRef" else config_keys
                keys = look(objects, source, workload.namespace)
                if not is_optional:
                    assert keys is not None, (workload.name, source)
                    assert key in keys, (workload.name, source, key)
            for source in container.get("envFrom", ()):
                wanted = source["configMapRef"]["name"]
                assert config_keys(objects, wanted, workload.namespace), (workload.name, wanted)


@PER_OVERLAY
def test_every_volume_has_its_source_and_its_use(name: str) -> None:
    """Its Secret, ConfigMap or claim exists with the keys asked for; it is mounted, and nothing else is."""
    objects = overlay(name)
    for workload in workloads(objects):
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", ())}
        mounted = {m["name"] for c in workload.containers for m in c.get("volumeMounts", ())}
        assert mounted == set(volumes) | set(workload.claims), workload.name
        for volume in volumes.values():
            keys = source_keys(objects, workload, volume)
            assert keys is not None, (workload.name, volume)
            source = volume.get("secret") or volume.get("configMap") or {}
            assert {item["key"] for item in source.get("items", ())} <= keys, (workload.name, volume["name"])


def source_keys(
    objects: tuple[Object, ...], workload: Workload, volume: Mapping[str, Any]
) -> set[str] | None:
    """What a volume's source has; empty for a directory; None where there is no such source."""
    if "secret" in volume:
        return secret_keys(objects, volume["secret"]["secretName"], workload.namespace)
    if "configMap" in volume:
        return config_keys(objects, volume["configMap"]["name"], workload.namespace)
    if "persistentVolumeClaim" in volume:
        claim = volume["persistentVolumeClaim"]["claimName"]
        find(objects, "PersistentVolumeClaim", claim, workload.namespace)
    return set()


@PER_OVERLAY
def test_every_file_that_a_variable_names_is_mounted(name: str) -> None:
    """A path under a Secret or a ConfigMap is a file of it; any other lies in a volume to write to."""
    objects = overlay(name)
    for workload in workloads(objects):
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", ())}
        for container in workload.containers:
            for variable in container.get("env", ()):
                value = variable.get("value", "")
                if not re.fullmatch(r"/(etc|var)/[^\s:]+", value):
                    continue
                under = [m for m in container["volumeMounts"] if f"{value}/".startswith(m["mountPath"] + "/")]
                assert under, (workload.name, variable)
                mount = max(under, key=lambda m: len(m["mountPath"]))
                volume = volumes.get(mount["name"], {})
                rest = value.removeprefix(mount["mountPath"]).strip("/")
                source = volume.get("secret") or volume.get("configMap")
                if source is None:
                    assert not mount.get("readOnly"), (workload.name, variable)
                    continue
                paths = {item["path"] for item in source.get("items", ())}
                files = paths or source_keys(objects, workload, volume) or set()
                assert rest in files, (workload.name, value)


@PER_OVERLAY
def test_every_service_has_pods_and_their_ports(name: str) -> None:
    """A selector that takes nothing, or a port that no container opens, would lead nowhere."""
    objects = overlay(name)
    for service in (o for o in objects if o["kind"] == "Service"):
        spec, namespace = service["spec"], service["metadata"]["namespace"]
        behind = [
            w
            for w in workloads(objects)
            if w.namespace == namespace and is_selected({"matchLabels": spec["selector"]}, w.labels)
        ]
        assert len(behind) == 1, name_of(service)
        named = dict(ports_of(behind[0]))
        for port in spec["ports"]:
            assert port["targetPort"] in named or port["targetPort"] in named.values(), name_of(service)


@PER_OVERLAY
def test_every_address_inside_the_cluster_is_a_service_s(name: str) -> None:
    """In variables, configurations, routes and secrets, with its port."""
    objects = overlay(name)
    has_observability = any(
        o["kind"] == "Service" and o["metadata"]["namespace"] == "kgents-observability" for o in objects
    )
    found: set[tuple[str, str, str, str]] = set()
    # A certificate offers names, those of a component that is not there too; it leads nowhere.
    for text in texts(tuple(o for o in objects if o["kind"] != "Certificate")):
        found |= set(ADDRESS.findall(text))
    redis = "triad-redis-nodes" if "sentinel" in name else "triad-redis"
    assert {"nats", redis, "kgent-api"} <= {service for _, service, _, _ in found}
    for pod, service, namespace, port in found:
        if namespace == "kgents-observability" and not has_observability:
            continue
        spec = find(objects, "Service", service, namespace)["spec"]
        assert not port or int(port) in {p["port"] for p in spec["ports"]}, (service, port)
        if pod:
            owner = next(w for w in workloads(objects) if w.source["spec"].get("serviceName") == service)
            assert pod in {f"{owner.name}-{n}" for n in range(owner.source["spec"]["replicas"])}


def texts(objects: tuple[Object, ...]) -> Iterator[str]:
    """Every string of an overlay where an address may be."""

    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    for found in objects:
        if found["kind"] == "Secret":
            yield from decoded(found)
        else:
            yield from walk(found)


def decoded(secret: Object) -> Iterator[str]:
    """A Secret's values as text."""
    import base64

    for value in secret.get("data", {}).values():
        yield base64.b64decode(value).decode(errors="replace")


@PER_OVERLAY
def test_every_probe_asks_a_port_that_is_open(name: str) -> None:
    """By name or by number."""
    for workload in workloads(overlay(name)):
        for container in workload.containers:
            named = {p["name"]: p["containerPort"] for p in container.get("ports", ())}
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = container.get(kind, {})
                asked = (probe.get("httpGet") or probe.get("tcpSocket") or {}).get("port")
                assert asked is None or asked in named or asked in named.values(), (workload.name, kind)


@PER_OVERLAY
def test_every_account_budget_autoscaler_and_set_names_what_is_there(name: str) -> None:
    """ServiceAccounts, the pods of a budget, what an autoscaler scales, a StatefulSet's Service."""
    objects = overlay(name)
    for workload in workloads(objects):
        find(objects, "ServiceAccount", workload.pod["serviceAccountName"], workload.namespace)
        if workload.kind == "StatefulSet":
            find(objects, "Service", workload.source["spec"]["serviceName"], workload.namespace)
    for found in objects:
        namespace = found["metadata"].get("namespace")
        if found["kind"] == "PodDisruptionBudget":
            assert any(
                w.namespace == namespace and is_selected(found["spec"]["selector"], w.labels)
                for w in workloads(objects)
            ), name_of(found)
        if found["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            find(objects, "Deployment", found["spec"]["scaleTargetRef"]["name"], namespace)


def variables(objects: tuple[Object, ...], workload: Workload, container: Mapping[str, Any]) -> set[str]:
    """Every variable that a container gets."""
    names = {variable["name"] for variable in container.get("env", ())}
    for source in container.get("envFrom", ()):
        names |= config_keys(objects, source["configMapRef"]["name"], workload.namespace) or set()
    return names


def ours(objects: tuple[Object, ...]) -> Iterator[tuple[Workload, Mapping[str, Any], type[BaseSettings]]]:
    """Our containers, and the settings class that reads their environment."""
    for workload in workloads(objects):
        for container in workload.containers:
            image = re.search(r"kgents/([a-z]+):", container["image"])
            if image:
                found = SETTINGS[image.group(1)]
                if "kgents_common.streams" in container.get("command", ()):
                    found = ServiceSettings
                elif container.get("args") == ["agents"]:
                    found = AgentsSettings
                yield workload, container, found


@PER_OVERLAY
def test_every_variable_of_ours_is_read_by_its_service_and_every_needed_one_is_given(name: str) -> None:
    """A misspelt name would be a default in silence; a missing one a pod that never starts."""
    objects = overlay(name)
    common = {str(f.validation_alias) for f in ServiceSettings.model_fields.values()}
    seen = set()
    for workload, container, settings in ours(objects):
        seen.add(settings)
        known = {str(field.validation_alias) for field in settings.model_fields.values()}
        if settings is ServiceSettings:  # the command's own, of the streams' Job
            known.add("KGENTS_EVENTS_PER_SECOND")
        needed = {str(f.validation_alias) for f in settings.model_fields.values() if f.is_required()}
        given = variables(objects, workload, container)
        unread = {n for n in given if n not in known | common and not LIBRARIES.fullmatch(n)}
        assert unread == set(), workload.name
        assert needed - given == set(), workload.name
    assert seen == {ServiceSettings, AgentsSettings, *SETTINGS.values()}


def values(objects: tuple[Object, ...], workload: Workload, container: Mapping[str, Any]) -> dict[str, Any]:
    """What a container's variables are; what comes from a Secret is a stand-in."""
    told: dict[str, Any] = {}
    for variable in container.get("env", ()):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        if reference and config_keys(objects, reference["name"], workload.namespace):
            config = find(objects, "ConfigMap", reference["name"], workload.namespace)["data"]
            told[variable["name"]] = config[reference["key"]]
        elif "value" in variable or "secretKeyRef" in variable.get("valueFrom", {}):
            told[variable["name"]] = variable.get("value", A_SECRET)
    for source in container.get("envFrom", ()):
        told |= find(objects, "ConfigMap", source["configMapRef"]["name"], workload.namespace)["data"]
    return told


@PER_OVERLAY
def test_a_container_of_ours_has_the_files_that_it_reads_and_no_others(name: str) -> None:
    """Every Secret or ConfigMap in it is named by a variable; no role of metering has another's file."""
    objects = overlay(name)
    for workload, container, settings in ours(objects):
        told = values(objects, workload, container)
        sources = {v["name"]: {"secret", "configMap"} & set(v) for v in workload.pod.get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            if sources.get(mount["name"]):
                below = [n for n, v in told.items() if str(v).startswith(f"{mount['mountPath']}/")]
                assert below, (workload.name, mount["name"])
        if settings is MeteringSettings:
            del told["NATS_CA_FILE"], told["KGENTS_CERTIFICATE_FILES"]  # not on this machine
            for file in {"KGENTS_KEYRING_FILE", "KGENTS_METERS_FILE"} & set(told):
                with pytest.raises(ValidationError, match=file):
                    settings.model_validate({n: v for n, v in told.items() if n != file})


@PER_OVERLAY
def test_every_value_that_is_written_down_is_one_its_service_takes(name: str, tmp_path: Path) -> None:
    """The settings are read as the service reads them; what comes from a Secret is a stand-in."""
    (tmp_path / "ca.crt").write_bytes(Authority().certificate)
    objects = overlay(name)
    for workload, container, settings in ours(objects):
        told = values(objects, workload, container)
        told["NATS_CA_FILE"] = told["KGENTS_CERTIFICATE_FILES"] = str(
            tmp_path / "ca.crt"
        )  # as its pod has it
        settings.model_validate(told)


def test_keda_asks_for_consumers_that_exist() -> None:
    """A misspelt name would scale nothing, for ever."""
    found = [o for o in overlay("production") if o["kind"] == "ScaledObject"]
    asked = {
        (trigger["metadata"]["stream"], trigger["metadata"]["consumer"])
        for o in found
        for trigger in o["spec"]["triggers"]
    }

    assert asked <= {(consumer.stream, consumer.name) for consumer in streams.CONSUMERS}
    assert asked == {("AGENTESE", "metering"), ("EVENTS", "billing-worker")}


@PER_OVERLAY
def test_the_streams_fit_what_a_node_has(name: str) -> None:
    """Their limits together, the store's limit, the volume: each within the next."""
    objects = overlay(name)
    claim = find(objects, "StatefulSet", "nats")["spec"]["volumeClaimTemplates"][0]
    volume = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
    config = find(objects, "ConfigMap", "nats-config")["data"]["nats.conf"]
    store = int(re.search(r"max_file_store: (\d+)GiB", config).group(1))  # type: ignore[union-attr]

    assert sum(stream.max_bytes for stream in streams.STREAMS) / 1024**3 < store < volume


@PER_OVERLAY
def test_the_streams_are_applied_with_as_many_replicas_as_there_are_nodes(name: str) -> None:
    """R3 on three."""
    objects = overlay(name)
    arguments = find(objects, "Job", "kgents-streams")["spec"]["template"]["spec"]["containers"][0]["args"]
    nodes = find(objects, "StatefulSet", "nats")["spec"]["replicas"]

    assert arguments == ["apply", "--replicas", str(nodes)]
    routes = re.findall(r"nats://nats-(\d)", find(objects, "ConfigMap", "nats-config")["data"]["nats.conf"])
    assert [int(number) for number in routes] == list(range(nodes))
