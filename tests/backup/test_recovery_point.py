"""What a kill of the archiver costs, under load: events that were acknowledged and are in no segment yet."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from tests.backup.streams import STREAM, make_stream

from kgents_backup.sinks.store import DirectoryStore, Sealer, Vault
from kgents_backup.sources.stream import message_time, stream_info
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_devstack.servers import NatsServer
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version
from kgents_devstack.waiting import reached as until

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
RATE = 1000
KILLS = 6
POINT_SECONDS = 5


async def publish(client: VerbatimClient, told: list[int]) -> None:
    """So many a second for ever, each acknowledged by a server that syncs it; `told` counts them."""
    inbox = client.new_inbox()

    async def acknowledged(_: object) -> None:
        told[0] += 1

    await client.subscribe(inbox, cb=acknowledged, pending_msgs_limit=-1, pending_bytes_limit=-1)
    begun, sent = time.monotonic(), 0
    while True:
        wanted = int((time.monotonic() - begun) * RATE)
        for _ in range(min(wanted, told[0] + 2 * RATE) - sent):
            await client.publish_verbatim("agentese.acme.llm", inbox, b"", random.randbytes(600))
            sent += 1
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("version", [installed_version(), OLDEST_VERSION])
async def test_a_killed_archiver_leaves_at_most_seconds_unarchived(tmp_path: Path, version: str) -> None:
    """Rule: killed by SIGKILL at any moment at a thousand events a second, the oldest acknowledged event that
    is in no segment is at most five seconds old (the RPO); the one after it goes on by itself."""
    vault = Vault(DirectoryStore(tmp_path / "store"), Sealer())

    async def archived() -> int:
        files = (await vault.catalogue(STREAM)).newest
        return files.archived_to if files else 0

    told, ages, behind, again = [0], [], [], []
    with NatsServer(tmp_path / "nats", version=version) as server:
        async with connected({"servers": server.url}) as client:
            await make_stream(client)
            publishing, begun = asyncio.create_task(publish(client, told)), time.monotonic()
            for _ in range(KILLS):
                stood, started = await archived(), time.monotonic()
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "kgents_backup", "archive"),
                    env={
                        **os.environ,
                        "NATS_SERVERS": server.url,
                        "KGENTS_BACKUP_DIRECTORY": str(tmp_path / "store"),
                        "KGENTS_BACKUP_STREAMS": STREAM,
                    },
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.DEVNULL,
                )

                async def goes_on(stood: int = stood) -> bool:
                    return await archived() > stood

                await until(goes_on)
                again.append(time.monotonic() - started)

                async def has_caught_up() -> bool:
                    info = await stream_info(client, STREAM)
                    return info is not None and info.last_sequence - await archived() < 3 * RATE

                await until(has_caught_up)
                await asyncio.sleep(random.uniform(2, 6))
                process.send_signal(signal.SIGKILL)
                killed = time.time()
                await process.wait()
                reached = await archived()
                at = await message_time(client, STREAM, reached + 1)
                ages.append(killed - at / 1e9 if at is not None else 0.0)
                info = await stream_info(client, STREAM)
                assert info is not None
                behind.append(info.last_sequence - reached)
            seconds = time.monotonic() - begun
            publishing.cancel()
    print(
        f"{version}: {told[0] / seconds:.0f} events/s acknowledged; unarchived at the kill:"
        f" {', '.join(f'{age:.1f} s' for age in ages)} ({max(behind)} events at most);"
        f" archiving again after {', '.join(f'{s:.1f} s' for s in again)}"
    )
    assert max(ages) <= POINT_SECONDS
