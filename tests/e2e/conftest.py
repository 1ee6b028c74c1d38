"""A whole system for each test: real servers, both services as processes, OpenMeter's stand-in."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import nats
import psycopg
import pytest

from kgents_devstack.demo.watch import ledger_counts, stream_messages
from kgents_devstack.servers import PostgresServer
from kgents_devstack.services import ServiceProcess
from kgents_devstack.stack import Stack, StackOptions
from kgents_devstack.waiting import until as wait_for

BATCH = "application/cloudevents-batch+json"


@dataclass
class System:
    """A running stack, and what was acknowledged by it."""

    stack: Stack
    acknowledged: dict[str, int] = field(default_factory=dict)

    def post(self, count: int, *, tenant: str = "acme", events: list[dict[str, Any]] | None = None) -> None:
        """Send events through the door in batches of 100, each until it is taken; remembers what was."""
        made = events or [make_event() for _ in range(count)]
        headers = {"authorization": f"Bearer {self.stack.keys[tenant]}", "content-type": BATCH}
        with httpx.Client(base_url=self.stack.service("api").url, timeout=30) as client:
            for start in range(0, len(made), 100):
                batch = made[start : start + 100]
                body = msgspec.json.encode(batch)
                # A door that cannot reach its stream in time says 503: a publisher sends again.
                wait_for(lambda: _taken(client.post("/v1/events", content=body, headers=headers)))  # noqa: B023
                self.acknowledged |= {event["id"]: event["data"]["tokens"] for event in batch}

    def ledger(self) -> dict[str, int]:
        """How messages ended."""
        return ledger_counts(self.stack.database_url)

    def settle(self) -> None:
        """Until every message ended and nothing is owed."""
        wait_for(self._is_settled, state=lambda: f"{self.ledger()} of {stream_messages(self.stack)}")

    def _is_settled(self) -> bool:
        counts = self.ledger()
        ended = sum(counts[name] for name in ("accepted", "duplicate", "conflict", "dead"))
        return ended >= stream_messages(self.stack) and counts["owed"] == 0

    def tokens_in_ledger(self) -> int:
        """What the rollups of the meter `tokens` add up to."""
        with psycopg.connect(self.stack.database_url) as connection:
            row = connection.execute(
                "select coalesce(sum(r.sum), 0) from metering.rollup r"
                " join metering.meter m on m.id = r.meter where m.slug = 'tokens'"
            ).fetchone()
        return int(row[0]) if row else 0

    def check_exact(self) -> None:
        """Ledger and OpenMeter hold exactly what was acknowledged: zero lost, zero doubled."""
        counts = self.ledger()
        assert counts["accepted"] == len(self.acknowledged)
        assert counts["delivered"] == len(self.acknowledged)
        assert self.tokens_in_ledger() == sum(self.acknowledged.values())
        assert self.stack.openmeter.stats()["unique"] == len(self.acknowledged)


def _taken(answer: httpx.Response) -> bool:
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
        return False
    answer.raise_for_status()
    return True


def make_event(**changes: Any) -> dict[str, Any]:
    """A good event with an id of its own."""
    return {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "agents/a1",
        "type": "llm.tokens",
        "data": {"tokens": 7, "model": "small-1", "direction": "in"},
        **changes,
    }


async def publish_directly(url: str, events: list[dict[str, Any]], tenant: str = "acme") -> None:
    """Straight to NATS, under the events' own types."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    for event in events:
        await jetstream.publish(f"agentese.{tenant}.{event['type']}", msgspec.json.encode(event))
    await client.close()


def run(coroutine: Any) -> Any:
    """For tests that are not coroutines themselves: starting processes belongs on the main thread."""
    return asyncio.run(coroutine)


@contextmanager
def systems(postgres_server: PostgresServer) -> Iterator[Callable[..., System]]:
    """Starts systems on the session's Postgres, each with a database of its own; stops them at the end."""
    made: list[tuple[Stack, Path, str]] = []

    def start(**options: Any) -> System:
        name = f"e2e_{uuid.uuid4().hex[:10]}"
        directory = Path(tempfile.mkdtemp(prefix="kgents-e2e-"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", postgres_server.create_database(name))
            stack = Stack(directory, StackOptions(**options))
            made.append((stack, directory, name))
            return System(stack.start())

    try:
        yield start
    finally:
        for stack, directory, name in made:
            stack.stop()
            shutil.rmtree(directory, ignore_errors=True)
            postgres_server.drop_database(name)


@pytest.fixture
def make_system(postgres_server: PostgresServer) -> Iterator[Callable[..., System]]:
    """Starts systems that end with the test."""
    with systems(postgres_server) as start:
        yield start


@pytest.fixture
def system(make_system: Callable[..., System]) -> System:
    """A system as `make up` starts it."""
    return make_system()


@pytest.fixture(scope="module")
def lasting_system(postgres_server: PostgresServer) -> Iterator[System]:
    """The same for tests that follow one another on it: each mends what it breaks, and all of them add up."""
    with systems(postgres_server) as start:
        yield start()


@pytest.fixture(scope="module")
def lasting_billing(postgres_server: PostgresServer) -> Iterator[System]:
    """The door and billing for tests that follow one another; each begins with `stripe_door.emptied`."""
    from .stripe_door import ENVIRONMENT, SERVICES  # it stands on this module

    with systems(postgres_server) as start:
        yield start(services=SERVICES, environment=ENVIRONMENT, needs_openmeter=False)


def restarted(system: System, name: str = "metering", *, crash_at: str | None = None) -> ServiceProcess:
    """Start a service that ended, without its crash point; or with another, which it may reach before it is
    ready."""
    service = system.stack.service(name)
    service.environment.pop("KGENTS_CRASH_AT", None)
    if crash_at is None:
        return service.start()
    service.environment["KGENTS_CRASH_AT"] = crash_at
    service.begin()
    return service
