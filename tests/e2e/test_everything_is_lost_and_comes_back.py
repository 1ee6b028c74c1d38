"""P7: streams and databases are lost at once; one command brings a consistent system back."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from tests.billing.lives import Life

from kgents_devstack.demo import drill

from .conftest import System
from .stripe_door import ENVIRONMENT, deliver, settle, told


def test_everything_is_lost_and_one_command_brings_it_back(make_system: Callable[..., System]) -> None:
    """Rule: what came after the dump comes from the streams again; nothing is lost, nothing counts twice."""
    services = ("metering", "reads", "billing", "backup", "api")
    system = make_system(services=services, environment=ENVIRONMENT)
    life = Life().wait(5).become("active").wait(5).change_item(quantity=3)
    system.post(200)
    deliver(system, [one.body for one in life.told])
    settle(system, len(life.told))
    system.settle()

    def more() -> None:
        system.post(100)
        life.wait(5).end()
        deliver(system, [life.told[-1].body])
        settle(system, len(life.told))
        system.settle()

    console = Console(width=200)
    assert drill.run(
        console, system.stack, more=more, usage=lambda: {"tokens in the ledger": system.tokens_in_ledger()}
    )
    # A fact of after the dump may stand on the bus twice, under the same id; metering counted it once.
    assert len(set(told(system))) == len(life.told) - 1
    assert system.tokens_in_ledger() == sum(system.acknowledged.values())
