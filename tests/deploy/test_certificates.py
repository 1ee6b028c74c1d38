"""The servers inside the cluster are met under TLS: the names, and whom one believes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from kgents_devstack.certificates import SERVERS

from .rendered import COMBINED, find, overlay, workloads

NAMESPACES = {"nats": "kgents-agents", "triad-redis": "kgents-triad", "triad-postgres": "kgents-triad"}


def matches(host: str, names: Sequence[str]) -> bool:
    """As TLS compares them: a star is one label."""
    return any(re.fullmatch(re.escape(n).replace(r"\*", "[^.]+"), host) for n in names)


def hosts(name: str) -> Iterator[tuple[str, str]]:
    """Each address that a client is told, with its server."""
    objects = overlay(name)
    told = str([o for o in objects if o["kind"] not in ("Certificate", "Secret")])
    yield "triad-postgres", "triad-postgres.kgents-triad.svc"  # in Secrets
    for server, host in re.findall(r"//(nats|triad-redis)(\.kgents-[a-z]+\.svc)", told):
        yield server, server + host
    for host in re.findall(r"triad-redis-\d\.[a-z.-]+\.svc", told):
        yield "triad-redis", host
    for route in re.findall(r"nats://([a-z0-9.-]+):6222", told):
        yield "nats", route


@pytest.mark.parametrize("name", [*COMBINED, "local+redis-sentinel"])
def test_a_certificate_has_every_name_that_its_clients_know_it_by(name: str) -> None:
    """Another name than the one that was dialled is no name."""
    objects = overlay(name)
    found = set(hosts(name))
    assert {server for server, _ in found} == {"nats", "triad-redis", "triad-postgres"}
    for server, host in found:
        if name.startswith("local"):
            secret = find(objects, "Secret", f"{server}-tls", NAMESPACES[server])["data"]
            shown = x509.load_pem_x509_certificate(base64.b64decode(secret["tls.crt"]))
            names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            assert matches(host, names.get_values_for_type(x509.DNSName)), host
        else:
            assert matches(host, find(objects, "Certificate", f"{server}-tls")["spec"]["dnsNames"]), host


@pytest.mark.parametrize("name", ["production", "dr"])
def test_certificates_of_an_installation_are_renewed_long_before_they_end(name: str) -> None:
    """And none is in git; whom clients believe is, and is not made yet."""
    objects = overlay(name)
    for server, names in SERVERS.items():
        spec = find(objects, "Certificate", f"{server}-tls", NAMESPACES[server])["spec"]
        assert set(names) <= set(spec["dnsNames"])
        assert int(spec["renewBefore"][:-1]) >= 30 * 24
        assert ("client auth" in spec["usages"]) == (server == "nats")
    for namespace in set(NAMESPACES.values()):
        assert "BEGIN" not in find(objects, "ConfigMap", "kgents-ca", namespace)["data"]["ca.crt"]


def test_a_laptop_s_certificates_are_of_the_authority_its_services_believe() -> None:
    """And good for years; the authority's key is nowhere."""
    objects = overlay("local")
    pems = {find(objects, "ConfigMap", "kgents-ca", space)["data"]["ca.crt"] for space in NAMESPACES.values()}
    (authority,) = (x509.load_pem_x509_certificate(pem.encode()) for pem in pems)
    for server, namespace in NAMESPACES.items():
        data = find(objects, "Secret", f"{server}-tls", namespace)["data"]
        shown = x509.load_pem_x509_certificate(base64.b64decode(data["tls.crt"]))
        shown.verify_directly_issued_by(authority)
        assert shown.not_valid_after_utc > datetime.now(UTC) + timedelta(days=365)


@pytest.mark.parametrize("name", COMBINED)
def test_every_service_is_told_whom_to_believe(name: str) -> None:
    """The file is mounted where the settings say, and no address is without TLS."""
    for workload in workloads(overlay(name)):
        for container in workload.containers:
            if "kgents/" not in container["image"]:
                continue
            settings = find(overlay(name), "ConfigMap", "kgents-settings", workload.namespace)["data"]
            told = {**settings, **{v["name"]: v.get("value", "") for v in container.get("env", ())}}
            assert {"name": "ca", "mountPath": "/etc/kgents/ca", "readOnly": True} in container[
                "volumeMounts"
            ]
            assert told["NATS_CA_FILE"] == told["PGSSLROOTCERT"] == "/etc/kgents/ca/ca.crt"
            assert told["PGSSLMODE"] == "verify-full"
            assert told["NATS_SERVERS"].startswith("tls://")
            assert "redis://" not in str(told)
            assert "redis+sentinel://" not in str(told)
