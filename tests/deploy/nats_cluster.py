"""The cluster that the ConfigMap of the manifests makes, on loopback: only addresses and paths differ."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from kgents_devstack import certificates
from kgents_devstack.servers.nats import binary
from kgents_devstack.servers.process import Server, free_port

from .rendered import find, overlay

ROUTE = re.compile(r"nats-(\d)\.nats-headless\.kgents-agents\.svc:6222")


class Node(Server):
    """One pod's server, with what its pod tells it."""

    def __init__(
        self,
        directory: Path,
        version: str,
        index: int,
        routes: Sequence[int],
        authority: certificates.Authority,
    ) -> None:
        super().__init__(directory / f"nats-{index}")
        self._authority = authority
        self.name, self._version, self._routes, self._index = f"nats-{index}", version, routes, index
        self.port, self._monitor = free_port(), free_port()

    @property
    def url(self) -> str:
        """Its clients' address."""
        return f"tls://127.0.0.1:{self.port}"

    @property
    def tls_directory(self) -> Path:
        """Where its Secret is mounted."""
        return self.directory / "tls"

    def renew(self, authority: certificates.Authority | None = None) -> None:
        """Put another certificate in the place of the one it has, as cert-manager does."""
        signs = authority or self._authority
        pair = signs.issue("nats", [*certificates.SERVERS["nats"], "127.0.0.1"])
        certificates.write(self.tls_directory, pair, signs.certificate)

    def _prepare(self) -> None:
        if not self.tls_directory.exists():
            self.renew()
        files = find(overlay("local"), "ConfigMap", "nats-config")["data"]
        for file, text in files.items():
            moved = ROUTE.sub(lambda route: f"127.0.0.1:{self._routes[int(route.group(1))]}", text)
            for before, after in self._moves().items():
                moved = moved.replace(before, after)
            (self.directory / file).write_text(moved)

    def _moves(self) -> Mapping[str, str]:
        own = self._routes[self._index]
        return {
            "\nport: 4222": f"\nlisten: 127.0.0.1:{self.port}",
            "http: 0.0.0.0:8222": f"http: 127.0.0.1:{self._monitor}",
            "  port: 6222": f"  listen: 127.0.0.1:{own}",
            "/var/run/nats": str(self.directory),
            "/etc/nats-tls": str(self.tls_directory),
            "store_dir: /data": f'store_dir: "{self.directory}/data"',
        }

    def _command(self) -> Sequence[str]:
        return [binary(self._version), "--config", str(self.directory / "nats.conf")]

    def _environment(self) -> Mapping[str, str]:
        region = find(overlay("local"), "ConfigMap", "nats-region")["data"]
        keys = find(overlay("local"), "ConfigMap", "nats-public-keys")["data"]
        own = {"POD_NAME": self.name, "NATS_DOMAIN": region["domain"], "NATS_CLUSTER": region["cluster"]}
        return {**own, **keys}

    def _is_ready(self) -> bool:
        """By the readiness probe's own question."""
        probe = f"http://127.0.0.1:{self._monitor}/healthz?js-server-only=true"
        with urllib.request.urlopen(probe, timeout=1) as answer:
            return bool(answer.status == 200)

    def _wait_until_ready(self) -> None:
        """Alone a node is not ready: the cluster starts all of them, then waits."""

    def until_ready(self) -> None:
        """Wait for the probe."""
        super()._wait_until_ready()


def nodes(directory: Path, version: str) -> list[Node]:
    """As many as the StatefulSet has; `ca.crt` in the directory is whom their clients believe."""
    replicas = find(overlay("local"), "StatefulSet", "nats")["spec"]["replicas"]
    routes = [free_port() for _ in range(replicas)]
    authority = certificates.Authority()
    (directory / "ca.crt").write_bytes(authority.certificate)
    return [Node(directory, version, index, routes, authority) for index in range(replicas)]
