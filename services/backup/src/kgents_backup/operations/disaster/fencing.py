"""The fence of an old primary: its streams keep their messages and listen to nobody."""

from __future__ import annotations

import asyncio
from enum import StrEnum

import structlog

from kgents_backup.model import configurations
from kgents_backup.model.faults import RestoringError
from kgents_backup.model.restoration import is_closed
from kgents_backup.operations.disaster.regions import FENCED_SUBJECTS, Region
from kgents_backup.sources.stream import StreamInfo, stream_info
from kgents_common.errors import KgentsError, TransientError
from kgents_common.streams import request

_log = structlog.get_logger()


class Fencing(StrEnum):
    """What came of it: an away primary does not answer, a half dead one answers with an error."""

    FENCED = "fenced"
    AWAY = "away"
    HALF_DEAD = "half dead"


def refuse_restoring(info: StreamInfo) -> None:
    """Leave a stream alone that is being restored.

    Raises:
        RestoringError: It is, or its restore was interrupted.
    """
    if is_closed(info.config):
        raise RestoringError(
            f"{info.name} is being restored, or its restore was interrupted",
            hint="finish it first with its own command, or take it back: `kgents-backup restore --undo`",
        )


async def fence(region: Region, stream: str) -> bool:
    """Whether the primary's stream takes no more writes; see `try_fence`."""
    return await try_fence(region, stream) is Fencing.FENCED


async def try_fence(region: Region, stream: str) -> Fencing:
    """Take the subjects from the primary's stream, so that a publisher gets an error.

    The messages stay; `metadata` remembers the subjects.
    """
    try:
        client = await region.primary()
        info = await stream_info(client, stream)
        if info is None or info.config.get("mirror"):
            return Fencing.FENCED
        if FENCED_SUBJECTS in (info.config.get("metadata") or {}):
            return Fencing.FENCED
        if is_closed(info.config):
            # Its mark and fence are the restore's; once that opens it, it would take writes again.
            _log.warning("dr.not_fenced", stream=stream, error="it is being restored")
            return Fencing.HALF_DEAD
        config = configurations.final(info.config, stream)
        config["metadata"] = {
            **(config.get("metadata") or {}),
            FENCED_SUBJECTS: ",".join(info.config.get("subjects") or []),
        }
        config["subjects"] = [f"kgents.fenced.{stream}"]
        await request(client, f"STREAM.UPDATE.{stream}", config, timeout_seconds=10)
    except TransientError:
        return Fencing.AWAY
    except KgentsError as error:
        _log.warning("dr.not_fenced", stream=stream, error=str(error))
        return Fencing.HALF_DEAD
    _log.info("dr.fenced", stream=stream)
    return Fencing.FENCED


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
