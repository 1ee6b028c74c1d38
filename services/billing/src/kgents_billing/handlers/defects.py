"""Why an event was set aside: a token by which operators sort, and a line that holds nothing of the event."""

from __future__ import annotations

import traceback

from kgents_billing.handlers.process import NeedsKeyError, UnknownObjectError
from kgents_billing.model.amounts import MalformedAmountError
from kgents_billing.model.event import MalformedEventError
from kgents_billing.model.projection import UnreadableObjectError
from kgents_billing.sinks.stripe_api import AccountRefusedError, MissingObjectError, RefusedRequestError
from kgents_common.errors import PermanentError

# Every error of billing that ends an event; what each means to an operator is in `docs/facts.md`.
CODES: dict[type[Exception], str] = {
    MalformedEventError: "malformed",
    MalformedAmountError: "malformed_amount",
    UnreadableObjectError: "unreadable_object",
    NeedsKeyError: "needs_api_key",
    UnknownObjectError: "unknown_object",
    MissingObjectError: "not_at_stripe",
    RefusedRequestError: "refused_by_stripe",
    AccountRefusedError: "account_refused",
}
DEFECT = "defect"
# A wait for a tenant that ended: as the last try said.
WAITED = {
    "unknown_tenant": "nobody opened the tenant that it names: kgents-billing tenants open",
    "invalid_tenant": "what it names as its tenant cannot be one",
    "unmapped_tenant": "nothing says whose it is",
}


def code_of(error: Exception) -> str:
    """The token of an error; a defect of ours where it is none that ends an event."""
    return CODES.get(type(error), "refused" if isinstance(error, PermanentError) else DEFECT)


def detail_of(error: Exception) -> str:
    """The line of an error."""
    return str(error) if isinstance(error, PermanentError) else where(error)


def where(error: BaseException) -> str:
    """A defect of ours by its kind and place; its own text may hold the event's."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "kgents_" in frame.filename] or list(frames)
    place = ours[-1] if ours else None
    found = (
        ""
        if place is None
        else f" at {place.filename.rpartition('kgents_')[2]}:{place.lineno} in {place.name}"
    )
    return f"{type(error).__name__}{found}: a defect of billing; the event is whole, replay it once mended"


def waited(reason: str, named: str | None) -> str:
    """The line of an event whose tenant nobody could say within a day."""
    why = WAITED[reason]
    return f"after a day, {why}" + (f" {named}" if named else "")
