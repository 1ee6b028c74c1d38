"""What billing reads of Stripe's objects, held against Stripe's newest three API versions."""

from __future__ import annotations

import ast
import inspect
import json
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import pytest
import stripe

import kgents_billing
from kgents_billing.handlers.money_check import MoneyCheck, MoneyReport
from kgents_billing.handlers.objects import LISTED, event_of
from kgents_billing.handlers.payers import Payers
from kgents_billing.model import event as events
from kgents_billing.model.decision import decide
from kgents_billing.model.event_map import is_known
from kgents_billing.model.known import Known, Options
from kgents_billing.model.tenant import hints
from kgents_billing.sinks.stripe_api import API_VERSION, Answer, StripeApi
from kgents_common.stripe_events import StripeEnvelope
from kgents_devstack.stripe import START, Books, Life, objects, random_life, snapshot

from .stripe_fields import FIELDS, Types, of_document, of_library, read_source, read_table
from .test_facts_of_every_type import (
    SUB,
    TABLE,
    credit_note,
    invoice,
    invoice_payment,
    old_invoice,
    refund,
    session,
)
from .worlds import World

VERSIONS = read_table()
# Read for events of endpoints that are set up with an older version, and what says the same today.
GONE = {
    "invoice.charge": "payments.data[].payment.charge",
    "invoice.paid_out_of_band": "amount_paid_off_stripe",
    "invoice.payment_intent": "payments.data[].payment.payment_intent",
    "invoice.subscription": "parent.subscription_details.subscription",
    "invoice.subscription_details": "parent.subscription_details",
    "invoice.subscription_details.metadata": "parent.subscription_details.metadata",
    "subscription.current_period_end": "items.data[].current_period_end",
    "subscription.current_period_start": "items.data[].current_period_start",
}
# Younger than the oldest of the three: why a subscription is paused, which moves no access and no money.
SINCE = {
    "subscription.status_details": "2026-09-30.endive",
    "subscription.status_details.paused": "2026-09-30.endive",
    "subscription.status_details.paused.type": "2026-09-30.endive",
}
# Every object is asked by these names; what has none of them says nothing.
ASKED_OF_ALL = {
    "charge", "client_reference_id", "customer", "payment", "payment.charge", "payment.payment_intent",
    "payment_intent", "payments", "payments.data", "metadata", "id", "object", "created", "status",
    "payment_status", "livemode", "status_transitions", "status_transitions.paid_at",
}  # fmt: skip


class Watched(dict[str, Any]):
    """An object that notes by which paths it is read."""

    def __init__(self, thing: Mapping[str, Any], seen: set[str], path: str) -> None:
        super().__init__({name: watched(value, seen, f"{path}.{name}") for name, value in thing.items()})
        self._seen, self._path = seen, path

    def get(self, name: str, default: Any = None) -> Any:
        self._seen.add(f"{self._path}.{name}")
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        self._seen.add(f"{self._path}.{name}")
        return super().__getitem__(name)


def watched(value: Any, seen: set[str], path: str) -> Any:
    """A value whose objects note what is read of them."""
    if isinstance(value, Mapping):
        return Watched(value, seen, path)
    if isinstance(value, list):
        return [watched(one, seen, f"{path}[]") for one in value]
    return value


def told() -> Iterator[bytes]:
    """Events of every type, in this version's shape and in older ones, of lives, worlds and fixtures."""
    for kind, thing, previous, _ in TABLE:
        yield snapshot(kind, thing, second=START + 5, previous=previous)
    paid = {"data": [{"payment": {"type": "charge", "charge": "ch_1"}}]}
    old = {**SUB, "current_period_end": START, "current_period_start": START}
    old["items"] = {"data": [{"id": "si_1", "plan": {"id": "p", "product": "q"}}], "has_more": True}
    charge = {**objects.charge("ch_1", payer="cus_1"), "amount_refunded": 5}
    for kind, thing in (
        ("invoice.paid", {**old_invoice(), "payments": paid}),
        ("invoice.payment_failed", {**invoice(), "amount_remaining": None}),
        ("customer.subscription.updated", {**old, "pause_collection": {"behavior": "void", "resumes_at": 1}}),
        ("customer.subscription.paused", {**SUB, "status_details": {"paused": {"type": "subscription"}}}),
        ("charge.refunded", charge),
        ("payment_intent.succeeded", {"id": "pi_1", "object": "payment_intent", "created": START}),
        ("charge.refund.updated", refund(status="failed")),
    ):
        yield snapshot(kind, thing, second=START + 6)
    roll, books = random.Random(11), Books()
    for _ in range(20):
        for one in random_life(roll, longest=20, with_money=True, books=books).told:
            yield one.body
    for _ in range(10):
        world = World(roll)
        world.live(12)
        yield from world.bodies


