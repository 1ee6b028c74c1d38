"""The scripts of `components/redis-sentinel`: whom a server follows that starts, what a sentinel begins with.

What they call is stand-ins, and so is time; with real servers they run in test_redis_sentinel.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .rendered import WITH_SENTINELS, find, overlay

FIRST, SECOND, THIRD = (f"triad-redis-{n}.triad-redis-nodes.kgents-triad.svc" for n in range(3))
STANDINS = {
    # Sleeping moves the clock, and nobody waits.
    "date": 'cat "$CLOCK"',
    "sleep": 'echo $(($(cat "$CLOCK") + 1)) > "$CLOCK"',
    "redis-server": 'echo "$@"',
    "redis-cli": """case "$*" in
*get-master-addr-by-name*) [ "$(cat "$CLOCK")" -ge "$UNTIL" ] || LATER=$NAMED; echo "$LATER" ;;
*replicas*) echo "$REPLICAS" ;;
esac""",
}


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """A directory with the scripts and the stand-ins."""
    (tmp_path / "clock").write_text("1000")
    (tmp_path / "bin").mkdir()
    for name, text in STANDINS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name, text in find(overlay(WITH_SENTINELS), "ConfigMap", "triad-redis-scripts")["data"].items():
        moved = text.replace("/etc/redis-sentinel", str(tmp_path)).replace("/var/lib/sentinel", str(tmp_path))
        (tmp_path / name).write_text(moved)
    return tmp_path


def started(pod: Path, script: str, me: str, *arguments: str, named: str = "", **told: str) -> str:
    """The command that a script became."""
    environment = {
        "PATH": f"{pod / 'bin'}:{os.environ['PATH']}",
        "CLOCK": str(pod / "clock"),
        "REDIS_NODE": me,
        "NAMED": named,
        "LATER": named,
        "UNTIL": "1000",
        "REPLICAS": "",
        **told,
    }
    command = ["sh", str(pod / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def waited(pod: Path) -> int:
    """So many seconds went by."""
    return int((pod / "clock").read_text()) - 1000


@pytest.mark.parametrize("me", [FIRST, SECOND, THIRD])
def test_where_nobody_answers_the_first_pod_is_the_primary(pod: Path, me: str) -> None:
    """Of a first start; nobody is waited for longer than ten seconds."""
    command = started(pod, "redis.sh", me, "redis-server", "--save", "")

    assert command.startswith("--save  --tls-replication yes")
    assert f"--replica-announce-ip {me}" in command
    assert (f"--replicaof {FIRST} 6379" in command) == (me != FIRST)
    assert waited(pod) == 10


@pytest.mark.parametrize("me", [FIRST, SECOND])
def test_a_server_follows_whom_the_sentinels_name(pod: Path, me: str) -> None:
    """At once, and whatever its number."""
    assert started(pod, "redis.sh", me, "redis-server", named=THIRD).endswith(f"--replicaof {THIRD} 6379")
    assert waited(pod) == 0


def test_a_name_that_is_no_pod_s_is_not_followed(pod: Path) -> None:
    """An answer that is none (an error's text) is no answer."""
    command = started(pod, "redis.sh", SECOND, "redis-server", named="ERR something")

    assert command.endswith(f"--replicaof {FIRST} 6379")


def test_a_primary_that_nobody_follows_yet_starts_at_once(pod: Path) -> None:
    """The sentinels were faster than it: there is nothing that could be lost."""
    assert "--replicaof" not in started(pod, "redis.sh", FIRST, "redis-server", named=FIRST)
    assert waited(pod) == 0


def test_a_primary_that_comes_back_empty_waits_until_another_has_its_place(pod: Path) -> None:
    """It would empty its replicas."""
    told = {"LATER": SECOND, "UNTIL": "1007", "REPLICAS": "name\nanother"}
    command = started(pod, "redis.sh", FIRST, "redis-server", named=FIRST, **told)

    assert command.endswith(f"--replicaof {SECOND} 6379")
    assert waited(pod) == 7


def test_where_no_replica_can_take_its_place_it_starts_after_a_minute(pod: Path) -> None:
    """An empty Redis is better than none."""
    command = started(pod, "redis.sh", FIRST, "redis-server", named=FIRST, REPLICAS="name\nanother")

    assert "--replicaof" not in command
    assert waited(pod) == 60


def test_a_new_sentinel_watches_whom_the_others_watch_and_is_who_it_was(pod: Path) -> None:
    """And one that is only started again keeps what it wrote."""
    first = started(pod, "sentinel.sh", SECOND, "--port", "0", named=THIRD)
    file = pod / "sentinel.conf"
    told = file.read_text().splitlines()

    assert first == f"{file} --sentinel --port 0"
    assert f"sentinel monitor triad-redis {THIRD} 6379 2" in told
    identity = next(line for line in told if line.startswith("sentinel myid "))
    assert len(identity.split()[-1]) == 40

    file.write_text(file.read_text() + "# learned\n")
    started(pod, "sentinel.sh", SECOND, named=FIRST)
    assert "# learned" in file.read_text()

    file.unlink()
    started(pod, "sentinel.sh", SECOND, named=FIRST)
    assert identity in file.read_text().splitlines()
    file.unlink()
    started(pod, "sentinel.sh", FIRST)
    assert f"sentinel monitor triad-redis {FIRST} 6379 2" in file.read_text()
    assert identity not in file.read_text()
