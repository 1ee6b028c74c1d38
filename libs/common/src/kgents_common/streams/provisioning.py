"""The plan that makes a server's streams match their specification, and its application by the one owner.

Configuration is compared in JetStream's own JSON terms (durations in nanoseconds), so that fields we do not
name stay as the operator set them. A change that could lose messages is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client

from kgents_common.errors import PermanentError
from kgents_common.streams.jetstream_api import JetStreamApiError, request
from kgents_common.streams.specification import (
    CONSUMERS,
    STREAMS,
    ConsumerSpec,
    StreamSpec,
    stream_config,
)


@dataclass(frozen=True, slots=True)
class Change:
    """One step of a plan.

    Attributes:
        kind: `create`, `update`, `purge`, `unchanged` or `refuse`.
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
    configs = [stream_config(stream, replicas=replicas) for stream in streams]
    pairs = zip(streams, configs, strict=True)
    return [
        *[change for spec, config in pairs for change in await _plan_stream(client, spec, config)],
        *[await _plan_consumer(client, consumer) for consumer in consumers],
    ]


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
        if change.kind in ("create", "update", "purge"):
            await request(client, change.request, change.config, timeout_seconds=30)


async def ensure(
    client: Client, *, replicas: int = 1, streams: Sequence[StreamSpec] = STREAMS
) -> list[Change]:
    """Plan and apply; the plan that was applied."""
    changes = await plan(client, replicas=replicas, streams=streams)
    await apply(client, changes)
    return changes


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


async def _plan_stream(client: Client, spec: StreamSpec, wanted: dict[str, Any]) -> list[Change]:
    name = spec.name
    what = f"stream {name}"
    try:
        current = (await request(client, f"STREAM.INFO.{name}"))["config"]
    except JetStreamApiError as error:
        if error.code != 404:
            raise
        return [Change("create", what, request=f"STREAM.CREATE.{name}", config=wanted)]
    differing = _differing(current, wanted)
    reason = _loses(differing, spec)
    if reason:
        return [Change("refuse", what, differing, reason)]
    purges = [change for subject in spec.left_out for change in await _plan_purge(client, name, subject)]
    if not differing:
        return purges or [Change("unchanged", what)]
    update = Change("update", what, differing, request=f"STREAM.UPDATE.{name}", config={**current, **wanted})
    return [update, *purges]


async def _plan_purge(client: Client, name: str, subject: str) -> list[Change]:
    """What an earlier release stored of a subject that is ephemeral goes, and nothing else."""
    state = (await request(client, f"STREAM.INFO.{name}", {"subjects_filter": subject}))["state"]
    held = sum((state.get("subjects") or {}).values())
    if not held:
        return []
    reason = f"{held} messages of {subject}, which is ephemeral"
    return [
        Change(
            "purge",
            f"stream {name}",
            reason=reason,
            request=f"STREAM.PURGE.{name}",
            config={"filter": subject},
        )
    ]


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
    # A wider filter delivers what comes from now on; what the narrower one passed over stays behind.
    is_widened = current.get("filter_subject") in spec.widened_from
    if differing.keys() & {"deliver_policy", "ack_policy", *(() if is_widened else ("filter_subject",))}:
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
    "description": "",
}


def _differing(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (current.get(name, _ZERO.get(name)), value)
        for name, value in wanted.items()
        if current.get(name, _ZERO.get(name)) != value
    }


def _loses(differing: Mapping[str, tuple[Any, Any]], spec: StreamSpec) -> str:
    """Why a change of a stream could lose messages; empty where it cannot."""
    for name in ("retention", "storage", "discard"):
        if name in differing:
            return f"{name} decides what is kept"
    if "subjects" in differing:
        now, wanted = differing["subjects"]
        if set(now or ()) - set(wanted) - set(spec.narrowed_from):
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
