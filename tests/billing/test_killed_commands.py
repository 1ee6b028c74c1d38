"""kill -9 of an operator's command between any two of its steps, and the command again: nothing differs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.handlers.backfill import Backfill
from kgents_billing.handlers.money_check import DAY_SECONDS, MoneyCheck
from kgents_billing.handlers.poll import Looked
from kgents_billing.handlers.process import Processor
from kgents_billing.handlers.survey import Survey
from kgents_billing.metrics import Metrics
from kgents_billing.model.known import Options
from kgents_billing.model.ownership import Kind, Word, history
from kgents_billing.sinks.store import Store
from kgents_billing.sinks.store.assign import Assignments
from kgents_billing.sinks.store.cursors import Backfills
from kgents_billing.sinks.store.entries import Entries
from kgents_billing.sinks.store.tenants import Tenants
from kgents_billing.sinks.stripe_api import StripeApi
from kgents_common import keyring, streams
from kgents_common.clock import SystemClock
from kgents_common.crash import CrashPoints
from kgents_common.telemetry import new_registry
from kgents_devstack.stripe import START, Life, StripeStandIn, objects

from .told import ToldBilling, told_billing

DAY = START // DAY_SECONDS * DAY_SECONDS
OPTIONS = Options(livemode=False)
Pool = AsyncConnectionPool[AsyncConnection]


class KilledError(BaseException):
    """Here the process would be gone: nothing that handles errors may handle it."""


class Steps(CrashPoints):
    """Notes each step that is reached, and dies at one of them.

    Args:
        last: How many steps there are to be; all of them where None.
    """

    def __init__(self, last: int | None = None) -> None:
        super().__init__(None)
        self.reached: list[str] = []
        self._last = last

    def reach(self, point: str) -> None:
        self.reached.append(point)
        if self._last is not None and len(self.reached) > self._last:
            raise KilledError(point)


@pytest.fixture(scope="module")
def stripe() -> Iterator[StripeStandIn]:
    """A day of money: paid in parts, refunded in every state, disputed and won, credited."""
    with StripeStandIn() as stand_in:
        life = stand_in.subscribe(at=DAY + 60, priced=objects.price(amount=10_000), with_finalized=True)
        life.wait(60).pay_part(4000).wait(60).pay().wait(60).refund(700).wait(60).refund(300, "pending")
        life.wait(60).refund_ends("failed").wait(60).credit(100).wait(60).dispute().wait(60).win_dispute()
        yield stand_in


class Work:
    """A command's work on an empty ledger, which may be done any number of times."""

    def __init__(self, billing: ToldBilling, stripe: StripeStandIn, api: StripeApi, steps: Steps) -> None:
        self.billing, self.stripe, self.api, self.steps = billing, stripe, api, steps
        self.pool = billing.pool
        self.store = Store(self.pool, steps, {"acme", "globex"}.__contains__)
        self.processor = Processor(self.store, api, options=OPTIONS, metrics=Metrics(new_registry()))

    async def backfill(self) -> None:
        async def yes() -> bool:
            return True

        class Nothing:
            async def look(self) -> Looked:
                return Looked()

        poll: Any = Nothing()
        survey = Survey(
            self.api, self.store, self.billing.subscriptions, poll, Metrics(new_registry()),
            Tenants(self.pool, {"acme", "globex"}.__contains__), is_caught_up=yes,
        )  # fmt: skip
        progress = Backfills(self.pool)
        await Backfill(
            self.api, survey, self.processor, progress, OPTIONS, crash_points=self.steps
        ).run(DAY)  # fmt: skip

    async def repair(self) -> None:
        check = MoneyCheck(
            self.api, Entries(self.pool), self.processor, OPTIONS, crash_points=self.steps
        )  # fmt: skip
        report = await check.run(DAY, repairs=True)
        assert report.agrees

    async def assign(self) -> None:
        assignments = Assignments(self.pool, crash_points=self.steps)
        (life,) = self.stripe.books.objects("subscription")
        await assignments.assign(Kind.SUBSCRIPTION, life["id"], "globex", DAY + 5000)
        await assignments.assign(Kind.CUSTOMER, life["customer"], "globex", DAY + 5000)

    async def open_tenant(self) -> None:
        await Tenants(self.pool, lambda _: False, crash_points=self.steps).open("initech")
        for one in await self.billing.letters.due(50):
            await self.processor.process(self.billing.origin(bytes(one.body)))


