"""Running `kgents-backup` as an operator would: a process with an environment."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

PATIENCE_SECONDS = 90


class Commands:
    """One operator's shell: the same environment for every command."""

    def __init__(self, servers: str, directory: Path, **environment: str) -> None:
        self._environment = {
            **os.environ,
            "NATS_SERVERS": servers,
            "KGENTS_BACKUP_DIRECTORY": str(directory),
            **environment,
        }

    async def __call__(self, command: str, **environment: str) -> tuple[int, str]:
        """The exit code and what was said."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kgents_backup",
            *command.split(),
            env={**self._environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        return process.returncode or 0, said.decode()
