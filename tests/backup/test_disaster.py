"""The second region: mirrors, promotion without losing what the archive has, the fence, the way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from prometheus_client import CollectorRegistry
from tests.backup.streams import (
    STREAM,
    add_consumer,
    archive,
    consume,
    fill,
    make_stream,
    read_all,
)

from kgents_backup.metrics import Metrics
from kgents_backup.model.faults import RefusedError
from kgents_backup.operations import disaster
from kgents_backup.operations.disaster import Region
from kgents_backup.sinks.store import DirectoryStore, Sealer, Vault
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common.clock import SystemClock
from kgents_common.errors import TransientError
from kgents_common.streams import JetStreamApiError
from kgents_devstack.servers import NatsServer, free_port
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version
from kgents_devstack.waiting import reached as until

CLOCK = SystemClock()
SUBJECTS = ["agentese.>"]


@dataclass
class Two:
    """Two regions joined by a leaf node."""

    primary: NatsServer
    dr: NatsServer
    region: Region
    primary_client: VerbatimClient
    dr_client: VerbatimClient


@asynccontextmanager
async def two_regions(directory: Path, version: str) -> AsyncIterator[Two]:
    """A primary and a DR region, each with one server."""
    leaf = free_port()
    primary = NatsServer(
        directory / "primary",
        version=version,
        name="primary",
        domain="primary",
        extra=f"leafnodes {{ listen: 127.0.0.1:{leaf} }}",
    )
    dr = NatsServer(
        directory / "dr",
        version=version,
        name="dr",
        domain="dr",
        extra=f'leafnodes {{ reconnect: 1, remotes: [{{ url: "nats-leaf://127.0.0.1:{leaf}" }}] }}',
    )
    await asyncio.to_thread(primary.start)
    await asyncio.to_thread(dr.start)
    options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.2, "connect_timeout": 2}
    try:
        async with (
            connected({"servers": primary.url, **options}) as primary_client,
            connected({"servers": dr.url, **options}) as dr_client,
        ):

            async def give_primary() -> VerbatimClient:
                if not primary_client.is_connected:
                    raise TransientError("nats: not connected")
                return primary_client

            async def give_dr() -> VerbatimClient:
                return dr_client

            region = Region(give_primary, give_dr, "primary", "dr", (STREAM,))
            yield Two(primary, dr, region, primary_client, dr_client)
    finally:
        await asyncio.to_thread(dr.stop)
        await asyncio.to_thread(primary.stop)


async def lag(two: Two) -> int | None:
    return (await disaster.status(two.region))[0].lag


@pytest.fixture
def archive_vault(tmp_path: Path) -> Vault:
    """The off-site archive, which outlives the primary."""
    return Vault(DirectoryStore(tmp_path / "offsite"), Sealer())


@pytest.mark.parametrize("version", [OLDEST_VERSION, installed_version()])
async def test_a_lost_region_is_promoted_with_what_the_archive_has(
    tmp_path: Path, vault: Vault, archive_vault: Vault, version: str
) -> None:
    """Rule: the mirror becomes the stream; acknowledged messages it never got are counted and come back at
    their own sequences; consumers stand where they stood; writes go on at the next sequence."""
    async with two_regions(tmp_path, version) as two:
        await make_stream(two.primary_client)
        await add_consumer(two.primary_client)
        await fill(two.primary_client, 500)
        await consume(two.primary_client, 200, acknowledge=200)
        await disaster.mirror(two.region, STREAM)

        async def caught_up() -> bool:
            return await lag(two) == 0

        await until(caught_up)
        # The link is cut: the primary still acknowledges, the mirror gets nothing, the archive does.
        two.dr.extra = ""
        await asyncio.to_thread(two.dr.restart)
        await fill(two.primary_client, 40, start=500)
        await archive(two.primary_client, archive_vault)
        before = await read_all(two.primary_client)
        await asyncio.to_thread(two.primary.kill)

        async def dr_is_back() -> bool:
            return two.dr_client.is_connected

        await until(dr_is_back)
        done = await disaster.promote(
            two.region, STREAM, SUBJECTS, archive=archive_vault, scratch=vault, clock=CLOCK
        )

        assert done.mirrored_to == 500
        assert (done.known_lost, done.recovered) == (40, 40)
        assert not done.is_fenced
        assert done.consumers == ["metering"]
        after = await read_all(two.dr_client)
        assert after[:500] == before[:500]
        assert [(m.sequence, m.subject, m.body) for m in after] == [
            (m.sequence, m.subject, m.body) for m in before
        ]
        await fill(two.dr_client, 1, start=9000)
        info = await stream_info(two.dr_client, STREAM)
        assert info is not None
        assert info.last_sequence == 541
        assert info.config["subjects"] == SUBJECTS
        assert not info.config.get("mirror")
        assert not info.config.get("subject_transform")
        assert await consume(two.dr_client, 1, acknowledge=0) == [201]


async def test_the_old_primary_is_fenced_accounted_for_and_takes_over_again(
    tmp_path: Path, vault: Vault
) -> None:
    """Rule: once back it takes no write; what only it has is published to the new stream; failing back loses
    nothing and ends with a mirror again."""
    async with two_regions(tmp_path, installed_version()) as two:
        await make_stream(two.primary_client)
        await fill(two.primary_client, 300)
        await disaster.mirror(two.region, STREAM)

        async def caught_up() -> bool:
            return await lag(two) == 0

        await until(caught_up)
        two_extra, two.dr.extra = two.dr.extra, ""
        await asyncio.to_thread(two.dr.restart)
        await fill(two.primary_client, 25, start=300)
        await asyncio.to_thread(two.primary.kill)

        async def is_away() -> bool:
            return not two.primary_client.is_connected and two.dr_client.is_connected

        await until(is_away)

        async def half_dead() -> VerbatimClient:
            raise JetStreamApiError("insufficient resources", 503, 10023)

        region = Region(half_dead, two.region.dr, "primary", "dr", (STREAM,))
        with pytest.raises(RefusedError, match="it may take writes"):
            await disaster.promote(region, STREAM, SUBJECTS, archive=None, scratch=vault, clock=CLOCK)
        done = await disaster.promote(
            region, STREAM, SUBJECTS, archive=None, scratch=vault, clock=CLOCK, force_unfenced=True
        )
        assert "NOT fenced (half dead)" in done.notes[0]
        assert not done.is_fenced
        await fill(two.dr_client, 60, start=1000)
        await add_consumer(two.dr_client)
        await consume(two.dr_client, 100, acknowledge=100)

        fencing = asyncio.create_task(disaster.fence_when_back(two.region, seconds=30))
        two.dr.extra = two_extra
        await asyncio.to_thread(two.dr.restart)
        await asyncio.to_thread(two.primary.start)
        assert await fencing == []
        with pytest.raises((JetStreamError, NatsError, TimeoutError)):
            await two.primary_client.jetstream(domain="primary").publish(
                "agentese.acme.x", b"late", stream=STREAM, timeout=2
            )
        await until(is_dr_connected(two))
        assert (await disaster.status(two.region))[0].primary == "fenced"
        counted = await disaster.account(two.region, STREAM, dry_run=True)
        assert (counted.beyond, counted.published) == (25, 25)
        assert (await disaster.account(two.region, STREAM)).published == 25
        again = await disaster.account(two.region, STREAM)
        assert (again.known, again.published) == (25, 0), "a second run publishes nothing twice"

        before = await read_all(two.dr_client)
        account, back = await disaster.fail_back(two.region, STREAM, scratch=vault, clock=CLOCK, seconds=60)

        assert account.published == 0
        after = await read_all(two.primary_client)
        assert [(m.sequence, m.subject, m.body) for m in after[: len(before)]] == [
            (m.sequence, m.subject, m.body) for m in before
        ]
        assert len(after) == len(before)
        assert back.consumers == ["metering"]
        assert [c.ack_floor for c in await durable_consumers(two.primary_client, STREAM)]
        await fill(two.primary_client, 1, start=8000)
        status = (await disaster.status(two.region))[0]
        assert (status.primary, status.role) == ("stream", "mirror")
        await until(caught_up)
        assert len(await read_all(two.dr_client)) == len(after) + 1


def is_dr_connected(two: Two):  # type: ignore[no-untyped-def]
    async def check() -> bool:
        return two.dr_client.is_connected and (await disaster.status(two.region))[0].role == "stream"

    return check


async def test_the_lag_is_a_metric_and_a_stream_is_not_promoted_twice(tmp_path: Path, vault: Vault) -> None:
    """Rule: how far the mirror is behind is known while both answer; what is no mirror is not promoted."""
    async with two_regions(tmp_path, installed_version()) as two:
        await make_stream(two.primary_client)
        await fill(two.primary_client, 10)
        await disaster.mirror(two.region, STREAM)
        registry = CollectorRegistry()
        watching = asyncio.create_task(disaster.watch_mirrors(two.region, Metrics(registry)))

        async def is_zero() -> bool:
            return registry.get_sample_value("kgents_backup_mirror_lag_messages", {"stream": STREAM}) == 0

        await until(is_zero)
        watching.cancel()
        done = await disaster.promote(two.region, STREAM, SUBJECTS, archive=None, scratch=vault, clock=CLOCK)
        assert done.is_fenced
        with pytest.raises(RefusedError, match="no mirror"):
            await disaster.promote(two.region, STREAM, SUBJECTS, archive=None, scratch=vault, clock=CLOCK)
        with pytest.raises(RefusedError, match="is no mirror"):
            await disaster.mirror(two.region, STREAM)
