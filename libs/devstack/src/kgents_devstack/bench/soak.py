"""Minutes of load on one door from many tenants, keys and sessions that come and go: what grows with time.

Not part of a plain `bench`: it takes ten minutes. `KGENTS_SOAK_SECONDS` shortens it.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import psutil

from kgents_common import keyring
from kgents_common.keyring import KeyRecord
from kgents_devstack.bench.offer import Line, post
from kgents_devstack.bench.report import Figure
from kgents_devstack.bench.system import running
from kgents_devstack.services import ServiceProcess
from kgents_devstack.stack import Stack

SECONDS = 600.0
SAMPLES = 10
TENANTS = 500
KEYS_A_TENANT = 4
CONNECTIONS = 40
PER_SECOND = 800
STREAMS = 20
ROTATE_SECONDS = 10.0
MIB = 1024 * 1024
# Of a hundred requests, so many are not a single event with a key.
BATCHES, SESSIONS, MINTED, UNKNOWN, NOWHERE = 5, 20, 3, 2, 2


@dataclass(frozen=True, slots=True)
class Sample:
    """The process after a tenth of the time: what it holds, and what a request cost in it."""

    resident_bytes: int
    open_files: int
    cpu_us_a_request: float


@dataclass
class Crowd:
    """Who calls: keys that are replaced, and the sessions minted from them.

    Attributes:
        answers: Requests answered, by status.
    """

    keys: dict[str, KeyRecord] = field(default_factory=dict)
    sessions: list[str] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)
    dice: random.Random = field(default_factory=lambda: random.Random(1))
    _shown: list[str] = field(default_factory=list)

    def rotate(self, stack: Stack, count: int) -> None:
        """Revoke so many keys and make as many; a tenth of them for tenants nobody knew."""
        for key in self.dice.sample(self._shown, count):
            tenant = self.keys.pop(key).tenant
            if self.dice.random() < 0.1:
                tenant = f"new-{uuid.uuid4().hex[:8]}"
            self._mint(tenant)
        self._write(stack)

    def fill(self, stack: Stack) -> None:
        """The first keys."""
        for number in range(TENANTS * KEYS_A_TENANT):
            self._mint(f"t{number % TENANTS}")
        self._write(stack)

    def any_key(self) -> str:
        """One of the keys."""
        return self.dice.choice(self._shown)

    def request(self) -> bytes:
        """The next request of anybody."""
        chance = self.dice.randrange(100)
        key = self.any_key()
        if chance < MINTED:
            body = msgspec.json.encode({"agent": f"a{self.dice.randrange(10_000)}", "ttl_seconds": 60})
            return post("/v1/sessions", body, authorization=f"Bearer {key}", content_type="application/json")
        chance -= MINTED
        if chance < SESSIONS and self.sessions:
            key = self.sessions[self.dice.randrange(len(self.sessions))]
        elif SESSIONS <= chance < SESSIONS + UNKNOWN:
            key = f"kg_{uuid.uuid4().hex}"
        elif SESSIONS + UNKNOWN <= chance < SESSIONS + UNKNOWN + NOWHERE:
            return post(
                f"/{uuid.uuid4().hex}", b"{}", authorization=f"Bearer {key}", content_type="application/json"
            )
        elif chance >= 100 - MINTED - BATCHES:
            many = msgspec.json.encode([_event() for _ in range(20)])
            return post(
                "/v1/events",
                many,
                authorization=f"Bearer {key}",
                content_type="application/cloudevents-batch+json",
            )
        return post(
            "/v1/events",
            msgspec.json.encode(_event()),
            authorization=f"Bearer {key}",
            content_type="application/cloudevents+json",
        )

    def note(self, status: int, body: bytes) -> None:
        """An answer; a minted session is used from now on, in the place of an old one."""
        self.answers[status] = self.answers.get(status, 0) + 1
        if status == 201:
            token = str(msgspec.json.decode(body)["token"])
            if len(self.sessions) < 1000:
                self.sessions.append(token)
            else:
                self.sessions[self.dice.randrange(1000)] = token

    def _mint(self, tenant: str) -> None:
        key, record = keyring.mint(tenant, keyring.TENANT_SCOPES)
        self.keys[key] = record

    def _write(self, stack: Stack) -> None:
        keyring.write(stack.keyring_file, self.keys.values())
        self._shown = list(self.keys)


def measure_soak() -> Iterator[Figure]:
    """One run; the second sample is the base for memory, as the first still fills caches."""
    seconds = float(os.environ.get("KGENTS_SOAK_SECONDS", SECONDS))
    crowd = Crowd()
    with running(services=()) as stack:
        crowd.fill(stack)
        with stack.make_service("api", KGENTS_LIVE_HEARTBEAT_SECONDS="5") as door:
            samples = asyncio.run(_run(stack, door, crowd, seconds))
    third = len(samples) // 3
    first, last = samples[:third], samples[-third:]
    base = samples[1].resident_bytes
    held = statistics.mean(sample.resident_bytes for sample in last)
    began = statistics.mean(sample.cpu_us_a_request for sample in first)
    ended = statistics.mean(sample.cpu_us_a_request for sample in last)
    failed = sum(count for status, count in crowd.answers.items() if status >= 500)
    yield from [
        Figure("soak: answered", sum(crowd.answers.values()), "requests"),
        Figure("soak: answered 5xx", failed, "requests", target=0, at_most=True),
        Figure("soak: resident, second sample", base / MIB, "MiB"),
        Figure("soak: resident, last third", held / MIB, "MiB"),
        Figure("soak: ratio of resident", held / base, "×", target=1.1, at_most=True),
        Figure("soak: CPU a request, first third", began, "µs"),
        Figure("soak: CPU a request, last third", ended, "µs"),
        Figure("soak: ratio of CPU a request", ended / began, "×", target=1.15, at_most=True),
        Figure("soak: open files, second sample", samples[1].open_files, ""),
        Figure(
            "soak: open files, last",
            samples[-1].open_files,
            "",
            target=samples[1].open_files + STREAMS,
            at_most=True,
        ),
    ]


async def _run(stack: Stack, door: ServiceProcess, crowd: Crowd, seconds: float) -> list[Sample]:
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CONNECTIONS):
            tasks.create_task(_send(door.port, crowd, until))
        for _ in range(STREAMS):
            tasks.create_task(_follow(door.port, crowd, until))
        tasks.create_task(_rotate(stack, crowd, until))
        sampling = tasks.create_task(_sample(door, crowd, seconds))
    return sampling.result()


async def _sample(door: ServiceProcess, crowd: Crowd, seconds: float) -> list[Sample]:
    samples: list[Sample] = []
    process = psutil.Process(door.pid)
    answered, used = 0, door.cpu_seconds()
    for number in range(SAMPLES):
        await asyncio.sleep(seconds / SAMPLES)
        now_answered, now_used = sum(crowd.answers.values()), door.cpu_seconds()
        sample = Sample(
            door.resident_bytes(),
            process.num_fds(),
            (now_used - used) / max(1, now_answered - answered) * 1e6,
        )
        samples.append(sample)
        print(
            f"  {number + 1}/{SAMPLES}: {sample.resident_bytes / MIB:.1f} MiB, {sample.open_files} files,"
            f" {sample.cpu_us_a_request:.0f} µs a request, {now_answered - answered} requests"
        )
        answered, used = now_answered, now_used
    return samples


async def _send(port: int, crowd: Crowd, until: float) -> None:
    """Its share of the rate; a new connection after some hundred requests, as clients come and go."""
    every = CONNECTIONS / PER_SECOND
    due = time.monotonic() + crowd.dice.random() * every
    while time.monotonic() < until:
        line = await Line.open(port)
        for _ in range(crowd.dice.randint(100, 500)):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + every, time.monotonic() - 1)
            if time.monotonic() >= until:
                break
            crowd.note(*await line.ask(crowd.request()))
        line.close()


async def _follow(port: int, crowd: Crowd, until: float) -> None:
    """Live streams of one tenant after the other, each for a few seconds."""
    while time.monotonic() < until:
        key = crowd.any_key()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET /v1/events/stream HTTP/1.1\r\nhost: soak\r\nx-api-key: {key}\r\n\r\n"
        writer.write(head.encode())
        try:
            async with asyncio.timeout(min(crowd.dice.uniform(2, 20), max(0.1, until - time.monotonic()))):
                while await reader.read(65536):
                    pass
        except (TimeoutError, ConnectionError):
            pass
        writer.close()


async def _rotate(stack: Stack, crowd: Crowd, until: float) -> None:
    while time.monotonic() < until - ROTATE_SECONDS:
        await asyncio.sleep(ROTATE_SECONDS)
        crowd.rotate(stack, TENANTS * KEYS_A_TENANT // 20)


def _event() -> dict[str, object]:
    return {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "agents/soak",
        "type": "llm.tokens",
        "data": {"tokens": 7, "model": "small-1", "direction": "in"},
    }
