"""Streams are planned, then applied; what could lose messages is refused; on every server we support."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import nats
import pytest
from nats.aio.client import Client

from kgents_common import streams
from kgents_common.clock import ManualClock
from kgents_common.connection import Connection
from kgents_common.settings import ServiceSettings
from kgents_common.streams import AGENTESE, EVENTS, RefusedChangeError, StreamSpec
from kgents_common.streams.fill import StreamFill
from kgents_common.telemetry import new_registry
from kgents_devstack.fixtures import remove_streams
from kgents_devstack.raw_nats import RawPublisher
from kgents_devstack.servers import NatsServer

SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)


@pytest.fixture
async def client(each_nats_server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(each_nats_server.url)
    await remove_streams(client)
    yield client
    await client.close()


def kinds(changes: list[streams.Change]) -> set[str]:
    return {change.kind for change in changes}


async def test_a_bare_server_gets_streams_and_consumers_once(client: Client) -> None:
    """Rule: apply brings the server to the specification; the next plan is empty."""
    first = await streams.ensure(client, streams=SMALL)
    again = await streams.plan(client, streams=SMALL)
    assert kinds(first) == {"create"}
    assert kinds(again) == {"unchanged"}
    info = await client.jetstream().consumer_info("AGENTESE", "metering")
    assert info.config.max_deliver == -1


async def test_planning_changes_nothing(client: Client) -> None:
    """Rule: a plan can be looked at first."""
    await streams.plan(client, streams=SMALL)
    assert await client.jetstream().streams_info() == []


@pytest.mark.parametrize(
    "changed",
    [
        replace(SMALL[0], max_bytes=32 * 1024**2),
        replace(SMALL[0], max_age=timedelta(days=1)),
        replace(SMALL[0], subjects=("agentese.acme.>",)),
    ],
)
async def test_what_could_lose_messages_is_refused_whole(client: Client, changed: StreamSpec) -> None:
    """Rule: apply refuses a destructive change, and then does nothing at all."""
    await streams.ensure(client, streams=SMALL)
    grown = replace(SMALL[1], max_bytes=SMALL[1].max_bytes * 2)
    changes = await streams.plan(client, streams=(changed, grown))
    with pytest.raises(RefusedChangeError):
        await streams.apply(client, changes)
    assert (await client.jetstream().stream_info("EVENTS")).config.max_bytes == SMALL[1].max_bytes


async def test_growing_is_applied_and_foreign_settings_stay(client: Client) -> None:
    """Rule: fields we do not name stay as the operator set them."""
    await streams.ensure(client, streams=SMALL)
    info = await streams.request(client, "STREAM.INFO.AGENTESE")
    await streams.request(
        client, "STREAM.UPDATE.AGENTESE", {**info["config"], "metadata": {"owner": "operator"}}
    )
    await streams.ensure(client, streams=(replace(SMALL[0], max_bytes=128 * 1024**2), SMALL[1]))
    config = (await streams.request(client, "STREAM.INFO.AGENTESE"))["config"]
    assert config["max_bytes"] == 128 * 1024**2
    assert config["metadata"]["owner"] == "operator"


async def test_a_full_stream_refuses_and_drops_nothing(client: Client) -> None:
    """Rule: discard new: a full stream refuses the publisher, it never drops unmetered events."""
    await streams.ensure(client, streams=streams.scaled((AGENTESE, EVENTS), 100_000))
    jetstream = client.jetstream()
    refused = 0
    for number in range(40):
        try:
            await jetstream.publish("agentese.acme.x", b"x" * 5000, headers={"Nats-Msg-Id": str(number)})
        except nats.js.errors.APIError:
            refused += 1
    state = (await jetstream.stream_info("AGENTESE")).state
    assert refused > 0
    assert (state.first_seq, state.messages) == (1, 40 - refused)


async def test_a_stream_that_allows_message_ttl_stays_as_it_is(client: Client) -> None:
    """Rule: the version before asked for it, and a server does not take it back: nothing is planned."""
    await streams.ensure(client, streams=SMALL)
    if streams.server_version(client) >= (2, 11):
        config = (await streams.request(client, "STREAM.INFO.EVENTS"))["config"]
        await streams.request(client, "STREAM.UPDATE.EVENTS", {**config, "allow_msg_ttl": True})
    assert {change.kind for change in await streams.plan(client, streams=SMALL)} == {"unchanged"}


def test_the_deployments_command_plans_and_applies(own_nats: NatsServer) -> None:
    """Rule: one owner applies the streams; a plan changes nothing."""

    def command(name: str) -> str:
        told = {**os.environ, "NATS_SERVERS": own_nats.url}
        arguments = [sys.executable, "-m", "kgents_common.streams", name, "--max-bytes", str(64 * 1024**2)]
        return subprocess.run(arguments, env=told, check=True, capture_output=True, text=True).stdout

    for name in ("plan", "apply"):
        assert "create" in command(name)
    assert "create" not in command("plan")


async def test_heartbeats_leave_the_stream_of_the_version_before_and_nothing_else(
    client: Client,
) -> None:
    """Rule: EVENTS holds what must last; the version before is brought there by a plan that says it."""
    before = replace(SMALL[1], subjects=("events.>",), narrowed_from=(), left_out=())
    await streams.ensure(client, streams=(SMALL[0], before))
    jetstream = client.jetstream()
    await jetstream.publish("events.stripe.live.invoice_paid.evt_1", b"{}")
    for number in range(50):
        await jetstream.publish(f"events.heartbeat.api.i{number % 3}", b"{}")
    await jetstream.publish("events.deadletter.metering.invalid_event", b"{")

    changes = await streams.plan(client, streams=SMALL)
    told = [str(change) for change in changes if change.kind != "unchanged"]
    assert [line.split()[0] for line in told] == ["update", "purge"]
    assert "50 messages of events.heartbeat.>" in told[1]
    await streams.apply(client, changes)

    assert kinds(await streams.plan(client, streams=SMALL)) == {"unchanged"}
    assert (await jetstream.stream_info("EVENTS")).state.messages == 2
    with pytest.raises(nats.js.errors.NoStreamResponseError):
        await jetstream.publish("events.heartbeat.api.i1", b"{}")


async def test_the_worker_of_the_version_before_is_given_everything_in_its_place(client: Client) -> None:
    """Rule: its consumer's filter is widened where it stands: nothing is skipped and nothing comes again."""
    before = replace(streams.METERING, filter_subject="agentese.>")
    await streams.apply(client, await streams.plan(client, streams=SMALL, consumers=(before,)))
    jetstream = client.jetstream()
    for number in range(3):
        await jetstream.publish("agentese.acme.x", b"%d" % number)
    pull = await jetstream.pull_subscribe_bind("metering", "AGENTESE")
    for message in await pull.fetch(2):
        await message.ack_sync()

    changes = await streams.ensure(client, streams=SMALL)
    assert [str(one).split()[0] for one in changes if "AGENTESE/metering" in str(one)] == ["update"]
    assert kinds(await streams.plan(client, streams=SMALL)) == {"unchanged"}
    async with RawPublisher(client.connected_url.geturl()) as raw:
        raw.publish(b"agentese.acme.\x7f", b"3")
        await raw.settle()
    await jetstream.publish("agentese.acme.x", b"4")
    found: list[bytes] = []
    while len(found) < 3:
        found += [message.data for message in await pull.fetch(3, timeout=60)]
    assert found == [b"2", b"3", b"4"]


