"""Stripe's webhooks become facts on the bus: each once, whatever dies, is flushed or is away."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
from collections.abc import Sequence

import httpx
import nats
import psycopg
import pytest
import redis
from tests.billing.lives import START, Life, random_life, reference, snapshot

from kgents_devstack.stripe import signed
from kgents_devstack.waiting import HANGS_AFTER_SECONDS

from .conftest import System, restarted, wait_for
from .stripe_door import SECRET, check_exact, deliver, emptied, ended, settle, told, waiting

# Between any two steps: claim, commit, release, acknowledge; take, send, mark; announce, mark.
POINTS = [
    "apply.after_claim:3",
    "apply.before_commit:3",
    "apply.after_commit:3",
    "apply.before_ack:3",
    "apply.after_ack:3",
    "publish.before_send:3",
    "publish.after_send:3",
    "publish.after_mark:3",
    "mirror.after_send:1",
]

# Two neighbours' points differ by one await: these stand for them in the suite, the long run kills at all.
IN_THE_SUITE = [
    "apply.before_commit:3",
    "apply.after_commit:3",
    "publish.before_send:3",
    "publish.after_send:3",
    "mirror.after_send:1",
]


def unreadable() -> bytes:
    """An event whose object is none."""
    thing = {"id": "sub_x", "object": "subscription", "metadata": {"tenant_id": "acme"}}
    return snapshot("customer.subscription.updated", thing, second=START)


def some_lives(seed: int, count: int) -> tuple[list[Life], list[bytes], int]:
    """Lives whose events are far enough apart for their order to be known; shuffled, some twice."""
    roll = random.Random(seed)
    lives = [random_life(roll, same_second=0.0) for _ in range(count)]
    bodies = [one.body for life in lives for one in life.told]
    distinct = len(bodies)
    bodies += roll.sample(bodies, k=len(bodies) // 10)
    roll.shuffle(bodies)
    return lives, bodies, distinct


@pytest.fixture
def billing(lasting_billing: System) -> System:
    """The door and billing."""
    return emptied(lasting_billing)


def test_lives_told_at_once_and_shuffled(billing: System) -> None:
    """Rule: webhook to fact over the real door, stream, worker and bus; each fact once (P6)."""
    lives, bodies, distinct = some_lives(1, 30)
    deliver(billing, bodies)
    settle(billing, distinct)
    check_exact(billing, *(life.told for life in lives))


def test_the_tenant_reads_its_subscription(billing: System) -> None:
    """Rule: the caller sees its own tenant's subscription and entitlements, and nobody else's."""
    life = Life(at=time.time() - 60).wait(5).become("active")
    deliver(billing, [one.body for one in life.told])
    settle(billing, 2)
    url, keys = billing.stack.service("billing").url, billing.stack.keys
    mine = {"authorization": f"Bearer {keys['acme']}"}
    found = httpx.get(f"{url}/v1/billing/subscription", headers=mine).json()
    assert (found["subscription"], found["status"], found["access"]) == (life.name, "active", "granted")
    assert (found["why"], found["livemode"], found["is_settled"]) == ("active", False, True)
    assert found["items"] == [{"price": "price_a", "product": "prod_a", "quantity": 1}]
    entitled = httpx.get(f"{url}/v1/billing/entitlements", headers=mine).json()
    assert (entitled["tenant"], entitled["access"], entitled["why"]) == ("acme", "granted", "active")
    theirs = {"authorization": f"Bearer {keys['globex']}"}
    assert httpx.get(f"{url}/v1/billing/subscription", headers=theirs).status_code == 404
    assert httpx.get(f"{url}/v1/billing/entitlements", headers=theirs).json()["access"] == "none"
    assert httpx.get(f"{url}/v1/billing/subscription").status_code == 401


def test_killed_at_named_points(lasting_billing: System) -> None:
    """Rule: state, facts and the event's id commit together; the bus is told after it, until it knows.

    One worker after another on one ledger; here what the dead one had is given to the next within seconds.
    """
    kill_at(IN_THE_SUITE, lasting_billing, is_hurried=True)


@pytest.mark.long
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point_as_deployed(lasting_billing: System, point: str) -> None:
    """Rule: the same where a dead worker's lease and its unacknowledged events are waited for."""
    kill_at([point], lasting_billing, is_hurried=False)