def kind_of(path: str) -> tuple[str, str]:
    """The object and the path inside it."""
    kind = next(kind for kind in sorted(FIELDS, key=len, reverse=True) if path.startswith(f"{kind}."))
    return kind, path.removeprefix(f"{kind}.")


def read_by_deciding(seen: set[str]) -> None:
    """What is read of events."""
    for body in told():
        event = events.read(body)
        assert event.object is not None
        thing = Watched(event.object, seen, str(event.object["object"]))
        for account, charges in product((None, "acct_world"), (False, True)):
            options = Options(charges, True, None, {"acct_world": None})
            known = Known(payment_tenant="acme", customer_tenant="acme")
            decide(replace(event, object=thing, account=account), known, options)


class Asked:
    """A Stripe that has one payment, by every way there is."""

    def __init__(self, seen: set[str], *, has_invoice: bool) -> None:
        self._seen, self._has_invoice = seen, has_invoice

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> Answer:
        del params
        found: dict[str, Any] = {
            "/v1/invoice_payments": {"data": [invoice_payment()] if self._has_invoice else []},
            "/v1/invoices/in_1": {**invoice(), "parent": None, "metadata": {}},
            "/v1/checkout/sessions": {"data": []},
            "/v1/charges/ch_1": {**objects.charge("ch_1", payer="cus_1"), "payment_intent": "pi_9"},
            "/v1/payment_intents/pi_9": {"id": "pi_9", "object": "payment_intent", "customer": "cus_1"},
        }
        thing = found[path]
        if "data" in thing:
            members = [Watched(one, self._seen, one["object"]) for one in thing["data"]]
            return Answer({"data": members}, "", START)
        return Answer(Watched(thing, self._seen, thing["object"]), "", START)

    async def customer_metadata(self, customer_id: str) -> Mapping[str, Any]:
        return {"tenant_id": "acme", "of": customer_id}


class Nobody:
    """A store that knows nothing."""

    async def known(self, event_ids: list[str], said: Any) -> Known:
        return Known()

    async def only_open(self, state: Any) -> Any:
        return state

    async def paid_by(self, names: Sequence[str]) -> int | None:
        return None if names else 0


async def read_by_asking(seen: set[str]) -> None:
    """What is read of answers and lists."""
    for listed in LISTED:
        for thing in (invoice(), session(), invoice_payment(), refund(), credit_note(status="void")):
            of = Watched({**thing, "balance_transactions": []}, seen, thing["object"])
            if thing["object"] == listed.name.replace("checkout", "checkout.session"):
                kind, _ = listed.told_as(of)
                event_of(kind or "invoice.paid", of, None, livemode=False)
    lost = events.read(snapshot("refund.created", {**refund(), "metadata": {}}, second=START))
    for has_invoice in (True, False):
        asked = Asked(seen, has_invoice=has_invoice)
        assert await Payers(Nobody(), asked).tenant(hints(replace(lost)), lost) == "acme"
    check = MoneyCheck(cast("StripeApi", asked), cast("Any", Nobody()), cast("Any", None), Options())
    moved = objects.balance_transaction("txn_1", "ch_1", "charge", 5)
    moving: Any = Watched(moved, seen, "balance_transaction")
    await check._movement(cast("StripeApi", asked), moving, MoneyReport())


