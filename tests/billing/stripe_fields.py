"""What each of Stripe's API versions says of the fields that billing reads: their types, or that it has none.

The table beside this file holds facts only. It is derived from one of two sources, both made of Stripe's
OpenAPI document: the document itself (`openapi.spec3.json` of a release), or the folder that holds Stripe's
Python library of a release (`pip download --no-deps stripe==16.0.1`, unpacked), whose classes are generated
from it.

    python -m tests.billing.stripe_fields <document or folder>            # print what it says
    python -m tests.billing.stripe_fields --write <document or folder>    # put it into the table

A type is written as words between bars, `?` at its end where the field may be null or absent; null where the
version has no such field. A path goes through a list by `[]`.
"""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ForwardRef, Literal, Protocol

TABLE = Path(__file__).with_name("stripe_fields.json")
Types = Mapping[str, str | None]

_ITEM = (
    "current_period_end", "current_period_start", "plan", "plan.id", "plan.product", "price", "price.id",
    "price.product", "quantity",
)  # fmt: skip
# `test_stripe_versions.py` holds this against what billing's code really reads.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "balance_transaction": ("amount", "created", "currency", "exchange_rate", "id", "source", "type"),
    "charge": (
        "amount_refunded", "created", "currency", "customer", "id", "metadata", "object", "payment_intent",
    ),
    "checkout.session": (
        "amount_total", "client_reference_id", "created", "currency", "customer", "id", "invoice",
        "invoice_creation", "invoice_creation.enabled", "livemode", "metadata", "mode", "object",
        "payment_intent", "payment_status", "status", "subscription",
    ),
    "credit_note": (
        "amount", "created", "currency", "customer", "id", "invoice", "livemode", "metadata", "object",
        "out_of_band_amount", "post_payment_amount", "pre_payment_amount", "reason", "status",
    ),
    "customer": ("id", "metadata", "object"),
    "dispute": (
        "amount", "balance_transactions", "balance_transactions[].amount", "balance_transactions[].created",
        "balance_transactions[].currency",
        "charge", "created", "currency", "id", "livemode", "metadata", "object", "payment_intent", "reason",
        "status",
    ),
    "event": (
        "account", "api_version", "context", "created", "data", "data.object", "data.previous_attributes",
        "id", "livemode", "object", "type",
    ),
    "invoice": (
        "amount_due", "amount_paid", "amount_paid_off_stripe", "amount_remaining", "attempt_count",
        "billing_reason", "created", "currency", "customer", "id", "livemode", "metadata",
        "next_payment_attempt", "object", "paid_out_of_band", "parent", "parent.subscription_details",
        "parent.subscription_details.metadata", "parent.subscription_details.subscription", "payments",
        "payments.data", "payments.data[].payment", "payments.data[].payment.charge",
        "payments.data[].payment.payment_intent", "charge", "payment_intent", "status", "status_transitions",
        "status_transitions.paid_at", "subscription", "subscription_details",
        "subscription_details.metadata",
    ),
    "invoice_payment": (
        "amount_paid", "created", "currency", "id", "invoice", "livemode", "object", "payment",
        "payment.charge", "payment.payment_intent", "payment.type", "status", "status_transitions",
        "status_transitions.paid_at",
    ),
    "payment_intent": ("created", "customer", "id", "metadata"),
    "refund": (
        "amount", "charge", "created", "currency", "id", "metadata", "object", "payment_intent", "reason",
        "status",
    ),
    "subscription": (
        "cancel_at", "cancel_at_period_end", "cancellation_details", "cancellation_details.reason", "created",
        "currency", "current_period_end", "current_period_start", "customer", "ended_at", "id", "items",
        "items.data", "items.has_more", *(f"items.data[].{name}" for name in _ITEM), "latest_invoice",
        "livemode", "metadata", "pause_collection", "pause_collection.behavior",
        "pause_collection.resumes_at", "start_date", "status", "status_details", "status_details.paused",
        "status_details.paused.type", "trial_end",
    ),
    "subscription_item": _ITEM,
}  # fmt: skip


class Node(Protocol):
    """What a version says may stand at one place."""

    @property
    def types(self) -> frozenset[str]:
        """Words of JSON: `object`, `list`, `string`, `integer`, `number`, `boolean`; `null` too."""

    def child(self, name: str) -> Node | None:
        """What stands under a name; None where there is no such field."""

    def member(self) -> Node | None:
        """What stands in the list; None where it is none."""


