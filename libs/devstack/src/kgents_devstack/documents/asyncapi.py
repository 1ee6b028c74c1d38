"""The two streams as an AsyncAPI 3 document: subjects, headers, bodies, who sends and who receives.

What it says is taken from where it is decided: the streams' and consumers' specifications, the patterns of
subjects, the door's schema of an event, the types of facts, the shape of Stripe's envelope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kgents_api.handlers.openapi import event_schema
from kgents_billing.model import facts, payments
from kgents_common import streams, subjects
from kgents_common.streams import ConsumerSpec, StreamSpec

TRACE = {
    "traceparent": {"type": "string", "description": "W3C trace context; goes on in whoever reads it"},
    "tracestate": {"type": "string"},
}
TOKEN = {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"}
JSON = "application/json"
CLOUDEVENT = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of message: its channel, and who has to do with it.

    Attributes:
        address: The subject, with its tokens as parameters; the last may be several tokens.
        stream: Where it is kept; None for what is heard or missed.
        consumers: Durable consumers that read it.
        other_readers: Who else reads it, and by what.
    """

    name: str
    title: str
    address: str
    parameters: dict[str, str]
    stream: StreamSpec | None
    senders: tuple[str, ...]
    consumers: tuple[ConsumerSpec, ...]
    content_type: str
    payload: dict[str, Any]
    headers: dict[str, Any]
    description: str
    other_readers: tuple[str, ...] = ()


def fact_types() -> list[str]:
    """Every type of fact that billing tells."""
    named = {
        value
        for name, value in vars(facts).items()
        if name.isupper() and isinstance(value, str) and subjects.is_type(value) and "." in value
    }
    return sorted(named | {f"invoice.{verb}" for verb in payments.INVOICE_VERBS.values()})


def families() -> tuple[Family, ...]:
    """Every kind of message, in the order of the streams."""
    message_id = {
        "Nats-Msg-Id": {"type": "string", "description": "What JetStream's duplicate window compares"}
    }
    archived = "backup archives and snapshots it"
    return (
        Family(
            "events",
            "An agent's event",
            "agentese.{tenant}.{type}",
            {"tenant": subjects.TENANT_RULE, "type": subjects.TYPE_RULE},
            streams.AGENTESE,
            ("api", "agents beside NATS"),
            (streams.METERING,),
            CLOUDEVENT,
            {"$ref": "#/components/schemas/CloudEvent"},
            {**message_id, **TRACE},
            "A CloudEvent, its subject the tenant. The door sets tenant and time; whoever publishes past it must.",
            (archived, "the api's live streams"),
        ),
        Family(
            "stripe",
            "A verified event of Stripe's",
            "events.stripe.{mode}.{type}.{id}",
            {"mode": "`live` or `test`", "type": "Stripe's type, with `_` for `.`", "id": "Stripe's `evt_…`"},
            streams.EVENTS,
            ("api (webhooks)", "billing (what the poll found)"),
            (streams.BILLING,),
            JSON,
            {"$ref": "#/components/schemas/StripeEvent"},
            {
                **message_id,
                **{
                    f"ce-{name}": {"type": "string"}
                    for name in ("specversion", "id", "source", "type", "time")
                },
                "Kg-Received-At": {"type": "string", "format": "date-time"},
                "Kg-Via": {"enum": ["webhook", "poll"]},
                "Stripe-Api-Version": {"type": "string"},
                **TRACE,
            },
            "Stripe's body, byte for byte, under a subject of the event's own: it is there once, however it came.",
            (archived,),
        ),
        Family(
            "facts",
            "A fact of billing",
            "events.billing.{tenant}.{fact}",
            {"tenant": subjects.TENANT_RULE, "fact": "One of the types below"},
            streams.EVENTS,
            ("billing",),
            (streams.METERING_BILLING_FACTS,),
            CLOUDEVENT,
            {"$ref": "#/components/schemas/Fact"},
            {**message_id, "content-type": {"type": "string"}, "traceparent": TRACE["traceparent"]},
            "Told once, under a semantic key that is its id and its Nats-Msg-Id. `docs/facts.md` says what each means.",
            (archived,),
        ),
        Family(
            "backups",
            "What backup reports",
            "events.backup.{kind}",
            {
                "kind": "e.g. `snapshot.completed`, `run.failed`, `drill.passed`, `drill.failed`, `restore.completed`"
            },
            streams.EVENTS,
            ("backup",),
            (),
            CLOUDEVENT,
            {"$ref": "#/components/schemas/BackupReport"},
            {"Nats-Msg-Id": message_id["Nats-Msg-Id"]},
            "For whoever wants to know; nothing depends on it.",
            (archived,),
        ),
        Family(
            "deadletters",
            "A dead letter's copy",
            "events.deadletter.{service}.{reason}",
            {"service": "`metering` or `billing`", "reason": "The code, e.g. `invalid_event`"},
            streams.EVENTS,
            ("metering", "billing"),
            (),
            "application/octet-stream",
            {
                "description": "The message as it came, whatever it is; cut off where the bus would not take it."
            },
            {
                **message_id,
                "Kgents-Dead-Letter-Id": {"type": "string", "description": "What to ask the service for"},
                "Kgents-Original-Subject": {"type": "string"},
                "Kgents-Original-Stream": {"type": "string"},
                "Kgents-Original-Sequence": {"type": "string"},
                "Kgents-Original-Stored-At": {"type": "string", "format": "date-time"},
                "Kgents-Reason": {"type": "string"},
                "Kgents-Detail": {"type": "string"},
                "Kgents-Truncated": {"const": "true"},
                "Kgents-Body-Bytes": {"type": "string"},
            },
            "Tells that a message was set aside. The letter itself is in the service's database.",
            (archived,),
        ),
        Family(
            "heartbeats",
            "A process's health",
            "events.heartbeat.{service}.{instance}",
            {"service": "The service's name", "instance": "The process's name"},
            None,
            ("api", "metering", "billing", "backup"),
            (),
            JSON,
            {"$ref": "#/components/schemas/Health"},
            {},
            "Every few seconds, kept nowhere: only the newest of each matters.",
            ("the api, for /health/saas",),
        ),
    )