async def test_every_field_that_is_read_is_in_the_table() -> None:
    """Rule: the table's fields are those that billing's code reads, no more and no less."""
    seen: set[str] = set()
    read_by_deciding(seen)
    await read_by_asking(seen)
    found: dict[str, set[str]] = {kind: set() for kind in FIELDS}
    for path in seen:
        kind, inside = kind_of(path)
        # Inside metadata and references Stripe says nothing of what there is.
        if not inside.endswith(("metadata.tenant_id", "metadata.of")):
            found[kind].add(inside)
    found["event"] = {*StripeEnvelope.__struct_fields__, "data.object", "data.previous_attributes"}
    found["event"] -= {"related_object", "snapshot_event"}  # of thin events
    prefix = "items.data[]."
    found["subscription_item"] = {p.removeprefix(prefix) for p in found["subscription"] if prefix in p}
    for kind, paths in found.items():
        assert paths - set(FIELDS[kind]) <= ASKED_OF_ALL, kind
        # Read where no event leads: by the check of a day's money, and to tell what an object is.
        assert set(FIELDS[kind]) - paths <= {"created", "currency", "id", "livemode", "metadata", "object"}, (
            kind
        )


def test_nothing_is_read_that_no_test_came_by() -> None:
    """Rule: every name in an accessor of the code is in the table; a branch nobody took hides none."""
    root = Path(kgents_billing.__file__).parent
    known = {
        step for paths in FIELDS.values() for path in paths for step in path.replace("[]", "").split(".")
    }
    names: set[str] = set()
    for file in (*root.glob("model/*.py"), root / "handlers/objects.py", root / "handlers/payers.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("get", "at", "amount", "optional_amount"):
                names |= {
                    a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
                }
    assert names - known - {"", "data"} == set()


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_it_or_says_what_replaced_it(version: str) -> None:
    """Rule: what is read is there in each of the newest three versions, or is listed as gone, with what says
    it today; or as younger."""
    assert len(VERSIONS) == 3
    for kind, types in VERSIONS[version].items():
        assert set(types) == set(FIELDS[kind])
        for path, found in types.items():
            name = f"{kind}.{path}"
            if name in GONE:
                assert (found, types[GONE[name]] is None) == (None, False)
            elif found is None:
                assert version < SINCE[name]


def faults(thing: object, types: Types, path: str = "") -> Iterator[str]:
    """What of an object is not as a version says, of what billing reads."""
    fields = {p: t for p, t in types.items() if _parent(p) == path}
    for name, said in fields.items():
        last = name.rpartition(".")[2]
        if not isinstance(thing, Mapping):
            return
        value = thing.get(last)
        if last not in thing or value is None:
            if said is not None and not said.endswith("?"):
                yield f"{name}: {'missing' if last not in thing else 'null'}"
            continue
        if said is None:
            yield f"{name}: no such field"
            continue
        if _word(value) not in said.rstrip("?").split("|"):
            yield f"{name}: {_word(value)} is not {said}"
        if isinstance(value, list):
            for one in value:
                yield from faults(one, types, f"{name}[]")
        elif isinstance(value, Mapping) and "string" not in said:
            yield from faults(value, types, name)


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _word(value: object) -> str:
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", list: "list"}
    return next((word for kind, word in kinds.items() if type(value) is kind), "object")


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_tests_tell_is_what_each_version_sends(version: str) -> None:
    """Rule: the stand-in's lives, the tests' worlds and the fixtures are of each version's shape, wherever
    billing reads."""
    checked, young = {"event"}, {name for name, since in SINCE.items() if version < since}
    known = VERSIONS[version]
    lives = [random_life(random.Random(5), longest=20, with_money=True, books=Books()) for _ in range(30)]
    lives.append(Life(trial_days=14, books=Books()).wait(5).become("active"))
    world = World(random.Random(5))
    world.live(60)
    fixtures = [snapshot(kind, thing, second=START) for kind, thing, *_ in TABLE if thing != old_invoice()]
    for body in (*(one.body for life in lives for one in life.told), *world.bodies, *fixtures):
        event = json.loads(body)
        thing = event["data"]["object"]
        checked.add(thing["object"])
        found = [*faults(event, known["event"]), *faults(thing, known[thing["object"]])]
        assert [fault for fault in found if f"{thing['object']}.{fault.partition(':')[0]}" not in young] == []
    assert checked >= set(FIELDS) - {"balance_transaction", "charge", "payment_intent", "subscription_item"}
    for made in (
        objects.charge("ch_1", payer="cus_1"),
        objects.balance_transaction("t", "ch_1", "charge", 1),
    ):
        assert list(faults(made, known[made["object"]])) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"amount_paid": None}, "amount_paid: null"),
        ({"amount_paid": "1999"}, "amount_paid: string is not integer"),
        ({"subscription": "sub_1"}, "subscription: no such field"),
        ({"status_transitions": {"paid_at": 1.5}}, "status_transitions.paid_at: number is not integer?"),
        ({"parent": {"subscription_details": {}}}, "parent.subscription_details.subscription: missing"),
    ],
)
def test_a_wrong_shape_is_seen(change: dict[str, Any], fault: str) -> None:
    """Rule: the check that nothing is wrong sees what is."""
    assert list(faults(invoice(**change), VERSIONS[API_VERSION]["invoice"])) == [fault]


