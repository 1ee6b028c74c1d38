"""Two regions, the mirror of a stream between them, and where each stands."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from kgents_backup.metrics import Metrics
from kgents_backup.model.faults import ProtocolError, RefusedError
from kgents_backup.sources.stream import StreamInfo, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.errors import KgentsError
from kgents_common.streams import request

WATCH_SECONDS = 5.0
FENCED_SUBJECTS = "kgents.fenced_subjects"
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
