"""The system's health: from memory, right while anything is down, and apart from liveness and readiness."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest

from kgents_api.model.saas import MAX_INSTANCES, Heartbeats, State, overall
from kgents_common import keyring
from kgents_common.clock import ManualClock
from kgents_common.connection import Connection
from kgents_common.errors import PermanentError
from kgents_common.health import Check, Status, publishing
from kgents_common.resilience import CircuitBreaker
from kgents_common.settings import ServiceSettings
from kgents_devstack.servers import NatsServer, apply_streams
from kgents_devstack.services import ServiceProcess
from kgents_devstack.waiting import until

WORKERS = ("metering", "billing", "backup")


def beat(status: str = "ok", **checks: str) -> bytes:
    return json.dumps(
        {
            "status": status,
            "service": "x",
            "checks": {name: {"status": value} for name, value in checks.items()},
        }
    ).encode()


@pytest.fixture
def heartbeats() -> Heartbeats:
    """Beats every 5 s are expected; the link is up since 0."""
    made = Heartbeats.every(5, WORKERS)
    made.note_link(is_up=True, now=0)
    return made


def test_a_worker_is_as_well_as_it_says_while_it_is_heard(heartbeats: Heartbeats) -> None:
    """Rule: a heartbeat is believed for three intervals, not longer."""
    assert heartbeats.worker("metering", 1).status is State.UNKNOWN
    heartbeats.note("metering", "m1", beat(), 2)
    assert heartbeats.worker("metering", 17).status is State.OK
    assert heartbeats.worker("metering", 17.1).status is State.DOWN


def test_a_worker_never_heard_is_unknown_first_and_down_then(heartbeats: Heartbeats) -> None:
    """Rule: it cannot be told before three intervals of listening."""
    assert heartbeats.worker("backup", 15).status is State.UNKNOWN
    assert heartbeats.worker("backup", 15.1).status is State.DOWN


def test_how_long_a_worker_is_silent_counts_from_when_it_could_be_heard(heartbeats: Heartbeats) -> None:
    """Rule: the alert's number is a worker's silence, not the door's deafness."""
    heartbeats.note_link(True, 0)
    assert heartbeats.silent_seconds("metering", 4) == 4
    heartbeats.note("metering", "m-0", b'{"status": "ok"}', 6)
    heartbeats.note("metering", "m-1", b'{"status": "down"}', 9)
    assert heartbeats.silent_seconds("metering", 10) == 1
    heartbeats.note_link(False, 20)
    assert math.isnan(heartbeats.silent_seconds("metering", 500))
    heartbeats.note_link(True, 600)
    assert heartbeats.silent_seconds("metering", 607) == 7


def test_nobody_is_called_silent_who_could_not_be_heard(heartbeats: Heartbeats) -> None:
    """Rule: without NATS a silence says nothing of the worker; listening begins anew after it."""
    heartbeats.note("metering", "m1", beat(), 2)
    heartbeats.note_link(is_up=False, now=20)
    assert heartbeats.worker("metering", 60).status is State.UNKNOWN
    heartbeats.note_link(is_up=True, now=100)
    assert heartbeats.worker("metering", 115).status is State.UNKNOWN
    assert heartbeats.worker("metering", 116).status is State.DOWN


def test_one_lame_instance_of_two_degrades_the_worker(heartbeats: Heartbeats) -> None:
    """Rule: a worker is down only where none of its instances can work."""
    heartbeats.note("metering", "m1", beat("ok"), 1)
    heartbeats.note("metering", "m2", beat("down"), 1)
    assert heartbeats.worker("metering", 2).status is State.DEGRADED
    heartbeats.note("metering", "m1", beat("down"), 3)
    assert heartbeats.worker("metering", 3).status is State.DOWN


def test_an_instance_replaced_by_another_does_not_count(heartbeats: Heartbeats) -> None:
    """Rule: instances come and go under new names; the living speak for the worker."""
    heartbeats.note("metering", "old", beat("down"), 1)
    heartbeats.note("metering", "new", beat("ok"), 30)
    assert heartbeats.worker("metering", 31).status is State.OK


def test_a_neighbour_is_what_its_worker_says(heartbeats: Heartbeats) -> None:
    """Rule: OpenMeter's state is metering's circuit; unknown where metering is silent or says nothing."""
    assert heartbeats.neighbour("openmeter", "metering", 1).status is State.UNKNOWN
    heartbeats.note("metering", "m1", beat(openmeter="ok"), 1)
    assert heartbeats.neighbour("openmeter", "metering", 1).status is State.OK
    heartbeats.note("metering", "m2", beat(openmeter="degraded"), 1)
    assert heartbeats.neighbour("openmeter", "metering", 1).status is State.DEGRADED
    assert heartbeats.neighbour("redis", "metering", 1).status is State.UNKNOWN
    assert heartbeats.neighbour("openmeter", "metering", 30).status is State.UNKNOWN


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b"{}", b'{"status": 1}', b"[" * 100_000])
def test_what_is_no_heartbeat_changes_nothing(heartbeats: Heartbeats, body: bytes) -> None:
    """Rule: a body that cannot be read is refused, and a state nobody knows is `unknown`."""
    with pytest.raises(PermanentError):
        heartbeats.note("metering", "m1", body, 1)
    assert heartbeats.worker("metering", 1).status is State.UNKNOWN


