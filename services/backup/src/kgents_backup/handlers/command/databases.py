"""The commands of the databases: dump, load."""

from __future__ import annotations

import contextlib

from kgents_backup.app import Backup
from kgents_backup.handlers.command.surroundings import Arguments, database_of, streams_of
from kgents_backup.model.documents import DatabaseManifest, PositionRecord
from kgents_backup.model.keys import MANIFEST, database_prefix
from kgents_backup.operations import databases
from kgents_backup.operations.positions import positions, redeliver
from kgents_backup.operations.verifying import verify_databases
from kgents_common.errors import TransientError


async def run_dump(backup: Backup, _: Arguments) -> int:
    async with backup.daily.lease(backup.local) as lease:
        known: list[PositionRecord] = []
        with contextlib.suppress(TransientError):
            known = await positions(await backup.client(), backup.local, backup.settings.streams)
        made = await databases.dump(
            database_of(backup),
            backup.local,
            clock=backup.clock,
            positions=known,
            check=lease.check,
            progress=backup.progress,
        )
        await verify_databases(backup.local)
    print(f"{made.id}: {len(made.tables)} tables, {sum(t.rows for t in made.tables)} rows")
    return 0


async def run_load(backup: Backup, arguments: Arguments) -> int:
    vault = backup.vault(arguments.store)
    manifest, rows = await databases.load(
        database_of(backup), vault, arguments.dump, replace=arguments.replace, progress=backup.progress
    )
    print(f"{manifest.id}: {rows} rows of {manifest.taken_at} are back")
    print("next: `kgents-metering generation raise`, then `kgents-backup redeliver`")
    return 0


async def run_redeliver(backup: Backup, arguments: Arguments) -> int:
    """`redeliver`: every durable consumer begins again where a dump says it stood."""
    vault = backup.vault(arguments.store)
    names = await vault.dumps()
    known: list[PositionRecord] = []
    if not arguments.whole and (arguments.dump or names):
        key = database_prefix(arguments.dump or names[-1]) + MANIFEST
        known = (await vault.read_document(key, DatabaseManifest)).positions
    for line in await redeliver(await backup.client(), vault, streams_of(backup, arguments), known):
        print(line)
    return 0
