"""The record of a restore under way: in the store, and in the metadata of the streams it concerns."""

from __future__ import annotations

import contextlib
from typing import Any

from msgspec.structs import replace

from kgents_backup.model.faults import CorruptError
from kgents_backup.model.restoration import KEPT_OF, MARK, RestoreRecord, Step, read_mark, record_key
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.streams import request


async def find(client: VerbatimClient, vault: Vault, stream: str) -> RestoreRecord | None:
    """The record of the stream's restore; None where none is under way.

    Where the store lost it, or another store's restore came after it, the streams tell how far it is.

    Raises:
        StoreError, TransientError: Store or server do not answer.
    """
    stored: RestoreRecord | None = None
    with contextlib.suppress(CorruptError):
        stored = await vault.read_document(record_key(stream), RestoreRecord)
    marked = await _marks(client, stream)
    if stored is not None and (not marked or stored.token in {m.token for m in marked}):
        return stored
    return marked[0] if marked else None


async def _marks(client: VerbatimClient, stream: str) -> list[RestoreRecord]:
    """What the server says is under way: the stream itself, or its copies where it is gone."""
    info = await stream_info(client, stream)
    if info is not None:
        marked = read_mark(info.config)
        return [marked] if marked is not None else []
    found: list[RestoreRecord] = []
    for name, config in await kept_streams(client, stream):
        left = read_mark(config)
        if left is not None:
            found.append(replace(left, step=Step.REPLACING, kept=name))
    return found


async def write(vault: Vault, record: RestoreRecord) -> RestoreRecord:
    """Store it, durably.

    Raises:
        StoreError: It is not stored.
    """
    await vault.write_document(record_key(record.stream), record)
    return record


async def clear(vault: Vault, stream: str) -> None:
    """The restore is over."""
    await vault.store.delete(record_key(stream))


async def kept_streams(client: VerbatimClient, stream: str | None = None) -> list[tuple[str, dict[str, Any]]]:
    """The copies of streams as they were before a restore, with their configurations.

    Raises:
        TransientError: The server does not answer.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    offset = 0
    while True:
        answer = await request(client, "STREAM.LIST", {"offset": offset})
        page = answer.get("streams") or []
        for one in page:
            metadata = one["config"].get("metadata") or {}
            if KEPT_OF in metadata and stream in (None, metadata[KEPT_OF]):
                found.append((one["config"]["name"], one["config"]))
        offset += len(page)
        if not page or offset >= answer["total"]:
            return found


async def unmark_kept(client: VerbatimClient, name: str) -> None:
    """The copy stays, and belongs to no restore under way any more."""
    info = await stream_info(client, name)
    if info is None or MARK not in (info.config.get("metadata") or {}):
        return
    metadata = {k: v for k, v in info.config["metadata"].items() if k != MARK}
    await request(client, f"STREAM.UPDATE.{name}", {**info.config, "metadata": metadata}, timeout_seconds=30)
