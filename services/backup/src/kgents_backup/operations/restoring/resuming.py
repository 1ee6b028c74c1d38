"""Whose an interrupted restore is: what goes on with it must be the same restore; another is refused."""

from __future__ import annotations

import secrets

from kgents_backup.model.faults import RefusedError
from kgents_backup.model.keys import STORE_IDENTITY
from kgents_backup.model.ports import Store
from kgents_backup.model.restoration import RestoreRecord


async def store_identity(store: Store) -> str:
    """What tells a store from every other, wherever it is mounted; made where it has none.

    Raises:
        StoreError: The store does not answer.
    """
    await store.create(STORE_IDENTITY, secrets.token_hex(8).encode())
    return (await store.get(STORE_IDENTITY)).decode()


def refuse_another(record: RestoreRecord, store: str, until: str, line: str) -> None:
    """Let only the restore that was begun go on; one of an earlier release says too little to be refused.

    Raises:
        RefusedError: It is of another store, or leads elsewhere.
    """
    if not record.store:
        return
    begun = (
        f"a restore of {record.stream} that began at {record.began_at}, by {record.owner}, is not finished"
    )
    take_back = f"`kgents-backup restore --stream {record.stream} --undo`, here or there"
    if record.store != store:
        raise RefusedError(
            f"{begun}, and is of another backup directory",
            hint=f"run its command again where that directory is; or take it back, {take_back}, then restore",
        )
    if (record.until, record.line) != (until, line):
        raise RefusedError(
            f"{begun}, and leads to {_where(record.until, record.line)}, not to {_where(until, line)}",
            hint=f"go on with it: `kgents-backup {_command(record)}`; or take it back first: {take_back}",
        )


def _where(until: str, line: str) -> str:
    return f"{until} of line {line}" if line else until


def _command(record: RestoreRecord) -> str:
    to = "" if record.until == "the end" else f" --to {record.until.removeprefix('sequence ')}"
    line = f" --line {record.line}" if record.line else ""
    return f"restore --stream {record.stream}{to}{line} --replace"
