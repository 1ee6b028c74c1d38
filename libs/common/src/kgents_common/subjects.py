"""The subjects of the two streams as functions of what they carry, and the reverse; no client, no I/O.

A tenant, a service or a reason is one token; a CloudEvents type may be several, dotted. NATS forbids
whitespace, `*` and `>` in a published subject; we allow less, so that a subject is also safe in a log,
a URL and a file name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

AGENTESE = "AGENTESE"
EVENTS = "EVENTS"

TENANT_RULE = "1 to 64 letters, digits, '-' or '_'"
TYPE_RULE = "1 to 255 characters: dot-separated tokens of letters, digits, '-' or '_'"

# The same for a JSON Schema, whose patterns search: these are anchored.
TENANT_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
TYPE_PATTERN = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"

_TOKEN = re.compile(TENANT_PATTERN.removesuffix("$"))
_TYPE = re.compile(TYPE_PATTERN.removesuffix("$"))
_NOT_TOKEN = re.compile(r"[^A-Za-z0-9_-]")


def is_tenant(value: str) -> bool:
    """Whether `value` may stand as the tenant token."""
    return _TOKEN.fullmatch(value) is not None


def is_type(value: str) -> bool:
    """Whether `value` may stand as a CloudEvents type in a subject."""
    return len(value) <= 255 and _TYPE.fullmatch(value) is not None


def agentese(tenant: str, event_type: str) -> str:
    """`agentese.<tenant>.<type>`; both must already satisfy their rules."""
    return f"agentese.{tenant}.{event_type}"


def stripe(*, livemode: bool, event_type: str, event_id: str) -> str:
    """`events.stripe.<live|test>.<type_with_underscores>.<evt_id>`: one subject for each Stripe event."""
    mode = "live" if livemode else "test"
    return f"events.stripe.{mode}.{token(event_type.replace('.', '_'))}.{token(event_id)}"


def billing(tenant: str, fact: str) -> str:
    """`events.billing.<tenant>.<type>` for a fact such as `subscription.started`."""
    return f"events.billing.{tenant}.{fact}"


def parse_billing(subject: str) -> AgenteseSubject | None:
    """The tenant and fact of a subject that `billing` made; None where it is none."""
    prefix, _, rest = subject.partition("events.billing.")
    tenant, _, fact = rest.partition(".")
    return AgenteseSubject(tenant, fact) if not prefix and is_tenant(tenant) and is_type(fact) else None


def backup(kind: str) -> str:
    """`events.backup.<kind>`, e.g. `drill.passed`."""
    return f"events.backup.{kind}"


def heartbeat(service: str, instance: str) -> str:
    """`events.heartbeat.<service>.<instance>`."""
    return f"events.heartbeat.{token(service)}.{token(instance)}"


def dead_letter(service: str, reason: str) -> str:
    """`events.deadletter.<service>.<reason>`."""
    return f"events.deadletter.{token(service)}.{token(reason)}"


def token(value: str) -> str:
    """`value` with everything a token must not hold turned into `_`; for names we choose, not for tenants."""
    return _NOT_TOKEN.sub("_", value)[:128] or "_"


@dataclass(frozen=True, slots=True)
class AgenteseSubject:
    """What an AGENTESE subject says."""

    tenant: str
    type: str


def parse_agentese(subject: str) -> AgenteseSubject | None:
    """The tenant and type of an AGENTESE subject; None where it is none of ours."""
    prefix, _, rest = subject.partition(".")
    tenant, _, event_type = rest.partition(".")
    if prefix != "agentese" or not is_tenant(tenant) or not is_type(event_type):
        return None
    return AgenteseSubject(tenant, event_type)
