"""How much of a core each process of a stack used over a while; children are their parents'."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

from kgents_devstack.stack import Stack


class Cores:
    """Processor time by process, from when this was made.

    Args:
        services: Names of the services to look at, beside NATS, Postgres and this process (the load).
    """

    def __init__(self, stack: Stack, services: tuple[str, ...]) -> None:
        self._pids = {name: stack.service(name).pid for name in services}
        servers = (stack.nats, stack.postgres, stack.openmeter)
        self._pids |= {server.name: server.pid for server in servers if server.is_running}
        self._began = time.perf_counter()
        self._before = self._seconds()

    def used(self) -> dict[str, float]:
        """Cores by name, on average since then: 0.5 is half of one."""
        taken = time.perf_counter() - self._began
        return {name: (after - self._before[name]) / taken for name, after in self._seconds().items()}

    def _seconds(self) -> dict[str, float]:
        return {"load": time.process_time(), **{name: _seconds(pid) for name, pid in self._pids.items()}}


def _seconds(pid: int) -> float:
    process = psutil.Process(pid)
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            total += times.user + times.system
    return float(total)
