"""A scratch server is its owner's alone, and goes with it: by the next one at the latest."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import nats
import psutil
import pytest

from kgents_backup.sinks.scratch import own_server
from kgents_devstack.waiting import until

_HOLD = """
import asyncio, sys
from pathlib import Path
from kgents_backup.sinks.scratch import own_server

async def hold() -> None:
    async with own_server(Path(sys.argv[1])):
        print("up", flush=True)
        await asyncio.sleep(3600)

asyncio.run(hold())
"""


async def test_what_a_killed_owner_left_is_swept_and_nothing_of_the_living(tmp_path: Path) -> None:
    """Rule: kill -9 of a restore leaves its server and plain copies of messages; the next one ends both."""
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOLD, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"up\n"
    [left] = tmp_path.glob("drill-*")
    configuration = str(left / "drill.conf")
    [server] = [p for p in psutil.process_iter(["cmdline"]) if configuration in (p.info["cmdline"] or [])]
    async with own_server(tmp_path):
        assert left.exists()
        assert server.is_running()
    owner.kill()
    await owner.wait()
    async with own_server(tmp_path) as own:
        assert not left.exists()
        until(lambda: not server.is_running() or server.status() == "zombie")
        assert len(list(tmp_path.glob("drill-*"))) == 1
        with pytest.raises(nats.errors.Error):
            await nats.connect(own.client.connected_url.geturl(), allow_reconnect=False)
    assert not list(tmp_path.glob("drill-*"))
