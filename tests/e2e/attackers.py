"""One tenant's attacks on a running system, all at once, in a process of its own and at a pace of its own.

Run as `python attackers.py '<Target as JSON>'`: attacks until its standard input ends, then prints how often
which attack met with what. Doors, not this machine, are to be the limit: each attack says how much it does.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import msgspec

from kgents_common import envelope
from kgents_devstack.bench.offer import Line, get, post
from kgents_devstack.raw_nats import UNREADABLE_HEADERS, UNREADABLE_SUBJECTS, RawPublisher

SLOW_WEBHOOKS = 150
HEADS_AT_ONCE = 100
HEAD_BYTES = 60_000
TRAILERS = 3
FLOOD_BYTES = 1_000_000
LARGE_BYTES = 600_000
BURST = 100


@dataclass(frozen=True, slots=True)
class Target:
    """Who attacks what.

    Attributes:
        key: The attacker's own key: what it may do, it does too much of.
        victim: Another tenant, whose events' ids can be guessed: `<guessed><number>` of `guessed_source`, so
            many a second since `began` (Unix seconds).
        address: Where the attacker's connections come from; None for whatever the machine chooses.
    """

    api: int
    reads: int
    nats_port: int
    tenant: str
    key: str
    victim: str
    guessed_source: str
    guessed: str
    guessed_per_second: float
    began: float
    address: str | None

    @property
    def agent_url(self) -> str:
        """Straight to NATS, with the tenant's key."""
        return f"nats://agent:{self.key}@127.0.0.1:{self.nats_port}"

    @property
    def subject(self) -> bytes:
        """Where its own events go."""
        return b"agentese.%s.llm.tokens" % self.tenant.encode()

    def event(self, **changes: object) -> bytes:
        """A good event of its own."""
        whole = {
            "specversion": "1.0",
            "id": f"{random.getrandbits(96):x}",
            "source": "agents/evil",
            "type": "llm.tokens",
            "data": {"tokens": 1, "model": "m", "direction": "in"},
        }
        return msgspec.json.encode({**whole, **changes})

    async def line(self, port: int) -> Line:
        """A keep-alive connection for whole requests."""
        return Line(*await self.connect(port))

    async def connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from the attacker's address."""
        local = None if self.address is None else (self.address, 0)
        return await asyncio.open_connection("127.0.0.1", port, local_addr=local)


Attack = Callable[[Target, Counter[str]], Awaitable[None]]


async def what_no_library_sends(target: Target, met: Counter[str]) -> None:
    """Header blocks and subjects that end a careless reader's loop: ten a second."""
    async with RawPublisher(target.agent_url) as raw:
        for subject, headers in itertools.cycle(
            itertools.product((b"llm.tokens", *UNREADABLE_SUBJECTS), (None, b"", *UNREADABLE_HEADERS))
        ):
            raw.publish(b"agentese.%s.%s" % (target.tenant.encode(), subject), target.event(), headers)
            await raw.settle()
            met["sent"] += 1
            await asyncio.sleep(0.1)


async def words_of_the_server(target: Target, met: Counter[str]) -> None:
    """Good events whose headers read like a status of JetStream's, or ask for what only it may do: 20/s."""
    lines = (
        b"Status: 404", b"Status: 408", b"Status: 409\r\nDescription: Consumer Deleted", b"Status: 100",
        b"Status: 503", b"Nats-Pending-Messages: 1", b"Nats-Rollup: all", b"Nats-TTL: 1s",
        b"Nats-Expected-Last-Sequence: 1", b"Nats-Stream: AGENTESE\r\nNats-Sequence: 1",
    )  # fmt: skip
    async with RawPublisher(target.agent_url) as raw:
        for line in itertools.cycle(lines):
            first = b"NATS/1.0 404 No Messages" if random.random() < 0.3 else b"NATS/1.0"
            raw.publish(target.subject, target.event(), b"%s\r\n%s\r\n\r\n" % (first, line))
            await raw.settle()
            met["sent"] += 1
            await asyncio.sleep(0.05)