async def without_money(work: Work) -> None:
    """Subscriptions, and of the money what was paid: what came back is missing."""
    for body in work.stripe.books.bodies(0):
        if b'"refund.' not in body and b'"charge.dispute' not in body and b'"credit_note' not in body:
            await work.processor.process(work.billing.origin(body))


async def without_any_money(work: Work) -> None:
    """The subscription and its customer."""
    for body in work.stripe.books.bodies(0):
        if b'"type": "customer.' in body:
            await work.processor.process(work.billing.origin(body))


async def one_waits(work: Work) -> None:
    for one in NOBODYS.told:
        await work.processor.process(work.billing.origin(one.body.replace(b"cus_", b"cus_i_")))


async def nothing(_: Work) -> None:
    """An empty ledger."""


NOBODYS = Life(at=DAY + 60, tenant="initech").wait(5).become("active")
Step = Callable[[Work], Awaitable[None]]
COMMANDS: dict[str, tuple[Step, Step, set[str]]] = {
    "backfill": (
        nothing,
        Work.backfill,
        {
            "observe.before_commit", "observe.after_commit", "backfill.after_survey", "apply.before_commit",
            "backfill.after_object", "backfill.after_page", "backfill.before_done", "backfill.after_done",
        },
    ),
    "repairs": (
        without_money,
        Work.repair,
        {"money.before_repair", "apply.before_commit", "money.after_repair"},
    ),
    "assign": (
        without_any_money,
        Work.assign,
        {"assign.after_word", "assign.after_rows", "assign.after_facts", "assign.after_commit"},
    ),
    "open": (one_waits, Work.open_tenant, {"open.after_name", "open.after_commit", "apply.before_commit"}),
}  # fmt: skip


async def emptied(pool: Pool) -> None:
    """A ledger as it is before the first event."""
    async with pool.connection() as connection:
        found = await connection.execute(
            "select string_agg(format('billing.%I', tablename), ', ') from pg_tables"
            " where schemaname = 'billing' and tablename <> 'migration'"
        )
        (tables,) = await found.fetchone() or ("",)
        await connection.execute(f"truncate {tables} restart identity".encode())


async def ledger(pool: Pool) -> dict[str, Any]:
    """All that a ledger says: entries, facts, owners, payments, rows, what waits."""
    found: dict[str, Any] = {}
    async with pool.connection() as connection:
        for name, query in {
            "entries": "select kind, id, of, tenant, currency, seen, state, in_balance from billing.entry",
            "facts": "select key, tenant, convert_from(body, 'UTF8') from billing.fact",
            "payments": "select id, tenant, is_paid from billing.payment",
            "names": "select id, payment from billing.payment_name",
            "rows": "select id, tenant, status, has_started, needs_refetch from billing.subscription",
            "waiting": "select event_id, named from billing.quarantine",
            "tenants": "select name from billing.tenant",
            "progress": "select kind, is_done from billing.backfill",
        }.items():
            rows = await (await connection.execute(query.encode())).fetchall()
            found[name] = sorted(str(row) for row in rows)
        words = await (
            await connection.execute("select kind, id, second, after, before from billing.owner")
        ).fetchall()
    things = {(kind, name) for kind, name, *_ in words}
    found["owners"] = {
        (kind, name): history(
            [Word(Kind(kind), name, *rest) for k, n, *rest in words if (k, n) == (kind, name)], DAY + 10**6
        )
        for kind, name in things
    }
    return found


