"""The two streams and their consumers as data, with the plan that turns a server into them; one owner applies it.

Run by the operator or the deployment, never by a service: `python -m kgents_common.streams plan|apply`.
Configuration is compared in JetStream's own JSON terms (durations in nanoseconds), so that fields we do not
name stay as the operator set them. A change that could lose messages is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError

from kgents_common import subjects
from kgents_common.errors import KgentsError, PermanentError, TransientError

GIB = 1024**3
MESSAGE_TTL_SINCE = (2, 11)


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """One stream. Bytes bound it, not age alone: full, it refuses the publisher and drops nothing.

    Attributes:
        wants_message_ttl: Messages may carry `Nats-TTL`, where the server (2.11 and later) knows it.
    """

    name: str
    subjects: tuple[str, ...]
    description: str
    max_bytes: int
    max_age: timedelta
    duplicate_window: timedelta = timedelta(minutes=2)
    wants_message_ttl: bool = False


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """One durable pull consumer: everything from the start, explicit acks, endless delivery."""

    stream: str
    name: str
    filter_subject: str
    description: str
    ack_wait: timedelta = timedelta(seconds=60)
    max_ack_pending: int = 4096

    def config(self) -> dict[str, Any]:
        """In the terms of `$JS.API.CONSUMER.CREATE`."""
        return {
            "durable_name": self.name,
            "name": self.name,
            "description": self.description,
            "filter_subject": self.filter_subject,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": _nanoseconds(self.ack_wait),
            "max_deliver": -1,
            "max_ack_pending": self.max_ack_pending,
            "replay_policy": "instant",
        }


AGENTESE = StreamSpec(
    subjects.AGENTESE, ("agentese.>",), "What agents did", max_bytes=6 * GIB, max_age=timedelta(days=30)
)
EVENTS = StreamSpec(
    subjects.EVENTS,
    ("events.>",),
    "The system's own bus",
    max_bytes=2 * GIB,
    max_age=timedelta(days=35),
    wants_message_ttl=True,
)
STREAMS = (AGENTESE, EVENTS)

METERING = ConsumerSpec(subjects.AGENTESE, "metering", "agentese.>", "Metering applies events to the ledger")
METERING_BILLING_FACTS = ConsumerSpec(
    subjects.EVENTS, "metering-billing-facts", "events.billing.>", "Metering turns billing facts into events"
)
BILLING = ConsumerSpec(
    subjects.EVENTS,
    "billing-worker",
    "events.stripe.>",
    "Billing turns Stripe events into facts",
    ack_wait=timedelta(seconds=30),
    max_ack_pending=256,
)
CONSUMERS = (METERING, METERING_BILLING_FACTS, BILLING)


def stream_config(spec: StreamSpec, *, replicas: int, server: tuple[int, int]) -> dict[str, Any]:
    """A stream in the terms of `$JS.API.STREAM.CREATE`, for a server of version `server` (major, minor)."""
    config: dict[str, Any] = {
        "name": spec.name,
        "description": spec.description,
        "subjects": list(spec.subjects),
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_bytes": spec.max_bytes,
        "max_age": _nanoseconds(spec.max_age),
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": _nanoseconds(spec.duplicate_window),
        "num_replicas": replicas,
        "deny_delete": False,
        "allow_direct": True,
    }
    if spec.wants_message_ttl and server >= MESSAGE_TTL_SINCE:
        config["allow_msg_ttl"] = True
    return config


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a plan.

    Attributes:
        kind: `create`, `update`, `unchanged` or `refuse`.
        what: `stream AGENTESE` or `consumer AGENTESE/metering`.
        fields: For an update or refusal: field to (now, wanted).
        reason: For a refusal, why.
    """

    kind: str
    what: str
    fields: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    reason: str = ""
    request: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        details = ", ".join(f"{name}: {now!r} → {wanted!r}" for name, (now, wanted) in self.fields.items())
        return (
            f"{self.kind:9} {self.what}"
            + (f"  ({details})" if details else "")
            + (f"  {self.reason}" if self.reason else "")
        )


class RefusedChangeError(PermanentError):
    """A plan holds a change that could lose messages."""


class JetStreamApiError(KgentsError):
    """JetStream answered a request of its API with an error.

    Attributes:
        code: The HTTP-like status, e.g. 404.
        err_code: JetStream's own number.
    """

    def __init__(self, description: str, code: int, err_code: int) -> None:
        super().__init__(f"jetstream: {description} ({err_code})")
        self.code = code
        self.err_code = err_code


async def request(
    client: Client, subject: str, payload: Mapping[str, Any] | None = None, *, timeout_seconds: float = 10
) -> dict[str, Any]:
    """One request of the JetStream API, `$JS.API.` put before `subject`.

    Raises:
        JetStreamApiError: The server refused it.
        TransientError: No answer.
    """
    body = json.dumps(payload).encode() if payload is not None else b""
    try:
        message = await client.request(f"$JS.API.{subject}", body, timeout=timeout_seconds)
    except (NatsError, OSError, TimeoutError) as error:
        raise TransientError(f"jetstream: {type(error).__name__} on {subject}") from error
    answer: dict[str, Any] = json.loads(message.data)
    fault = answer.get("error")
    if fault is not None:
        raise JetStreamApiError(fault.get("description", ""), fault.get("code", 0), fault.get("err_code", 0))
    return answer


