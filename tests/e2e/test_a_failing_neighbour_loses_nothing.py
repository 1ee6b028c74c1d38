"""A slow, failing or dead neighbour never loses anything, and its return needs no operator (P4)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from .conftest import System, make_event, publish_directly, run, wait_for


@pytest.fixture
def system(lasting_system: System) -> Iterator[System]:
    """One system for all that can follow one another; its neighbours are well again after each."""
    yield lasting_system
    lasting_system.stack.openmeter.clear_faults()


def test_openmeter_failing_half_of_its_calls(system: System) -> None:
    """Rule: a 2xx is believed, everything else is tried again under the same identity."""
    system.stack.openmeter.set_faults(fail_rate=0.5, seed=3)
    system.post(1000)
    system.settle()
    system.check_exact()


def test_openmeter_down(system: System) -> None:
    """Rule: the outbox grows, the circuit opens, delivery resumes and catches up."""
    system.stack.openmeter.set_faults(error_before=1.0)
    system.post(1000)
    wait_for(lambda: system.ledger()["accepted"] == len(system.acknowledged))
    assert system.ledger()["owed"] == 1000
    system.stack.openmeter.clear_faults()
    system.settle()
    system.check_exact()


def test_openmeter_refusing_our_key(system: System) -> None:
    """Rule: 401 pauses and alarms; nothing is dropped."""
    system.stack.openmeter.set_faults(unauthorized=1.0)
    system.post(100)
    metering = system.stack.service("metering").operations_url
    wait_for(lambda: "kgents_openmeter_paused 1.0" in httpx.get(f"{metering}/metrics").text)
    wait_for(lambda: system.ledger()["owed"] == 100, state=system.ledger)
    system.stack.openmeter.clear_faults()
    system.settle()
    system.check_exact()


def test_one_event_of_a_hundred_refused(make_system: Callable[..., System]) -> None:
    """Rule: bisect on 400: the others are delivered, the one stays visible."""
    system = make_system()
    events = [make_event() for _ in range(99)]
    poison = make_event(data={"tokens": 7, "model": "small-1", "poison": True})
    system.stack.openmeter.set_faults(reject_one=True)
    system.post(0, events=[*events, poison])
    wait_for(lambda: system.ledger()["delivered"] == 99 and system.ledger()["owed"] == 1)
    assert system.stack.openmeter.stats()["unique"] == 99


def test_past_the_dedupe_window_openmeter_is_asked_first(make_system: Callable[..., System]) -> None:
    """Rule: verify before resend once the outcome is unknown and OpenMeter may have forgotten the key."""
    system = make_system(environment={"metering": {"KGENTS_OPENMETER_DEDUPE_SECONDS": "0.001"}})
    system.stack.openmeter.set_faults(error_after=3)  # takes everything, then answers 500
    system.post(300)
    system.settle()
    system.check_exact()
    assert system.stack.openmeter.stats()["duplicates"] == 0
    metrics = httpx.get(f"{system.stack.service('metering').operations_url}/metrics").text
    assert "kgents_openmeter_events_verified_total 0.0" not in metrics


def test_reconcile_finds_and_repairs_what_openmeter_lost(system: System) -> None:
    """Rule: the bill can be proved: what a 204 dropped is found and sent, nothing counts twice (P5)."""
    system.stack.openmeter.set_faults(drop_after_204=1)
    twice = system.stack.openmeter.stats()["duplicates"]
    system.post(300)
    system.settle()
    assert system.stack.openmeter.stats()["unique"] < len(system.acknowledged)
    assert reconcile(system) == 1
    assert reconcile(system, "--repair") == 1
    system.settle()
    system.check_exact()
    assert system.stack.openmeter.stats()["duplicates"] == twice
    assert reconcile(system) == 0


def reconcile(system: System, *arguments: str) -> int:
    """The operator's command; its exit code."""
    metering = system.stack.service("metering")
    return subprocess.run(
        [sys.executable, "-m", "kgents_metering", "reconcile", "--hours", "2", *arguments],
        env={**os.environ, **metering.environment},
        check=False,
    ).returncode


def test_nats_killed_and_restarted(system: System) -> None:
    """Rule: workers resume by themselves in seconds; a door without its stream answers 503."""
    system.post(300)
    system.stack.nats.kill()
    key = system.stack.keys["acme"]
    refused = httpx.post(
        f"{system.stack.service('api').url}/v1/events",
        json=make_event(),
        headers={"authorization": f"Bearer {key}"},
        timeout=20,
    )
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    system.stack.nats.start()
    wait_for(lambda: httpx.get(f"{system.stack.service('api').url}/health/ready").status_code == 200)
    system.post(300)
    system.settle()
    system.check_exact()


def test_postgres_away(make_system: Callable[..., System], own_postgres: object, monkeypatch: object) -> None:
    """Rule: Postgres down: nothing is acked, the stream holds; back, it catches up."""
    from kgents_devstack.servers import PostgresServer

    assert isinstance(own_postgres, PostgresServer)
    system = make_system(services=("api",))
    system.stack.database_url = own_postgres.create_database("kgents")
    metering = system.stack.make_service("metering").start()
    try:
        system.post(200)
        wait_for(lambda: system.ledger()["accepted"] == 200)
        own_postgres.kill()
        system.post(300)
        time.sleep(1)
        own_postgres.start()
        system.settle()
        system.check_exact()
    finally:
        metering.stop()


def test_two_workers_at_once(system: System) -> None:
    """Rule: unique keys hold with any number of workers; one of them delivers."""
    with system.stack.make_service("metering", label="-2"):
        for _ in range(5):
            system.post(400)
        system.settle()
        system.check_exact()


def test_what_is_published_straight_to_nats_is_counted(system: System) -> None:
    """Rule: the door is one way in; an agent may publish to the stream itself."""
    events = [make_event(subject="acme", time="2026-11-23T12:00:00Z") for _ in range(50)]
    before = system.ledger()["duplicate"]
    run(publish_directly(system.stack.nats.url, events + events))
    system.acknowledged |= {event["id"]: 7 for event in events}
    system.settle()
    assert system.ledger()["duplicate"] == before + 50
    system.check_exact()


def test_a_tenant_sees_only_itself(system: System) -> None:
    """Rule: reads are scoped to the caller's tenant (P8)."""
    system.post(3, tenant="acme")
    system.settle()
    seen = {}
    for tenant in ("acme", "globex"):
        usage = httpx.get(
            f"{system.stack.service('metering').url}/api/v1/meters/tokens/query",
            headers={"authorization": f"Bearer {system.stack.keys[tenant]}"},
        ).json()
        seen[tenant] = [row["value"] for row in usage["data"]]
    assert seen == {"acme": [sum(system.acknowledged.values())], "globex": []}
