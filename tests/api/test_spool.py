"""NATS goes away under load: with a spool every 202 is in AGENTESE afterwards, once; without one, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from kgents_common import keyring
from kgents_devstack.servers import NatsServer, apply_streams
from kgents_devstack.services import ServiceProcess
from kgents_devstack.waiting import HANGS_AFTER_SECONDS
from kgents_devstack.waiting import until as eventually

from .conftest import encoded
from .outage import Load, check, held, metric

ONE = {"content-type": "application/cloudevents+json"}


@dataclass
class Spooling:
    """A door, its NATS server, and a client of it."""

    service: ServiceProcess
    nats: NatsServer
    client: httpx.Client
    key: str

    def post(self, event_id: str) -> httpx.Response:
        return self.client.post("/v1/events", content=encoded(event_id), headers=ONE)

    def depth(self) -> float:
        return metric(
            httpx.get(f"{self.service.operations_url}/metrics").text, "kgents_nats_fallback_queue_depth"
        )


@contextmanager
def door(directory: Path, nats: NatsServer, **environment: str) -> Iterator[Spooling]:
    apply_streams(nats.url)
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(directory / "keys.json", [record])
    told = {
        "NATS_SERVERS": nats.url,
        "KGENTS_KEYRING_FILE": str(directory / "keys.json"),
        **environment,
    }
    with (
        ServiceProcess("api", directory / "api", told) as service,
        httpx.Client(base_url=service.url, timeout=20, headers={"x-api-key": key}) as client,
    ):
        yield Spooling(service, nats, client, key)


@pytest.fixture
def spooling(tmp_path: Path, own_nats: NatsServer) -> Iterator[Spooling]:
    with door(tmp_path, own_nats, KGENTS_SPOOL_DIRECTORY=str(tmp_path / "spool")) as made:
        yield made


def outage(door: Spooling, *, before: float, away: float, after: float) -> Load:
    """Load while NATS is killed and started again."""
    with Load(door.service.url, door.key) as load:
        time.sleep(before)
        door.nats.kill()
        time.sleep(away)
        door.nats.start()
        time.sleep(after)
    return load


OUTAGES = [
    pytest.param(4.0, id="seconds"),
    pytest.param(60.0, id="a_minute", marks=pytest.mark.long),
    # Longer than JetStream remembers an identity.
    pytest.param(150.0, id="beyond_the_duplicate_window", marks=pytest.mark.long),
]


@pytest.mark.parametrize("away", OUTAGES)
@pytest.mark.timeout(600)
def test_with_a_spool_every_202_is_in_the_stream_once(spooling: Spooling, away: float) -> None:
    """Rule: P1; nothing is refused while the spool has room."""
    load = outage(spooling, before=2, away=away, after=3)
    eventually(lambda: spooling.depth() == 0)
    found = asyncio.run(held(spooling.nats.url))
    answers = load.answers
    assert set(answers.statuses) == {202}
    assert answers.unanswered == 0
    assert found.keys() == answers.stored.keys()
    assert set(found.values()) == {1}
    assert set(answers.stored.values()) == {"stream", "spool"}
    eventually(lambda: check(spooling.service)["spool"] == "ok")
    assert spooling.post("live again").json()["receipts"][0]["stored"] == "stream"
    replayed = metric(
        httpx.get(f"{spooling.service.operations_url}/metrics").text, "kgents_nats_fallback_replayed_total"
    )
    assert replayed == sum(place == "spool" for place in answers.stored.values())


@pytest.mark.parametrize("away", OUTAGES[:2])
@pytest.mark.timeout(600)
def test_without_a_spool_nothing_is_answered_202_that_is_not_stored(
    tmp_path: Path, own_nats: NatsServer, away: float
) -> None:
    """Rule: not durable is 503, at once."""
    with door(tmp_path, own_nats) as bare:
        load = outage(bare, before=2, away=away, after=3)
        found = asyncio.run(held(bare.nats.url))
        answers = load.answers
        assert set(answers.statuses) == {202, 503}
        assert answers.unanswered == 0
        assert set(answers.stored.values()) == {"stream"}
        assert answers.stored.keys() <= found.keys()
        # What was answered 503 may be stored; it is recognised when it is sent again.
        assert set(found.values()) == {1}


def test_the_door_says_what_it_does_while_it_spools(spooling: Spooling) -> None:
    """Rule: with a spool the door is ready without NATS, and its health tells."""
    assert spooling.post("live").json()["receipts"][0]["stored"] == "stream"
    spooling.nats.kill()
    eventually(lambda: check(spooling.service)["nats"] == "down")
    [receipt] = spooling.post("kept").json()["receipts"]
    assert receipt == {"id": "kept", "source": "agents/a1", "duplicate": False, "stored": "spool"}
    [again] = spooling.post("kept").json()["receipts"]
    assert again["duplicate"] is True
    openmeter = spooling.client.post("/api/v1/events", content=encoded("as openmeter"), headers=ONE)
    assert (openmeter.status_code, openmeter.headers["kgents-stored"]) == (204, "spool")
    assert spooling.depth() == 2
    assert check(spooling.service)["spool"] == "degraded"
    assert spooling.client.get("/health").json()["status"] == "degraded"
    assert spooling.client.get("/health/ready").status_code == 200
    spooling.nats.start()
    eventually(lambda: spooling.depth() == 0)
    assert asyncio.run(held(spooling.nats.url)) == {"live": 1, "kept": 1, "as openmeter": 1}
    eventually(lambda: spooling.client.get("/health").json()["status"] == "ok")


def test_a_killed_door_has_lost_nothing_of_its_spool(spooling: Spooling) -> None:
    """Rule: a 202 survives kill -9 of the door while NATS is away, and while the door catches up."""

    with Load(spooling.service.url, spooling.key) as load:
        time.sleep(1)
        spooling.nats.kill()
        time.sleep(3)
        spooling.service.kill()
        spooling.service.start()
        time.sleep(1)
        spooling.nats.start()
        time.sleep(0.7)
        spooling.service.kill()
        spooling.service.start()
        time.sleep(1)
    answers = load.answers
    eventually(lambda: spooling.depth() == 0)
    found = asyncio.run(held(spooling.nats.url))
    assert "spool" in answers.stored.values()
    assert answers.stored.keys() <= found.keys()
    assert set(found.values()) == {1}
    assert answers.unanswered > 0


def test_a_full_spool_is_answered_503(tmp_path: Path, own_nats: NatsServer) -> None:
    """Rule: nothing is accepted that is not durable; and it passes when NATS is back."""
    environment = {"KGENTS_SPOOL_DIRECTORY": str(tmp_path / "spool"), "KGENTS_SPOOL_MAX_BYTES": "20000"}
    with door(tmp_path, own_nats, **environment) as full:
        full.nats.kill()
        answers = [full.post(f"e{n}") for n in range(100)]
        stored = [f"e{n}" for n, answer in enumerate(answers) if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code != 202]
        assert 10 < len(stored) < 90
        assert {answer.status_code for answer in refused} == {503}
        assert "retry-after" in refused[0].headers
        assert "spool is full" in refused[0].json()["detail"]
        assert full.client.get("/health/ready").status_code == 503
        full.nats.start()
        eventually(lambda: full.depth() == 0)
        assert asyncio.run(held(full.nats.url)) == dict.fromkeys(stored, 1)
        eventually(lambda: full.post("later").status_code == 202)


def test_two_doors_do_not_share_a_spool(spooling: Spooling, tmp_path: Path) -> None:
    second = ServiceProcess("api", tmp_path / "second", spooling.service.environment)
    second.directory.mkdir()
    second._spawn()
    assert second._process is not None
    assert second._process.wait(HANGS_AFTER_SECONDS) == 2
