"""Whether the ledger's schema is what this release reads; bringing it there is the writer's business."""

from __future__ import annotations

from importlib import resources

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common.database import transient_errors

PACKAGE = "kgents_metering.schema"
NAME = "metering"


async def is_current(pool: AsyncConnectionPool[AsyncConnection]) -> bool:
    """Whether every migration of this release has run; later ones may have, too.

    Raises:
        TransientError: Postgres is away.
    """
    wanted = [f.name for f in resources.files(PACKAGE).iterdir() if f.name.endswith(".sql")]
    with transient_errors():
        async with pool.connection() as connection:
            row = await (
                await connection.execute("select to_regclass(%s) is not null", [f"{NAME}.migration"])
            ).fetchone()
            if row is None or not row[0]:
                return False
            row = await (
                await connection.execute(
                    "select count(*) from metering.migration where name = any(%s)", [wanted]
                )
            ).fetchone()
    return row is not None and row[0] == len(wanted)
