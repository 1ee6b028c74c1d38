"""The command `restore`: arguments to plans, plans carried out, what was done told."""

from __future__ import annotations

from dataclasses import asdict

from kgents_backup.app import Backup
from kgents_backup.handlers.command.surroundings import Arguments, streams_of
from kgents_backup.handlers.progress import amount
from kgents_backup.model.keys import Line
from kgents_backup.model.plan import Until
from kgents_backup.operations.restoring import Prepared, RestoreReport, prepare, restore
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common.connection import connect_options
from kgents_common.errors import ConfigurationError


async def run_restore(backup: Backup, arguments: Arguments) -> int:
    try:
        until = Until.parse(arguments.to)
    except ValueError as error:
        raise ConfigurationError(
            f"--to {arguments.to}: {error}", hint="a sequence, or 2026-01-31T12:00:00Z"
        ) from None
    line = Line.parse(arguments.line) if arguments.line else None
    streams = streams_of(backup, arguments)
    into_server = arguments.into if arguments.into and "://" in arguments.into else None
    into_name = arguments.into if arguments.into and into_server is None else None
    if len(streams) > 1 and (into_name or until.sequence is not None or line):
        raise ConfigurationError("that needs one stream", hint="add --stream AGENTESE")
    vault = backup.vault(arguments.store)
    plans = [
        await prepare(
            vault,
            stream,
            until,
            line=line,
            fall_back=arguments.fall_back,
            check_files=not arguments.dry_run,
            progress=backup.progress,
        )
        for stream in streams
    ]
    for prepared in plans:
        print(_plan_text(prepared, vault.name, arguments.into))
    if arguments.dry_run:
        return 0
    if into_server is not None:
        options = connect_options(backup.settings, "kgent-backup-restore", {})
        async with connected(options | {"servers": into_server, "max_reconnect_attempts": 5}) as client:
            return await _carry_out(backup, client, plans, arguments, None)
    return await _carry_out(backup, await backup.client(), plans, arguments, into_name)


async def _carry_out(
    backup: Backup, client: VerbatimClient, plans: list[Prepared], arguments: Arguments, into: str | None
) -> int:
    for prepared in plans:
        report = await restore(
            client,
            backup.vault(arguments.store),
            prepared,
            clock=backup.clock,
            into=into,
            replace=arguments.replace,
            replicas=arguments.replicas,
            progress=backup.progress,
        )
        print(_report_text(report))
        await backup.announcer.announce("restore.completed", asdict(report))
    return 0


def _plan_text(prepared: Prepared, store: str, into: str | None) -> str:
    plan = prepared.plan
    base = (
        f"the snapshot of {plan.snapshot.taken_at.isoformat()} (sequence {plan.snapshot.last},"
        f" {amount(plan.snapshot_bytes, 'bytes')})"
        if plan.snapshot
        else "an empty stream"
    )
    lines = [
        f"{plan.stream} to {plan.until}"
        + (f" into {into}" if into else "")
        + f", from {store}, line {plan.line}:",
        f"  1. restore {base}",
        f"  2. replay {len(plan.segments)} segments ({amount(plan.segment_bytes, 'bytes')})",
        f"  3. at most sequence {plan.reaches}; about {plan.seconds:.0f} s",
    ]
    lines += [f"  damaged and avoided: {reason}" for reason in prepared.avoided]
    if plan.hole is not None:
        lines.append(f"  nothing accounts for sequence {plan.hole}: the tail ends before it")
    return "\n".join(lines)


def _report_text(report: RestoreReport) -> str:
    first = (
        f"{report.into}: {report.messages} messages up to sequence {report.last_sequence}"
        f" in {report.seconds:.1f} s ({report.physical} physical, {report.replayed} replayed,"
        f" {report.fillers} gaps kept)"
    )
    lines = [first, *[f"  consumer {name} is done up to {floor}" for name, floor in report.consumers]]
    if report.stripped:
        lines.append(f"  {report.stripped} messages lost headers that the server refuses now")
    lines += [f"  note: {note}" for note in report.notes]
    return "\n".join(lines)