class OfDocument:
    """A schema of an OpenAPI document."""

    def __init__(self, document: Mapping[str, Any], schema: Mapping[str, Any], *, optional: bool = False):
        self._document = document
        self._optional = optional
        self._schemas = list(self._resolved(schema))

    def _resolved(self, schema: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
        if "$ref" in schema:
            named = schema["$ref"].rpartition("/")[2]
            yield from self._resolved(self._document["components"]["schemas"][named])
            return
        if schema.get("nullable") is True:
            self._optional = True
        choices = schema.get("anyOf") or schema.get("oneOf")
        if choices:
            for choice in choices:
                yield from self._resolved(choice)
        else:
            yield schema

    @property
    def types(self) -> frozenset[str]:
        found = {"list" if s.get("type") == "array" else s.get("type", "object") for s in self._schemas}
        return frozenset(found | {"null"} if self._optional else found)

    def child(self, name: str) -> Node | None:
        for schema in self._schemas:
            fields = schema.get("properties", {})
            if name in fields:
                is_optional = name not in schema.get("required", ())
                return OfDocument(self._document, fields[name], optional=is_optional)
        return None

    def member(self) -> Node | None:
        for schema in self._schemas:
            if "items" in schema:
                return OfDocument(self._document, schema["items"])
        return None


class OfLibrary:
    """An annotation of the library's classes; which library is imported, the caller chose."""

    def __init__(self, kind: Any, *, members: Any = None) -> None:
        from .shapes import _named, _options

        self._options = _options(kind)
        self._members = members
        self._name = _named

    @property
    def types(self) -> frozenset[str]:
        return frozenset(word for option in self._options for word in self._words(option))

    def _words(self, option: Any) -> Iterable[str]:
        origin = typing.get_origin(option) or option
        plain = {int: "integer", float: "number", str: "string", bool: "boolean", list: "list"}
        if option is type(None):
            yield "null"
        elif origin is Literal:
            yield from {plain[type(word)] for word in option.__args__}
        elif origin in plain:
            yield plain[origin]
        else:
            yield "object"

    def child(self, name: str) -> Node | None:
        from .shapes import _fields

        for option in self._options:
            kind = (
                self._name(option) if isinstance(option, ForwardRef) else typing.get_origin(option) or option
            )
            if not isinstance(kind, type) or kind in (int, float, str, bool, list, type(None)):
                continue
            if kind.__name__ == "ListObject":
                known = {"data": list[typing.get_args(option)[0]], "has_more": bool}  # type: ignore[misc]
            else:
                known = _fields(kind)
            if name in known:
                return OfLibrary(known[name])
        return None

    def member(self) -> Node | None:
        for option in self._options:
            if typing.get_origin(option) is list:
                return OfLibrary(typing.get_args(option)[0])
        return None


def of_document(document: Mapping[str, Any]) -> tuple[str, dict[str, Types]]:
    """The version an OpenAPI document is of, and what it says of every field."""
    schemas = document["components"]["schemas"]
    found = {kind: _types(OfDocument(document, schemas[kind]), paths) for kind, paths in FIELDS.items()}
    return document["info"]["version"], found


def of_library() -> tuple[str, dict[str, Types]]:
    """The same of the library that is imported."""
    from stripe._api_version import _ApiVersion

    from .shapes import _class_of

    found = {kind: _types(OfLibrary(_class_of(kind)), paths) for kind, paths in FIELDS.items()}
    return str(_ApiVersion.CURRENT), found


def _types(root: Node, paths: Iterable[str]) -> Types:
    return {path: _type(root, path) for path in sorted(paths)}


def _type(root: Node, path: str) -> str | None:
    node: Node | None = root
    for step in path.split("."):
        node = None if node is None else node.child(step.removesuffix("[]"))
        if step.endswith("[]"):
            node = None if node is None else node.member()
    if node is None:
        return None
    return "|".join(sorted(node.types - {"null"})) + ("?" if "null" in node.types else "")


def read_table() -> dict[str, dict[str, Types]]:
    """What is known, by version, the newest first."""
    known: dict[str, dict[str, Types]] = json.loads(TABLE.read_text())
    return known


def read_source(path: Path) -> tuple[str, dict[str, Types]]:
    """The version of a document or a library, and what it says."""
    if path.is_file():
        return of_document(json.loads(path.read_text()))
    sys.path.insert(0, str(path))
    return of_library()


def main(arguments: list[str]) -> None:
    """Print what a source says, or write it."""
    version, said = read_source(Path(arguments[-1]))
    if "--write" in arguments:
        known = (read_table() if TABLE.exists() else {}) | {version: said}
        newest = {name: known[name] for name in sorted(known, reverse=True)}
        TABLE.write_text(json.dumps(newest, indent=1, sort_keys=False) + "\n")
    else:
        print(json.dumps({version: said}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
