"""kill -9 of metering at any point, then a restart: exactly what was acknowledged is counted."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from kgents_devstack.waiting import HANGS_AFTER_SECONDS

from .conftest import System, restarted

POINTS = [
    "apply.before_commit",
    "apply.after_commit",
    pytest.param("apply.after_ack", marks=pytest.mark.long),
    pytest.param("deliver.before_send", marks=pytest.mark.long),
    "deliver.after_send",
    "deliver.after_mark",
]


@pytest.mark.parametrize("point", POINTS)
def test_at_a_named_point(lasting_system: System, point: str) -> None:
    """Rule: ledger, rollups, outbox, cursor commit together, the ack follows; resends are recognised (P2)."""
    metering = lasting_system.stack.service("metering")
    metering.stop()
    metering.environment["KGENTS_CRASH_AT"] = f"{point}:2"
    metering.start()
    for _ in range(3):
        lasting_system.post(300)
        time.sleep(0.3)
    try:
        metering.wait(HANGS_AFTER_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.fail(f"the point {point} was never reached twice: {metering.log_tail(5)}")
    restarted(lasting_system)
    lasting_system.post(200)
    lasting_system.settle()
    lasting_system.check_exact()


def kill_at_random(system: System, roll: random.Random, kills: int) -> None:
    for _ in range(kills):
        system.post(roll.randrange(50, 400))
        time.sleep(roll.uniform(0.0, 0.4))
        system.stack.service("metering").kill()
        system.post(roll.randrange(50, 200))
        restarted(system)
    system.settle()
    system.check_exact()


def test_at_random_moments(lasting_system: System) -> None:
    """Rule: whatever it was doing, nothing is lost and nothing counts twice."""
    kill_at_random(lasting_system, random.Random(7), 3)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_at_two_hundred_random_moments(system: System) -> None:
    """Rule: the same, two hundred times in a row."""
    kill_at_random(system, random.Random(11), 200)
