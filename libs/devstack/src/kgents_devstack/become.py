"""`kgents-devstack service NAME`: this process becomes a service that `servers` wrote down, and nothing else.

It imports nothing but the standard library: at each edit under Tilt it runs before the service does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kgents_devstack.held import is_held

DIRECTORY = Path(".kgents") / "apart"
FILE = "services.json"
WAIT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a service is started with."""

    command: list[str]
    environment: dict[str, str]


def become(name: str, directory: Path | None) -> int:
    """Run one service in the place of this process, once the servers are there; 1 where they do not come."""
    path = (directory or DIRECTORY).absolute() / FILE
    deadline = time.monotonic() + WAIT_SECONDS
    try:
        # Servers that were killed leave the file behind, with ports that nobody has any more.
        while not (is_held(path.parent) and path.exists()):
            if time.monotonic() > deadline:
                print(f"no servers: {path} did not come", file=sys.stderr)
                return 1
            time.sleep(0.1)
        told = json.loads(path.read_text())
        if name not in told:
            print(f"unknown service {name}; known: {', '.join(told)}", file=sys.stderr)
            return 2
        one = Told(**told[name])
        os.execve(one.command[0], one.command, one.environment)
    except OSError as error:
        print(f"{error.filename or path}: {error.strerror}", file=sys.stderr)
        return 1
