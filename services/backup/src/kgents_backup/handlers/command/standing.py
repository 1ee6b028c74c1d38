"""The commands `status` and `unlock`: would a restore work now, and who holds what."""

from __future__ import annotations

from kgents_backup.app import Backup
from kgents_backup.handlers.command.surroundings import Arguments
from kgents_backup.sinks.store import locks, unlock
from kgents_common.errors import ConfigurationError


async def run_status(backup: Backup, _: Arguments) -> int:
    """`status`: 0 where a restore would work now, 1 where not."""
    found = await backup.inspection().look()
    for (store, stream), moment in sorted(found.verified.items()):
        print(f"{store} {stream}: a snapshot of {moment.isoformat()} was read back and found good")
    for note in found.notes:
        print(note)
    for fault in found.faults:
        print(f"FAULT {fault}")
    print("a restore would work now" if not found.faults else "a restore may not work now: see above")
    return 1 if found.faults else 0


async def run_unlock(backup: Backup, arguments: Arguments) -> int:
    """`unlock`: show who holds the locks; take a named one away where its holder is gone, or forced."""
    held = {lock.name: lock for lock in await locks(backup.local.store)}
    if arguments.lock is None:
        for lock in held.values():
            state = "its process is gone" if lock.is_dead else f"until {lock.until.isoformat()}"
            print(f"{lock.name}: held by {lock.owner}, {state}")
        if not held:
            print("no lock is held")
        return 0
    found = held.get(arguments.lock)
    if found is None:
        raise ConfigurationError(f"the lock {arguments.lock} is not held", hint="`unlock` alone lists them")
    if not found.is_dead and not arguments.force:
        raise ConfigurationError(
            f"{arguments.lock} is held by {found.owner} until {found.until.isoformat()}",
            hint="--force takes it away: its holder notices within ten seconds and publishes nothing more",
        )
    await unlock(backup.local.store, arguments.lock)
    print(f"{arguments.lock}: taken from {found.owner}")
    return 0
