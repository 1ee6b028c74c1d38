"""Putting meters in force: what an operator declares against what the ledger has, in one transaction.

Nobody does it by starting: two releases side by side would take turns, each measuring all history again.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors
from kgents_common.errors import ConfigurationError
from kgents_metering.model.meters import Declared, Meter, parse
from kgents_metering.sinks.ledger.meters import LOCK_EXCLUSIVE

ROWS = """
select id, slug, fingerprint, definition, deleted_at is null, ulid, origin from metering.meter order by id
"""
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VERSION = "select applied_version from metering.meter_set"


@dataclass(frozen=True, slots=True)
class Change:
    """What an apply does to one meter.

    Attributes:
        action: `created` and `returned` (both measure all history), `described` (name, description, metadata)
            or `ended` (its values stay, and answer nothing).
    """

    action: str
    meter: Meter

    def __str__(self) -> str:
        return f"{self.action:9} {self.meter.slug}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether declared meters are those in force.

    Attributes:
        version: The version that was applied last; 0 for none that was told.
        differing: Slugs that are in force and not declared so, or the reverse.
    """

    version: int
    differing: tuple[str, ...]


async def begin(pool: AsyncConnectionPool[AsyncConnection], wanted: Declared, *, actor: str) -> None:
    """Apply them to a ledger that never had any; one that has is left as it is.

    Raises:
        TransientError: Postgres is away.
    """
    with transient_errors():
        async with pool.connection() as connection, connection.transaction():
            await connection.execute(LOCK_EXCLUSIVE)
            row = await (await connection.execute("select applied_at from metering.meter_set")).fetchone()
            if row is None or row[0] is None:
                await _apply(connection, wanted, actor)


async def standing(pool: AsyncConnectionPool[AsyncConnection], wanted: Declared) -> Standing:
    """How what is declared stands to what is in force; changes nothing.

    Raises:
        TransientError: Postgres is away.
    """
    with transient_errors():
        async with pool.connection() as connection:
            rows = await (
                await connection.execute(
                    "select slug, fingerprint, definition from metering.meter"
                    " where deleted_at is null and origin = 'file'"
                )
            ).fetchall()
            row = await (
                await connection.execute("select applied_version from metering.meter_set")
            ).fetchone()
    now = {
        (slug, bytes(fingerprint), json.dumps(definition, sort_keys=True))
        for slug, fingerprint, definition in rows
    }
    then = {(m.slug, m.fingerprint, json.dumps(m.definition(), sort_keys=True)) for m in wanted.meters}
    return Standing(row[0] if row else 0, tuple(sorted({slug for slug, _, _ in now ^ then})))


async def apply(
    pool: AsyncConnectionPool[AsyncConnection],
    wanted: Declared,
    *,
    actor: str,
    is_plan: bool = False,
    is_forced: bool = False,
) -> list[Change]:
    """Make these the meters in force: new ones are backfilled later, absent ones end; what that changes.

    Args:
        actor: Who, for the record of changes.
        is_plan: Say it only.
        is_forced: Also where a newer version was applied.

    Raises:
        ConfigurationError: A slug's event type, aggregation or value would change: slugs are immutable. Or a
            newer version is in force, or this version with other meters.
        TransientError: Postgres is away.
    """
    with transient_errors():
        async with pool.connection() as connection, connection.transaction() as transaction:
            await connection.execute(LOCK_EXCLUSIVE)
            row = await (
                await connection.execute("select applied_version from metering.meter_set")
            ).fetchone()
            applied = row[0] if row else 0
            changes = await _apply(connection, wanted, actor)
            version = wanted.version
            if (
                not is_forced
                and version is not None
                and (version < applied or (version == applied and changes))
            ):
                raise ConfigurationError(
                    f"meters: version {applied} is in force, and this file is version {version}"
                    + (" with other meters" if version == applied else ""),
                    hint="raise `version` in the meters file, or apply with --force",
                )
            if is_plan:
                raise psycopg.Rollback(transaction)
    return changes


