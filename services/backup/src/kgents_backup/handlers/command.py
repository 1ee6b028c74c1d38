"""The operator's commands: arguments in, answers out; what they do is in `operations`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from kgents_backup.app import Backup, run_service
from kgents_backup.handlers.command_disaster import add_disaster_commands
from kgents_backup.handlers.progress import amount, for_terminal
from kgents_backup.handlers.schedule import archive
from kgents_backup.model.keys import Line
from kgents_backup.model.plan import Until
from kgents_backup.operations import databases
from kgents_backup.operations.pruning import PruneReport, prune, prune_databases
from kgents_backup.operations.restoring import Prepared, RestoreReport, prepare, restore
from kgents_backup.operations.verifying import verify, verify_databases
from kgents_backup.settings import BackupSettings
from kgents_backup.sinks.store.sealing import new_key
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common import service
from kgents_common.connection import connect_options
from kgents_common.errors import ConfigurationError, KgentsError
from kgents_common.telemetry import configure_logs

Arguments = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. 0: done; 1: it failed or found damage; 2: it must not start like this."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["run"]:
        return service.run("backup", BackupSettings, run_service)
    parsed = _parser().parse_args(given)
    try:
        if parsed.command == "key":
            print(new_key())
            return 0
        settings = BackupSettings.from_environment()
        configure_logs(service="backup", instance=settings.instance, level=parsed.log_level, to=sys.stderr)
        return asyncio.run(_dispatch(parsed, settings))
    except ConfigurationError as error:
        _complain(error)
        return 2
    except KgentsError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:
        return 130


async def _dispatch(arguments: Arguments, settings: BackupSettings) -> int:
    backup = Backup(settings, progress=for_terminal())
    try:
        code: int = await arguments.run(backup, arguments)
        return code
    finally:
        await backup.client.stop()


async def _archive(backup: Backup, arguments: Arguments) -> int:
    streams = _streams(backup, arguments)
    if arguments.once:
        for stream in streams:
            archiver, lease = backup.archiver(stream)
            async with lease:
                await archiver.catch_up()
                await archiver.close()
            print(f"{stream}: archived to sequence {archiver.state.position}")
        return 0
    async with asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(archive(*backup.archiver(stream)))
    return 0


async def _snapshot(backup: Backup, arguments: Arguments) -> int:
    async with backup.daily.lease(backup.local) as lease:
        for stream in _streams(backup, arguments):
            name = await backup.daily.snapshot(stream, lease)
            print(f"{stream}: {name.id}")
    copied = await backup.daily.upload()
    if backup.offsite is not None:
        print(f"{copied} files copied off-site")
    return 0


async def _daily(backup: Backup, _: Arguments) -> int:
    outcome = await backup.daily.run()
    for stream, name in outcome.snapshots.items():
        print(f"{stream}: {name}")
    for stream, is_passed in outcome.drills.items():
        print(f"{stream}: drill {'passed' if is_passed else 'failed'}")
    for step, error in outcome.failures.items():
        print(f"failed: {step}: {error}", file=sys.stderr)
    return 1 if outcome.failures else 0


async def _list(backup: Backup, arguments: Arguments) -> int:
    vault = backup.vault(arguments.store)
    shown: list[dict[str, object]] = []
    for stream in _streams(backup, arguments):
        catalogue = await vault.catalogue(stream)
        for line, files in catalogue.lines.items():
            sizes = await vault.sizes(files.snapshots)
            shown += [
                {
                    "stream": stream,
                    "line": str(line),
                    "kind": "snapshot",
                    "taken_at": name.taken_at.isoformat(),
                    "last_sequence": name.last,
                    "bytes": sizes[name],
                    "verified": name in files.verified,
                }
                for name in files.snapshots
            ]
            if files.segments:
                shown.append(
                    {
                        "stream": stream,
                        "line": str(line),
                        "kind": "archive",
                        "segments": len(files.segments),
                        "first_sequence": files.segments[0].first,
                        "last_sequence": files.archived_to,
                        "bytes": sum(s.size for s in files.segments),
                    }
                )
    dumps = await databases.dumps(vault)
    shown += [{"kind": "databases", "taken_at": name} for name in dumps]
    if arguments.json:
        print(json.dumps(shown, indent=1))
        return 0
    for row in shown:
        print("  ".join(f"{key}={_cell(key, value)}" for key, value in row.items()))
    if not shown:
        print(f"nothing is stored in {vault.name}")
    return 0


async def _verify(backup: Backup, arguments: Arguments) -> int:
    vault = backup.vault(arguments.store)
    is_good = True
    for stream in _streams(backup, arguments):
        report = await verify(vault, stream, progress=backup.progress)
        print(
            f"{stream}: {report.snapshots} snapshots, {report.segments} segments,"
            f" {amount(report.size_bytes, 'bytes')}: {'good' if report.is_good else 'DAMAGED'}"
        )
        for fault in report.faults:
            print(f"  {fault}")
        is_good = is_good and report.is_good
    dumped = await verify_databases(vault)
    for fault in dumped.faults:
        print(f"  {fault}")
    return 0 if is_good and dumped.is_good else 1


async def _restore(backup: Backup, arguments: Arguments) -> int:
    try:
        until = Until.parse(arguments.to)
    except ValueError as error:
        raise ConfigurationError(
            f"--to {arguments.to}: {error}", hint="a sequence, or 2026-01-31T12:00:00Z"
        ) from None
    line = Line.parse(arguments.line) if arguments.line else None
    streams = _streams(backup, arguments)
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


async def _drill(backup: Backup, arguments: Arguments) -> int:
    is_passed = True
    for stream in _streams(backup, arguments):
        try:
            await backup.daily.drill(stream)
            print(f"{stream}: drill passed")
        except KgentsError as error:
            is_passed = False
            print(f"{stream}: drill FAILED: {error}")
    return 0 if is_passed else 1


async def _prune(backup: Backup, arguments: Arguments) -> int:
    now = backup.clock.now()
    async with backup.daily.lease(backup.local) as lease:
        for vault, keep in (
            (backup.local, backup.settings.local_keep),
            (backup.offsite, backup.settings.offsite_keep),
        ):
            if vault is None:
                continue
            total = PruneReport()
            for stream in _streams(backup, arguments):
                found = await prune(
                    vault,
                    stream,
                    now=now,
                    keep=keep,
                    dry_run=arguments.dry_run,
                    check=lease.check,
                    crash=backup.crash,
                )
                total.snapshots += found.snapshots
                total.segments += found.segments
                total.unfinished += found.unfinished
            dumps = await prune_databases(vault, now=now, keep=keep, dry_run=arguments.dry_run)
            word = "would delete" if arguments.dry_run else "deleted"
            print(
                f"{vault.name}: {word} {total.snapshots} snapshots, {total.segments} segments,"
                f" {dumps.dumps} dumps, {total.unfinished + dumps.unfinished} unfinished files"
            )
    return 0


async def _upload(backup: Backup, _: Arguments) -> int:
    backup.vault("offsite")
    print(f"{await backup.daily.upload()} files copied off-site")
    return 0


async def _dump(backup: Backup, _: Arguments) -> int:
    async with backup.daily.lease(backup.local) as lease:
        made = await databases.dump(
            _database(backup), backup.local, clock=backup.clock, check=lease.check, progress=backup.progress
        )
    print(f"{made.id}: {len(made.tables)} tables, {sum(t.rows for t in made.tables)} rows")
    return 0


async def _load(backup: Backup, arguments: Arguments) -> int:
    vault = backup.vault(arguments.store)
    manifest, rows = await databases.load(
        _database(backup), vault, arguments.dump, replace=arguments.replace, progress=backup.progress
    )
    print(f"{manifest.id}: {rows} rows of {manifest.taken_at} are back")
    return 0


def _database(backup: Backup) -> str:
    if backup.settings.database_url is None:
        raise ConfigurationError("there is no database to use", hint="set DATABASE_URL")
    return backup.settings.database_url.get_secret_value()


def _streams(backup: Backup, arguments: Arguments) -> tuple[str, ...]:
    return (arguments.stream,) if arguments.stream else backup.settings.streams


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


def _cell(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return amount(float(str(value)), "bytes") if key == "bytes" else str(value)


def _complain(error: KgentsError) -> None:
    print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kgents-backup", description="The streams come back, to any moment."
    )
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, text: str, *, stream: bool = True, store: bool = False) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        if stream:
            found.add_argument("--stream", help="one stream instead of all")
        if store:
            found.add_argument("--store", choices=("local", "offsite"), default="local")
        return found

    command(
        "run",
        "the service: archive for ever, the daily run, health and metrics (--check: settings)",
        stream=False,
    )
    archive_ = command("archive", "archive continuously")
    archive_.add_argument("--once", action="store_true", help="only what the stream holds now")
    archive_.set_defaults(run=_archive)
    command("snapshot", "take a full copy now, and upload it").set_defaults(run=_snapshot)
    command("daily", "the daily run, now", stream=False).set_defaults(run=_daily)
    list_ = command("list", "what is stored", store=True)
    list_.add_argument("--json", action="store_true")
    list_.set_defaults(run=_list)
    command("verify", "read everything stored and name what is damaged", store=True).set_defaults(run=_verify)
    restore_ = command("restore", "bring a stream back", store=True)
    restore_.add_argument(
        "--to", metavar="TIME|SEQ", help="the last message not after TIME, or SEQ; default: the end"
    )
    restore_.add_argument("--into", metavar="NAME|URL", help="another stream name, or another server")
    restore_.add_argument("--line", help="a history other than the one being written at that time (see list)")
    restore_.add_argument("--replicas", type=int, help="instead of the backed up stream's")
    restore_.add_argument("--replace", action="store_true", help="delete a stream of that name first")
    restore_.add_argument("--fall-back", action="store_true", help="avoid damaged files by older ones")
    restore_.add_argument("--dry-run", action="store_true", help="only the plan")
    restore_.set_defaults(run=_restore)
    command("drill", "restore into a scratch server and compare with the live stream").set_defaults(
        run=_drill
    )
    prune_ = command("prune", "delete what retention lets go")
    prune_.add_argument("--dry-run", action="store_true")
    prune_.set_defaults(run=_prune)
    command("upload", "copy what is missing off-site", stream=False).set_defaults(run=_upload)
    command("dump", "dump the databases now", stream=False).set_defaults(run=_dump)
    load = command("load", "put a dump of the databases back", stream=False, store=True)
    load.add_argument("dump", nargs="?", help="its name (see list); default: the newest")
    load.add_argument("--replace", action="store_true", help="remove the rows that are there")
    load.set_defaults(run=_load)
    command("key", "make a key for KGENTS_BACKUP_KEY_FILE", stream=False)
    add_disaster_commands(command("dr", "the second region", stream=True))
    return parser
