"""What the operator's commands share: their connections, and arguments that are moments."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime

from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_billing.handlers.process import Processor
from kgents_billing.metrics import Metrics
from kgents_billing.model.moments import parse_moment
from kgents_billing.settings import BillingSettings
from kgents_billing.sinks.bus import Bus
from kgents_billing.sinks.store import Letters
from kgents_billing.sinks.store.tenants import Tenants
from kgents_billing.sinks.stripe_api import StripeApi
from kgents_common.connection import Connection
from kgents_common.crash import CrashPoints
from kgents_common.errors import ConfigurationError
from kgents_common.publisher import Publisher

Pool = AsyncConnectionPool[AsyncConnection]


@dataclass(frozen=True, slots=True)
class Tools:
    """What commands work with."""

    settings: BillingSettings
    pool: Pool
    letters: Letters
    processor: Processor
    stripe: StripeApi | None
    metrics: Metrics
    knows: Callable[[str], bool]
    stack: AsyncExitStack
    crash_points: CrashPoints

    @property
    def tenants(self) -> Tenants:
        """Which tenants are open."""
        return Tenants(self.pool, self.knows, crash_points=self.crash_points)

    async def connected(self) -> tuple[Connection, Bus]:
        """NATS, for the commands that need it.

        Raises:
            TransientError: No server answers within ten seconds.
        """
        connection = Connection(self.settings, name="kgents-billing-cli", on_closed=lambda: None)
        publisher = Publisher(connection)
        await connection.start()
        self.stack.push_async_callback(connection.stop)
        async with asyncio.timeout(10):
            await connection.wait()
        await publisher.start()
        self.stack.push_async_callback(publisher.stop)
        return connection, Bus(connection, publisher)

    def asked_stripe(self) -> StripeApi:
        """Stripe, for the commands that need it.

        Raises:
            ConfigurationError: No key is configured.
        """
        if self.stripe is None:
            raise ConfigurationError("this needs Stripe", hint="set STRIPE_API_KEY")
        return self.stripe

    def left_accounts(self) -> int:
        """Print the connected accounts that could not be asked; how many there are."""
        refused = self.asked_stripe().refused
        for account in refused:
            print(f"  account {account}  left: Stripe does not let this key ask for it")
        return len(refused)


def moment_argument(text: str) -> datetime:
    """An argument that is a moment.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        return parse_moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
