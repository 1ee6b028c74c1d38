"""A mirror becomes the stream, after what the archive holds beyond it was put back."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from kgents_backup.model import configurations
from kgents_backup.model.documents import ConsumerRecord
from kgents_backup.model.faults import CorruptError, RefusedError
from kgents_backup.model.plan import RestorePlan, Until
from kgents_backup.operations.consumers import make_consumers
from kgents_backup.operations.disaster.fencing import Fencing, refuse_restoring, try_fence
from kgents_backup.operations.disaster.regions import FENCED_SUBJECTS, Region
from kgents_backup.operations.restoring import (
    Prepared,
    refuse_fenced_subjects,
    restore,
    tail,
    widen,
)
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.sinks.ownership import Ownership
from kgents_backup.sinks.replay import (
    Replay,
)
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.streams import request, server_version

# A mirror becomes a stream by an update from this version on (measured: not on 2.10).
PROMOTION_BY_UPDATE = (2, 12)
PROMOTED_AT = "kgents.promoted_at_sequence"

_log = structlog.get_logger()


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


async def promote(
    region: Region,
    stream: str,
    subjects: Sequence[str],
    *,
    archive: Vault | None,
    scratch: Vault,
    clock: Clock,
    owner: str = "",
    alone: Ownership | None = None,
    config: dict[str, Any] | None = None,
    force_unfenced: bool = False,
) -> Promotion:
    """Make the DR region's mirror the stream.

    The mirror first becomes a stream that only we can write to; what the archive holds beyond it is put
    back at its own sequences; then it takes the subjects.

    Args:
        archive: A store that outlived the primary; None to promote without looking.
        scratch: Where a server before 2.12 keeps the copy through which it is promoted.
        owner: Who we are, for another run that is refused meanwhile.
        alone: Of the DR region's streams, where the caller has it already.
        config: Limits to end up with (duplicate window, age, bytes), of the primary's stream.
        force_unfenced: Go on although the old primary answers and cannot be fenced: it may take writes.

    Raises:
        RefusedError: It is not a mirror, or the old primary answers and cannot be fenced.
        LockedError: Another run changes streams of the DR region.
        RestoringError: Taking a restore of the stream back was interrupted there.
        TransientError: The DR region does not answer.
    """
    async with alone or Ownership(await region.dr(), owner, clock, what="promotion") as owned:
        dr = await region.dr()
        info = await stream_info(dr, stream)
        if info is None or not info.config.get("mirror"):
            raise RefusedError(f"the DR region has no mirror of {stream}", hint="see `dr status`")
        refuse_restoring(info)
        fenced_how = await try_fence(region, stream)
        if fenced_how is Fencing.HALF_DEAD and not force_unfenced:
            raise RefusedError(
                f"the old primary answers with an error and {stream} cannot be fenced there: it may take"
                " writes",
                hint="keep clients away from it and add --force-unfenced; fence it later with"
                " `dr fence --wait`",
            )
        is_fenced = fenced_how is Fencing.FENCED
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
        owned.check()
        if by_update:
            await request(dr, f"STREAM.UPDATE.{stream}", fenced, timeout_seconds=30)
        else:
            await _through_a_copy(dr, scratch, stream, fenced, clock)
        records: list[ConsumerRecord] = []
        if archive is not None:
            records = await _from_archive(dr, archive, stream, prefix, done)
        await refuse_fenced_subjects(dr, stream, prefix)
        await widen(dr, fenced, final["num_replicas"])
        # Before it is open: what is published then is beyond where any of them begins.
        done.consumers = await make_consumers(dr, stream, records)
        owned.check()
        await request(dr, f"STREAM.UPDATE.{stream}", final, timeout_seconds=30)
        if not is_fenced:
            done.notes.append(
                f"the old primary is NOT fenced ({fenced_how}): run `dr fence --wait` before anything reaches"
                " it"
            )
        if archive is None:
            done.notes.append("no archive was looked into: what the mirror had not got is not known")
        _log.info("dr.promoted", stream=stream, how=done.how, mirrored_to=done.mirrored_to)
        return done


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
