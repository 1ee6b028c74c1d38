"""Live streams while something fails: NATS restarts, clients do not read, the process stops."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from kgents_common import keyring
from kgents_devstack.servers import NatsServer, apply_streams
from kgents_devstack.services import ServiceProcess
from kgents_devstack.waiting import HANGS_AFTER_SECONDS
from kgents_devstack.waiting import reached as until

from .conftest import event
from .live_streams import LiveStream

BATCH = "application/cloudevents-batch+json"
JSON_BATCH = {"content-type": BATCH}


@contextmanager
def running_door(
    directory: Path, nats_server: NatsServer, tenants: list[str], **environment: str
) -> Iterator[tuple[ServiceProcess, dict[str, str]]]:
    """A door for these tenants, and their keys."""
    apply_streams(nats_server.url)
    minted = {tenant: keyring.mint(tenant, keyring.TENANT_SCOPES) for tenant in tenants}
    keyring.write(directory / "keys.json", [record for _, record in minted.values()])
    told = {
        "NATS_SERVERS": nats_server.url,
        "KGENTS_KEYRING_FILE": str(directory / "keys.json"),
        "KGENTS_LIVE_HEARTBEAT_SECONDS": "1",
        "KGENTS_RATE_LIMIT_EVENTS_PER_SECOND": "1000000",
        **environment,
    }
    with ServiceProcess("api", directory / "api", told) as service:
        yield service, {tenant: key for tenant, (key, _) in minted.items()}


async def published(client: httpx.AsyncClient, key: str, events: list[dict[str, object]]) -> list[int]:
    """Store these, through outages; their sequences."""
    deadline = time.monotonic() + HANGS_AFTER_SECONDS
    while True:
        answer = await client.post(
            "/v1/events", content=json.dumps(events), headers={"authorization": f"Bearer {key}", **JSON_BATCH}
        )
        if answer.status_code == 202:
            return [int(r["stream_sequence"]) for r in answer.json()["receipts"]]
        assert answer.status_code in (429, 503), answer.text
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


def metric(service: ServiceProcess, line: str) -> float:
    """One sample of /metrics."""
    text = httpx.get(f"{service.operations_url}/metrics", timeout=10).text
    return next((float(row.split()[-1]) for row in text.splitlines() if row.startswith(line + " ")), 0.0)


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_after_nats_was_away_streams_go_on_without_hole_or_repeat(
    tmp_path: Path, own_nats: NatsServer, how: str
) -> None:
    """Rule: an open stream survives its server: the reader goes on right after the last event it gave out."""
    with running_door(tmp_path, own_nats, ["acme"]) as (service, keys):
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            streams = [await LiveStream(service.port, keys["acme"]).open() for _ in range(3)]
            expected: list[int] = []
            for round_number in range(3):
                for _ in range(20):
                    expected += await published(
                        client, keys["acme"], [event(uuid.uuid4().hex) for _ in range(10)]
                    )
                if round_number < 2:
                    own_nats.stop() if how == "restart" else own_nats.kill()
                    own_nats.start()
            for stream in streams:
                got = await stream.events(len(expected), 60)
                assert [e.sequence for e in got] == expected
                assert not stream.is_cut
                await stream.close()


async def test_nobody_can_begin_while_nats_is_away_and_who_is_there_stays(
    tmp_path: Path, own_nats: NatsServer
) -> None:
    """Rule: a stream that cannot be read is 503 with Retry-After; heartbeats of open ones go on."""
    with running_door(tmp_path, own_nats, ["acme", "globex"]) as (service, keys):
        async with LiveStream(service.port, keys["acme"]) as there:
            own_nats.kill()
            beats = len(there.comments)
            await until(lambda: httpx.get(f"{service.url}/health/ready").status_code == 503)
            late = await LiveStream(service.port, keys["globex"]).open()
            assert (late.status, "retry-after" in late.headers) == (503, True)
            await there.until(lambda: len(there.comments) > beats + 1)


async def test_a_client_that_does_not_read_is_cut_and_resumes(tmp_path: Path, own_nats: NatsServer) -> None:
    """Rule: it holds up nobody, its connection ends, and with its Last-Event-ID it misses nothing."""
    with running_door(tmp_path, own_nats, ["acme"], KGENTS_STALLED_CLIENT_SECONDS="1") as (service, keys):
        key = keys["acme"]
        reading = await LiveStream(service.port, key).open()
        stalled = await LiveStream(service.port, key, reads=False, receive_buffer=4096).open()
        expected: list[int] = []
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:

            def cut() -> float:
                return metric(service, 'kgents_api_live_streams_ended_total{reason="stalled"}')

            for _ in range(400):
                large = [event(uuid.uuid4().hex, data={"text": "x" * 10_000}) for _ in range(20)]
                expected += await published(client, key, large)
                if cut():
                    break
        assert cut() == 1
        assert [e.sequence for e in await reading.events(len(expected))] == expected
        stalled.start_reading()
        await stalled.until(lambda: stalled.is_cut)
        before = [e.sequence for e in stalled.received]
        assert before == expected[: len(before)]
        async with LiveStream(service.port, key, after=stalled.last_id) as again:
            rest = await again.events(len(expected) - len(before))
        assert before + [e.sequence for e in rest] == expected
        await reading.close()
        await stalled.close()


async def test_a_revoked_key_ends_its_streams(tmp_path: Path, own_nats: NatsServer) -> None:
    """Rule: P8; credentials are looked at with every heartbeat."""
    with running_door(tmp_path, own_nats, ["acme", "globex"]) as (service, keys):
        async with (
            LiveStream(service.port, keys["acme"]) as ours,
            LiveStream(service.port, keys["globex"]) as theirs,
        ):
            records = keyring.load(tmp_path / "keys.json")
            keyring.write(tmp_path / "keys.json", [r for r in records if r.tenant == "globex"])
            await ours.until(lambda: ours.has_ended)
            assert not theirs.has_ended


async def test_sigterm_ends_streams_in_order_within_the_grace_period(
    tmp_path: Path, own_nats: NatsServer
) -> None:
    """Rule: what was stored before is sent, responses end properly, a client that does not read waits for
    nobody, and the process exits 0 in time."""
    with running_door(
        tmp_path, own_nats, ["acme"], KGENTS_DRAIN_SECONDS="15", KGENTS_STALLED_CLIENT_SECONDS="3"
    ) as (service, keys):
        key = keys["acme"]
        streams = [await LiveStream(service.port, key).open() for _ in range(20)]
        stalled = await LiveStream(service.port, key, reads=False, receive_buffer=4096).open()
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as client:
            expected: list[int] = []
            for _ in range(15):
                large = [event(uuid.uuid4().hex, data={"text": "x" * 10_000}) for _ in range(20)]
                expected += await published(client, key, large)
        for stream in streams:
            await stream.events(len(expected))
        service.signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.wait, 30) == 0
        for stream in streams:
            await stream.until(lambda stream=stream: stream.has_ended)
            assert [e.sequence for e in stream.received] == expected
            await stream.close()
        assert "drain_cut_short" not in service.log_tail(200)
        await stalled.close()


async def _crowd(
    tmp_path: Path,
    nats_server: NatsServer,
    *,
    clients: int,
    tenants: int,
    seconds: float,
    rate: float,
    size: int,
) -> tuple[list[float], int, int]:
    """A tenth of the clients read nothing; the others' lags in seconds, in order of size, and the door's
    memory before and after, in bytes."""
    names = [f"t{index}" for index in range(tenants)]
    settings = {"KGENTS_STALLED_CLIENT_SECONDS": "2", "KGENTS_LIVE_HEARTBEAT_SECONDS": "15"}
    with running_door(tmp_path, nats_server, names, **settings) as (service, keys):
        streams: dict[str, list[LiveStream]] = {name: [] for name in names}
        stalled: list[LiveStream] = []
        for index in range(clients):
            name = names[index % tenants]
            if index // tenants % 10 == 9:
                stalled.append(
                    await LiveStream(service.port, keys[name], reads=False, receive_buffer=4096).open()
                )
            else:
                streams[name].append(await LiveStream(service.port, keys[name]).open())
        memory_before = service.resident_bytes()
        lags: list[float] = []
        for group in streams.values():
            for stream in group:
                stream.on_event = lambda e: lags.append(time.time() - e.data["data"]["at"])
        expected: dict[str, list[int]] = {name: [] for name in names}
        limits = httpx.Limits(max_connections=20)
        async with httpx.AsyncClient(base_url=service.url, timeout=30, limits=limits) as client:

            async def producing(name: str, offset: float) -> None:
                await asyncio.sleep(offset)
                for _ in range(int(seconds * rate)):  # a slow machine takes longer, and stalls as many
                    began = time.monotonic()
                    fat = event(uuid.uuid4().hex, data={"at": time.time(), "text": "x" * size})
                    expected[name] += await published(client, keys[name], [fat])
                    await asyncio.sleep(max(0.0, 1 / rate - (time.monotonic() - began)))

            await asyncio.gather(*(producing(n, i / tenants / rate) for i, n in enumerate(names)))
        for name, group in streams.items():
            for stream in group:
                got = await stream.events(len(expected[name]), 60)
                assert [e.sequence for e in got] == expected[name]
        await until(
            lambda: (
                metric(service, 'kgents_api_live_streams_ended_total{reason="stalled"}') == len(stalled)
                and metric(service, "kgents_api_live_clients") == clients - len(stalled)
            )
        )
        memory_after = service.resident_bytes()
        for stream in [*stalled, *(s for group in streams.values() for s in group)]:
            await stream.close()
    return sorted(lags), memory_before, memory_after


async def test_a_tenth_of_a_crowd_stalls_and_the_others_miss_nothing(
    tmp_path: Path, own_nats: NatsServer
) -> None:
    """Rule: every client that reads gets every event once, in order; those that do not are cut."""
    await _crowd(tmp_path, own_nats, clients=100, tenants=5, seconds=12, rate=20, size=8_000)


@pytest.mark.long
async def test_of_a_thousand_clients_a_tenth_stalls_and_the_others_are_in_time(
    tmp_path: Path, own_nats: NatsServer
) -> None:
    """Rule: 1,000 clients, a tenth stalled: the others lag less than a second, memory is bounded.

    The lag is from before the publish to after the client's parse, in one process for all clients, so the
    thousandth part that a shared machine delays most is shown but not judged.
    """
    lags, before, after = await _crowd(
        tmp_path, own_nats, clients=1000, tenants=10, seconds=60, rate=4, size=3_000
    )
    p50, p999 = lags[len(lags) // 2], lags[len(lags) * 999 // 1000]
    print(f"lag of {len(lags)} events: p50 {p50:.3f} s, p99.9 {p999:.3f} s, worst {lags[-1]:.3f} s")
    print(f"memory: {before / 2**20:.0f} MiB before, {after / 2**20:.0f} MiB after")
    assert p999 < 1
    assert after - before < 128 * 2**20
