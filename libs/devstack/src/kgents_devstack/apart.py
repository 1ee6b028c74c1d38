"""Servers in one process and each service in another, for a supervisor that wants its own processes (Tilt).

The servers write what each service is told into `services.json`; a service waits for that file, then becomes
the service: signals and the exit code are its own.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from kgents_devstack import kept, ports
from kgents_devstack.become import DIRECTORY, FILE, Told
from kgents_devstack.keeper import Keeper
from kgents_devstack.servers import StartError
from kgents_devstack.stack import EVERYTHING, Stack, StackOptions, passed_on

UP_DIRECTORY = Path(".kgents") / "up"
STACK_FILE = "stack.json"
OPERATED = ("api", "metering", "billing", "backup")
LOOK_SECONDS = 0.3


def run_servers(directory: Path | None, *, without: str | None = None) -> int:
    """Servers, stand-ins and streams, until Ctrl-C or SIGTERM.

    Args:
        without: Run every service but this one too: it is somebody's under work.
    """
    console = Console()
    chosen = (directory or DIRECTORY).absolute()
    services = tuple(name for name in EVERYTHING if without is not None and name != without)
    options = StackOptions(
        services=services,
        elsewhere=tuple(name for name in EVERYTHING if name not in services),
        environment=passed_on(os.environ),
        keeps=True,
        # The addresses stand in Tilt's links before anything runs.
        ports=ports.SERVICES,
        operations_ports=ports.OPERATIONS,
    )
    try:
        with kept.faults_told(chosen):
            forget_told(chosen)
            _run(console, Stack(chosen, options), chosen)
    except StartError as error:
        console.print(str(error), style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    return 0


def forget_told(directory: Path) -> None:
    """Remove what a stack that was killed left for others to read.

    Raises:
        StartError: A stack runs there: what it told is true.
    """
    with kept.alone(directory):
        for name in (FILE, STACK_FILE):
            (directory / name).unlink(missing_ok=True)


def _run(console: Console, stack: Stack, chosen: Path) -> None:
    try:
        stack.start()
        _write(stack, chosen)
        console.print(f"servers are up; files in {chosen}", highlight=False)
        keeper = Keeper(stack.processes, console.print, on_begun=lambda: write_about(stack, chosen))
        while True:
            keeper.look()
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        console.print("stopping …")
    finally:
        if stack.is_started:
            for name in (FILE, STACK_FILE):
                (chosen / name).unlink(missing_ok=True)
        stack.stop()


def _write(stack: Stack, directory: Path) -> None:
    told = {}
    for name in EVERYTHING:
        service = stack.make_service(name)
        told[name] = asdict(Told(list(service.command()), dict(service.told())))
    write_about(stack, directory)
    # The services' last: whoever waits for it finds the other too.
    _keep(directory / FILE, told)


def write_about(stack: Stack, directory: Path) -> None:
    """What `controls` need to know of a stack that runs."""
    api = stack.options.ports.get("api") or stack.service("api").port
    about = {
        "api": f"http://127.0.0.1:{api}",
        "key": stack.keys["acme"],
        "openmeter": stack.openmeter.url,
        "pids": {"nats": stack.nats.pid, "redis": stack.valkey.pid},
        "operator": {name: dict(stack.operators_environment(name)) for name in OPERATED},
    }
    _keep(directory / STACK_FILE, about)


def _keep(path: Path, document: object) -> None:
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(document, file)
    temporary.replace(path)
