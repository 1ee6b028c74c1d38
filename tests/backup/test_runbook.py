"""The runbook `docs/runbooks/restore.md`: each section's blocks of commands, run in order as they stand."""

from __future__ import annotations

import asyncio
import os
import re
import sysconfig
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import psycopg
import pytest
from tests.backup.conftest import open_s3
from tests.backup.streams import add_consumer, archive, fill, read_all

from kgents_backup.sinks.store import DirectoryStore, Sealer, Vault
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common import streams
from kgents_common.streams import request
from kgents_devstack.servers import NatsServer, S3Server, free_port
from kgents_devstack.stack import Stack, StackOptions
from kgents_devstack.waiting import reached as until

RUNBOOK = Path(__file__).parents[2] / "docs" / "runbooks" / "restore.md"
PATIENCE_SECONDS = 300


def sections() -> dict[str, list[str]]:
    """Each heading's blocks of commands."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", RUNBOOK.read_text(), flags=re.MULTILINE):
        title, _, text = part.partition("\n")
        found[title.strip("# ")] = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return found


def test_every_block_belongs_to_a_section_that_is_run_here() -> None:
    """Rule: a block that no test runs does not stand in the runbook."""
    run = {
        "Restore: a lost stream, a lost database, a lost region": 1,
        "A lost stream": 3,
        "An interrupted restore": 2,
        "Everything is lost": 1,
        "A lost database": 1,
        "A lost off-site copy": 1,
        "A wrong clock": 1,
        "A lost region": 4,
    }
    assert {title: len(blocks) for title, blocks in sections().items() if blocks} == run


class Operator:
    """One operator's shell."""

    def __init__(self, servers: str, directory: Path, **environment: str) -> None:
        self.environment = {
            **os.environ,
            "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
            "NATS_SERVERS": servers,
            "KGENTS_BACKUP_DIRECTORY": str(directory),
            **environment,
        }

    async def __call__(self, block: str, *, code: int = 0, **environment: str) -> str:
        """Run a block line by line, to the first that fails; what it said."""
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-e",
            "-c",
            block,
            env={**self.environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert process.returncode == code, f"{block}\n{said.decode()}"
        return said.decode()


@pytest.fixture
async def client(own_nats: NatsServer) -> AsyncIterator[VerbatimClient]:
    """Both streams with their consumers, on a server of this test's own."""
    async with connected({"servers": own_nats.url}) as found:
        await streams.apply(found, await streams.plan(found))
        yield found


async def lose(client: VerbatimClient) -> None:
    for stream in ("AGENTESE", "EVENTS"):
        await client.jetstream().delete_stream(stream)


async def test_a_lost_stream(client: VerbatimClient, own_nats: NatsServer, tmp_path: Path) -> None:
    """Rule: status first; the plan, the restore, the replacement of a live one, and what was kept deleted."""
    run = Operator(own_nats.url, tmp_path / "store")
    blocks = sections()
    await fill(client, 200)
    await run("kgents-backup snapshot\nkgents-backup archive --once\nkgents-backup verify")
    assert "a restore would work now" in await run(
        blocks["Restore: a lost stream, a lost database, a lost region"][0]
    )
    await fill(client, 50, start=200)
    await run("kgents-backup archive --once")
    await lose(client)
    restore, replace, discard = blocks["A lost stream"]
    assert "250 messages up to sequence 250" in await run(restore)
    await fill(client, 25, start=300)
    said = await run(replace)
    assert "live before: 250 messages" not in said
    assert "live before: 275 messages up to sequence 275; of these 0 are not restored" in said
    assert "deleted" in await run(discard)
    assert len(await read_all(client)) == 275


@pytest.mark.long
async def test_an_interrupted_restore(client: VerbatimClient, own_nats: NatsServer, tmp_path: Path) -> None:
    """Rule: killed, it is taken back; killed again, it is run again."""
    run = Operator(own_nats.url, tmp_path / "store")
    await fill(client, 100)
    await run("kgents-backup snapshot")
    undo, again = sections()["An interrupted restore"]
    for block in (undo, again):
        await run("kgents-backup restore --replace", code=-9, KGENTS_CRASH_AT="restore.deleted")
        await run("kgents-backup status", code=1)
        await run(block)
        assert len(await read_all(client)) == 100


@pytest.mark.long
async def test_a_lost_offsite_copy(
    client: VerbatimClient, own_nats: NatsServer, tmp_path: Path, s3_server: S3Server
) -> None:
    """Rule: a new bucket is filled, and read back."""
    there = open_s3(s3_server)
    await there.put("made", b"")
    run = Operator(
        own_nats.url,
        tmp_path / "store",
        KGENTS_BACKUP_OFFSITE_URL=there.url,
        KGENTS_BACKUP_S3_ENDPOINT=s3_server.endpoint,
        AWS_ACCESS_KEY_ID=s3_server.access_key,
        AWS_SECRET_ACCESS_KEY=s3_server.secret_key,
        AWS_REGION="us-east-1",
    )
    await fill(client, 100)
    await run("kgents-backup snapshot")
    for entry in await there.list(""):
        await there.delete(entry.key)
    assert "good" in await run(sections()["A lost off-site copy"][0])


@pytest.mark.long
async def test_a_wrong_clock(client: VerbatimClient, own_nats: NatsServer, tmp_path: Path) -> None:
    """Rule: a lock held for days by a clock that was ahead is shown, and taken."""
    run = Operator(own_nats.url, tmp_path / "store")
    ahead = datetime.now(UTC) + timedelta(days=3)
    store = DirectoryStore(tmp_path / "store")
    lock = msgspec.json.encode({"owner": "other-1", "token": "t", "until": ahead})
    await store.put("locks/run.json", lock)
    await fill(client, 10)
    await run("kgents-backup snapshot", code=1)
    said = await run(sections()["A wrong clock"][0])
    assert "run: held by other-1" in said
    assert "taken from other-1" in said


@pytest.mark.long
def test_everything_and_a_database_are_lost(tmp_path: Path) -> None:
    """Rule: one command for streams and databases; by hand for the databases alone."""
    with Stack(tmp_path / "stack", StackOptions(services=("metering",))) as stack:
        metering = stack.service("metering")
        own = ("NATS_SERVERS", "KGENTS_BACKUP_DIRECTORY")
        told = {k: v for k, v in metering.environment.items() if k not in own}
        run = Operator(stack.nats.url, tmp_path / "store", **told)

        async def before() -> None:
            async with connected({"servers": stack.nats.url}) as client:
                await fill(client, 60)
                await run("kgents-backup snapshot\nkgents-backup dump")
                await fill(client, 40, start=60)
                await run("kgents-backup archive --once")
                metering.stop()
                await lose(client)
                with psycopg.connect(stack.database_url, autocommit=True) as connection:
                    connection.execute("drop schema metering cascade")
                said = await run(sections()["Everything is lost"][0])
                assert "delivered again from" in said
                assert len(await read_all(client)) == 100
                assert "delivered again from" in await run(sections()["A lost database"][0])

        asyncio.run(before())
        metering.start()


@asynccontextmanager
async def two_regions(directory: Path) -> AsyncIterator[tuple[NatsServer, NatsServer]]:
    leaf = free_port()
    remote = f'leafnodes {{ reconnect: 1, remotes: [{{ url: "nats-leaf://127.0.0.1:{leaf}" }}] }}'
    primary = NatsServer(
        directory / "p", name="p", domain="primary", extra=f"leafnodes {{ listen: 127.0.0.1:{leaf} }}"
    )
    dr = NatsServer(directory / "d", name="d", domain="dr", extra=remote)
    await asyncio.to_thread(primary.start)
    await asyncio.to_thread(dr.start)
    try:
        yield primary, dr
    finally:
        await asyncio.to_thread(dr.stop)
        await asyncio.to_thread(primary.stop)


@pytest.mark.long
async def test_a_lost_region(tmp_path: Path) -> None:
    """Rule: mirror, loss, promotion, fence, account twice without publishing twice, and back."""
    mirror, promote, fence, back = sections()["A lost region"]
    async with two_regions(tmp_path) as (primary, dr):
        store = tmp_path / "store"
        own = {"KGENTS_DR_NATS_SERVERS": dr.url, "KGENTS_BACKUP_STREAMS": "AGENTESE"}
        run = Operator(primary.url, store, **own)
        vault = Vault(DirectoryStore(store), Sealer())
        async with connected({"servers": primary.url, "max_reconnect_attempts": 1}) as client:
            await streams.apply(client, await streams.plan(client))
            await run(mirror)
            await fill(client, 300)
            await add_consumer(client, "reader")
            await archive(client, vault)
            await until(lambda: _holds(dr.url, 300))
        await asyncio.to_thread(primary.kill)
        assert "promoted by" in await run(promote)
        fencing = asyncio.create_task(run(fence))
        await asyncio.to_thread(primary.start)
        await fencing
        said = await run(back)
        assert "the primary is back" in said
        assert "0 are published now" in said
        async with connected({"servers": primary.url}) as client:
            assert len(await read_all(client)) == 300


async def _holds(url: str, count: int) -> bool:
    async with connected({"servers": url}) as client:
        return int((await request(client, "STREAM.INFO.AGENTESE"))["state"]["messages"]) >= count
