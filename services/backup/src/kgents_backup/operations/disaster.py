"""The second region: mirrors of both streams, their promotion, a fence for the old primary, and the way back.

A mirror has its origin's sequences, times and headers, and takes no writes. Promoted, it is the stream: the
same subjects, the next sequence. What the primary acknowledged and the mirror never got is looked for in the
archive, and later in the old primary itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from kgents_backup.metrics import Metrics
from kgents_backup.model import configurations
from kgents_backup.model.documents import ConsumerRecord
from kgents_backup.model.faults import CorruptError, ProtocolError, RefusedError
from kgents_backup.model.plan import RestorePlan, Until
from kgents_backup.operations.restoring import (
    Prepared,
    refuse_fenced_subjects,
    restore,
    tail,
    widen,
)
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.sinks.replay import (
    Replay,
    with_original_time,
    without_original_time,
    without_spoken,
)
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.stream import StreamInfo, durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.errors import KgentsError, TransientError
from kgents_common.streams import request, server_version

# A mirror becomes a stream by an update from this version on (measured: not on 2.10).
PROMOTION_BY_UPDATE = (2, 12)
WATCH_SECONDS = 5.0
PROMOTED_AT = "kgents.promoted_at_sequence"
FENCED_SUBJECTS = "kgents.fenced_subjects"

_log = structlog.get_logger()

Connect = Callable[[], Awaitable[VerbatimClient]]


@dataclass(frozen=True, slots=True)
class Region:
    """Two regions and the names of their JetStream domains."""

    primary: Connect
    dr: Connect
    primary_domain: str
    dr_domain: str
    streams: tuple[str, ...]

    def turned(self) -> Region:
        """The same, with the roles changed."""
        return Region(self.dr, self.primary, self.dr_domain, self.primary_domain, self.streams)


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    """One stream in both regions.

    Attributes:
        role: Of the DR region's stream: `mirror`, `stream` (promoted) or `absent`; `away` where that region
            does not answer.
        primary: The primary's: `stream`, `mirror`, `fenced`, `absent` or `away`.
        lag: Messages the mirror is behind; None where that is not known.
    """

    stream: str
    role: str
    primary: str
    primary_last: int | None
    dr_last: int | None
    lag: int | None


@dataclass(slots=True)
class Promotion:
    """What a promotion did to one stream.

    Attributes:
        mirrored_to: The mirror's last sequence.
        known_lost: Messages the archive holds beyond it, which had not reached the mirror.
        recovered: Of these, the ones put back at their own sequences.
        is_fenced: Whether the old primary takes no more writes.
    """

    stream: str
    how: str
    mirrored_to: int
    known_lost: int = 0
    recovered: int = 0
    is_fenced: bool = False
    consumers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


async def status(region: Region) -> list[MirrorStatus]:
    """Both regions, stream by stream; a region that is away is an answer, not an error."""
    found: list[MirrorStatus] = []
    for stream in region.streams:
        primary, primary_info = await _look(region.primary, stream)
        role, dr_info = await _look(region.dr, stream)
        primary_last = primary_info.last_sequence if primary_info else None
        dr_last = dr_info.last_sequence if dr_info else None
        lag = None
        if role == "mirror" and primary_last is not None and dr_last is not None:
            lag = max(0, primary_last - dr_last)
        found.append(MirrorStatus(stream, role, primary, primary_last, dr_last, lag))
    return found


async def watch_mirrors(region: Region, metrics: Metrics) -> None:
    """Keep the lag metric current; for ever."""
    while True:
        for one in await status(region):
            metrics.mirror_lag.labels(one.stream).set(-1 if one.lag is None else one.lag)
        await asyncio.sleep(WATCH_SECONDS)


async def mirror(region: Region, stream: str, *, replicas: int | None = None) -> None:
    """Make the DR region's mirror of the primary's stream; one that is there stays.

    Raises:
        RefusedError: The DR region has a stream of that name which is not a mirror.
        TransientError: A region does not answer.
    """
    dr = await region.dr()
    existing = await stream_info(dr, stream)
    if existing is not None:
        if existing.config.get("mirror"):
            return
        raise RefusedError(
            f"the DR region has a stream {stream} that is no mirror",
            hint="it may be promoted: see `dr status`",
        )
    origin = await stream_info(await region.primary(), stream)
    if origin is None:
        raise ProtocolError(f"the primary has no stream {stream}")
    kept = ("storage", "retention", "discard", "max_age", "max_bytes", "max_msgs", "max_msgs_per_subject")
    config: dict[str, Any] = {key: origin.config[key] for key in kept}
    config |= {
        "name": stream,
        "num_replicas": replicas or 1,
        "allow_direct": True,
        "mirror": {
            "name": stream,
            "external": {"api": f"$JS.{region.primary_domain}.API", "deliver": ""},
        },
    }
    if origin.config.get("allow_msg_ttl"):
        config["allow_msg_ttl"] = True
    await request(dr, f"STREAM.CREATE.{stream}", config, timeout_seconds=30)


async def promote(
    region: Region,
    stream: str,
    subjects: Sequence[str],
    *,
    archive: Vault | None,
    scratch: Vault,
    clock: Clock,
    config: dict[str, Any] | None = None,
) -> Promotion:
    """Make the DR region's mirror the stream.

    The mirror first becomes a stream that only we can write to; what the archive holds beyond it is put
    back at its own sequences; then it takes the subjects.

    Args:
        archive: A store that outlived the primary; None to promote without looking.
        scratch: Where a server before 2.12 keeps the copy through which it is promoted.
        config: Limits to end up with (duplicate window, age, bytes), of the primary's stream.

    Raises:
        RefusedError: It is not a mirror.
        TransientError: The DR region does not answer.
    """
    dr = await region.dr()
    info = await stream_info(dr, stream)
    if info is None or not info.config.get("mirror"):
        raise RefusedError(f"the DR region has no mirror of {stream}", hint="see `dr status`")
    is_fenced = await fence(region, stream)
    info = await stream_info(dr, stream) or info
    own = {**info.config, **(config or {}), "name": stream}
    own["num_replicas"] = info.config["num_replicas"]
    own["metadata"] = {**(own.get("metadata") or {}), PROMOTED_AT: str(info.last_sequence)}
    own["metadata"].pop(FENCED_SUBJECTS, None)
    own.pop("subject_transform", None)
    by_update = server_version(dr) >= PROMOTION_BY_UPDATE
    done = Promotion(stream, "update" if by_update else "snapshot and restore", info.last_sequence)
    done.is_fenced = is_fenced
    final = configurations.final(own, stream, subjects=list(subjects))
    prefix = configurations.fence_prefix(stream, secrets.token_hex(4))
    fenced = configurations.fenced(final, stream, prefix, replicas=1)
    if by_update:
        await request(dr, f"STREAM.UPDATE.{stream}", fenced, timeout_seconds=30)
    else:
        await _through_a_copy(dr, scratch, stream, fenced, clock)
    records: list[ConsumerRecord] = []
    if archive is not None:
        records = await _from_archive(dr, archive, stream, prefix, done)
    await refuse_fenced_subjects(dr, stream, prefix)
    await widen(dr, fenced, final["num_replicas"])
    await request(dr, f"STREAM.UPDATE.{stream}", final, timeout_seconds=30)
    done.consumers = await _make_consumers(dr, stream, records)
    if not is_fenced:
        done.notes.append("the old primary did not answer: run `dr fence --wait` before anything reaches it")
    if archive is None:
        done.notes.append("no archive was looked into: what the mirror had not got is not known")
    _log.info("dr.promoted", stream=stream, how=done.how, mirrored_to=done.mirrored_to)
    return done


async def fence(region: Region, stream: str) -> bool:
    """Take the subjects from the primary's stream, so that a publisher gets an error; whether it is so.

    The messages stay; `metadata` remembers the subjects.
    """
    try:
        client = await region.primary()
        info = await stream_info(client, stream)
        if info is None or info.config.get("mirror"):
            return True
        if FENCED_SUBJECTS in (info.config.get("metadata") or {}):
            return True
        config = configurations.final(info.config, stream)
        config["metadata"] = {
            **(config.get("metadata") or {}),
            FENCED_SUBJECTS: ",".join(info.config.get("subjects") or []),
        }
        config["subjects"] = [f"kgents.fenced.{stream}"]
        await request(client, f"STREAM.UPDATE.{stream}", config, timeout_seconds=10)
    except TransientError:
        return False
    _log.info("dr.fenced", stream=stream)
    return True


async def fence_when_back(region: Region, *, seconds: float) -> list[str]:
    """Fence every stream of the primary as soon as it answers; the streams that are not fenced in time."""
    left = list(region.streams)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while left:
        left = [stream for stream in left if not await fence(region, stream)]
        if left and loop.time() >= deadline:
            break
        if left:
            await asyncio.sleep(0.2)
    return left


@dataclass(slots=True)
class Account:
    """What an old primary holds that the promoted stream may lack.

    Attributes:
        beyond: Messages after the mirror's end.
        known: Of these, at the same sequence and the same in the promoted stream (put back from the archive).
        published: The others, published to the promoted stream under their own ids.
    """

    stream: str
    beyond: int = 0
    known: int = 0
    published: int = 0


async def account(region: Region, stream: str, *, dry_run: bool = False) -> Account:
    """Find what the old primary acknowledged and the promoted stream never got, and publish it there.

    Raises:
        RefusedError: The DR region's stream is not a promoted one.
        TransientError: A region does not answer.
    """
    primary, dr = await region.primary(), await region.dr()
    promoted = await stream_info(dr, stream)
    start = (promoted.config.get("metadata") or {}).get(PROMOTED_AT) if promoted else None
    if promoted is None or start is None:
        raise RefusedError(f"the DR region's {stream} was not promoted", hint="see `dr status`")
    old = await stream_info(primary, stream)
    found = Account(stream)
    if old is None or old.last_sequence <= int(start):
        return found
    theirs = MessageReader(dr, stream, start=int(start) + 1)
    have = {
        m.sequence: (m.subject, without_original_time(m.headers), m.body)
        async for m in theirs.read(min(promoted.last_sequence, old.last_sequence))
    }
    await theirs.close()
    reader = MessageReader(primary, stream, start=int(start) + 1)
    async for message in reader.read(old.last_sequence):
        found.beyond += 1
        same = have.get(message.sequence)
        if same == (message.subject, without_original_time(message.headers), message.body):
            found.known += 1
            continue
        found.published += 1
        if not dry_run:
            headers = with_original_time(without_spoken(message.headers), message.time)
            await _publish(dr, message.subject, headers, message.body)
    await reader.close()
    return found


async def fail_back(
    region: Region,
    stream: str,
    *,
    scratch: Vault,
    clock: Clock,
    seconds: float = 600,
) -> tuple[Account, Promotion]:
    """Bring the stream back to the primary region: account, mirror the other way, fence DR, promote, mirror.

    The old primary's copy is snapshotted into `scratch` before it is deleted.

    Raises:
        RefusedError: The primary's stream takes writes, or the DR region's was not promoted.
        ProtocolError: The primary did not catch up in time; run it again.
        TransientError: A region does not answer.
    """
    primary, dr = await region.primary(), await region.dr()
    back = region.turned()
    existing = await stream_info(primary, stream)
    found = Account(stream)
    if existing is None or not existing.config.get("mirror"):
        if existing is not None:
            if not await fence(region, stream):
                raise ProtocolError("the primary does not answer")
            found = await account(region, stream)
            await take_snapshot(primary, scratch, stream, clock=clock)
            await request(primary, f"STREAM.DELETE.{stream}", timeout_seconds=60)
        replicas = existing.config["num_replicas"] if existing else 1
        await mirror(back, stream, replicas=replicas)
    promoted = await stream_info(dr, stream)
    if promoted is None:
        raise RefusedError(f"the DR region has no stream {stream}")
    metadata = promoted.config.get("metadata") or {}
    listened = metadata.get(FENCED_SUBJECTS, "").split(",") if FENCED_SUBJECTS in metadata else None
    subjects = listened or promoted.config["subjects"]
    consumers = await durable_consumers(dr, stream)
    # Writes stop here, and start again at the primary with its promotion.
    await fence(back, stream)
    await _caught_up(primary, dr, stream, seconds)
    done = await promote(
        back, stream, subjects, archive=None, scratch=scratch, clock=clock, config=_limits(promoted)
    )
    done.notes.clear()
    done.consumers = await _make_consumers(primary, stream, consumers)
    await request(dr, f"STREAM.DELETE.{stream}", timeout_seconds=60)
    await mirror(region, stream)
    return found, done


async def _look(connect: Connect, stream: str) -> tuple[str, StreamInfo | None]:
    try:
        info = await stream_info(await connect(), stream)
    except KgentsError:
        return "away", None
    if info is None:
        return "absent", None
    if info.config.get("mirror"):
        return "mirror", info
    if FENCED_SUBJECTS in (info.config.get("metadata") or {}):
        return "fenced", info
    return "stream", info


async def _through_a_copy(
    client: VerbatimClient, scratch: Vault, stream: str, fenced: dict[str, Any], clock: Clock
) -> None:
    """Promote where an update cannot: copy the mirror, delete it, restore the copy as a stream."""
    name, manifest = await take_snapshot(client, scratch, stream, clock=clock)
    for part in manifest.parts:
        await scratch.read_part(name.prefix, part)
    plan = RestorePlan(stream, name.line, Until(), name, (), 0)
    prepared = Prepared(plan, manifest, fenced)
    await restore(client, scratch, prepared, clock=clock, replace=True, subjects=fenced["subjects"])
    await request(client, f"STREAM.UPDATE.{stream}", fenced, timeout_seconds=30)


async def _from_archive(
    client: VerbatimClient, archive: Vault, stream: str, prefix: str, done: Promotion
) -> list[ConsumerRecord]:
    """Put back what the archive holds beyond the mirror; where consumers stood, as the archive knows."""
    catalogue = await archive.catalogue(stream)
    lines = [f for f in catalogue.lines.values() if f.segments]
    if not lines:
        done.notes.append("the archive holds no segment of this stream")
        return []
    files = lines[-1]
    chain = files.covering(done.mirrored_to + 1)
    plan = RestorePlan(stream, files.line, Until(), None, tuple(chain), 0)
    replay = Replay(client, stream, prefix, last_sequence=done.mirrored_to)
    try:
        async for _, messages in tail(archive, plan, done.mirrored_to):
            for message in messages:
                done.known_lost += 1
                await replay.publish(message)
                done.recovered += 1
    except CorruptError as error:
        done.notes.append(f"the archive ends at a damaged file: {error}")
    await replay.finish()
    last = max(files.segments, key=lambda s: s.last)
    try:
        header, _ = await archive.read_segment(last)
    except CorruptError:
        return []
    return header.consumers


async def _make_consumers(
    client: VerbatimClient, stream: str, records: Sequence[ConsumerRecord]
) -> list[str]:
    made: list[str] = []
    present = {c.name for c in await durable_consumers(client, stream)}
    for record in records:
        if record.name in present:
            continue
        config = {k: v for k, v in record.config.items() if k not in ("opt_start_time", "metadata")}
        config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": record.ack_floor + 1}
        await request(
            client,
            f"CONSUMER.DURABLE.CREATE.{stream}.{record.name}",
            {"stream_name": stream, "config": config},
        )
        made.append(record.name)
    return made


async def _publish(client: VerbatimClient, subject: str, headers: bytes, body: bytes) -> None:
    inbox = client.new_inbox()
    answers = await client.subscribe(inbox, max_msgs=1)
    await client.publish_verbatim(subject, inbox, headers, body)
    try:
        answer = await answers.next_msg(timeout=10)
    except TimeoutError as error:
        raise ProtocolError("a recovered message was not acknowledged") from error
    if not answer.data or b'"error"' in answer.data:
        raise ProtocolError("a recovered message was refused")


async def _caught_up(primary: VerbatimClient, dr: VerbatimClient, stream: str, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        ours, theirs = await stream_info(primary, stream), await stream_info(dr, stream)
        if ours and theirs and ours.last_sequence >= theirs.last_sequence:
            return
        if loop.time() > deadline:
            raise ProtocolError(f"the primary's mirror of {stream} did not catch up in {seconds:.0f} s")
        await asyncio.sleep(0.2)


def _limits(info: StreamInfo) -> dict[str, Any]:
    kept = ("duplicate_window", "max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "description")
    return {key: info.config[key] for key in kept if key in info.config}