@pytest.mark.parametrize(
    ("name", "at_each"),
    [
        ("backfill", False),
        ("assign", False),
        ("open", False),
        *(pytest.param(name, True, marks=pytest.mark.long) for name in COMMANDS),
    ],
)
async def test_killed_after_any_step_and_run_again_it_ends_the_same(
    database_url: str, stripe: StripeStandIn, name: str, at_each: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: entries, facts, owners, payments and rows equal those of a run that nobody killed (P2)."""
    monkeypatch.setattr("kgents_billing.sinks.stripe_api.PAGE", 2)
    before, command, points = COMMANDS[name]
    api = StripeApi(stripe.key, base_url=stripe.url, clock=SystemClock(), per_second=100)
    api._limiter = NoLimit()  # type: ignore[assignment]
    async with told_billing(database_url) as billing:
        await before(Work(billing, stripe, api, Steps()))
        steps = Steps()
        await command(Work(billing, stripe, api, steps))
        wanted = await ledger(billing.pool)
        assert set(steps.reached) == points
        assert wanted["facts"]
        # The first time each step is reached, or every time that any is.
        lasts = set(range(len(steps.reached))) if at_each else {steps.reached.index(p) for p in points}
        for last in sorted(lasts):
            await emptied(billing.pool)
            await before(Work(billing, stripe, api, Steps()))
            with pytest.raises(KilledError):
                await command(Work(billing, stripe, api, Steps(last)))
            await command(Work(billing, stripe, api, Steps()))
            assert await ledger(billing.pool) == wanted, (last, steps.reached[last])
    await api.close()


REAL = [
    ("backfill", "observe.before_commit"), ("backfill", "observe.after_commit"),
    ("backfill", "backfill.after_object:2"), ("backfill", "apply.before_commit:3"),
    ("backfill", "backfill.after_page"), ("backfill", "backfill.before_done"),
    ("repairs", "money.before_repair"), ("repairs", "apply.before_commit:2"),
    ("repairs", "money.after_repair"),
    ("assign", "assign.after_word"), ("assign", "assign.after_facts"), ("assign", "assign.after_commit"),
    ("open", "open.after_name"), ("open", "open.after_commit"),
]  # fmt: skip
SINCE = f"{datetime.fromtimestamp(DAY, UTC):%Y-%m-%d}"


@pytest.mark.long
@pytest.mark.parametrize(("name", "point"), REAL, ids=str)
async def test_a_command_that_is_really_killed(
    database_url: str, nats_client: Client, nats_url: str, stripe: StripeStandIn, tmp_path: Path,
    name: str, point: str,
) -> None:  # fmt: skip
    """Rule: the same with the command as a process of its own, and SIGKILL."""
    await streams.apply(nats_client, await streams.plan(nats_client))
    await nats_client.jetstream().add_consumer(
        streams.BILLING.stream, durable_name=streams.BILLING.name, filter_subject="events.stripe.>"
    )
    records = [keyring.mint(tenant, keyring.TENANT_SCOPES)[1] for tenant in ("acme", "globex")]
    keyring.write(tmp_path / "keys.json", records)
    (life,) = stripe.books.objects("subscription")
    arguments = {
        "backfill": ["backfill", "--since", f"{SINCE}T00:00:00Z"],
        "repairs": ["reconcile", "--money", "--day", SINCE],
        "assign": ["assign", "subscription", life["id"], "globex", "--since", f"{SINCE}T03:00:00Z"],
        "open": ["tenants", "open", "initech"],
    }[name]
    before, _, _ = COMMANDS[name]
    with StripeStandIn(key=stripe.key) as silent:  # its objects, and no event of theirs to be polled
        for kind in (
            "customer", "subscription", "invoice", "invoice_payment", "charge", "refund", "dispute",
            "credit_note", "balance_transaction",
        ):  # fmt: skip
            for thing in stripe.books.objects(kind):
                silent.put(thing)
        environment = {
            **os.environ, "NATS_SERVERS": nats_url, "DATABASE_URL": database_url,
            "KGENTS_STRIPE_MODE": "test",
            "KGENTS_KEYRING_FILE": str(tmp_path / "keys.json"), "STRIPE_API_KEY": stripe.key,
            "STRIPE_API_BASE": silent.url, "KGENTS_STRIPE_PER_SECOND": "100",
        }  # fmt: skip

        def ran(crash_at: str = "") -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "kgents_billing", *arguments]
            return subprocess.run(
                command, env={**environment, "KGENTS_CRASH_AT": crash_at}, capture_output=True, text=True
            )

        api = StripeApi(stripe.key, base_url=stripe.url, clock=SystemClock(), per_second=100)
        async with told_billing(database_url) as billing:
            ends = []
            for crash_at in ("", point):
                await emptied(billing.pool)
                work = Work(billing, stripe, api, Steps())
                work.store = Store(billing.pool, Steps(), {"acme", "globex"}.__contains__)
                await before(work)
                if crash_at:
                    killed = await asyncio.to_thread(ran, crash_at)
                    assert killed.returncode == -signal.SIGKILL, killed.stderr
                done = await asyncio.to_thread(ran)
                assert done.returncode == 0, (done.stdout, done.stderr)
                ends.append(await ledger(billing.pool))
            assert ends[0] == ends[1]
        await api.close()


class NoLimit:
    """The stand-in has none."""

    async def try_acquire_async(self, _: str) -> None:
        """At once."""
