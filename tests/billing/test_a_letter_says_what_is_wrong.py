"""A dead letter's code and its line are about one and the same defect, whichever way the event came to it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kgents_billing.handlers import process
from kgents_billing.handlers.defects import CODES, WAITED, code_of, detail_of
from kgents_billing.handlers.rounds import Quarantine
from kgents_billing.model import amounts, event, projection
from kgents_billing.model.amounts import MalformedAmountError
from kgents_billing.sinks import stripe_api
from kgents_common.errors import PermanentError
from kgents_devstack.stripe import START, snapshot

from .test_facts_of_every_type import invoice
from .told import ToldBilling, told_billing


class Later:
    """A day from now."""

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=2)


async def waiting(billing: ToldBilling, thing: dict[str, Any], *known: str) -> Any:
    """The letter of an event that waited a day for its tenant, while only these had keys."""
    billing.store._knows = set(known).__contains__
    await billing.take(snapshot("invoice.paid", thing, second=START))
    billing.store._knows = None if known else billing.store._knows
    await Quarantine(billing.letters, billing.processor, Later()).run()
    (letter,) = await billing.letters.find()
    return letter


NOBODYS = {"parent": None, "metadata": {}, "customer": "cus_nobody"}


@pytest.mark.parametrize(
    ("change", "code", "detail"),
    [
        ({**NOBODYS, "metadata": {"tenant_id": "acmee"}}, "unknown_tenant", "the tenant that it names"),
        ({**NOBODYS, "metadata": {"tenant_id": "Not a tenant!"}}, "invalid_tenant", "cannot be one"),
        (NOBODYS, "unmapped_tenant", "nothing says whose it is"),
    ],
)
async def test_who_waited_in_vain_says_for_what(
    database_url: str, change: dict[str, Any], code: str, detail: str
) -> None:
    """Rule: the reason is that of the last try."""
    async with told_billing(database_url) as billing:
        letter = await waiting(billing, invoice(**change))
        assert letter.code == code
        assert detail in letter.detail
        assert ("acmee" in letter.detail) is (code == "unknown_tenant")
        assert "Not a" not in letter.detail


async def test_what_is_malformed_once_its_tenant_is_known_says_so(database_url: str) -> None:
    """Rule: a wait that ends with another defect is a letter of that defect."""
    thing = invoice(**{**NOBODYS, "metadata": {"tenant_id": "acmee"}, "amount_paid": "1999"})
    async with told_billing(database_url) as billing:
        letter = await waiting(billing, thing, "acme")
        assert letter.code == "malformed_amount"
        assert "invoice.amount_paid must be a whole number of minor units, not a text" in letter.detail


def test_every_error_has_a_code_of_its_own_and_is_written_down() -> None:
    """Rule: no error that ends an event hides behind another's code; operators find each in the docs."""
    here = {
        kind
        for module in (amounts, event, projection, process, stripe_api)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, PermanentError) and kind.__module__ == module.__name__
    }
    assert here == set(CODES)
    codes = [*CODES.values(), *WAITED, "defect", "meter_error"]
    assert len(set(codes)) == len(codes)
    written = (Path(__file__).parents[2] / "docs/facts.md").read_text()
    assert [code for code in codes if f"`{code}`" not in written] == []
    assert code_of(MalformedAmountError("x")) == "malformed_amount"
    assert (code_of(ValueError("secret")), "secret" in detail_of(ValueError("secret"))) == ("defect", False)
