"""The drill: the latest backup restored into a scratch server and compared with the live stream."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from kgents_backup.model.plan import Until
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.model.segment import Message, subject_bytes
from kgents_backup.operations.restoring import RestoreReport, prepare, restore
from kgents_backup.sinks.replay import without_original_time
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.messages import MessageReader
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock

_log = structlog.get_logger()
FEW = 5


@dataclass(slots=True)
class DrillReport:
    """What a drill found.

    Attributes:
        compared: Messages that are in both and the same.
        gone_live: Restored messages that the live stream does not hold any more: expired or deleted since.
        missing: Sequences, the first few, that are live and were not restored, although the backup reaches
            further.
        different: Sequences, the first few, whose messages differ.
        digest: blake2b-256 over every restored message's sequence, subject, headers and body.
        behind: Live messages after the end of the backup.
        faults: Why it failed; empty where it passed.
    """

    stream: str
    store: str
    snapshot: str
    reaches: int = 0
    restored: int = 0
    compared: int = 0
    gone_live: int = 0
    missing: list[int] = field(default_factory=list)
    different: list[int] = field(default_factory=list)
    consumers: list[str] = field(default_factory=list)
    digest: str = ""
    behind: int = 0
    seconds: float = 0.0
    restore_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def is_passed(self) -> bool:
        """Whether the backup gave back what is live."""
        return not self.faults

    def facts(self) -> dict[str, Any]:
        """As an event says it."""
        return asdict(self)


async def drill(
    live: VerbatimClient,
    scratch: VerbatimClient,
    vault: Vault,
    stream: str,
    *,
    clock: Clock,
    progress: Progress | None = None,
) -> DrillReport:
    """Restore the newest state of `stream` into `scratch` and compare it, message by message.

    Raises:
        CorruptError, UnrecoverableError: The backup is not usable: as good as a failed drill.
        TransientError: A server or the store failed; nothing is known.
    """
    progress = progress or NoProgress()
    begun = clock.monotonic()
    prepared = await prepare(vault, stream, Until(), progress=progress)
    done = await restore(scratch, vault, prepared, clock=clock, replicas=1, progress=progress)
    report = DrillReport(
        stream=stream,
        store=vault.name,
        snapshot=prepared.plan.snapshot.id if prepared.plan.snapshot else "",
        reaches=done.last_sequence,
        restored=done.messages,
        restore_seconds=done.seconds,
    )
    await _compare(live, scratch, done, report, progress)
    kept = {c.name for c in prepared.manifest.consumers} if prepared.manifest else set()
    report.consumers = [c.name for c in await durable_consumers(scratch, stream)]
    lost = kept - set(report.consumers)
    if lost:
        report.faults.append(f"consumers did not come back: {', '.join(sorted(lost))}")
    if report.missing:
        report.faults.append(f"live messages are missing in the backup, first {report.missing}")
    if report.different:
        report.faults.append(f"messages differ, first {report.different}")
    report.seconds = round(clock.monotonic() - begun, 3)
    event = "drill.passed" if report.is_passed else "drill.failed"
    _log.info(event, stream=stream, store=vault.name, compared=report.compared, faults=report.faults)
    return report


async def _compare(
    live: VerbatimClient,
    scratch: VerbatimClient,
    done: RestoreReport,
    report: DrillReport,
    progress: Progress,
) -> None:
    stream = report.stream
    info = await stream_info(live, stream)
    if info is None:
        report.faults.append("there is no live stream to compare with")
        return
    report.behind = max(0, info.last_sequence - done.last_sequence)
    ours = MessageReader(scratch, stream)
    theirs = MessageReader(live, stream)
    digest = hashlib.blake2b(digest_size=32)
    progress.begin(f"compare {stream}", done.messages, "messages")
    try:
        live_messages = theirs.read(done.last_sequence)
        live_next = await anext(live_messages, None)
        async for message in ours.read(done.last_sequence):
            while live_next is not None and live_next.sequence < message.sequence:
                _note(report.missing, live_next.sequence)
                live_next = await anext(live_messages, None)
            if live_next is None or live_next.sequence > message.sequence:
                report.gone_live += 1
            else:
                if _same(message, live_next):
                    report.compared += 1
                else:
                    _note(report.different, message.sequence)
                live_next = await anext(live_messages, None)
            _digest(digest, message)
            progress.advance(1)
        while live_next is not None:
            _note(report.missing, live_next.sequence)
            live_next = await anext(live_messages, None)
    finally:
        progress.end()
        await ours.close()
        await theirs.close()
    report.digest = digest.hexdigest()


def _same(restored: Message, live: Message) -> bool:
    return (restored.restored_subject, restored.body, without_original_time(restored.headers)) == (
        live.restored_subject,
        live.body,
        without_original_time(live.headers),
    )


def _digest(digest: Any, message: Message) -> None:
    subject = subject_bytes(message.restored_subject)
    for part in (subject, without_original_time(message.headers), message.body):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    digest.update(message.sequence.to_bytes(8, "big"))


def _note(sequences: list[int], sequence: int) -> None:
    if len(sequences) < FEW:
        sequences.append(sequence)
