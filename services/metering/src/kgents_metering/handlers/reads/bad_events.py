"""`GET /v1/bad-events`: the caller's own events that were not counted, or not by every meter."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kgents_common import usage_contract
from kgents_metering.handlers.reads import answers
from kgents_metering.handlers.reads.gate import Gate, whole
from kgents_metering.model.query import QueryError
from kgents_metering.model.query.parameters import choice, from_query_string, its_own, number, one
from kgents_metering.sinks.ledger.reads import UsageReads
from kgents_metering.sinks.ledger.reads.bad_events import STATEMENTS, BadEvent, BadEvents

MAX_LISTED = 100
# What tells events of a kind apart; another filter would be a question nobody answers.
FILTERS = {
    "invalid": frozenset({"code", "type", "source", "meter"}),
    "dead": frozenset({"code", "type"}),
    "conflict": frozenset({"type", "source"}),
}


def routes(usage: UsageReads, gate: Gate) -> list[BaseRoute]:
    """The path."""

    async def find(request: Request, tenant: str) -> Response:
        known = usage_contract.PARAMETERS[usage_contract.BAD_EVENTS]
        values = from_query_string(request.scope["query_string"], known)
        its_own(values, tenant)
        kind = choice(values, "kind", tuple(STATEMENTS), "")
        if not kind:
            raise QueryError(f"kind: must be one of {', '.join(STATEMENTS)}")
        for name in ("code", "type", "source", "meter"):
            if name in values and name not in FILTERS[kind]:
                raise QueryError(f"{name}: tells no {kind} events apart")
        limit = number(values, "limit", MAX_LISTED, MAX_LISTED)
        before = _before(one(values, "before"))
        found = await usage.bad_events(
            tenant,
            BadEvents(
                kind,
                limit,
                before,
                one(values, "code"),
                one(values, "type"),
                one(values, "source"),
                one(values, "meter"),
            ),
        )
        answer: dict[str, object] = {"items": [_shown(event) for event in found]}
        if len(found) == limit:
            answer["next"] = found[-1].number
        return answers.as_json(answer)

    return [Route(usage_contract.BAD_EVENTS, gate(whole(find)), methods=["GET"])]


def _before(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:20]) < 2**63 or len(text) > 19:
        raise QueryError("before: must be a whole number from 1")
    return int(text)


def _shown(event: BadEvent) -> dict[str, object]:
    shown: dict[str, object] = {
        "number": event.number,
        "storedAt": event.at,
        "streamSequence": event.seq,
        "code": event.code,
        "reason": event.reason,
    }
    for name in ("type", "id", "source", "meter", "state"):
        if (value := getattr(event, name)) is not None:
            shown[name] = value
    if event.body is not None:
        shown["body"] = bytes(event.body).decode("utf-8", "replace")
    return shown
