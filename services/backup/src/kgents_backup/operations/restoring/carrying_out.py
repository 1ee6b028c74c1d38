"""A plan carried out, in order."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import structlog

from kgents_backup.model import configurations
from kgents_backup.model.faults import (
    ProtocolError,
    RefusedError,
)
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.model.restoration import is_left_half, read_lineage, with_lineage
from kgents_backup.operations.restoring.filling import Filling, replay_tail, restore_base, settled
from kgents_backup.operations.restoring.opening import (
    filled_of,
    refuse_another_filling,
    refuse_another_stream,
    refuse_fenced_subjects,
    widen,
)
from kgents_backup.operations.restoring.preparing import Prepared
from kgents_backup.operations.restoring.reporting import RestoreReport
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import StreamInfo, reached, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import Clock
from kgents_common.streams import request

_log = structlog.get_logger()


async def restore(
    client: VerbatimClient,
    vault: Vault,
    prepared: Prepared,
    *,
    clock: Clock,
    into: str | None = None,
    replace: bool = False,
    replicas: int | None = None,
    subjects: list[str] | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] = lambda: None,
) -> RestoreReport:
    """Carry a plan out.

    Args:
        into: Another stream name; its messages keep their subjects.
        replace: Delete a stream of that name first.
        replicas: Instead of the backed up stream's.
        subjects: What the stream listens to afterwards, instead of what it did.
        check: Raises where another may be at work; asked right before something is deleted or opened.

    Raises:
        RefusedError: There is such a stream, and replacing it was not asked for.
        ProtocolError: The server did not take it.
    """
    progress = progress or NoProgress()
    begun = clock.monotonic()
    name = into or prepared.plan.stream
    report = RestoreReport(prepared.plan.stream, name)
    await _make_room(client, name, replace=replace, check=check)
    prefix = configurations.fence_prefix(name, secrets.token_hex(4))
    fenced = configurations.fenced(prepared.config, name, prefix, replicas=1)
    filling = Filling(vault, prepared, fenced, prefix, report, progress)
    await fill(client, filling)
    final = configurations.final(prepared.config, name, replicas=replicas, subjects=subjects)
    if into is None and prepared.ancestors:
        final = with_lineage(final, secrets.token_hex(4), prepared.ancestors)
    await release(client, filling, final, check=check)
    report.seconds = round(clock.monotonic() - begun, 3)
    _log.info(
        "restore.completed",
        stream=name,
        last_sequence=report.last_sequence,
        physical=report.physical,
        replayed=report.replayed,
        seconds=report.seconds,
    )
    return report


async def fill(client: VerbatimClient, filling: Filling) -> int:
    """Fill a stream that is not there yet, behind its fence; the last sequence that the snapshot brought.

    Raises:
        ProtocolError: The server did not take it, or holds another number of messages.
        CorruptError, StoreError: A file is damaged, or the store does not give it.
    """
    position = await restore_base(client, filling)
    await replay_tail(client, filling, position)
    info = await settled(client, filling.name)
    _compare(info, filling.report)
    filling.report.last_sequence, filling.report.messages = info.last_sequence, info.messages
    return position


async def release(
    client: VerbatimClient,
    filling: Filling,
    final: dict[str, Any],
    *,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Open a filled stream: its replicas, its own configuration; then look whether it is what is open.

    Args:
        check: Raises where another may be at work; asked right before it is opened.

    Raises:
        ProtocolError: It must not be opened, and stays closed; or what is open is another stream.
    """
    report = filling.report
    await refuse_fenced_subjects(client, filling.name, filling.prefix)
    await widen(client, filling.fenced, final["num_replicas"])
    info = await refuse_another_filling(
        client, filling.fenced, messages=report.messages, last_sequence=report.last_sequence
    )
    check()
    await request(client, f"STREAM.UPDATE.{filling.name}", final, timeout_seconds=60)
    lineage = read_lineage(final)
    await refuse_another_stream(
        client, filling.name, filled_of(info), token=lineage.token if lineage else None
    )
    filling.report.consumers = await _consumers(client, filling)


async def _make_room(client: VerbatimClient, name: str, *, replace: bool, check: Callable[[], None]) -> None:
    existing = await stream_info(client, name)
    if existing is None:
        return
    if not replace and not is_left_half(existing.config):
        raise RefusedError(
            f"there is a stream {name} with {existing.messages} messages",
            hint="--into replaces nothing: name another stream or server, or delete it there",
        )
    _log.warning("restore.stream_deleted", stream=name, messages=existing.messages)
    check()
    await request(client, f"STREAM.DELETE.{name}", timeout_seconds=60)


def _compare(info: StreamInfo, report: RestoreReport) -> None:
    expected = report.physical + report.replayed
    if info.messages != expected:
        raise ProtocolError(f"the stream holds {info.messages} messages, not {expected}")


async def _consumers(client: VerbatimClient, filling: Filling) -> list[tuple[str, int]]:
    report = filling.report
    answer = await request(client, f"CONSUMER.LIST.{filling.name}", {"offset": 0})
    if report.replayed:
        report.notes.append(
            "consumers stand where they stood at the snapshot: what they handled after it comes to them"
            " again, and their keys make that harmless"
        )
    durable = [c for c in answer.get("consumers") or [] if c["config"].get("durable_name")]
    if filling.prepared.manifest is None and not durable:
        report.notes.append(
            "no snapshot was used, and no segment knew a consumer: apply the streams' consumers again, they"
            " start from the first"
        )
    return [(c["name"], reached(c)) for c in durable]