async def ids_of_another(target: Target, met: Counter[str]) -> None:
    """Own events under the message ids that another tenant's next events might have: 25/s."""
    async with RawPublisher(target.agent_url) as raw:
        while True:
            now = (time.time() - target.began) * target.guessed_per_second
            event_id = f"{target.guessed}{int(now) + random.randrange(int(target.guessed_per_second))}"
            key = envelope.identity(target.victim, target.guessed_source, event_id).hex()
            for guess in (key, event_id, f"{target.victim}/{event_id}"):
                body = target.event(id=event_id, source=target.guessed_source)
                raw.publish(target.subject, body, b"NATS/1.0\r\nNats-Msg-Id: %s\r\n\r\n" % guess.encode())
            other = b"agentese.%s.llm.tokens" % target.victim.encode()
            raw.publish(other, target.event(id=event_id, source=target.guessed_source))
            await raw.settle()
            met["sent"] += 1
            await asyncio.sleep(0.16)


async def garbage(target: Target, met: Counter[str]) -> None:
    """What is no event, straight to NATS: a hundred at once every two seconds, a large one every five."""
    foreign = target.event(subject=target.victim)
    numbers = b'{"specversion":"1.0","id":"n","source":"s","type":"llm.tokens","data":{"tokens":%s}}'
    bodies = (
        b"", b"\xff\xfe\x00", b"null", b"[]", b"[" * 5000, b'{"a":' * 2000, foreign, foreign[:-30],
        numbers % (b"9" * 4000), numbers % b"1e-9999999999999999999", target.event(id="a\x00"),
        target.event(type="agent.count"), target.event(time="yesterday"), target.event(data=[1]),
    )  # fmt: skip
    async with RawPublisher(target.agent_url) as raw:
        for number in itertools.count():
            for body in itertools.islice(itertools.cycle(bodies), BURST):
                raw.publish(target.subject, body)
            if number % 5 == 0:
                raw.publish(target.subject, target.event(data={"tokens": 1, "x": "y" * LARGE_BYTES}))
                raw.publish(target.subject, b"z" * LARGE_BYTES)
            await raw.settle()
            met["sent"] += 1
            await asyncio.sleep(2)


