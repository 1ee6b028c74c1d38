"""Dumping and loading the ledger and the billing state beside the streams, so that one restore has both.

What the streams took after the dump comes again from their archive: every row has a permanent key, so a
message handled twice changes nothing (P2).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import structlog
import zstandard

from kgents_backup.model.documents import FORMAT, DatabaseManifest, PartRecord, PositionRecord, TableRecord
from kgents_backup.model.faults import UnrecoverableError
from kgents_backup.model.keys import MANIFEST, database_prefix, stamp
from kgents_backup.model.ports import NoProgress, Progress
from kgents_backup.sinks import postgres as target
from kgents_backup.sinks.store import Vault
from kgents_backup.sources import postgres as source
from kgents_common.clock import Clock

PART_BYTES = 16 * 1024 * 1024
SCHEMAS = ("metering", "billing")

_log = structlog.get_logger()


async def dump(
    url: str,
    vault: Vault,
    *,
    clock: Clock,
    schemas: Sequence[str] = SCHEMAS,
    positions: Sequence[PositionRecord] = (),
    check: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> DatabaseManifest:
    """Store every row of the schemas as of one moment.

    Args:
        positions: Where the consumers stood before, for the streams to be delivered again from.

    Raises:
        TransientError: Postgres or the store failed; nothing is published.
    """
    progress = progress or NoProgress()
    now = clock.now()
    prefix = database_prefix(stamp(now))
    progress.begin("dump databases", None, "bytes")
    records: list[TableRecord] = []
    try:
        async with source.one_moment(url) as connection:
            found = await source.tables(connection, schemas)
            sequences = await source.sequences(connection, schemas)
            for table in found:
                parts: list[PartRecord] = []
                count = 0
                async for rows, content in _parts(source.rows(connection, table)):
                    file = f"{table.schema}.{table.name}.{len(parts):06}.part"
                    packed = await asyncio.to_thread(zstandard.ZstdCompressor(level=3).compress, content)
                    parts.append(await vault.write_part(prefix, file, packed))
                    count += rows
                    progress.advance(len(content))
                records.append(TableRecord(table.schema, table.name, list(table.columns), count, parts))
            server = str(connection.info.server_version)
    finally:
        progress.end()
    manifest = DatabaseManifest(
        FORMAT, stamp(now), now.isoformat(), server, list(schemas), records, sequences, list(positions)
    )
    check()
    await vault.write_document(prefix + MANIFEST, manifest)
    _log.info("dump.completed", tables=len(records), rows=sum(t.rows for t in records))
    return manifest


async def load(
    url: str,
    vault: Vault,
    identity: str | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> tuple[DatabaseManifest, int]:
    """Put a dump (the newest where none is named) back, in one transaction; how many rows.

    Raises:
        UnrecoverableError: There is no such dump.
        CorruptError: A file is damaged; nothing was changed.
        RefusedError, PermanentError, TransientError: As `sinks.postgres.load`.
    """
    progress = progress or NoProgress()
    known = await vault.dumps()
    if not known or (identity is not None and identity not in known):
        raise UnrecoverableError(f"there is no dump {identity or ''}".rstrip(), hint="see `list`")
    prefix = database_prefix(identity or known[-1])
    manifest = await vault.read_document(prefix + MANIFEST, DatabaseManifest)

    async def rows(table: TableRecord) -> AsyncIterator[bytes]:
        for part in table.parts:
            packed = await vault.read_part(prefix, part)
            yield zstandard.ZstdDecompressor().decompress(packed)
            progress.advance(part.size_bytes)

    sizes = sum(p.size_bytes for t in manifest.tables for p in t.parts)
    progress.begin("load databases", sizes, "bytes")
    try:
        return manifest, await target.load(url, manifest, rows, replace=replace)
    finally:
        progress.end()


async def _parts(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Rows and their number, in parts. COPY's text has one row a line: a newline in a value is escaped."""
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= PART_BYTES:
            content = b"".join(held)
            yield content.count(b"\n"), content
            held, size = [], 0
    if held:
        content = b"".join(held)
        yield content.count(b"\n"), content
