"""The database comes back from a dump that is older than OpenMeter's memory: nothing is delivered twice."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import pytest

from kgents_devstack.stack import Stack

from .conftest import System, wait_for

REMEMBERED_SECONDS = 0.5


def command(stack: Stack, name: str, *arguments: str) -> str:
    done = stack.command(name, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def what_openmeter_counts(system: System) -> int:
    return int(system.stack.openmeter.stats()["stored"])


@pytest.mark.parametrize(
    "is_said",
    [
        pytest.param(True, id="an operator says so", marks=pytest.mark.long),
        pytest.param(False, id="the guard notices"),
    ],
)
def test_what_was_delivered_after_the_dump_is_asked_for_and_not_sent(
    make_system: Callable[..., System], is_said: bool
) -> None:
    """Rule: a restored ledger has a new generation: what it owes from before, and what the streams bring
    again, is looked for at OpenMeter first (dump, deliver, window passes, load, deliver: 100 stays 100)."""
    system = make_system(openmeter_dedupe_seconds=REMEMBERED_SECONDS)
    stack = system.stack
    stack.openmeter.set_faults(error_before=1.0)
    system.post(100)
    wait_for(lambda: system.ledger()["accepted"] == 100)
    command(stack, "backup", "dump")
    stack.openmeter.clear_faults()
    system.post(50)
    system.settle()
    assert what_openmeter_counts(system) == 150
    time.sleep(2 * REMEMBERED_SECONDS)  # the window: what is sent now counts again

    metering = stack.service("metering")
    metering.stop()
    command(stack, "backup", "load", "--replace")
    assert system.ledger()["owed"] == 100
    if is_said:
        command(stack, "metering", "generation", "raise", "--reason", "restored from last night's dump")
        assert "acknowledged" in command(stack, "metering", "redeliver", "--dry-run")
        assert "from sequence 101" in command(stack, "metering", "redeliver")
    metering.start()
    if not is_said:
        health = httpx.get(f"{metering.operations_url}/health").json()
        assert "lacks sequence" in health["checks"]["ledger"]["detail"]
        assert "from sequence 101" in command(stack, "metering", "redeliver")
    system.settle()
    assert system.ledger()["accepted"] == 150
    assert system.tokens_in_ledger() == 150 * 7
    assert what_openmeter_counts(system) == 150
    assert "ledger has all" in command(stack, "metering", "redeliver")