def kill_at(points: Sequence[str], lasting: System, *, is_hurried: bool) -> None:
    """Die at each point among lives, money told backwards, an event that is nobody's and one that cannot be
    read; then go on."""
    system = emptied(lasting, KGENTS_CRASH_AT=points[0])
    if is_hurried:
        asyncio.run(_redeliver_after(system.stack.nats.url, seconds=3))
    lives: list[Life] = []
    payers: list[Life] = []
    broken: list[bytes] = []
    distinct = 0
    for number, following in enumerate([*points[1:], None]):
        told_now, bodies, more = some_lives(2 + number, 12)
        payers.append(paid := refunded_and_disputed())
        lives += [*told_now, paid]
        bodies += [one.body for one in reversed(paid.told)]
        distinct += more + len(paid.told)
        broken.append(unreadable())
        nobodys = {"id": f"in_x{number}", "object": "invoice", "customer": f"cus_x{number}"}
        bodies[5:5] = [broken[-1], snapshot("invoice.paid", nobodys, second=START)]
        die_among(bodies, system, points[number])
        if is_hurried:
            redis.Redis.from_url(system.stack.redis_url).flushall()
        restarted(system, "billing", crash_at=following)
    settle(system, distinct + len(points))
    wait_for(lambda: waiting(system) == len(points))
    settle(system, distinct + len(points))
    check_exact(system, *(life.told for life in lives), looked_up="acme")
    wanted = sorted(("events.deadletter.billing.unreadable_object", body) for body in broken)
    wait_for(lambda: sorted(asyncio.run(_dead_letters(system.stack.nats.url))) == wanted)
    with psycopg.connect(system.stack.database_url) as connection:
        counts = connection.execute(
            "select (select count(*) from billing.quarantine), (select count(*) from billing.dead)"
        ).fetchone()
    assert counts == (len(points), len(points))
    moved = [entry for paid in payers for _, entry in reference(paid.told, looked_up="acme").entries.values()]
    assert _entries(system) == sorted((entry.id, entry.in_balance) for entry in moved)


def refunded_and_disputed() -> Life:
    """Money that goes and comes back, and in the end is another tenant's."""
    paid = Life(at=START).wait(5).pay().wait(5).refund(500, "pending").wait(5).refund_ends("failed")
    paid.wait(5).dispute().wait(5).win_dispute().wait(5).credit(100)
    return paid.wait(5).change(metadata={"tenant_id": "globex"})


