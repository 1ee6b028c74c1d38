"""What devstack starts it stops, also when it is killed, and two stacks do not meet."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import redis

from kgents_devstack import controls
from kgents_devstack.servers import NatsServer, PostgresServer, StartError, ValkeyServer
from kgents_devstack.servers.process import free_port
from kgents_devstack.services import ServiceProcess
from kgents_devstack.stack import Stack, StackOptions, passed_on
from kgents_devstack.up import forget
from kgents_devstack.waiting import HANGS_AFTER_SECONDS, until

StartUp = Callable[[Path], tuple[subprocess.Popen[bytes], list[psutil.Process]]]


@pytest.fixture
def start_up() -> Iterator[StartUp]:
    """Starts `up` in a process of its own: given back once it prints counts, with every process it started.

    Whatever becomes of the test, nothing of it is left running.
    """
    started: list[psutil.Process] = []

    def start(directory: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
        log = directory / "up.log"
        directory.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "kgents_devstack", "up", "--directory", str(directory / "stack")],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        up = psutil.Process(process.pid)
        started.append(up)
        until(lambda: b"stream=" in log.read_bytes() or process.poll() is not None, state=log.read_text)
        assert process.poll() is None, log.read_text()
        children = up.children(recursive=True)
        started.extend(children)
        return process, children

    yield start
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            started += process.children(recursive=True)
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def end(
    process: subprocess.Popen[bytes], children: list[psutil.Process], number: signal.Signals, status: int
) -> None:
    """Ends a stack by a signal, twice as impatient fingers do: nothing that it started is left."""
    process.send_signal(number)
    process.send_signal(number)
    assert process.wait(HANGS_AFTER_SECONDS) == status
    until(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))


def test_a_port_is_nobody_elses_while_its_server_is_stopped() -> None:
    """Rule: neither another stack nor the kernel's outgoing connections get it meanwhile."""
    mine = [free_port() for _ in range(200)]
    assert len(set(mine)) == 200
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(mine) < first_ephemeral
    # Another process that wants every port there is gets none of these.
    asking = (
        "from pathlib import Path; import sys, tempfile, os;"
        "from kgents_devstack.servers.process import _reserve;"
        "locks = Path(tempfile.gettempdir()) / f'kgents-ports-{os.getuid()}';"
        "print(sum(_reserve(int(port), locks) for port in sys.argv[1:]))"
    )
    taken = subprocess.run(
        [sys.executable, "-c", asking, *map(str, mine)], capture_output=True, text=True, check=True
    )
    assert taken.stdout.strip() == "0"


def test_a_restarted_server_keeps_its_port_and_its_data(tmp_path: Path) -> None:
    """Rule: a test can kill a server and have it back."""
    postgres = PostgresServer(tmp_path / "postgres").start()
    try:
        url = postgres.create_database("kept")
        with psycopg.connect(url) as connection:
            connection.execute("create table kept (n int)")
        postgres.kill()
        postgres.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("select count(*) from kept").fetchone() == (0,)
    finally:
        postgres.discard()


