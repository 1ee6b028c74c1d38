"""P7: the streams can come back: lost, they are restored by the operator's own commands, to any moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.backup.commands import Commands
from tests.backup.streams import consume, fill, read_all, shown

from kgents_backup.sinks.replay import without_original_time
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common import streams
from kgents_devstack.servers import NatsServer


@pytest.fixture
async def client(own_nats: NatsServer) -> AsyncIterator[VerbatimClient]:
    """Our two streams with their consumers, on a server of this test's own."""
    async with connected({"servers": own_nats.url}) as found:
        await streams.apply(found, await streams.plan(found))
        yield found


async def test_both_streams_are_lost_and_come_back(
    client: VerbatimClient, own_nats: NatsServer, tmp_path: Path
) -> None:
    """Rule: snapshot, more events, archive, loss; one command brings every event and consumer back."""
    run = Commands(own_nats.url, tmp_path / "backup")
    await fill(client, 400)
    await fill(client, 50, subject="events.billing.acme")
    await consume(client, 100, acknowledge=100)
    assert (await run("snapshot"))[0] == 0
    await fill(client, 200, start=400)
    assert (await run("archive --once"))[0] == 0
    agentese, events = await read_all(client), await read_all(client, "EVENTS")

    for stream in ("AGENTESE", "EVENTS"):
        await client.jetstream().delete_stream(stream)
    code, plan = await run("restore --dry-run")
    assert code == 0
    assert "1. restore the snapshot of" in plan
    code, said = await run("restore")
    assert code == 0, said
    assert "600 messages up to sequence 600" in said

    after = await read_all(client)
    assert after[:400] == agentese[:400]
    assert [(m.sequence, m.subject, without_original_time(m.headers), m.body) for m in after] == shown(
        agentese
    )
    assert shown((await read_all(client, "EVENTS"))[:50]) == shown(events[:50])
    assert await consume(client, 1, acknowledge=0) == [101]
    assert all(c.kind == "unchanged" for c in await streams.plan(client)), "the specification still holds"


async def test_a_damaged_backup_is_refused_and_the_one_before_it_serves(
    client: VerbatimClient, own_nats: NatsServer, tmp_path: Path
) -> None:
    """Rule: `verify` and `restore` name the damaged file and change nothing; told to, they go around it."""
    run = Commands(own_nats.url, tmp_path / "backup", KGENTS_BACKUP_STREAMS="AGENTESE")
    await fill(client, 300)
    assert (await run("snapshot"))[0] == 0
    assert (await run("archive --once"))[0] == 0
    await fill(client, 100, start=300)
    assert (await run("archive --once"))[0] == 0
    assert (await run("snapshot"))[0] == 0
    newest = sorted((tmp_path / "backup" / "snapshots").rglob("*.part"))[-1]
    data = bytearray(newest.read_bytes())
    data[100] ^= 1
    newest.write_bytes(bytes(data))

    for command in ("verify", "restore --replace"):
        code, said = await run(command)
        assert code == 1
        assert newest.name in said
    assert len(await read_all(client)) == 400
    code, said = await run("restore --replace --fall-back")
    assert code == 0, said
    assert "damaged and avoided" in said
    assert len(await read_all(client)) == 400


async def test_an_operators_mistake_gets_an_error_with_a_next_step(
    client: VerbatimClient, own_nats: NatsServer, tmp_path: Path
) -> None:
    """Rule: what cannot be done is said with what to do instead, and nothing is changed."""
    run = Commands(own_nats.url, tmp_path / "backup", KGENTS_BACKUP_STREAMS="AGENTESE")
    await fill(client, 10)
    for command, expected, code in (
        ("restore", "nothing is stored of AGENTESE", 1),
        ("restore --to yesterday", "a sequence, or 2026-01-31T12:00:00Z", 2),
        ("list --store offsite", "set KGENTS_BACKUP_OFFSITE_URL", 2),
        ("load", "set DATABASE_URL", 2),
        ("dr status", "set KGENTS_DR_NATS_SERVERS", 2),
    ):
        found, said = await run(command)
        assert found == code, said
        assert expected in said
        assert "hint:" in said
    assert (await run("snapshot"))[0] == 0
    found, said = await run("restore")
    assert found == 1
    assert "add --replace" in said
    found, said = await run("snapshot", NATS_SERVERS="nats://127.0.0.1:9")
    assert found == 1
    assert "check NATS_SERVERS" in said
    assert len(await read_all(client)) == 10
