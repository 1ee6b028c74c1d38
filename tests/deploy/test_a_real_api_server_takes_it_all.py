"""A real kube-apiserver takes every overlay; skipped where KUBEBUILDER_ASSETS names none.

The ecosystem's convention: a folder with `kube-apiserver` and `etcd`. The CRDs that the overlays need are
taken from its folder `crds`; where there is none, custom resources are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kgents_devstack.servers.process import Server, free_port

from .rendered import COMBINED, Object, is_custom, name_of, overlay

ASSETS = os.environ.get("KUBEBUILDER_ASSETS")
CRDS = sorted(Path(ASSETS, "crds").glob("*.yaml")) if ASSETS else []
TOKEN = "a-token-for-loopback"

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        ASSETS is None, reason="KUBEBUILDER_ASSETS is not set: no manifest was applied to a real API server"
    ),
]


class Etcd(Server):
    """Where the API server keeps what it is given."""

    name = "etcd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port, self._peers = free_port(), free_port()

    @property
    def url(self) -> str:
        """Its client address."""
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> Sequence[str]:
        peers = f"http://127.0.0.1:{self._peers}"
        return [
            f"{ASSETS}/etcd",
            *(f"--data-dir={self.directory / 'data'}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}"),
            *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
            f"--initial-cluster=default={peers}",
        ]


class ApiServer(Server):
    """kube-apiserver with its admission plugins, on loopback; no controller runs beside it."""

    name = "kube-apiserver"

    def __init__(self, directory: Path, etcd: Etcd) -> None:
        super().__init__(directory)
        self.port, self._etcd = free_port(), etcd

    def _prepare(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        (self.directory / "accounts.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        (self.directory / "tokens.csv").write_text(f"{TOKEN},admin,admin,system:masters\n")
        (self.directory / "kubeconfig").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "c",
                            "cluster": {
                                "server": f"https://127.0.0.1:{self.port}",
                                "insecure-skip-tls-verify": True,
                            },
                        }
                    ],
                    "users": [{"name": "u", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                    "current-context": "x",
                }
            )
        )

    def _command(self) -> Sequence[str]:
        accounts = self.directory / "accounts.key"
        return [
            f"{ASSETS}/kube-apiserver",
            *(f"--etcd-servers={self._etcd.url}", f"--secure-port={self.port}", "--bind-address=127.0.0.1"),
            *(f"--cert-dir={self.directory}", f"--token-auth-file={self.directory / 'tokens.csv'}"),
            *("--authorization-mode=AlwaysAllow", "--service-cluster-ip-range=10.0.0.0/24"),
            *(f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={accounts}"),
            "--service-account-issuer=https://kubernetes.default.svc",
            # No controller makes default accounts here; all of ours have their own.
            "--disable-admission-plugins=ServiceAccount",
        ]

    def _is_ready(self) -> bool:
        answer = self.kubectl("get", "--raw", "/readyz")
        return answer.returncode == 0

    def kubectl(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """The pinned client, at this server."""
        command = [str(Path(sys.executable).parent / "kubectl"), *arguments]
        told = {"KUBECONFIG": str(self.directory / "kubeconfig"), "HOME": str(self.directory)}
        return subprocess.run(
            command, input=given, env={**os.environ, **told}, capture_output=True, text=True, check=False
        )


@dataclass(frozen=True, slots=True)
class Cluster:
    """A server that knows the CRDs."""

    api: ApiServer
    has_crds: bool

    def apply(self, objects: Sequence[Object]) -> subprocess.CompletedProcess[str]:
        """As an operator does: server-side, every field checked."""
        given = yaml.safe_dump_all([dict(o) for o in objects], sort_keys=False)
        return self.api.kubectl(
            *("apply", "--server-side", "--validate=strict", "--force-conflicts", "-f", "-"), given=given
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One server for the module."""
    directory = tmp_path_factory.mktemp("cluster")
    with Etcd(directory / "etcd") as etcd, ApiServer(directory / "api", etcd) as api:
        for crd in CRDS:
            made = api.kubectl("apply", "--server-side", "-f", str(crd))
            assert made.returncode == 0, made.stderr
        if CRDS:
            waited = api.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
            assert waited.returncode == 0, waited.stderr
        yield Cluster(api, bool(CRDS))


def given(name: str, cluster: Cluster) -> list[Object]:
    """An overlay, without custom resources where the server does not know them."""
    return [o for o in overlay(name) if cluster.has_crds or not is_custom(o)]


def stored(cluster: Cluster, objects: Sequence[Object]) -> dict[str, Object]:
    """What the server has of each, without the bookkeeping that it does at every write."""
    text = yaml.safe_dump_all([dict(o) for o in objects])
    answer = cluster.api.kubectl("get", "-f", "-", "-o", "json", given=text)
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)["items"]
    for item in found:
        del item["metadata"]["resourceVersion"]
    return {name_of(item): item for item in found}


@pytest.mark.parametrize("name", COMBINED)
def test_an_overlay_is_applied_twice_without_an_error_a_warning_or_a_change(
    name: str, cluster: Cluster
) -> None:
    """Server-side, strictly; the second time nothing is different."""
    objects = given(name, cluster)
    # Done, and gone after its time: another overlay's Job is another.
    cluster.api.kubectl("delete", "job", "--all-namespaces", "--all", "--wait=false")

    first = cluster.apply(objects)
    before = stored(cluster, objects)
    second = cluster.apply(objects)

    assert (first.returncode, first.stderr) == (0, "")
    assert (second.returncode, second.stderr) == (0, "")
    assert set(before) == {name_of(o) for o in objects}
    assert stored(cluster, objects) == before


@pytest.mark.parametrize(
    "change",
    [
        {"securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}},
        {"hostNetwork": True},
        {"securityContext": {"runAsUser": 0}},
    ],
)
def test_a_pod_with_more_rights_than_restricted_allows_is_refused(
    change: dict[str, object], cluster: Cluster
) -> None:
    """Whoever applies it: the namespaces' labels decide."""
    cluster.apply([o for o in given("local", cluster) if o["kind"] == "Namespace"])
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "too-much", "namespace": "kgents-triad"},
        "spec": {"containers": [{"name": "c", "image": "example:1.0"}], **change},
    }

    answer = cluster.apply([pod])

    assert answer.returncode != 0
    assert 'violates PodSecurity "restricted' in answer.stderr


def test_a_pod_of_ours_is_taken(cluster: Cluster) -> None:
    """So that the refusals above mean something: the api's own template, as a pod."""
    objects = given("local", cluster)
    cluster.apply([o for o in objects if o["kind"] in ("Namespace", "ServiceAccount")])
    template = next(o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "kgent-api")[
        "spec"
    ]["template"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": "one-of-ours", "namespace": "kgents-triad"},
        "spec": template["spec"],
    }

    answer = cluster.apply([pod])

    assert (answer.returncode, answer.stderr) == (0, "")
