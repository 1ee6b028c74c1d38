"""An operator's word on whose a subscription or a customer is, with all that follows, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.model.access import access
from kgents_billing.model.facts import Fact
from kgents_billing.model.moved import moved_facts
from kgents_billing.model.ownership import NOW, Kind, SaidBy, Word, assigned_at, owner_at
from kgents_billing.sinks.store.owners import say, words_about
from kgents_billing.sinks.store.subscriptions import COLUMNS, as_stored
from kgents_billing.sinks.store.telling import tell
from kgents_common.crash import NEVER, CrashPoints
from kgents_common.database import transient_errors
from kgents_common.errors import PermanentError

SOURCE = "/kgents/billing/operator"


@dataclass(frozen=True, slots=True)
class Assigned:
    """What an assignment led to.

    Attributes:
        subscriptions: How many changed hands.
        freed: How many events waited to learn whose they are.
    """

    subscriptions: int
    facts: int
    freed: int


class Assignments:
    """Writes operators' words."""

    def __init__(
        self, pool: AsyncConnectionPool[AsyncConnection], *, crash_points: CrashPoints = NEVER
    ) -> None:
        self._pool = pool
        self._crash_points = crash_points

    async def words(self, kind: Kind, name: str) -> list[Word]:
        """Everything said of who owns it.

        Raises:
            TransientError: Postgres is away.
        """
        with transient_errors():
            async with self._pool.connection() as connection:
                return await _words(connection, kind, name)

    async def assign(self, kind: Kind, name: str, tenant: str, second: int) -> Assigned:
        """It is this tenant's from a second on (empty: whose Stripe says, again); both are told.

        A subscription that was itself assigned does not follow its customer. Events of before keep the owner
        they had: what was told was told.

        Raises:
            PermanentError: A later word of an operator stands.
            TransientError: Postgres is away; nothing is done.
        """
        with transient_errors():
            async with self._pool.connection() as connection, connection.transaction():
                known = await _words(connection, kind, name)
                if any(w.said_by is SaidBy.OPERATOR and w.second > second for w in known):
                    raise PermanentError(f"an operator gave {name} away later than that")
                before = assigned_at(known, second) or owner_at(known, second)
                word = Word(kind, name, second, tenant, before or "", SaidBy.OPERATOR)
                await say(connection, [word], None)
                self._crash_points.reach("assign.after_word")
                facts: list[Fact] = []
                if kind is Kind.CUSTOMER and before and tenant:
                    facts += moved_facts(kind, name, before, tenant, second=second, source=SOURCE, data={})
                moved = await self._move(connection, kind, name)
                self._crash_points.reach("assign.after_rows")
                for row_id, customer, status, old, new in moved:
                    data = {"customer": customer, "status": status, "access": access(status).value}
                    facts += moved_facts(
                        Kind.SUBSCRIPTION, row_id, old, new, second=second, source=SOURCE, data=data
                    )
                told = await tell(connection, None, facts, None)
                self._crash_points.reach("assign.after_facts")
                freed = await connection.execute(
                    f"update billing.quarantine set next_at = now() where {kind.value} = %s".encode(), [name]
                )
        self._crash_points.reach("assign.after_commit")
        return Assigned(len(moved), told, freed.rowcount)

    async def _move(
        self, connection: AsyncConnection, kind: Kind, name: str
    ) -> list[tuple[str, str | None, str, str, str]]:
        """Give the rows to their owner of now; each with its owner until now and from now on."""
        column = "id" if kind is Kind.SUBSCRIPTION else "customer"
        found = await connection.execute(
            f"select {COLUMNS} from billing.subscription where {column} = %s order by id for update".encode(),
            [name],
        )
        moved = []
        for stored in [as_stored(row) for row in await found.fetchall()]:
            row = stored.row
            words = await words_about(connection, row.id, row.state.customer)
            own = [word for word in words if word.kind is Kind.SUBSCRIPTION]
            payer = [word for word in words if word.kind is Kind.CUSTOMER]
            owner = (
                assigned_at(own, NOW)
                or assigned_at(payer, NOW)
                or row.state.tenant
                or owner_at(own, NOW)
                or owner_at(payer, NOW)
                or row.tenant
            )
            if owner != row.tenant:
                await connection.execute(
                    "update billing.subscription set tenant = %s, version = version + 1, updated_at = now()"
                    " where id = %s",
                    [owner, row.id],
                )
                moved.append((row.id, row.state.customer, row.state.status, row.tenant, owner))
        return moved


async def _words(connection: AsyncConnection, kind: Kind, name: str) -> list[Word]:
    is_subscription = kind is Kind.SUBSCRIPTION
    return await words_about(connection, name if is_subscription else None, None if is_subscription else name)
