"""1 GiB of messages of 200 bytes, which a server that syncs each one takes hours to store, comes back in the
time that was said before.

`KGENTS_SMALL_MESSAGES=500000` runs it with fewer.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from tests.backup.streams import STREAM, make_stream

from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common.streams import request
from kgents_devstack.servers import NatsServer
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version

pytestmark = [pytest.mark.long, pytest.mark.timeout(4 * 3600)]
BYTES = 200
COUNT = int(os.environ.get("KGENTS_SMALL_MESSAGES", 1024**3 // BYTES))
AT_ONCE = 4000
UNIT_SECONDS = {"s": 1, "min": 60, "h": 3600}


async def fill(client: VerbatimClient, port: int) -> None:
    """Publish without acknowledgements, waiting after each lot until the stream holds it: quickly."""
    _, wire = await asyncio.open_connection("127.0.0.1", port)
    wire.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
    noise = os.urandom(1 << 20)
    for start in range(0, COUNT, AT_ONCE):
        end = min(COUNT, start + AT_ONCE)
        for number in range(start, end):
            place = number * 197 % (len(noise) - BYTES)
            body = noise[place : place + BYTES - 8] + number.to_bytes(8, "big")
            wire.write(b"PUB agentese.acme.llm.%d %d\r\n%s\r\n" % (number % 11, BYTES, body))
        await wire.drain()

        async def holds(wanted: int = end) -> bool:
            state = (await request(client, f"STREAM.INFO.{STREAM}"))["state"]
            return int(state["last_seq"]) >= wanted

        while not await holds():
            await asyncio.sleep(0.005)
    wire.close()


async def command(url: str, store: Path, *arguments: str) -> tuple[float, str]:
    """Seconds, and what was said."""
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kgents_backup", *arguments),
        env={
            **os.environ,
            "NATS_SERVERS": url,
            "KGENTS_BACKUP_DIRECTORY": str(store),
            "KGENTS_BACKUP_STREAMS": STREAM,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    return time.monotonic() - begun, said


@pytest.mark.parametrize("version", [installed_version(), OLDEST_VERSION])
async def test_it_comes_back_in_the_time_that_was_said(tmp_path: Path, version: str) -> None:
    """Rule: every message, on a server that syncs each; the time named before is within a factor of two."""
    store = tmp_path / "store"
    with NatsServer(tmp_path / "before", version=version, sync_always=False) as server:
        async with connected({"servers": server.url}) as client:
            await make_stream(client, max_bytes=16 * 1024**3)
            begun = time.monotonic()
            await fill(client, server.port)
            filling = time.monotonic() - begun
            before = (await request(client, f"STREAM.INFO.{STREAM}"))["state"]
        await command(server.url, store, "snapshot")
    await asyncio.to_thread(shutil.rmtree, tmp_path / "before")
    with NatsServer(tmp_path / "after", version=version) as server:
        seconds, said = await command(server.url, store, "restore")
        async with connected({"servers": server.url}) as client:
            after = (await request(client, f"STREAM.INFO.{STREAM}"))["state"]
    shown = re.search(r"about ([0-9.]+) (s|min|h)(, as files)? \(this server stores ([0-9,]+)", said)
    assert shown, said
    print(said)
    expected = float(shown[1]) * UNIT_SECONDS[shown[2]]
    print(
        f"\n{version}: {COUNT} messages filled in {filling:.0f} s; {shown[4]} synced a second;"
        f" {expected:.0f} s said, {seconds:.0f} s taken{shown[3] or ''}"
    )
    compared = ("messages", "bytes", "first_seq", "last_seq", "first_ts", "last_ts")
    assert [after[k] for k in compared] == [before[k] for k in compared]
    assert before["messages"] == COUNT
    assert expected / 2 <= seconds <= expected * 2