def document() -> dict[str, Any]:
    """The document, as data."""
    found = families()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "kgents streams",
            "version": "1",
            "description": "What travels on AGENTESE and EVENTS, two JetStream streams. Made from the code that"
            " publishes and reads it.",
        },
        "defaultContentType": JSON,
        "channels": {family.name: _channel(family) for family in found},
        "operations": {name: operation for family in found for name, operation in _operations(family)},
        "components": {
            "messages": {family.name: _message(family) for family in found},
            "schemas": _schemas(),
        },
    }


def _channel(family: Family) -> dict[str, Any]:
    kept = (
        f"Kept in the stream {family.stream.name} (`{'`, `'.join(family.stream.subjects)}`): {family.stream.description}."
        if family.stream
        else "Kept in no stream."
    )
    return {
        "address": family.address,
        "title": family.title,
        "description": f"{family.description} {kept}",
        "parameters": {name: {"description": rule} for name, rule in family.parameters.items()},
        "messages": {family.name: {"$ref": f"#/components/messages/{family.name}"}},
    }


def _operations(family: Family) -> list[tuple[str, dict[str, Any]]]:
    to = {"$ref": f"#/channels/{family.name}"}
    messages = [{"$ref": f"#/channels/{family.name}/messages/{family.name}"}]
    made = [
        (
            f"send_{family.name}_by_{_token(sender)}",
            {"action": "send", "channel": to, "title": f"Sent by {sender}", "messages": messages},
        )
        for sender in family.senders
    ]
    for consumer in family.consumers:
        made.append(
            (
                f"receive_{family.name}_by_{_token(consumer.name)}",
                {
                    "action": "receive",
                    "channel": to,
                    "title": f"Received by the durable consumer {consumer.name}",
                    "description": f"{consumer.description}. Explicit acknowledgement within"
                    f" {consumer.ack_wait.total_seconds():g} s, delivered again for ever,"
                    f" {consumer.max_ack_pending} at once, filter `{consumer.filter_subject}`.",
                    "messages": messages,
                },
            )
        )
    for reader in family.other_readers:
        made.append(
            (
                f"receive_{family.name}_by_{_token(reader)}",
                {"action": "receive", "channel": to, "title": f"Also read: {reader}", "messages": messages},
            )
        )
    return made


def _message(family: Family) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": family.name,
        "title": family.title,
        "contentType": family.content_type,
        "payload": family.payload,
    }
    if family.headers:
        made["headers"] = {"type": "object", "properties": family.headers}
    return made


def _schemas() -> dict[str, Any]:
    event = event_schema()
    tenant = {"type": "string", "pattern": subjects.TENANT_PATTERN}
    return {
        "CloudEvent": {**event, "required": [*event["required"], "time"]},
        "StripeEvent": {
            "type": "object",
            "description": "Either of Stripe's shapes: with its object (`event`), or thin (`v2.core.event`).",
            "required": ["id", "object", "type", "created"],
            "properties": {
                "id": {"type": "string", "pattern": "^[A-Za-z0-9_]{1,120}$"},
                "object": {"enum": ["event", "v2.core.event"]},
                "type": {"type": "string", "maxLength": 120},
                "created": {"type": ["integer", "string"]},
                "livemode": {"type": "boolean"},
                "data": {"type": ["object", "null"]},
            },
        },
        "Fact": {
            "type": "object",
            "required": ["specversion", "id", "source", "type", "subject", "time", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {"type": "string", "description": "The semantic key, e.g. `pay.ok:in_123`"},
                "source": {"type": "string", "pattern": "^/stripe/"},
                "type": {"enum": fact_types()},
                "subject": tenant,
                "time": {"type": "string", "format": "date-time"},
                "datacontenttype": {"const": JSON},
                "data": {
                    "type": "object",
                    "description": "See docs/facts.md; amounts in minor units, with their currency",
                    "properties": {
                        "amount_minor": {"type": "integer", "minimum": 0},
                        "currency": {"type": "string"},
                        "exponent": {"type": "integer"},
                        "moves_minor": {"type": "integer"},
                        "livemode": {"type": "boolean"},
                        "account": {"type": "string"},
                    },
                },
            },
        },
        "BackupReport": {
            "type": "object",
            "required": ["specversion", "id", "source", "type", "time", "data"],
            "properties": {
                "specversion": {"const": "1.0"},
                "id": {"type": "string"},
                "source": {"type": "string", "pattern": "^kgents/backup/"},
                "type": {"type": "string", "pattern": r"^backup\."},
                "time": {"type": "string", "format": "date-time"},
                "data": {"type": "object"},
            },
        },
        "Health": {
            "type": "object",
            "required": ["status", "service", "instance", "checks", "at"],
            "properties": {
                "status": {"enum": ["ok", "degraded", "down"]},
                "service": TOKEN,
                "instance": {"type": "string"},
                "checks": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["status"],
                        "properties": {
                            "status": {"enum": ["ok", "degraded", "down"]},
                            "detail": {"type": "string"},
                        },
                    },
                },
                "at": {"type": "string", "format": "date-time"},
            },
        },
    }


def _token(text: str) -> str:
    return subjects.token(text.lower())
