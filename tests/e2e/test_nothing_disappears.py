"""What cannot be counted is a dead letter: listed, shown, mirrored to the bus, replayed or discarded (P3)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import nats

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
