"""The commands that make copies: archive, snapshot, daily, upload, prune."""

from __future__ import annotations

import asyncio
import sys

from kgents_backup.app import Backup
from kgents_backup.handlers.command.surroundings import Arguments, streams_of
from kgents_backup.handlers.schedule import archive
from kgents_backup.operations import clocks
from kgents_backup.operations.pruning import PruneReport, prune, prune_databases


async def run_archive(backup: Backup, arguments: Arguments) -> int:
    streams = streams_of(backup, arguments)
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
            archiver, lease = backup.archiver(stream)
            group.create_task(archive(archiver, lease, backup.clock))
    return 0


async def run_snapshot(backup: Backup, arguments: Arguments) -> int:
    async with backup.daily.lease(backup.local) as lease:
        for stream in streams_of(backup, arguments):
            name = await backup.daily.snapshot(stream, lease)
            print(f"{stream}: {name.id}")
    copied = await backup.daily.upload()
    if backup.offsite is not None:
        print(f"{copied} files copied off-site")
    return 0


async def run_daily(backup: Backup, _: Arguments) -> int:
    outcome = await backup.daily.run()
    for stream, name in outcome.snapshots.items():
        print(f"{stream}: {name}")
    for stream, is_passed in outcome.drills.items():
        print(f"{stream}: drill {'passed' if is_passed else 'failed'}")
    for step, error in outcome.failures.items():
        print(f"failed: {step}: {error}", file=sys.stderr)
    return 1 if outcome.failures else 0


async def run_prune(backup: Backup, arguments: Arguments) -> int:
    await clocks.require(await backup.client(), streams_of(backup, arguments)[0], backup.clock)
    now = backup.clock.now()
    async with backup.daily.lease(backup.local) as lease:
        for vault, keep in (
            (backup.local, backup.settings.local_keep),
            (backup.offsite, backup.settings.offsite_keep),
        ):
            if vault is None:
                continue
            total = PruneReport()
            for stream in streams_of(backup, arguments):
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


async def run_upload(backup: Backup, _: Arguments) -> int:
    backup.vault("offsite")
    print(f"{await backup.daily.upload()} files copied off-site")
    return 0
