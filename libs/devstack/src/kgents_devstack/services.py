"""The services as processes: their environment, port, log and readiness; what they do is theirs."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from kgents_devstack import alone
from kgents_devstack.servers.process import Server, free_port


class ServiceProcess(Server):
    """One service, run as its image runs it: `python -m kgents_<name>` with its own dependencies alone.

    Args:
        environment: What it is told; nothing of ours leaks in but PATH and OTEL_*.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        environment: Mapping[str, str],
        *,
        module: str | None = None,
        arguments: Sequence[str] = (),
        port: int | None = None,
        operations_port: int | None = None,
    ) -> None:
        super().__init__(directory)
        self.name = name
        self.port = port or free_port()
        self.operations_port = operations_port or free_port()
        self.environment = dict(environment)
        self.module = module or f"kgents_{name}"
        self._arguments = arguments

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def operations_url(self) -> str:
        """The operators' port: `/metrics`, health in full, the api's `/docs`."""
        return f"http://127.0.0.1:{self.operations_port}"

    def resident_bytes(self) -> int:
        """How much memory it holds."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def cpu_seconds(self) -> float:
        """Processor time it used so far."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def command(self) -> Sequence[str]:
        """What is run."""
        return alone.command(self.module, self._arguments)

    def told(self) -> Mapping[str, str]:
        """Its whole environment."""
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG") or k.startswith("OTEL_")}
        return {
            **kept,
            "PYTHONUNBUFFERED": "1",
            "KGENTS_HOST": "127.0.0.1",
            "KGENTS_PORT": str(self.port),
            "KGENTS_OPERATIONS_PORT": str(self.operations_port),
            "KGENTS_INSTANCE": f"{self.name}-{self.port}",
            **self.environment,
        }

    def _command(self) -> Sequence[str]:
        return self.command()

    def _environment(self) -> Mapping[str, str]:
        return self.told()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False
