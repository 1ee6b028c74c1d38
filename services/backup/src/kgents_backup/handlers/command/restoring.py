"""The command `restore`: arguments to plans, plans carried out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace

from nats.errors import Error as NatsError

from kgents_backup.app import Backup
from kgents_backup.handlers.command.restore_text import plan_text, report_text
from kgents_backup.handlers.command.surroundings import Arguments, complain, streams_of
from kgents_backup.model.faults import RefusedError
from kgents_backup.model.keys import Line
from kgents_backup.model.plan import Pace, Until
from kgents_backup.model.restoration import MARK
from kgents_backup.operations.pace import measure
from kgents_backup.operations.restoring import Prepared, journal, prepare, restore
from kgents_backup.operations.restoring.beside import is_possible
from kgents_backup.operations.restoring.transaction import Restoration, Wanted
from kgents_backup.operations.system import SystemRestore
from kgents_backup.sinks.ownership import LIVE, Ownership
from kgents_backup.sinks.store import Lease
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import connected
from kgents_common.connection import connect_options
from kgents_common.errors import ConfigurationError, KgentsError
from kgents_common.streams import NotPermittedError, request


async def run_restore(backup: Backup, arguments: Arguments) -> int:
    """`restore`: streams brought back, or a look at one under another name or in another server."""
    until, line = _until(arguments), _line(arguments)
    streams = streams_of(backup, arguments)
    is_beside = arguments.into is not None
    if len(streams) > 1 and (
        until.sequence is not None or line or (is_beside and "://" not in arguments.into)
    ):
        raise ConfigurationError("that needs one stream", hint="add --stream AGENTESE")
    if is_beside and (arguments.replace or arguments.undo):
        raise ConfigurationError(
            "--into replaces nothing, and leaves nothing to undo",
            hint="leave --replace out: what an interrupted attempt left there is removed by itself",
        )
    if arguments.undo:
        return await _undo(backup, streams, is_dry=arguments.dry_run)
    if arguments.system:
        return await _system(backup, arguments, until)
    if arguments.dry_run or is_beside:
        return await _beside(backup, arguments, streams, until, line)
    is_good = True
    pace = await _pace(backup)
    async with backup.daily.lease(backup.local) as lease:
        restoration = await _restoration(backup, arguments.store, lease, pace)
        async with restoration.alone:
            for stream in streams:
                wanted = Wanted(
                    stream,
                    until,
                    line,
                    fall_back=arguments.fall_back,
                    replace=arguments.replace,
                    replicas=arguments.replicas,
                )
                try:
                    report = await restoration.bring_back(wanted)
                except KgentsError as error:  # the other stream is not to wait for this one
                    complain(error, about=stream)
                    is_good = False
                    continue
                print(report_text(report))
                await backup.announcer.announce("restore.completed", asdict(report))
    return 0 if is_good else 1


async def _system(backup: Backup, arguments: Arguments, until: Until) -> int:
    """Streams and databases to one moment."""
    if until.sequence is not None or arguments.line or arguments.into or arguments.stream:
        raise ConfigurationError("--system takes --to TIME alone", hint="a moment, 2026-01-31T12:00:00Z")
    url = backup.settings.database_url
    async with backup.daily.lease(backup.local) as lease:
        system = SystemRestore(
            await _restoration(backup, arguments.store, lease, await _pace(backup)),
            backup.settings.streams,
            url.get_secret_value() if url else None,
            on_stream=lambda report: print(report_text(report), flush=True),
        )
        if arguments.dry_run:
            dump = await system.choose_dump(until.time) if url else None
            print(f"databases: {f'the dump {dump.id}, of {dump.taken_at}' if dump else 'no dump'}")
            return await _beside(backup, arguments, backup.settings.streams, until, None)
        report = await system.run(until.time, replace=arguments.replace)
    for line in report.kept:
        print(line)
    print(f"databases: {report.rows} rows of {report.dump}" if report.dump else "databases: there is no dump")
    for line in report.said:
        print(f"  {line}")
    for command in report.left:
        print(f"  NOT DONE here, do it before metering starts: {command}")
    await backup.announcer.announce(
        "restore.completed", {"system": True, "dump": report.dump, "left": report.left}
    )
    return 1 if report.left else 0


async def run_discard(backup: Backup, arguments: Arguments) -> int:
    """`discard`: the copies of streams as they were before a restore are deleted."""
    client = await backup.client()
    alone = Ownership(client, backup.owner, backup.clock, what="discard")
    async with contextlib.nullcontext() if arguments.dry_run else alone:
        for name, config in await journal.kept_streams(client, arguments.stream):
            if MARK in (config.get("metadata") or {}):
                print(f"{name} stays: a restore is under way")
                continue
            print(f"{name}: {config.get('description')}{'' if arguments.dry_run else ': deleted'}")
            if not arguments.dry_run:
                alone.check()
                await request(client, f"STREAM.DELETE.{name}", timeout_seconds=60)
    return 0


async def _undo(backup: Backup, streams: Sequence[str], *, is_dry: bool) -> int:
    is_good = False
    if is_dry:
        for stream in streams:
            print(await _what_is_there(backup, stream, is_to_undo=True))
        return 0
    async with backup.daily.lease(backup.local) as lease:
        restoration = await _restoration(backup, "local", lease)
        for stream in streams:
            if len(streams) > 1 and await journal.find(restoration.client, backup.local, stream) is None:
                continue
            print(await restoration.undo(stream))
            is_good = True
    if not is_good:
        raise RefusedError("no restore is under way", hint="see `kgents-backup status`")
    return 0


async def _restoration(backup: Backup, store: str, lease: Lease, pace: Pace | None = None) -> Restoration:
    async def upload() -> None:
        await backup.daily.upload()

    return Restoration(
        await backup.client(),
        backup.local,
        backup.vault(store),
        backup.clock,
        backup.owner,
        upload=upload,
        check=lease.check,
        beside=backup.settings.directory,
        on_plan=lambda prepared: print(plan_text(prepared, backup.vault(store).name, None, pace), flush=True),
        progress=backup.progress,
        crash=backup.crash,
    )


async def _beside(
    backup: Backup, arguments: Arguments, streams: Sequence[str], until: Until, line: Line | None
) -> int:
    """The plan alone, or a restore that touches no live stream."""
    vault = backup.vault(arguments.store)
    is_good = True
    is_beside = arguments.into is not None
    plans: list[Prepared] = []
    for stream in streams:
        try:
            prepared = await prepare(
                vault,
                stream,
                until,
                line=line,
                fall_back=arguments.fall_back,
                check_files=not arguments.dry_run,
                progress=backup.progress,
            )
        except KgentsError as error:
            complain(error, about=stream)
            is_good = False
            continue
        plans.append(prepared)
        pace = None if is_beside and "://" in arguments.into else await _pace(backup)
        print(plan_text(prepared, vault.name, arguments.into, pace))
        if arguments.dry_run and arguments.into is None:
            print(await _what_is_there(backup, stream))
    if arguments.dry_run:
        return 0 if is_good else 1
    is_server = "://" in arguments.into
    options = connect_options(backup.settings, "kgent-backup-restore", {})
    if is_server:
        options |= {"servers": arguments.into, "max_reconnect_attempts": 5}
    async with (
        connected(options) as client,
        Ownership(
            client, backup.owner, backup.clock, place=LIVE if is_server else f"into-{arguments.into}"
        ) as alone,
    ):
        for prepared in plans:
            report = await restore(
                client,
                vault,
                prepared,
                clock=backup.clock,
                into=None if is_server else arguments.into,
                replicas=arguments.replicas,
                progress=backup.progress,
                check=alone.check,
            )
            print(report_text(report))
    return 0 if is_good else 1


async def _what_is_there(backup: Backup, stream: str, *, is_to_undo: bool = False) -> str:
    client = await backup.client()
    info = await stream_info(client, stream)
    record = await journal.find(client, backup.local, stream)
    if record is not None:
        then = "be taken back" if is_to_undo else "go on"
        begun = f"  a restore of {stream} is under way since {record.began_at}"
        return f"{begun}, step {record.step}: it would {then}"
    if is_to_undo:
        return f"  no restore of {stream} is under way: nothing would be undone"
    if info is None:
        return f"  there is no stream {stream} now"
    return (
        f"  there is a stream {stream}: {info.messages} messages up to sequence {info.last_sequence}; with"
        " --replace it is closed, archived to its end and kept under another name first"
    )


async def _pace(backup: Backup) -> Pace | None:
    """The server's pace; None where it may not be measured: a restore does not hang on its own estimate."""
    client = await backup.client()
    try:
        return replace(await measure(client), is_by_files=await is_possible(client))
    except NotPermittedError as error:
        print(f"how long it takes is not known: {error}")
        return None
    except (KgentsError, NatsError):
        return None


def _until(arguments: Arguments) -> Until:
    try:
        return Until.parse(arguments.to)
    except ValueError as error:
        raise ConfigurationError(
            f"--to {arguments.to}: {error}", hint="a sequence, or 2026-01-31T12:00:00Z"
        ) from None


def _line(arguments: Arguments) -> Line | None:
    if arguments.line is None:
        return None
    line = Line.parse(arguments.line)
    if line is None:
        raise ConfigurationError(f"--line {arguments.line} is no line", hint="see `kgents-backup list`")
    return line