def test_what_is_remembered_is_bounded(heartbeats: Heartbeats) -> None:
    """Rule: neither many instances nor unexpected services cost memory."""
    for index in range(2 * MAX_INSTANCES):
        heartbeats.note("metering", f"m{index}", beat(), index / 1000)
    heartbeats.note("stranger", "s1", beat(), 1)
    assert {name: len(found) for name, found in heartbeats._heard.items()} == {"metering": MAX_INSTANCES}


def test_the_whole_is_down_only_without_what_is_needed() -> None:
    """Rule: a worker that is down degrades: events are still taken and kept for it."""
    assert overall([State.OK], [State.OK, State.OK]) is State.OK
    assert overall([State.OK], [State.UNKNOWN]) is State.DEGRADED
    assert overall([State.OK], [State.DOWN]) is State.DEGRADED
    assert overall([State.DOWN], [State.OK]) is State.DOWN


async def test_nats_is_as_well_as_a_publish_would_find_it(nats_url: str) -> None:
    """Rule: down before it is connected and where nobody reads what the server says, also over a socket that
    stands; degraded while the circuit is not closed."""
    clock = ManualClock()
    breaker = CircuitBreaker("nats", threshold=1, clock=clock)
    connection = Connection(ServiceSettings(nats_servers=(nats_url,)), name="test", on_closed=lambda: None)
    assert publishing(connection, breaker) == Check(Status.DOWN, "not connected")
    await connection.start()
    await connection.wait()
    try:
        assert publishing(connection, breaker) == Check(Status.OK, "circuit closed")
        breaker.failed(is_probe=False)
        assert publishing(connection, breaker) == Check(Status.DEGRADED, "circuit open")
        clock.advance(timedelta(seconds=1))
        assert publishing(connection, breaker) == Check(Status.DEGRADED, "circuit half_open")
        breaker.succeeded(breaker.admit())
        assert publishing(connection, breaker) == Check(Status.OK, "circuit closed")
        reading = connection.client._reading_task
        assert reading is not None
        reading.cancel()
        await asyncio.wait({reading})
        assert connection.is_connected
        assert publishing(connection, breaker) == Check(Status.DOWN, "not connected")
    finally:
        await connection.stop()


@pytest.fixture
def door(tmp_path: Path, own_nats: NatsServer) -> Iterator[ServiceProcess]:
    """A door that expects beats every 0.5 s."""
    apply_streams(own_nats.url)
    _, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(tmp_path / "keys.json", [record])
    environment = {
        "NATS_SERVERS": own_nats.url,
        "KGENTS_KEYRING_FILE": str(tmp_path / "keys.json"),
        "KGENTS_HEARTBEAT_SECONDS": "0.5",
    }
    with ServiceProcess("api", tmp_path / "api", environment) as service:
        yield service


def saas(door: ServiceProcess) -> tuple[int, dict[str, Any]]:
    answer = httpx.get(f"{door.operations_url}/health/saas", timeout=5)
    return answer.status_code, answer.json()


async def _say(own_nats: NatsServer, **documents: bytes) -> None:
    client = await nats.connect(own_nats.url)
    for service, body in documents.items():
        await client.publish(f"events.heartbeat.{service}.{service}-{uuid.uuid4().hex[:6]}", body)
    await client.close()


async def test_the_document_follows_the_heartbeats_and_nats(
    door: ServiceProcess, own_nats: NatsServer
) -> None:
    """Rule: 200 while events are taken, 503 while they are not; answered in both; alive all the while."""

    async def all_well() -> bool:
        await _say(
            own_nats, metering=beat(openmeter="ok"), billing=beat(stripe="ok", redis="ok"), backup=beat()
        )
        return saas(door)[1]["status"] == "ok"

    for _ in range(100):
        if await all_well():
            break
    status, document = saas(door)
    assert (status, document["status"]) == (200, "ok")
    assert set(document["components"]) == {
        "nats",
        "streams",
        "live",
        "openmeter",
        "stripe",
        "redis",
        "keys",
    }
    assert set(document["workers"]) == set(WORKERS)

    until(lambda: saas(door)[1]["workers"]["metering"]["status"] == "down")
    status, document = saas(door)
    assert (status, document["status"]) == (200, "degraded")
    assert document["components"]["openmeter"]["status"] == "unknown"

    own_nats.kill()
    until(lambda: saas(door)[0] == 503)
    until(lambda: saas(door)[1]["workers"]["metering"]["status"] == "unknown")
    assert saas(door)[1]["components"]["nats"]["status"] == "down"
    assert httpx.get(f"{door.url}/health/live").status_code == 200
    assert httpx.get(f"{door.url}/health/ready").status_code == 503

    own_nats.start()
    until(lambda: saas(door)[0] == 200)
    assert httpx.get(f"{door.url}/health/ready").status_code == 200
    for _ in range(100):  # heard again without a new subscription of ours
        if await all_well():
            break
    assert saas(door)[1]["status"] == "ok"


def test_it_answers_while_nats_is_frozen(door: ServiceProcess, own_nats: NatsServer) -> None:
    """Rule: nothing is asked while the caller waits: a neighbour that hangs does not hang the answer."""
    until(lambda: saas(door)[0] == 200)
    own_nats.signal(signal.SIGSTOP)
    try:
        until(lambda: saas(door)[1]["workers"]["backup"]["status"] == "down")
    finally:
        own_nats.signal(signal.SIGCONT)
