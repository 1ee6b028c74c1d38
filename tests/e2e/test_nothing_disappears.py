"""What cannot be counted is a dead letter: listed, shown, mirrored to the bus, replayed or discarded (P3)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import nats
import psycopg

from kgents_devstack.raw_nats import UNREADABLE_HEADERS, UNREADABLE_SUBJECTS, RawPublisher

from .conftest import System, make_event, publish_directly, run, wait_for


def command(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    """An operator's command, with the service's own environment."""
    return subprocess.run(
        [sys.executable, "-m", "kgents_metering", *arguments],
        env={**os.environ, **system.stack.service("metering").environment},
        capture_output=True,
        text=True,
        check=False,
    )


async def mirrored(url: str) -> list[str]:
    """Subjects of the dead letters on the bus."""
    client = await nats.connect(url)
    info = await client.jetstream().stream_info("EVENTS", subjects_filter="events.deadletter.>")
    await client.close()
    return list(info.state.subjects or {})


def test_a_dead_letter_is_mended_and_counted(system: System, tmp_path: Path) -> None:
    """Rule: dead letters can be listed, shown, replayed, discarded with a reason."""
    broken = make_event(specversion="0.3")
    run(publish_directly(system.stack.nats.url, [broken, make_event(id="")]))
    wait_for(lambda: system.ledger()["dead"] == 2)
    wait_for(lambda: run(mirrored(system.stack.nats.url)) == ["events.deadletter.metering.invalid_event"])

    listed = command(system, "dead", "list").stdout.splitlines()
    assert len(listed) == 2
    assert "specversion: must be '1.0'" in listed[0]
    first, second = (line.split()[0] for line in listed)
    assert broken["id"] in command(system, "dead", "show", first).stdout

    mended = tmp_path / "mended.json"
    mended.write_bytes(msgspec.json.encode({**broken, "specversion": "1.0"}))
    assert command(system, "dead", "replay", first, "--body", str(mended)).returncode == 0
    assert command(system, "dead", "discard", second, "--reason", "a test of the producer").returncode == 0
    system.acknowledged[broken["id"]] = 7
    wait_for(lambda: system.ledger()["delivered"] == 1)
    system.check_exact()
    assert command(system, "dead", "list").stdout == "none\n"
    again = command(system, "dead", "replay", first)
    assert (again.returncode, "is replayed" in again.stderr) == (1, True)
    assert command(system, "gaps").stdout == "none\n"


def test_what_nobody_can_read_is_a_dead_letter_and_nothing_else(system: System) -> None:
    """Rule: one message of one tenant holds up nobody: it is set aside, whole, and the others are counted."""

    async def publish() -> None:
        async with RawPublisher(system.stack.nats.url) as raw:
            for tail in UNREADABLE_SUBJECTS:
                raw.publish(b"agentese.acme." + tail, b"subject")
            for block in UNREADABLE_HEADERS:
                raw.publish(b"agentese.acme.t", b"headers", block)
            raw.publish(b"agentese.acme.t", b"status", b"NATS/1.0\r\nStatus: 404\r\n\r\n")
            await raw.settle()

    run(publish())
    system.post(200, tenant="globex")
    count = len(UNREADABLE_SUBJECTS) + len(UNREADABLE_HEADERS) + 1
    wait_for(lambda: system.ledger()["dead"] == count, state=system.ledger)
    system.settle()
    system.check_exact()
    with psycopg.connect(system.stack.database_url) as connection:
        kept = connection.execute("select raw_subject, raw_headers, body from metering.dead").fetchall()
    subjects = {bytes(subject) for subject, _, body in kept if bytes(body) == b"subject"}
    assert subjects == {b"agentese.acme." + tail for tail in UNREADABLE_SUBJECTS}
    assert sum(headers is not None for _, headers, _ in kept) == len(UNREADABLE_HEADERS) + 1
    letters = [line.split()[0] for line in command(system, "dead", "list").stdout.splitlines()]
    assert "as sent" in command(system, "dead", "show", letters[0]).stdout
    assert httpx.get(f"{system.stack.service('metering').url}/health/ready").status_code == 200
