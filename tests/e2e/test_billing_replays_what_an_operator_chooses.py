"""`kgents-billing replay` by customer and tenant: from the stream, dead letters and Stripe."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import psycopg
import pytest
from tests.billing.lives import START, Life, snapshot

from kgents_billing.handlers.commands import run_command
from kgents_devstack.stripe import StripeStandIn

from .conftest import System, wait_for
from .stripe_door import check_exact, deliver, emptied, settle, told


@pytest.fixture
def stripe() -> Iterator[StripeStandIn]:
    """Stripe's API."""
    with StripeStandIn() as stand_in:
        yield stand_in


def billing_command(system: System, *arguments: str) -> str:
    """Run a command with the worker's settings, in this process; what it says."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        for name, value in system.stack.service("billing").environment.items():
            patch.setenv(name, value)
        assert run_command(list(arguments)) == 0
    return said.getvalue()


def forget_facts(system: System) -> None:
    """As if a defect of ours had applied every event and told nothing."""
    with psycopg.connect(system.stack.database_url) as connection:
        connection.execute("truncate billing.fact, billing.subscription")


def test_a_tenants_events_are_handled_again_from_the_stream(lasting_billing: System) -> None:
    """Rule: only the chosen tenant's or customer's; a dry run handles none; each fact is on the bus once."""
    system = emptied(lasting_billing)
    mine = Life().wait(5).become("active").wait(5).end()
    theirs = Life(tenant="globex").wait(5).become("active")
    deliver(system, [one.body for life in (mine, theirs) for one in life.told])
    settle(system, 5)
    forget_facts(system)
    dry = billing_command(system, "replay", "--tenant", "acme", "--force", "--dry-run")
    assert "3 events" in dry
    assert all(one.id in dry for one in mine.told)
    assert "0 events" in billing_command(system, "replay", "--tenant", "nobody", "--dry-run")
    with psycopg.connect(system.stack.database_url) as connection:
        assert connection.execute("select count(*) from billing.fact").fetchone() == (0,)
    done = billing_command(system, "replay", "--customer", mine.now["customer"], "--force")
    assert "3 events" in done
    with psycopg.connect(system.stack.database_url) as connection:
        found = connection.execute("select distinct tenant from billing.fact").fetchall()
    assert found == [("acme",)]
    settle(system, 5)
    check_exact(system, mine.told, theirs.told)


def test_a_tenants_events_are_brought_from_stripe(lasting_billing: System, stripe: StripeStandIn) -> None:
    """Rule: from Stripe's list, only what is chosen and missing is stored, and the worker tells it."""
    asking = {
        "STRIPE_API_KEY": stripe.key,
        "STRIPE_API_BASE": stripe.url,
        "KGENTS_STRIPE_POLL_SECONDS": "3600",
        "KGENTS_STRIPE_SURVEY_SECONDS": "86400",
    }
    system = emptied(lasting_billing, **asking)
    wait_for(lambda: "/v1/events" in stripe.requests)
    wait_for(lambda: "/v1/subscriptions" in stripe.requests)
    mine, theirs = Life(at=START), Life(at=START, tenant="globex")
    for life in (mine, theirs):
        life.wait(5).become("active")
        for one in life.told:
            stripe.tell(one.body)
    chosen = ["replay", "--source", "stripe", "--since", "2020-01-01T00:00:00Z", "--tenant", "acme"]
    assert "2 events at Stripe\n" in billing_command(system, *chosen, "--dry-run")
    assert told(system) == []
    assert "2 events at Stripe, 2 were missing" in billing_command(system, *chosen)
    settle(system, 2)
    check_exact(system, mine.told)
    assert "2 events at Stripe, 0 were missing" in billing_command(system, *chosen)


def test_dead_letters_are_handled_again(lasting_billing: System) -> None:
    """Rule: what was set aside is chosen in the same way; a letter that cannot be handled stays open."""
    system = emptied(lasting_billing)
    life = Life().wait(5).become("active")
    thing = {"id": "sub_bad", "object": "subscription", "metadata": {"tenant_id": "globex"}}
    broken = snapshot("customer.subscription.updated", thing, second=START)
    deliver(system, [*(one.body for one in life.told), broken])
    settle(system, 2)

    def letters() -> list[tuple[str, str]]:
        with psycopg.connect(system.stack.database_url) as connection:
            return connection.execute("select state, type from billing.dead order by id").fetchall()

    wait_for(lambda: len(letters()) == 1)
    with psycopg.connect(system.stack.database_url) as connection:
        # As a defect of ours would have set the life's second event aside.
        connection.execute(
            "insert into billing.dead (event_id, type, subject, body, epoch, seq, code, detail)"
            " values ('evt_x', 'customer.subscription.updated', 's', %s, now(), 1, 'defect', '')",
            [life.told[1].body],
        )
    dry = billing_command(system, "replay", "--source", "dead", "--tenant", "acme", "--dry-run")
    assert "1 events" in dry
    assert [state for state, _ in letters()] == ["open", "open"]
    billing_command(system, "replay", "--source", "dead")
    assert [state for state, _ in letters()] == ["open", "replayed"]
    settle(system, 2)
    check_exact(system, life.told)
