"""Nobody's questions stop anybody's counting: not in a process of their own, and not in a shared one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import httpx
import psycopg

from .conftest import System, wait_for


def _ask(system: System, path: str, found: list[int]) -> threading.Thread:
    def ask() -> None:
        headers = {"authorization": f"Bearer {system.stack.keys['acme']}"}
        found.append(httpx.get(f"{system.stack.reads.url}{path}", headers=headers, timeout=600).status_code)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


def test_twelve_stuck_reads_of_one_tenant_leave_the_writer_its_connections(
    make_system: Callable[..., System],
) -> None:
    """Rule: reads and writer have pools of their own, also in one process; so many of a tenant at once."""
    # The lock is held for as long as the machine takes to count.
    system = make_system(
        environment={"metering": {"KGENTS_READS_STATEMENT_SECONDS": "600", "KGENTS_READS_SECONDS": "600"}}
    )
    system.post(100)
    system.settle()
    answers: list[int] = []
    with psycopg.connect(system.stack.database_url) as blocking:
        # A listing looks into this table; an event that every meter can use does not come near it.
        blocking.execute("lock table metering.invalid in access exclusive mode")
        asking = [_ask(system, "/api/v1/events", answers) for _ in range(12)]
        wait_for(lambda: sum(_reads(system)) == 12)
        assert _reads(system) == (2, 10)
        wait_for(lambda: _stuck(system) >= 2)
        system.post(200)
        system.settle()
        assert _stuck(system) == 2
    for thread in asking:
        thread.join()
    assert answers.count(200) >= 2
    assert set(answers) <= {200, 429}  # who waits longer than it may for its turn is told to come again
    system.check_exact()


def test_a_reads_process_that_stands_still_holds_up_nothing(make_system: Callable[..., System]) -> None:
    """Rule: the role reads is a process of its own, and what it answers is what the writer counted."""
    system = make_system(services=("metering", "reads", "api"))
    reads = system.stack.reads
    assert httpx.get(f"{system.stack.service('metering').url}/api/v1/meters").status_code == 404
    os.kill(reads.pid, signal.SIGSTOP)
    try:
        system.post(300)
        system.settle()
    finally:
        os.kill(reads.pid, signal.SIGCONT)
    headers = {"authorization": f"Bearer {system.stack.keys['acme']}"}
    answer = httpx.get(f"{reads.url}/api/v1/meters/llm_calls/query", headers=headers, timeout=30).json()
    assert [row["value"] for row in answer["data"]] == [300]
    assert httpx.get(f"{reads.operations_url}/health/ready").json()["service"] == "metering-reads"
    system.check_exact()


def _reads(system: System) -> tuple[int, int]:
    """How many run and how many wait for their turn."""
    text = httpx.get(f"{system.stack.reads.operations_url}/metrics").text
    told = dict(line.split() for line in text.splitlines() if line.startswith("kgents_metering_reads_"))
    running, waiting = (told[f"kgents_metering_reads_{name}"] for name in ("running", "waiting"))
    return int(float(running)), int(float(waiting))


def _stuck(system: System) -> int:
    """How many of the reads' own connections wait for the lock."""
    with psycopg.connect(system.stack.database_url) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and wait_event_type = 'Lock' and application_name = 'kgent-metering-reads'"
        ).fetchone()
    return int(row[0]) if row else 0
