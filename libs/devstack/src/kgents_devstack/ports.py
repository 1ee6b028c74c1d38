"""The ports of a stack that stays: the same from start to start, so that bookmarks and scripts go on working.

Those that images and their users know, where they are free; else what an earlier start took; else any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from kgents_devstack.servers.process import free_port, reserve_port

FILE = "ports.json"
# By what listens: services by their names, the operators' ports of services, servers.
SERVICES: Mapping[str, int] = {
    "api": 8000,
    "metering": 8001,
    "reads": 8011,
    "billing": 8002,
    "backup": 8003,
    "agents": 8004,
}
OPERATIONS: Mapping[str, int] = {name: port + 1000 for name, port in SERVICES.items()}
SERVERS: Mapping[str, int] = {
    "nats": 4222,
    "nats-monitor": 8222,
    "redis": 6379,
    "postgres": 5432,
    "openmeter": 8888,
}


def of_operators(service: str) -> str:
    """What the operators' port of a service is called among the others."""
    return f"{service}-operations"


USUAL: Mapping[str, int] = {
    **SERVICES,
    **{of_operators(name): port for name, port in OPERATIONS.items()},
    **SERVERS,
}


def choose(directory: Path, say: Callable[[str], None], usual: Mapping[str, int] = USUAL) -> dict[str, int]:
    """A port for each, this process's own from now on; one that is not the usual is said.

    Args:
        directory: Where what was taken instead is kept for the next start.
    """
    earlier = _kept(directory)
    chosen: dict[str, int] = {}
    for name, port in usual.items():
        if reserve_port(port):
            chosen[name] = port
            continue
        again = earlier.get(name)
        chosen[name] = again if again is not None and reserve_port(again) else free_port()
        say(f"port {port} is taken: {name} listens on {chosen[name]}")
    others = {name: port for name, port in chosen.items() if port != usual[name]}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(json.dumps({**earlier, **others}))
    return chosen


def _kept(directory: Path) -> dict[str, int]:
    try:
        found = json.loads((directory / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {name: port for name, port in found.items() if isinstance(port, int) and 0 < port < 65536}