def test_valkey_forgets_and_evicts_as_the_seed_sizes_it(tmp_path: Path) -> None:
    """Rule: 128 MB, allkeys-lru, nothing kept."""
    with ValkeyServer(tmp_path / "valkey") as server:
        client = redis.Redis.from_url(server.url)
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
        client.set("a", "b")
        server.kill()
        server.start()
        assert client.get("a") is None


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Rule: the error ends with what the server had to say."""
    server = NatsServer(tmp_path / "nats", extra="no_such_option: 1")
    with pytest.raises(StartError, match="no_such_option"):
        server.start()


def test_a_service_without_its_settings_says_what_is_missing(tmp_path: Path) -> None:
    """Rule: refuse to start, naming every missing variable."""
    for name, missing in (("api", "KGENTS_KEYRING_FILE"), ("metering", "DATABASE_URL")):
        with pytest.raises(StartError, match=missing):
            ServiceProcess(name, tmp_path / name, {"NATS_SERVERS": "nats://127.0.0.1:1"}).start()


def test_stacks_do_not_meet_leave_nothing_behind_and_go_on_with_what_they_had(
    tmp_path: Path, start_up: StartUp
) -> None:
    """Rule: free ports and a directory each; Ctrl-C and a termination of one leave the other alone, a crash
    leaves nothing. `up` keeps its key, its data and what OpenMeter has; its directory takes no second one.
    """
    first, first_children = start_up(tmp_path / "one")
    second, second_children = start_up(tmp_path / "two")
    assert len(first_children) >= 6
    # Servers and services; a Postgres session or a drill's scratch server may end by itself.
    lasting = psutil.Process(second.pid).children()
    log = tmp_path / "one" / "up.log"
    ports = [
        set(re.findall(r"127\.0\.0\.1:(\d+)", (tmp_path / name / "up.log").read_text()))
        for name in ("one", "two")
    ]
    assert not ports[0] & ports[1]
    key, api = (
        first_match(r"export KEY=(\S+)", log.read_text()),
        first_match(r"curl -s (\S+)/v1/events", log.read_text()),
    )
    event = {"specversion": "1.0", "id": "kept", "source": "s", "type": "llm.tokens", "data": {"tokens": 7}}
    headers = {"authorization": f"Bearer {key}", "content-type": "application/cloudevents+json"}
    assert httpx.post(f"{api}/v1/events", json=event, headers=headers).status_code == 202
    until(lambda: "delivered=1" in log.read_text())
    line = first_match(r"\n  (.+ operate .*metering dead list)", log.read_text())  # its path may hold a space
    pasted = subprocess.run(line, shell=True, cwd="/", capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stderr
    beside = subprocess.run(
        [sys.executable, "-m", "kgents_devstack", "up", "--directory", str(tmp_path / "one" / "stack")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert beside.returncode == 1
    assert "runs in" in beside.stdout
    end(first, first_children, signal.SIGINT, 0)
    assert all(child.is_running() for child in lasting)

    again, again_children = start_up(tmp_path / "one")
    assert first_match(r"export KEY=(\S+)", log.read_text()) == key
    until(lambda: "accepted=1" in log.read_text())
    metering = first_match(r'curl -s "(\S+)/api/v1/meters', log.read_text())
    usage = httpx.get(f"{metering}/api/v1/meters/tokens/query", headers={"authorization": f"Bearer {key}"})
    assert [row["value"] for row in usage.json()["data"]] == [7]
    end(again, again_children, signal.SIGTERM, 0)
    assert all(child.is_running() for child in lasting)
    end(second, second_children, signal.SIGKILL, -signal.SIGKILL)
    with pytest.raises(StartError, match="was killed"):  # by what it left behind it would seem to run
        controls.running(tmp_path / "two" / "stack")


def test_stripe_is_asked_with_the_callers_own_key() -> None:
    """Rule: what `up` says it passes on, it passes on, and nothing else of the environment."""
    told = passed_on({"STRIPE_API_KEY": "rk_test_1", "AWS_SECRET_ACCESS_KEY": "x", "STRIPE_API_BASE": ""})
    assert told == {"billing": {"STRIPE_API_KEY": "rk_test_1"}}


def first_match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, text
    return found.group(1)


def test_a_fresh_start_forgets_and_removes_nothing_of_others(tmp_path: Path) -> None:
    """Rule: `--fresh` removes a stack's own files, wherever they lie, and no directory that is no stack's."""
    others = tmp_path / "others"
    others.mkdir()
    (others / "precious").write_text("mine")
    with pytest.raises(StartError, match="nothing was removed"):
        forget(Stack(others, StackOptions(keeps=True)))
    assert (others / "precious").read_text() == "mine"

    stack = Stack(tmp_path / "stack", StackOptions(services=(), keeps=True)).start()
    home = stack.postgres._home
    stack.stop()
    assert home.is_dir()
    forget(Stack(tmp_path / "stack", StackOptions(keeps=True)))
    assert not home.exists()
    assert not stack.directory.exists()