async def sync(pool: AsyncConnectionPool[AsyncConnection], meters: Sequence[Meter]) -> None:
    """`apply` without a version."""
    await apply(pool, Declared(tuple(meters)), actor="sync")


async def _apply(connection: AsyncConnection, wanted: Declared, actor: str) -> list[Change]:
    rows = await (await connection.execute(ROWS)).fetchall()
    changes: list[Change] = []
    for meter in wanted.meters:
        own = [row for row in rows if row[1] == meter.slug]
        if any(row[4] and row[6] != "file" for row in own):
            raise ConfigurationError(
                f"meter {meter.slug}: was made by API and is in force",
                hint="delete it there first, or declare another slug",
            )
        action = await put(connection, meter, own, origin="file")
        if action:
            changes.append(Change(action, meter))
    keys = {(meter.slug, meter.fingerprint) for meter in wanted.meters}
    for meter_id, slug, fingerprint, definition, is_active, _, origin in rows:
        if is_active and origin == "file" and (slug, bytes(fingerprint)) not in keys:
            await connection.execute("update metering.meter set deleted_at = now() where id = %s", [meter_id])
            changes += [Change("ended", meter) for meter in parse({"meters": [definition]})]
    await connection.execute(
        "update metering.meter_set set applied_at = now(), applied_version = coalesce(%s, applied_version)",
        [wanted.version],
    )
    await record(connection, changes, actor)
    return changes


async def record(connection: AsyncConnection, changes: Sequence[Change], actor: str) -> None:
    """Make every process read the meters again, and keep what was changed and by whom."""
    if not changes:
        return
    await connection.execute("update metering.meter_set set version = version + 1")
    for change in changes:
        await connection.execute(
            "insert into metering.meter_change (actor, action, slug, definition) values (%s, %s, %s, %s)",
            [actor, change.action, change.meter.slug, json.dumps(change.meter.definition())],
        )


async def put(connection: AsyncConnection, meter: Meter, own: list[Any], *, origin: str) -> str:
    """Put one meter in force, under `LOCK_EXCLUSIVE`; what that was, empty where nothing changed.

    Args:
        own: All rows of its slug, as `ROWS` gives them.

    Raises:
        ConfigurationError: Its event type, aggregation or value would change.
    """
    last = await (await connection.execute("select coalesce(max(n), 0) from metering.event")).fetchone()
    last_n = last[0] if last else 0
    definition = meter.definition()
    for _, slug, _, existing, is_active, _, _ in own:
        for name in ("eventType", "aggregation", "valueProperty"):
            if is_active and existing.get(name) != definition.get(name):
                raise ConfigurationError(
                    f"meter {slug}: {name} cannot change once the slug is in use",
                    hint="declare a meter with a new slug and let the old one go",
                )
    same = next((row for row in own if bytes(row[2]) == meter.fingerprint), None)
    if same is not None and same[4]:
        if same[3] == definition:
            return ""
        await connection.execute(
            "update metering.meter set definition = %s, updated_at = now() where id = %s",
            [json.dumps(definition), same[0]],
        )
        return "described"
    if same is not None:
        # It was gone for a while and missed events: what it had is dropped and measured again.
        for table in ("rollup", "distinct_value", "invalid"):
            await connection.execute(f"delete from metering.{table} where meter = %s".encode(), [same[0]])
        await connection.execute(
            "update metering.meter set deleted_at = null, updated_at = now(), definition = %s,"
            " backfill_after = 0, backfill_to = %s, origin = %s where id = %s",
            [json.dumps(definition), last_n, origin, same[0]],
        )
        return "returned"
    await connection.execute(
        "insert into metering.meter (ulid, slug, fingerprint, definition, event_type, backfill_to, origin)"
        " values (%s, %s, %s, %s, %s, %s, %s)",
        [
            own[-1][5] if own else new_ulid(),
            meter.slug,
            meter.fingerprint,
            json.dumps(definition),
            meter.event_type,
            last_n,
            origin,
        ],
    )
    return "created"


def new_ulid() -> str:
    """A ULID of now: 48 bits of milliseconds, 80 random bits, Crockford base32."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -1, -5))