async def bytes_at_the_door(target: Target, met: Counter[str]) -> None:
    """Batches of a megabyte, three a second, whatever the door says of its limit."""
    line = await target.line(target.api)
    try:
        while True:
            filling = {"tokens": 1, "model": "m", "direction": "in", "x": "y" * (FLOOD_BYTES // 4)}
            body = b"[%s]" % b",".join(target.event(data=filling) for _ in range(4))
            met[str(await _events(line, target, body))] += 1
            await asyncio.sleep(0.3)
    finally:
        line.close()


async def nonsense_at_the_door(target: Target, met: Counter[str]) -> None:
    """Keys that nobody has, and bodies that are no events: 20/s."""
    line = await target.line(target.api)
    try:
        for number, body in enumerate(itertools.cycle((b"{", b"[" * 50_000, b"null", b"\xff", b"[{}]"))):
            key = target.key if number % 2 else f"kg_{random.getrandbits(128):x}"
            met[str(await _events(line, target, body, key=key))] += 1
            await asyncio.sleep(0.05)
    finally:
        line.close()


async def slow_webhooks(target: Target, met: Counter[str]) -> None:
    """Requests that nobody signed, or not rightly, and that never end: a byte a second each."""

    async def one(number: int) -> None:
        signature = f"stripe-signature: t={int(time.time())},v1={'0' * 64}\r\n" if number % 2 else ""
        head = f"POST /webhooks/stripe HTTP/1.1\r\nhost: a\r\n{signature}content-length: 100000\r\n\r\n"
        await _drip(target, met, head.encode(), b"x", 1.0)

    await _side_by_side(target, met, SLOW_WEBHOOKS, one)


async def endless_trailers(target: Target, met: Counter[str]) -> None:
    """Trailers without an end behind a tiny body: 60 kB at once, ten times a second each."""

    async def one(number: int) -> None:
        head = b"POST /v1/events HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
        await _drip(target, met, head, b"a: b\r\n" * 10_000, 0.1)

    await _side_by_side(target, met, TRAILERS, one)


async def large_heads(target: Target, met: Counter[str]) -> None:
    """Connections whose head of 60 kB never ends; who is cut, comes again."""

    async def one(number: int) -> None:
        head = b"GET /health/live HTTP/1.1\r\nhost: a\r\nx: " + b"y" * HEAD_BYTES
        await _drip(target, met, head, b"y", 2.0)

    await _side_by_side(target, met, HEADS_AT_ONCE, one)


async def heavy_reads(target: Target, met: Counter[str]) -> None:
    """The largest questions of its own usage, two at a time; one of them hangs up before the answer."""

    async def one(number: int) -> None:
        line = await target.line(target.reads)
        path = "/api/v1/meters/tokens/query?windowSize=MINUTE&groupBy=model&groupBy=direction"
        asking = asyncio.create_task(line.ask(get(path, authorization=f"Bearer {target.key}")))
        done, _ = await asyncio.wait([asking], timeout=None if number else 0.05)
        met[str(asking.result()[0]) if done else "hung up"] += 1
        asking.cancel()
        line.close()

    await _side_by_side(target, met, 2, one)


ATTACKS: tuple[Attack, ...] = (
    what_no_library_sends, words_of_the_server, ids_of_another, garbage, bytes_at_the_door,
    nonsense_at_the_door, slow_webhooks, endless_trailers, large_heads, heavy_reads,
)  # fmt: skip


async def _events(line: Line, target: Target, body: bytes, *, key: str = "") -> int:
    kind = "application/cloudevents-batch+json"
    request = post("/v1/events", body, authorization=f"Bearer {key or target.key}", content_type=kind)
    status, _ = await line.ask(request)
    return status


async def _drip(target: Target, met: Counter[str], head: bytes, drop: bytes, every_seconds: float) -> None:
    """A request that goes on until the door has had enough."""
    reader, writer = await target.connect(target.api)
    try:
        writer.write(head)
        while True:
            await writer.drain()
            try:
                async with asyncio.timeout(every_seconds):
                    answer = await reader.read(4096)
            except TimeoutError:
                met["held"] += 1
            else:
                met[answer.split(b" ", 2)[1].decode() if answer.startswith(b"HTTP/") else "cut"] += 1
                return
            writer.write(drop)
    finally:
        writer.close()


async def _side_by_side(
    target: Target, met: Counter[str], count: int, one: Callable[[int], Awaitable[None]]
) -> None:
    """So many at once; each begins again three seconds after it ended."""

    async def again(number: int) -> None:
        await asyncio.sleep(random.random())
        while True:
            try:
                await one(number)
            except (OSError, asyncio.IncompleteReadError):
                met["cut"] += 1
            await asyncio.sleep(3)

    await asyncio.gather(*(again(number) for number in range(count)))


async def _go_on(attack: Attack, target: Target, met: Counter[str]) -> None:
    """An attack again and again: who is thrown out comes back."""
    while True:
        try:
            await attack(target, met)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            met["thrown out"] += 1
        await asyncio.sleep(1)


async def attack_all(target: Target) -> dict[str, dict[str, int]]:
    """All at once until standard input ends; by attack, what it met with."""
    met: dict[str, Counter[str]] = {attack.__name__: Counter() for attack in ATTACKS}
    attacks = [asyncio.create_task(_go_on(one, target, met[one.__name__])) for one in ATTACKS]
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done, _ = await asyncio.wait([*attacks, over], return_when=asyncio.FIRST_COMPLETED)
    for task in attacks:
        task.cancel()
    await asyncio.gather(*attacks, return_exceptions=True)
    for task in done - {over}:
        task.result()  # an attack that ended by a fault of its own
    return {name: dict(counts) for name, counts in met.items()}


def described(target: Target) -> str:
    """What a process is started with."""
    return msgspec.json.encode(asdict(target)).decode()


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(attack_all(Target(**msgspec.json.decode(sys.argv[1]))))).decode())
