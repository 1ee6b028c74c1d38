"""The way back: the old primary becomes the primary again."""

from __future__ import annotations

import asyncio
from typing import Any

from kgents_backup.model.faults import ProtocolError, RefusedError
from kgents_backup.operations.consumers import make_consumers
from kgents_backup.operations.disaster.accounting import Account, account
from kgents_backup.operations.disaster.fencing import fence, refuse_restoring
from kgents_backup.operations.disaster.promoting import Promotion, promote
from kgents_backup.operations.disaster.regions import FENCED_SUBJECTS, Region, mirror
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.sinks.ownership import Ownership
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import StreamInfo, durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.streams import request


async def fail_back(
    region: Region,
    stream: str,
    *,
    scratch: Vault,
    clock: Clock,
    owner: str = "",
    seconds: float = 600,
) -> tuple[Account, Promotion]:
    """Bring the stream back to the primary region: account, mirror the other way, fence DR, promote, mirror.

    The old primary's copy is snapshotted into `scratch` before it is deleted.

    Raises:
        RefusedError: The primary's stream takes writes, or the DR region's was not promoted.
        LockedError: Another run changes streams of one of the regions.
        RestoringError: The stream is being restored in one of them.
        ProtocolError: The primary did not catch up in time; run it again.
        TransientError: A region does not answer.
    """
    async with (
        Ownership(await region.dr(), owner, clock, what="fail-back") as of_dr,
        Ownership(await region.primary(), owner, clock, what="fail-back") as of_primary,
    ):
        return await _fail_back(
            region, stream, of_dr, of_primary, scratch=scratch, clock=clock, seconds=seconds
        )


async def _fail_back(
    region: Region,
    stream: str,
    of_dr: Ownership,
    of_primary: Ownership,
    *,
    scratch: Vault,
    clock: Clock,
    seconds: float,
) -> tuple[Account, Promotion]:
    primary, dr = await region.primary(), await region.dr()
    back = region.turned()
    existing = await stream_info(primary, stream)
    for info in (existing, await stream_info(dr, stream)):
        if info is not None:
            refuse_restoring(info)
    found = Account(stream)
    if existing is None or not existing.config.get("mirror"):
        if existing is not None:
            if not await fence(region, stream):
                raise ProtocolError("the primary does not answer")
            found = await account(region, stream)
            await take_snapshot(primary, scratch, stream, clock=clock)
            of_primary.check()
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
        back,
        stream,
        subjects,
        archive=None,
        scratch=scratch,
        clock=clock,
        alone=of_primary,
        config=_limits(promoted),
    )
    done.notes.clear()
    done.consumers = await make_consumers(primary, stream, consumers)
    of_dr.check()
    await request(dr, f"STREAM.DELETE.{stream}", timeout_seconds=60)
    await mirror(region, stream)
    return found, done


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
