"""The door beside its floor: a raw ASGI app on the same server that decodes, publishes and awaits the ack.

Both get the same requests from the same load generator in turns, so that only the ratio counts. The generator
is a plain asyncio client in a process of its own; it shares the machine with what it measures.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from kgents_devstack.bench.collector import Collector
from kgents_devstack.bench.load import WEBHOOKS
from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running
from kgents_devstack.services import ServiceProcess
from kgents_devstack.stack import Stack

CONNECTIONS = 50
SECONDS = 5.0
ROUNDS = 3
# Every request has its span; of so many it is recorded and exported.
SAMPLED = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """What a round of load found."""

    per_second: float
    p50_ms: float
    p99_ms: float


def measure_door() -> Iterator[Figure]:
    """Single events and batches of a hundred, on a server that syncs every message, as P1 wants of R1."""
    return _measure("door", sync_always=True)


def measure_door_unsynced() -> Iterator[Figure]:
    """The same where syncing is left to the kernel: what the door costs when the disk is no ceiling.

    It has no targets: acknowledgements that are not synced are not durable on one server (P1).
    """
    return _measure("unsynced door", sync_always=False)


def _measure(name: str, *, sync_always: bool) -> Iterator[Figure]:
    with Collector() as collector:
        told = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(SAMPLED),
        }
        options = {"services": ("api",), "environment": {"api": told}, "sync_always": sync_always}
        least, most = (0.6, 2.5) if sync_always else (None, None)
        with running(**options) as stack, _floor(stack) as floor:
            bare, door = _rounds(stack, floor.url, 1)
            yield Figure(f"{name}: floor, single events", bare.per_second, "req/s")
            yield Figure(f"{name}: single events", door.per_second, "req/s")
            ratio = door.per_second / bare.per_second
            yield Figure(f"{name}: ratio, single events", ratio, "×", target=least)
            yield Figure(f"{name}: floor p99, single events", bare.p99_ms, "ms")
            yield Figure(f"{name}: p99, single events", door.p99_ms, "ms")
            ratio = door.p99_ms / bare.p99_ms
            yield Figure(f"{name}: ratio of p99", ratio, "×", target=most, at_most=True)
            bare, door = _rounds(stack, floor.url, 100)
            yield Figure(f"{name}: floor, batches of 100", bare.per_second * 100, "events/s")
            yield Figure(f"{name}: batches of 100", door.per_second * 100, "events/s")
            ratio = door.per_second / bare.per_second
            yield Figure(f"{name}: ratio, batches of 100", ratio, "×", target=least)
        if not collector.received_bytes:
            raise RuntimeError("nothing was traced: this is not what is to be measured")


def measure_webhooks() -> Iterator[Figure]:
    """Stripe's webhooks of 5 kB, each signed and of an id of its own."""
    with running(services=("api",)) as stack, _floor(stack) as floor:
        found = _rounds(stack, floor.url, 1, path=WEBHOOKS, key=stack.webhook_secret)
    bare, door = found
    yield Figure("webhooks: floor", bare.per_second, "req/s")
    yield Figure("webhooks: door", door.per_second, "req/s")
    yield Figure("webhooks: ratio", door.per_second / bare.per_second, "×", target=0.6)
    yield Figure("webhooks: floor p99", bare.p99_ms, "ms")
    yield Figure("webhooks: p99", door.p99_ms, "ms")
    yield Figure("webhooks: ratio of p99", door.p99_ms / bare.p99_ms, "×", target=2.5, at_most=True)


def _floor(stack: Stack) -> ServiceProcess:
    return ServiceProcess(
        "floor",
        stack.directory / "floor",
        {"NATS_SERVERS": stack.nats.url},
        module="kgents_devstack.bench.floor",
    )


def _rounds(
    stack: Stack, floor_url: str, batch: int, *, path: str = "/v1/events", key: str = ""
) -> tuple[Load, Load]:
    """Medians of the floor and of the door, in turns."""
    key = key or stack.keys["acme"]
    floors, doors = [], []
    for _ in range(ROUNDS):
        floors.append(_load(f"{floor_url}{path}", key, batch))
        doors.append(_load(f"{stack.service('api').url}{path}", key, batch))
    return _median(floors), _median(doors)


def _load(url: str, key: str, batch: int) -> Load:
    """One round, by a generator in a process of its own."""
    answer = subprocess.run(
        [
            sys.executable,
            *("-m", "kgents_devstack.bench.load", url, key),
            *(str(batch), str(CONNECTIONS if batch == 1 else 8), str(SECONDS)),
        ],
        check=True,
        capture_output=True,
    )
    return msgspec.json.decode(answer.stdout, type=Load)


def _median(loads: list[Load]) -> Load:
    return Load(
        statistics.median(load.per_second for load in loads),
        statistics.median(load.p50_ms for load in loads),
        statistics.median(load.p99_ms for load in loads),
    )
