"""Streams and databases brought to one moment: the streams, the dump before it, then what came between again.

Every step may be interrupted and the whole run again: a stream's restore goes on, a load is one transaction,
and what is delivered twice is counted once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import psycopg
import structlog

from kgents_backup.model.documents import DatabaseManifest
from kgents_backup.model.faults import RefusedError, UnrecoverableError
from kgents_backup.model.keys import MANIFEST, database_prefix
from kgents_backup.model.plan import Until
from kgents_backup.operations import databases
from kgents_backup.operations.positions import redeliver
from kgents_backup.operations.restoring.reporting import RestoreReport
from kgents_backup.operations.restoring.transaction import Restoration, Wanted
from kgents_backup.sources.stream import stream_info
from kgents_common.database import transient_errors

_log = structlog.get_logger()

# As they name themselves to Postgres; a command of ours does not hold anything up.
_SERVICES = "kgent-%"
MADE_TABLES = "restores/made-tables"


@dataclass(slots=True)
class SystemReport:
    """What was done.

    Attributes:
        left: Steps that could not be done here, as commands; empty where all is done.
    """

    streams: list[RestoreReport] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    dump: str = ""
    rows: int = 0
    said: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SystemRestore:
    """Everything it needs.

    Attributes:
        on_stream: Told of each stream that is back.
        database_url: None where there is no database: only the streams come back.
    """

    restoration: Restoration
    streams: tuple[str, ...]
    database_url: str | None
    on_stream: Callable[[RestoreReport], None] = lambda _report: None

    async def choose_dump(self, moment: datetime | None) -> DatabaseManifest | None:
        """The newest dump not after the moment, every file of it read; None where there is none at all.

        Raises:
            UnrecoverableError: Every dump is later.
            CorruptError: It is damaged in every store.
        """
        vault = self.restoration.source
        names = await vault.dumps()
        for name in reversed(names):
            manifest = await vault.read_document(database_prefix(name) + MANIFEST, DatabaseManifest)
            if moment is None or datetime.fromisoformat(manifest.taken_at) <= moment:
                for table in manifest.tables:
                    for part in table.parts:
                        await vault.read_part(database_prefix(name), part)
                return manifest
        if names:
            raise UnrecoverableError(
                f"no dump of the databases is as old as {moment}", hint=f"the oldest is {names[0]}"
            )
        return None

    async def run(self, moment: datetime | None, *, replace: bool) -> SystemReport:
        """Bring everything back.

        Raises:
            RefusedError: A service is connected to the database, or something is there and replacing it was
                not asked for.
            KgentsError: A step failed; the same command goes on.
        """
        async with self.restoration.alone:
            return await self._run(moment, replace=replace)

    async def _run(self, moment: datetime | None, *, replace: bool) -> SystemReport:
        report = SystemReport()
        dump = None
        if self.database_url is not None:
            await self._refuse_services(self.database_url)
            dump = await self.choose_dump(moment)
        for stream in self.streams:
            there = await stream_info(self.restoration.client, stream)
            if there is not None and moment is None and not replace and there.messages:
                report.kept.append(f"{stream} is there, with {there.messages} messages: left as it is")
                continue
            wanted = Wanted(
                stream, Until(time=moment), replace=replace or (there is not None and not there.messages)
            )
            done = await self.restoration.bring_back(wanted)
            report.streams.append(done)
            self.on_stream(done)
        if self.database_url is not None:
            await self._databases(self.database_url, dump, report, replace=replace)
        return report

    async def _databases(
        self, url: str, dump: DatabaseManifest | None, report: SystemReport, *, replace: bool
    ) -> None:
        restoration = self.restoration
        marks = restoration.work.store
        if not await _has_tables(url):
            # What migrations put into new tables is nobody's data, also when this run is interrupted.
            await marks.put(MADE_TABLES, b"")
            for program in ("kgents-metering", "kgents-billing"):
                await self._neighbour(report, program, "migrate")
        is_new = bool([e for e in await marks.list("restores/") if e.key == MADE_TABLES])
        if dump is not None:
            made, report.rows = await databases.load(
                url, restoration.source, dump.id, replace=replace or is_new, progress=restoration.progress
            )
            report.dump = f"{made.id}, of {made.taken_at}"
        # What OpenMeter got after the dump is asked for before it is sent again.
        await self._neighbour(
            report,
            "kgents-metering",
            "generation",
            "raise",
            "--reason",
            f"restored from {report.dump or 'no dump'}",
        )
        report.said += await redeliver(
            restoration.client, restoration.work, self.streams, dump.positions if dump else []
        )
        await marks.delete(MADE_TABLES)

    async def _refuse_services(self, url: str) -> None:
        with transient_errors():
            async with await psycopg.AsyncConnection.connect(url, connect_timeout=10) as connection:
                rows = await (
                    await connection.execute(
                        "select distinct application_name from pg_stat_activity"
                        " where datname = current_database() and application_name like %s"
                        " and pid <> pg_backend_pid() and application_name <> 'kgent-backup' order by 1",
                        [_SERVICES],
                    )
                ).fetchall()
        if rows:
            raise RefusedError(
                f"{', '.join(row[0] for row in rows)} would write while the databases are loaded",
                hint="stop metering and billing, and run this again",
            )

    async def _neighbour(self, report: SystemReport, program: str, *arguments: str) -> None:
        """Run another service's own command, where it is installed; else it is left to the operator."""
        command = " ".join((program, *(f'"{a}"' if " " in a else a for a in arguments)))
        path = await asyncio.to_thread(_find, program)
        if path is None:
            report.left.append(command)
            return
        process = await asyncio.create_subprocess_exec(
            path,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(os.environ),
        )
        said, _ = await process.communicate()
        _log.info("system.neighbour", command=command, code=process.returncode)
        if process.returncode == 0:
            report.said.append(f"{command}: {said.decode().strip() or 'done'}")
        else:
            report.left.append(f"{command}   ({said.decode().strip().splitlines()[0] if said else 'failed'})")


def _find(program: str) -> str | None:
    beside = Path(sysconfig.get_path("scripts")) / program
    return str(beside) if beside.exists() else shutil.which(program)


async def _has_tables(url: str) -> bool:
    with transient_errors():
        async with await psycopg.AsyncConnection.connect(url, connect_timeout=10) as connection:
            row = await (
                await connection.execute(
                    "select count(distinct schemaname) from pg_tables where schemaname = any(%s)",
                    [list(databases.SCHEMAS)],
                )
            ).fetchone()
    return row is not None and row[0] == len(databases.SCHEMAS)
