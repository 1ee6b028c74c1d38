"""What a person does to a running `servers` stack from outside: send, break, mend, operate, check it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from kgents_devstack import alone
from kgents_devstack.apart import STACK_FILE, UP_DIRECTORY
from kgents_devstack.become import DIRECTORY
from kgents_devstack.servers import StartError
from kgents_devstack.waiting import until

AWAY_SECONDS = 60.0
BURST_EVENTS = 1000
# Servers that can be frozen for a while, as the network to them would be.
FREEZABLE = ("nats", "redis")
NEIGHBOURS = ("openmeter", *FREEZABLE)


@dataclass(frozen=True, slots=True)
class Running:
    """What the servers say of themselves.

    Attributes:
        pids: By server's name.
        operator: By service's name, the environment of its operator's commands.
    """

    api: str
    key: str
    openmeter: str
    pids: dict[str, int]
    operator: dict[str, dict[str, str]]


def running(directory: Path | None = None) -> Running:
    """The stack that runs in a directory.

    Raises:
        StartError: None does.
    """
    folders = [directory] if directory is not None else [DIRECTORY, UP_DIRECTORY]
    path = next((p for folder in folders if (p := folder / STACK_FILE).exists()), folders[0] / STACK_FILE)
    try:
        return Running(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise StartError(
            f"nothing runs: {path} is not there (start `make up` or `kgents-devstack servers`)"
        ) from error


def burst(stack: Running, count: int = BURST_EVENTS) -> int:
    """Send so many events in batches of a hundred; how many were acknowledged."""
    acknowledged = 0
    with httpx.Client(base_url=stack.api, headers=_bearer(stack), timeout=60) as door:
        for _ in range(count // 100):
            answer = door.post(
                "/v1/events",
                content=json.dumps([_event() for _ in range(100)]),
                headers={"content-type": "application/cloudevents-batch+json"},
            )
            answer.raise_for_status()
            acknowledged += len(answer.json()["receipts"])
    return acknowledged


def smoke(stack: Running) -> None:
    """An event through the door is counted.

    Raises:
        AssertionError: It never is.
        httpx.HTTPError: The door does not take it.
    """
    model = f"smoke-{uuid.uuid4().hex[:12]}"
    with httpx.Client(base_url=stack.api, headers=_bearer(stack), timeout=60) as door:

        def is_there() -> bool:
            try:
                return door.get("/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        until(is_there)
        door.post(
            "/v1/events",
            content=json.dumps(_event(model)),
            headers={"content-type": "application/cloudevents+json"},
        ).raise_for_status()
        query = {"filterGroupBy[model]": model}
        until(lambda: door.get("/api/v1/meters/tokens/query", params=query).json().get("data"))


def break_neighbour(stack: Running, name: str, seconds: float = AWAY_SECONDS) -> None:
    """OpenMeter fails half of its calls until it is mended; NATS or Redis is frozen for a while."""
    if name == "openmeter":
        _faults(stack, "PUT", {"fail_rate": 0.5})
        return
    os.kill(stack.pids[name], signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(stack.pids[name], signal.SIGCONT)


def mend_neighbour(stack: Running, name: str) -> None:
    """Undo `break_neighbour`."""
    if name == "openmeter":
        _faults(stack, "DELETE", None)
    else:
        os.kill(stack.pids[name], signal.SIGCONT)


def operate(stack: Running, service: str, arguments: Sequence[str]) -> int:
    """An operator's command of a service, e.g. `backup drill`; its exit code."""
    if service not in stack.operator:
        raise StartError(f"unknown service {service}; known: {', '.join(stack.operator)}")
    environment = {**os.environ, **stack.operator[service]}
    command = alone.command(f"kgents_{service}", arguments)
    return subprocess.run(command, env=environment, check=False).returncode


def _faults(stack: Running, method: str, faults: object) -> None:
    httpx.request(method, f"{stack.openmeter}/_control/faults", json=faults, timeout=60).raise_for_status()


def _bearer(stack: Running) -> dict[str, str]:
    return {"authorization": f"Bearer {stack.key}"}


def _event(model: str = "small-1") -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "agents/burst",
        "type": "llm.tokens",
        "data": {"tokens": 7, "model": model, "direction": "in"},
    }