async def test_any_other_filter_stays_refused(client: Client) -> None:
    """Rule: a filter that changes otherwise would skip or repeat messages."""
    await streams.ensure(client, streams=SMALL)
    narrower = replace(streams.METERING, filter_subject="agentese.acme.>")
    assert "refuse" in kinds(await streams.plan(client, streams=SMALL, consumers=(narrower,)))


async def test_no_other_subject_may_leave(client: Client) -> None:
    """Rule: what could lose messages is refused."""
    await streams.ensure(client, streams=SMALL)
    fewer = replace(SMALL[1], subjects=SMALL[1].subjects[1:])
    assert "refuse" in kinds(await streams.plan(client, streams=(SMALL[0], fewer)))


def test_a_stream_is_sized_by_the_rate_that_is_declared() -> None:
    """Rule: what comes in its lifetime fits, whatever the rate."""
    made = streams.for_rate(AGENTESE, events_per_second=50, event_bytes=570, days=3)
    assert made.max_age == timedelta(days=3)
    assert made.max_bytes == 50 * 600 * 3 * 86400 * 1.25


async def test_a_stream_that_grows_says_when_it_is_full() -> None:
    """Rule: level and time to full are known before anybody is refused; the reserve is for what must fit."""
    clock = ManualClock(datetime(2026, 11, 25, tzinfo=UTC))
    connection = Connection(ServiceSettings(nats_servers=("nats://nowhere",)), name="t")
    fill = StreamFill(connection, new_registry(), clock)
    level = fill.levels["EVENTS"]
    for used in (500, 550, 600):
        fill.note(level, used, 1000)
        clock.advance(timedelta(seconds=10))
    assert (level.ratio, level.seconds_to_full) == (0.6, 80)
    told: list[float] = []

    async def tell() -> bool:
        told.append(level.ratio)
        return True

    may_wait = fill.leaving_room("EVENTS", tell)
    assert await may_wait()
    fill.note(level, 900, 1000)
    assert not await may_wait()
    assert told == [0.6]
    for _ in range(200):
        fill.note(level, 900, 1000)
    assert level.seconds_to_full == math.inf
