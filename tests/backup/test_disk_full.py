"""The disk takes no more: a clear error, nothing half-published, and the next run completes."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from pathlib import Path

import pytest
from tests.backup.commands import Commands
from tests.backup.streams import fill, make_stream, read_all

from kgents_backup.sources.verbatim import VerbatimClient
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import HANGS_AFTER_SECONDS

LIMIT_BYTES = 256 * 1024


async def limited(command: str, servers: str, directory: Path) -> tuple[int, str]:
    """A command whose files may not grow beyond `LIMIT_BYTES`: the system refuses the write."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kgents_backup",
        *command.split(),
        env={
            **os.environ,
            "NATS_SERVERS": servers,
            "KGENTS_BACKUP_DIRECTORY": str(directory),
            "KGENTS_BACKUP_STREAMS": "AGENTESE",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES)),
    )
    said, _ = await asyncio.wait_for(process.communicate(), HANGS_AFTER_SECONDS)
    return process.returncode or 0, said.decode()


@pytest.mark.parametrize("command", ["snapshot", "archive --once"])
async def test_a_refused_write_publishes_nothing_and_the_next_run_completes(
    client: VerbatimClient, nats_server: NatsServer, tmp_path: Path, command: str
) -> None:
    """Rule: a store that cannot write says so; what was good stays good."""
    await make_stream(client)
    await fill(client, 50)
    run = Commands(nats_server.url, tmp_path / "store", KGENTS_BACKUP_STREAMS="AGENTESE")
    assert (await run("snapshot"))[0] == 0
    await fill(client, 800, start=50, size=1024)

    code, said = await limited(command, nats_server.url, tmp_path / "store")
    assert code == 1, said
    assert "File too large" in said or "not stored" in said, said
    code, listed = await run("verify")
    assert code == 0, listed

    assert (await run(command))[0] == 0
    live = await read_all(client)
    await client.jetstream().delete_stream("AGENTESE")
    code, said = await run("restore")
    assert code == 0, said
    assert [m.body for m in await read_all(client)] == [m.body for m in live]