def die_among(bodies: list[bytes], system: System, point: str) -> None:
    """Deliver them to a worker that dies at this point."""
    for start in range(0, len(bodies), 10):
        deliver(system, bodies[start : start + 10])
        time.sleep(0.1)
    try:
        system.stack.service("billing").wait(HANGS_AFTER_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the point {point} was never reached so often")


def _entries(system: System) -> list[tuple[str, int]]:
    """What moved, as the ledger has it."""
    with psycopg.connect(system.stack.database_url) as connection:
        return sorted(connection.execute("select id, in_balance from billing.entry").fetchall())


async def _redeliver_after(url: str, *, seconds: float) -> None:
    """What a consumer does not acknowledge comes again sooner than deployed."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    config = (await jetstream.consumer_info("EVENTS", "billing-worker")).config
    config.ack_wait = seconds
    await jetstream.add_consumer("EVENTS", config)
    await client.close()


@pytest.mark.parametrize("kills", [3, pytest.param(15, marks=pytest.mark.long)])
def test_killed_at_random_moments(billing: System, kills: int) -> None:
    """Rule: whatever it was doing, no fact is lost and none is told twice."""
    lives, bodies, distinct = some_lives(3, 10 * kills)
    roll = random.Random(3)
    asyncio.run(_redeliver_after(billing.stack.nats.url, seconds=3))
    for number in range(kills):
        deliver(billing, bodies[number::kills])
        time.sleep(roll.uniform(0, 0.3))
        billing.stack.service("billing").kill()
        restarted(billing, "billing")
    redis.Redis.from_url(billing.stack.redis_url).flushall()
    settle(billing, distinct)
    check_exact(billing, *(life.told for life in lives))


def test_a_fact_published_long_before_it_was_marked_is_told_once(billing: System) -> None:
    """Rule: what JetStream forgot is looked for before it is published again."""
    life = Life().wait(5).become("active")
    deliver(billing, [one.body for one in life.told])
    settle(billing, 2)
    billing.stack.service("billing").kill()
    # As if it had died after publishing, three minutes ago; and the stream's memory of ids is over.
    with psycopg.connect(billing.stack.database_url) as connection:
        connection.execute(
            "update billing.fact set published_at = null, made_at = made_at - interval '3 minutes'"
        )
    asyncio.run(_forget_ids(billing.stack.nats.url))
    restarted(billing, "billing")
    settle(billing, 2)
    check_exact(billing, life.told)


async def _forget_ids(url: str) -> None:
    """A duplicate window of 100 ms: JetStream's memory of message ids is gone."""
    client = await nats.connect(url)
    jetstream = client.jetstream()
    config = (await jetstream.stream_info("EVENTS")).config
    config.duplicate_window = 0.1
    await jetstream.update_stream(config)
    await asyncio.sleep(0.5)
    await client.close()


def test_redis_flushed_and_gone(billing: System) -> None:
    """Rule: Redis decides nothing: flushed or dead, every fact is told, once (P4)."""
    lives, bodies, distinct = some_lives(4, 20)
    third = len(bodies) // 3
    deliver(billing, bodies[:third])
    redis.Redis.from_url(billing.stack.redis_url).flushall()
    deliver(billing, bodies[third : 2 * third])
    if billing.stack.valkey.is_running:
        billing.stack.valkey.kill()
    deliver(billing, bodies[2 * third :])
    settle(billing, distinct)
    check_exact(billing, *(life.told for life in lives))


def test_two_workers_at_once(billing: System) -> None:
    """Rule: two workers share the work; keys decide, and the lease saves it being done twice."""
    lives, bodies, distinct = some_lives(5, 30)
    with billing.stack.make_service("billing", label="-2"):
        deliver(billing, bodies)
        settle(billing, distinct)
    check_exact(billing, *(life.told for life in lives))


def test_nats_away_during_the_post(billing: System) -> None:
    """Rule: 503 until it is durable; Stripe sends again, and it is there once."""
    lives, bodies, distinct = some_lives(6, 10)
    deliver(billing, bodies[: len(bodies) // 2])
    billing.stack.nats.kill()
    url = billing.stack.service("api").url

    def status() -> int:
        answer = httpx.post(f"{url}/webhooks/stripe", content=bodies[0], headers=signed(bodies[0], SECRET))
        return answer.status_code

    wait_for(lambda: status() == 503)
    billing.stack.nats.start()
    deliver(billing, bodies[len(bodies) // 2 :])
    settle(billing, distinct)
    check_exact(billing, *(life.told for life in lives))


def test_what_cannot_be_read_is_set_aside_and_announced(billing: System) -> None:
    """Rule: every message ends as one of applied, duplicate, quarantined, dead (P3)."""
    broken = unreadable()
    deliver(billing, [broken])
    wanted = [("events.deadletter.billing.unreadable_object", broken)]
    wait_for(lambda: asyncio.run(_dead_letters(billing.stack.nats.url)) == wanted)
    assert told(billing) == []
    assert ended(billing) == 0


async def _dead_letters(url: str) -> list[tuple[str, bytes]]:
    client = await nats.connect(url)
    try:
        subscription = await client.jetstream().pull_subscribe("events.deadletter.>", stream="EVENTS")
        pending = (await subscription.consumer_info()).num_pending or 0
        return [(m.subject, m.data) for m in await subscription.fetch(pending, timeout=5)] if pending else []
    finally:
        await client.close()