def test_the_table_is_what_stripes_library_says() -> None:
    """Rule: the installed library is generated from Stripe's document of the newest version: the table of
    that version is made again and compared; so a newer library asks for a newer table."""
    version, said = of_library()
    assert version == API_VERSION == next(iter(VERSIONS)), "python -m tests.billing.stripe_fields --write ..."
    assert said == VERSIONS[version]


def test_the_table_is_what_stripes_documents_say() -> None:
    """Rule: each OpenAPI document that STRIPE_OPENAPI names is compared with the table of its version."""
    named = os.environ.get("STRIPE_OPENAPI", "")
    documents = [path for path in map(Path, filter(None, named.split(os.pathsep))) if path.is_file()]
    if not documents:
        pytest.skip("STRIPE_OPENAPI names no document: compared is the installed library's version alone")
    for path in documents:
        version, said = read_source(path)
        assert said == VERSIONS[version], path


def test_every_type_that_stripe_has_is_told_or_listed_as_not_told() -> None:
    """Rule: none silently: a type of a newer library fails here until somebody decides."""

    def words(kind: Any) -> set[str]:
        if get_origin(kind) is Literal:
            return set(kind.__args__)
        return {word for part in get_args(kind) for word in words(part)}

    types = words(inspect.get_annotations(stripe.Event)["type"])
    assert len(types) > 200
    said = (Path(__file__).parents[2] / "docs/facts.md").read_text().partition("### Not told")[2]
    patterns = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*(?:\.\*)?)`", said.partition("## Subscriptions")[0]))
    left = {
        kind
        for kind in types
        if not is_known(kind)
        and kind not in patterns
        and not any(kind.startswith(p[:-1]) for p in patterns if p.endswith(".*"))
    }
    assert left == set()


def test_a_document_is_read_as_it_is_written() -> None:
    """Rule: references, what may be expanded, null, absent, lists and fields that do not exist."""
    text, whole = {"type": "string"}, {"$ref": "#/components/schemas/"}
    named = {kind: {"type": "object", "properties": {}} for kind in FIELDS}
    named["customer"] = {
        "type": "object",
        "required": ["id", "metadata"],
        "properties": {"id": text, "metadata": {"type": "object", "nullable": True}, "object": text},
    }
    either = {"anyOf": [text, {"$ref": whole["$ref"] + "customer"}], "nullable": True}
    moved = {"type": "object", "required": ["amount"], "properties": {"amount": {"type": "integer"}}}
    named["dispute"] = {
        "type": "object",
        "required": ["charge", "balance_transactions", "payment_intent"],
        "properties": {
            "charge": {"anyOf": [text, {"$ref": whole["$ref"] + "customer"}]},
            "payment_intent": either,
            "balance_transactions": {"type": "array", "items": {"$ref": whole["$ref"] + "moved"}},
        },
    }
    document = {"info": {"version": "v"}, "components": {"schemas": {**named, "moved": moved}}}
    version, said = of_document(document)
    assert version == "v"
    assert said["customer"] == {"id": "string", "metadata": "object?", "object": "string?"}
    assert {path: found for path, found in said["dispute"].items() if found} == {
        "balance_transactions": "list",
        "balance_transactions[].amount": "integer",
        "charge": "object|string",
        "payment_intent": "object|string?",
    }
