"""What a person does to a running `servers` stack from outside: send, break, mend, operate, check it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx

from kgents_devstack import alone, kept
from kgents_devstack.apart import STACK_FILE, UP_DIRECTORY
from kgents_devstack.become import DIRECTORY
from kgents_devstack.held import is_held
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
        directory: Where they keep their files.
        pids: By server's name.
        operator: By service's name, the environment of its operator's commands.
    """

    api: str
    key: str
    openmeter: str
    pids: dict[str, int]
    operator: dict[str, dict[str, str]]
    directory: Path

    def check(self) -> None:
        """See that it still runs.

        Raises:
            StartError: Its process has ended.
        """
        with kept.faults_told(self.directory):
            if not is_held(self.directory):
                raise StartError(_ended(self.directory))


def running(directory: Path | None = None) -> Running:
    """The stack that runs in a directory; by default Tilt's, or else that of `up`.

    Raises:
        StartError: None does, or it cannot be asked.
    """
    folders = [folder.absolute() for folder in ([directory] if directory else [DIRECTORY, UP_DIRECTORY])]
    left_behind = None
    for folder in folders:
        with kept.faults_told(folder):
            if is_held(folder):
                return _read(folder)
            if left_behind is None and (folder / STACK_FILE).exists():
                left_behind = folder
    if left_behind is not None:
        raise StartError(_ended(left_behind))
    begin = f"`{command_line(directory, 'up')}`" if directory else "`make up` or `kgents-devstack servers`"
    raise StartError(f"nothing runs in {' or '.join(map(str, folders))} (start {begin})")


def _read(folder: Path) -> Running:
    path = folder / STACK_FILE
    try:
        return Running(**json.loads(path.read_text()), directory=folder)
    except FileNotFoundError as error:
        raise StartError(f"the stack in {folder} is not up yet: {path.name} is not there") from error
    except (ValueError, TypeError) as error:
        raise StartError(f"{path} is of another release: start that stack anew") from error


def _ended(folder: Path) -> str:
    return f"nothing runs in {folder} any more: its process was killed or has ended; start it again"


def command_line(directory: Path, command: str, *arguments: str) -> str:
    """A line for a shell in any folder: this program's command for the stack in a directory."""
    program = Path(sys.executable).parent / "kgents-devstack"
    return shlex.join([str(program), command, "--directory", str(directory.absolute()), *arguments])


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
        StartError: The stack ended meanwhile.
    """
    model = f"smoke-{uuid.uuid4().hex[:12]}"
    with httpx.Client(base_url=stack.api, headers=_bearer(stack), timeout=60) as door:

        def is_there() -> bool:
            stack.check()
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

        def is_counted() -> bool:
            stack.check()
            return bool(door.get("/api/v1/meters/tokens/query", params=query).json().get("data"))

        until(is_counted)


def break_neighbour(stack: Running, name: str, seconds: float = AWAY_SECONDS) -> None:
    """OpenMeter fails half of its calls until it is mended; NATS or Redis is frozen for a while."""
    if name == "openmeter":
        _faults(stack, "PUT", {"fail_rate": 0.5})
        return
    _signal(stack, name, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        _signal(stack, name, signal.SIGCONT)


def mend_neighbour(stack: Running, name: str) -> None:
    """Undo `break_neighbour`."""
    if name == "openmeter":
        _faults(stack, "DELETE", None)
    else:
        _signal(stack, name, signal.SIGCONT)


def operate(stack: Running, service: str, arguments: Sequence[str]) -> NoReturn:
    """This process becomes an operator's command of a service, e.g. `backup drill`.

    Ctrl-C is the command's own matter then, and its exit code is what the caller sees.

    Raises:
        StartError: There is no such service.
    """
    if service not in stack.operator:
        raise StartError(f"unknown service {service}; known: {', '.join(stack.operator)}")
    environment = {**os.environ, **stack.operator[service]}
    command = alone.command(f"kgents_{service}", arguments)
    os.execve(command[0], command, environment)


def _signal(stack: Running, name: str, number: signal.Signals) -> None:
    try:
        os.kill(stack.pids[name], number)
    except ProcessLookupError as error:
        raise StartError(f"{name} (process {stack.pids[name]}) has ended") from error


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
