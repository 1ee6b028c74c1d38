"""Events with a field missing, null or of another type: a letter that names it, or the right facts."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from kgents_billing.handlers.defects import CODES
from kgents_billing.model import event as events
from kgents_billing.model.decision import Outcome
from kgents_billing.model.event import MalformedEventError
from kgents_billing.model.known import Options
from kgents_common.errors import PermanentError
from kgents_devstack.stripe import START, snapshot

from .lives import Billing
from .stripe_fields import FIELDS
from .test_facts_of_every_type import ACTIVE, TABLE, TENANT, dispute, invoice

Thing = dict[str, Any]
GONE = object()
WRONG = ("text", "", 1.5, True, -1, 10**30, [], [1], {}, {"id": 7}, ["a", {"b": None}], GONE, None)
RICH = {
    "cancel_at": START + 9, "trial_end": START + 9, "pause_collection": {"behavior": "void", "resumes_at": 5},
    "latest_invoice": "in_1", "cancellation_details": {"reason": "payment_failed"},
    "status_details": {"paused": {"type": "subscription"}},
}  # fmt: skip
CASES: list[tuple[str, Thing]] = [
    *((kind, thing) for kind, thing, *_ in TABLE),
    ("customer.subscription.updated", {**ACTIVE, **RICH}),
    ("invoice.paid", invoice(status_transitions={"paid_at": START}, amount_paid_off_stripe=5)),
    ("charge.dispute.funds_withdrawn",
     dispute(balance_transactions=[{"id": "t", "object": "balance_transaction", "amount": -1999,
                                    "created": START, "currency": "kwd"}])),
]  # fmt: skip


def places(thing: Thing) -> Iterator[tuple[Any, ...]]:
    """Where something is that billing reads, by the steps that lead there."""
    for path in FIELDS[thing["object"]]:
        found: list[tuple[Any, ...]] = [()]
        for step in path.split("."):
            name = step.removesuffix("[]")
            found = [(*steps, name) for steps in found if name in (at(thing, steps) or {})]
            if step.endswith("[]"):
                found = [(*steps, n) for steps in found for n in range(len(at(thing, steps)))]
        yield from found


def at(thing: Any, steps: tuple[Any, ...]) -> Any:
    for step in steps:
        thing = thing[step]
    return thing if isinstance(thing, dict | list) else None


def changed(thing: Thing, steps: tuple[Any, ...], value: object) -> Thing:
    made = copy.deepcopy(thing)
    holder = made
    for step in steps[:-1]:
        holder = holder[step]
    if value is GONE:
        del holder[steps[-1]]
    else:
        holder[steps[-1]] = value
    return made


def told(kind: str, thing: Thing, charges: bool) -> tuple[Outcome, dict[str, Any]]:
    billing = Billing(options=Options(refunds_from_charges=charges))
    billing.customers["cus_1"] = "acme"
    billing.payments["in_1"] = (True, "acme")
    outcome = billing.take(snapshot(kind, thing, second=START + 5, name="evt_1")).outcome
    return outcome, {key: json.loads(body) for key, (_, body) in billing.facts.items()}


def amounts(facts: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What each fact says of money."""
    data = [(fact["type"], fact["data"]) for fact in facts.values()]
    return sorted((kind, d.get("amount_minor", -1), d.get("moves_minor", 0)) for kind, d in data)


@pytest.mark.parametrize("charges", [False, True])
def test_what_stripe_never_sends_is_a_letter_or_the_right_facts(charges: bool) -> None:
    """Rule: no crash, no silence, no fact over another amount; the letter names the field (P3)."""
    refused, wrong = 0, []
    for kind, thing in CASES:
        if charges and not kind.startswith(("charge.", "refund.")):
            continue  # nothing else depends on who tells refunds
        right, facts = told(kind, thing, charges)
        for steps in places(thing):
            for value in WRONG:
                error: PermanentError | None = None
                try:
                    outcome, found = told(kind, changed(thing, steps, value), charges)
                except PermanentError as caught:
                    error = caught
                if error is not None:
                    refused += 1
                    fault = _fault_of(error, steps)
                elif outcome is Outcome.QUARANTINED:
                    fault = "" if WHOSE & set(steps) else "waits"
                elif outcome is not right:
                    fault = outcome.value
                elif amounts(found) == amounts(facts) or _says_otherwise(kind, steps, value):
                    fault = ""
                else:
                    fault = f"{amounts(found)} is not {amounts(facts)}"
                if fault:
                    wrong.append((kind, steps, "gone" if value is GONE else value, fault))
    assert wrong == []
    assert refused > (100 if charges else 500)


WHOSE = {
    "metadata", "customer", "subscription", "parent", "invoice", "payment_intent", "charge",
    "client_reference_id", "subscription_details",
}  # fmt: skip


def _fault_of(error: PermanentError, steps: tuple[Any, ...]) -> str:
    """What a refusal lacks."""
    said = str(error)
    if type(error) not in CODES:
        return f"{type(error).__name__} has no code"
    named = {step for step in steps if isinstance(step, str)} | ({"an id"} if "an id" in said else set())
    if not any(step in said for step in named):
        return f"names nothing: {said}"
    return f"says a value: {said}" if "'text'" in said else ""


def _says_otherwise(kind: str, steps: tuple[Any, ...], value: object) -> bool:
    """Whether the changed event is one that Stripe may send, and that tells something else."""
    if kind.startswith("checkout") and steps in (("invoice",), ("invoice_creation",)):
        return value is None or value is GONE  # without an invoice it tells by itself
    if kind.startswith("customer.subscription") and steps == ("status",):
        return value == "text"  # a status younger than this program
    return kind.startswith("charge.dispute") and steps[-1] == "amount" and value == -1


@pytest.mark.parametrize(
    "field",
    ["id", "type", "object", "created", "livemode", "account", "data", "previous_attributes"],
)
def test_an_event_that_is_none_says_by_which_field(field: str) -> None:
    """Rule: of the event itself too; what may be absent may be."""
    for value in WRONG:
        event = json.loads(snapshot("invoice.paid", invoice(), second=START, name="evt_1"))
        holder = event["data"] if field == "previous_attributes" else event
        holder.pop(field, None)
        if value is not GONE:
            holder[field] = value
        said, read = None, None
        try:
            read = events.read(json.dumps(event).encode())
        except MalformedEventError as caught:
            said = str(caught)
        if read is None:
            assert field in (said or ""), (value, said)
            assert "'text'" not in (said or "")
        else:
            assert (read.id, read.second) == ("evt_1", START) or field in ("id", "created")


def test_the_fixture_is_the_tenants() -> None:
    """Rule: what is broken above is whole before."""
    assert TENANT == {"tenant_id": "acme"}
