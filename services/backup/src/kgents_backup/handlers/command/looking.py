"""The commands that look: list, verify, drill."""

from __future__ import annotations

import json

from kgents_backup.app import Backup
from kgents_backup.handlers.command.surroundings import Arguments, cell, streams_of
from kgents_backup.handlers.progress import amount
from kgents_backup.operations.verifying import verify, verify_databases
from kgents_common.errors import KgentsError


async def run_list(backup: Backup, arguments: Arguments) -> int:
    vault = backup.vault(arguments.store)
    shown: list[dict[str, object]] = []
    for stream in streams_of(backup, arguments):
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
    dumps = await vault.dumps()
    shown += [{"kind": "databases", "taken_at": name} for name in dumps]
    if arguments.json:
        print(json.dumps(shown, indent=1))
        return 0
    for row in shown:
        print("  ".join(f"{key}={cell(key, value)}" for key, value in row.items()))
    if not shown:
        print(f"nothing is stored in {vault.name}")
    return 0


async def run_verify(backup: Backup, arguments: Arguments) -> int:
    vault = backup.vault(arguments.store)
    is_good = True
    for stream in streams_of(backup, arguments):
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


async def run_drill(backup: Backup, arguments: Arguments) -> int:
    is_passed = True
    for stream in streams_of(backup, arguments):
        try:
            await backup.daily.drill(stream, backup.vault(arguments.store))
            print(f"{stream}: drill passed")
        except KgentsError as error:
            is_passed = False
            print(f"{stream}: drill FAILED: {error}")
    return 0 if is_passed else 1
