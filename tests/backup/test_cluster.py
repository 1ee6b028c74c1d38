"""Three nodes, R3: the same proofs as on one server."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from tests.backup.streams import (
    STREAM,
    add_consumer,
    archive,
    consume,
    delete,
    fill,
    make_stream,
    read_all,
    shown,
)

from kgents_backup.model.faults import LockedError
from kgents_backup.operations.restoring.transaction import Restoration, Wanted
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.sinks.ownership import STREAM as OWNERS
from kgents_backup.sinks.replay import without_original_time
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import durable_consumers
from kgents_backup.sources.verbatim import connected
from kgents_common.clock import SystemClock
from kgents_common.errors import KgentsError
from kgents_common.streams import request
from kgents_devstack.servers import NatsCluster
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version
from kgents_devstack.waiting import reached


@pytest.mark.parametrize("version", [OLDEST_VERSION, installed_version()])
async def test_a_replicated_stream_comes_back_on_the_cluster(
    tmp_path: Path, vault: Vault, version: str
) -> None:
    """Rule: R3 before, R3 after; every message and every consumer's place; one owner for all three nodes."""
    cluster = NatsCluster(tmp_path / "cluster", version=version)
    await asyncio.to_thread(cluster.start)
    try:
        servers = [node.url for node in cluster.nodes]
        async with connected({"servers": servers, "max_reconnect_attempts": -1}) as client:
            await until_created(client)
            await add_consumer(client)
            await fill(client, 2000)
            await delete(client, 1, 500)
            await consume(client, 700, acknowledge=700)
            await take_snapshot(client, vault, STREAM, clock=SystemClock())
            await fill(client, 500, start=2000)
            await delete(client, 2100)
            await archive(client, vault)
            before = await read_all(client)
            floors = [(c.name, c.ack_floor) for c in await durable_consumers(client, STREAM)]

            await client.jetstream().delete_stream(STREAM)
            restoration = Restoration(client, vault, vault, SystemClock(), "first")
            async with restoration.alone:
                with pytest.raises(LockedError, match=r"under way since .*, by first"):
                    await Restoration(client, vault, vault, SystemClock(), "second").undo(STREAM)
                owners = await request(client, f"STREAM.INFO.{OWNERS}")
                assert owners["config"]["num_replicas"] == 3
                report = await restoration.bring_back(Wanted(STREAM))

            after = await read_all(client)
            plain = [(m.sequence, m.subject, without_original_time(m.headers), m.body) for m in after]
            assert plain == shown(before)
            assert after[:1998] == before[:1998]
            assert report.physical == 1998
            assert [(c.name, c.ack_floor) for c in await durable_consumers(client, STREAM)] == floors
            info = await request(client, f"STREAM.INFO.{STREAM}")
            assert info["config"]["num_replicas"] == 3
            assert len(info["cluster"]["replicas"]) == 2
            assert await subjects_by_replica(client) == [{m.subject for m in before}] * 3
            await fill(client, 10, start=9000)
    finally:
        await asyncio.to_thread(cluster.stop)


async def subjects_by_replica(client) -> list[set[str]]:  # type: ignore[no-untyped-def]
    """The subjects each replica holds, asked while it leads: a reader sees whichever one it meets."""
    seen: dict[str, set[str]] = {}
    for _ in range(120):
        with contextlib.suppress(KgentsError):
            info = await request(client, f"STREAM.INFO.{STREAM}", {"subjects_filter": ">"})
            leader = info["cluster"].get("leader")
            if leader:
                seen[leader] = set(info["state"].get("subjects") or {})
            if len(seen) == 3:
                break
            await request(client, f"STREAM.LEADER.STEPDOWN.{STREAM}")
        await asyncio.sleep(0.3)
    return list(seen.values())


async def until_created(client) -> None:  # type: ignore[no-untyped-def]
    """The stream, as soon as the cluster can place it."""

    async def takes() -> bool:
        try:
            await make_stream(client, num_replicas=3)
        except Exception:
            return False
        return True

    await reached(takes)