def server_version(client: Client) -> tuple[int, int]:
    """Major and minor of the connected server."""
    version = client.connected_server_version
    return version.major, version.minor


async def plan(
    client: Client,
    *,
    replicas: int = 1,
    streams: Sequence[StreamSpec] = STREAMS,
    consumers: Sequence[ConsumerSpec] = CONSUMERS,
) -> list[Change]:
    """What has to change on the server so that it matches; changes nothing.

    Raises:
        TransientError: JetStream does not answer.
    """
    changes: list[Change] = []
    server = server_version(client)
    for stream in streams:
        wanted = stream_config(stream, replicas=replicas, server=server)
        changes.append(await _plan_stream(client, stream.name, wanted))
    for consumer in consumers:
        changes.append(await _plan_consumer(client, consumer))
    return changes


async def apply(client: Client, changes: Sequence[Change]) -> None:
    """Carry out a plan, in order.

    Raises:
        RefusedChangeError: The plan holds a refusal; nothing is changed.
    """
    refused = [change for change in changes if change.kind == "refuse"]
    if refused:
        raise RefusedChangeError(
            "; ".join(str(change) for change in refused),
            hint="make the change by hand after a backup, or take it back from the specification",
        )
    for change in changes:
        if change.kind in ("create", "update"):
            await request(client, change.request, change.config, timeout_seconds=30)


async def ensure(client: Client, *, replicas: int = 1) -> list[Change]:
    """Plan and apply; the plan that was applied."""
    changes = await plan(client, replicas=replicas)
    await apply(client, changes)
    return changes


def scaled(streams: Sequence[StreamSpec], max_bytes: int) -> tuple[StreamSpec, ...]:
    """The same streams with another byte limit each, for small machines and for tests of a full stream."""
    return tuple(replace(stream, max_bytes=max_bytes) for stream in streams)


async def recreate_consumer(client: Client, spec: ConsumerSpec, *, start_sequence: int) -> None:
    """Put back a consumer that was deleted, going on at `start_sequence`; later acks are asked for again."""
    config = spec.config()
    if start_sequence > 1:
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": start_sequence}
    await request(
        client,
        f"CONSUMER.CREATE.{spec.stream}.{spec.name}.{spec.filter_subject}",
        {"stream_name": spec.stream, "config": config, "action": "create"},
    )


async def _plan_stream(client: Client, name: str, wanted: dict[str, Any]) -> Change:
    what = f"stream {name}"
    try:
        current = (await request(client, f"STREAM.INFO.{name}"))["config"]
    except JetStreamApiError as error:
        if error.code != 404:
            raise
        return Change("create", what, request=f"STREAM.CREATE.{name}", config=wanted)
    differing = _differing(current, wanted)
    if not differing:
        return Change("unchanged", what)
    reason = _loses(differing)
    if reason:
        return Change("refuse", what, differing, reason)
    return Change("update", what, differing, request=f"STREAM.UPDATE.{name}", config={**current, **wanted})


async def _plan_consumer(client: Client, spec: ConsumerSpec) -> Change:
    what = f"consumer {spec.stream}/{spec.name}"
    wanted = spec.config()
    subject = f"CONSUMER.CREATE.{spec.stream}.{spec.name}.{spec.filter_subject}"
    try:
        current = (await request(client, f"CONSUMER.INFO.{spec.stream}.{spec.name}"))["config"]
    except JetStreamApiError as error:
        if error.code != 404:
            raise
        return Change("create", what, request=subject, config={"stream_name": spec.stream, "config": wanted})
    if current.get("deliver_policy") == "by_start_sequence":
        wanted.pop("deliver_policy")  # a watchdog put it back at its ack floor
    differing = _differing(current, wanted)
    if not differing:
        return Change("unchanged", what)
    if differing.keys() & {"deliver_policy", "ack_policy", "filter_subject"}:
        return Change("refuse", what, differing, "would skip or repeat messages")
    return Change(
        "update",
        what,
        differing,
        request=subject,
        config={"stream_name": spec.stream, "config": {**current, **wanted}, "action": "update"},
    )


# A field the server leaves out of its JSON has its zero value.
_ZERO: dict[str, Any] = {
    "deny_delete": False,
    "allow_direct": False,
    "allow_msg_ttl": False,
    "description": "",
}


def _differing(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (current.get(name, _ZERO.get(name)), value)
        for name, value in wanted.items()
        if current.get(name, _ZERO.get(name)) != value
    }


def _loses(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Why a change of a stream could lose messages; empty where it cannot."""
    for name in ("retention", "storage", "discard"):
        if name in differing:
            return f"{name} decides what is kept"
    if "subjects" in differing:
        now, wanted = differing["subjects"]
        if set(now or ()) - set(wanted):
            return "a subject would no longer be stored"
    for name in ("max_bytes", "max_age", "max_msgs", "max_msgs_per_subject"):
        if name in differing and _tighter(*differing[name]):
            return f"{name} would become tighter"
    return ""


def _tighter(now: int | None, wanted: int) -> bool:
    """Whether a limit shrinks; zero, negative and absent mean none."""
    if wanted <= 0:
        return False
    return now is None or now <= 0 or wanted < now


def _nanoseconds(duration: timedelta) -> int:
    return int(duration / timedelta(microseconds=1)) * 1000
