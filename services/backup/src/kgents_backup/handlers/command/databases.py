"""The commands of the databases: dump, load."""

from __future__ import annotations

from kgents_backup.app import Backup
from kgents_backup.handlers.command.surroundings import Arguments, database_of
from kgents_backup.operations import databases


async def run_dump(backup: Backup, _: Arguments) -> int:
    async with backup.daily.lease(backup.local) as lease:
        made = await databases.dump(
            database_of(backup), backup.local, clock=backup.clock, check=lease.check, progress=backup.progress
        )
    print(f"{made.id}: {len(made.tables)} tables, {sum(t.rows for t in made.tables)} rows")
    return 0


async def run_load(backup: Backup, arguments: Arguments) -> int:
    vault = backup.vault(arguments.store)
    manifest, rows = await databases.load(
        database_of(backup), vault, arguments.dump, replace=arguments.replace, progress=backup.progress
    )
    print(f"{manifest.id}: {rows} rows of {manifest.taken_at} are back")
    return 0
