"""What the stream cannot take is kept on disk, and published later: in order, once, under its identity."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kgents_common import streams
from kgents_common.clock import Clock, ManualClock, SystemClock
from kgents_common.connection import Connection
from kgents_common.errors import ConfigurationError, NotDurableError
from kgents_common.publisher import (
    Ack,
    Message,
    Publisher,
    Spool,
    Spooled,
    SpoolFullError,
    SpoolingPublisher,
)
from kgents_common.publisher.spool_file import Kept, SpoolFile, Waiting
from kgents_common.resilience import CircuitBreaker
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import reached as until

Connect = Callable[..., Awaitable[Connection]]
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)
MIB = 1024**2


def message(name: str, body: bytes = b"{}") -> Message:
    return Message("agentese.acme.t", body, name, {"content-type": "application/json"})


@asynccontextmanager
async def spooling(
    connection: Connection,
    directory: Path,
    clock: Clock | None = None,
    max_bytes: int = 64 * MIB,
    spool_type: type[Spool] = Spool,
) -> AsyncIterator[SpoolingPublisher]:
    breaker = CircuitBreaker("nats", threshold=3, window=6, rest=timedelta(milliseconds=100))
    publisher = Publisher(connection, timeout=timedelta(seconds=1), breaker=breaker)
    made = SpoolingPublisher(publisher, connection, spool_type(directory, max_bytes), clock or SystemClock())
    await publisher.start()
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        await publisher.stop()


async def stored(connection: Connection) -> list[str]:
    """The ids that AGENTESE holds, in its order."""
    info = await connection.jetstream().stream_info("AGENTESE")
    subscription = await connection.jetstream().subscribe("agentese.>", ordered_consumer=True)
    found = [await subscription.next_msg(timeout=5) for _ in range(info.state.messages)]
    await subscription.unsubscribe()
    return [str((one.headers or {})["Nats-Msg-Id"]) for one in found]


async def test_an_outage_is_bridged_in_order(own_nats: NatsServer, connect: Connect, tmp_path: Path) -> None:
    """Rule: while anything waits, what comes goes behind it; a producer's messages stay in its order."""
    connection = await connect(own_nats.url)
    await streams.ensure(connection.client, streams=SMALL)
    async with spooling(connection, tmp_path / "spool") as publisher:
        words: dict[str, Ack | Spooled] = {}
        is_over = False

        async def produce(name: str) -> None:
            number = 0
            while not is_over:
                [word] = await publisher.publish_all([message(f"{name}-{number:06}")])
                assert isinstance(word, Ack | Spooled)
                words[f"{name}-{number:06}"] = word
                number += 1
                await asyncio.sleep(0.001)

        producers = [asyncio.create_task(produce(f"p{n}")) for n in range(20)]
        await asyncio.sleep(0.5)
        own_nats.kill()
        await asyncio.sleep(1.5)
        own_nats.start()
        await until(lambda: connection.is_connected)
        await until(lambda: publisher.spool.depth == 0)  # with the producers still at it
        live_again = len(words)
        await until(lambda: len(words) > live_again + 200)
        is_over = True
        await asyncio.gather(*producers)
        await until(lambda: publisher.spool.depth == 0)
        held = await stored(connection)
    assert sorted(held) == sorted(words)
    for name in range(20):
        own = [one for one in held if one.startswith(f"p{name}-")]
        assert own == sorted(own)
    spooled = sum(isinstance(word, Spooled) for word in words.values())
    assert 0 < spooled < len(words)
    assert isinstance(words[max(words, key=lambda one: one[-6:])], Ack)


async def test_what_an_earlier_process_left_comes_first(
    nats_url: str, connect: Connect, tmp_path: Path
) -> None:
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    left = SpoolFile(tmp_path / "spool")
    left.append([[Kept(message(f"left-{n}")) for n in range(500)]])
    left.close()
    async with spooling(connection, tmp_path / "spool") as publisher:
        await publisher.publish_all([message("new")])
        await until(lambda: publisher.spool.depth == 0)
        assert await stored(connection) == [*(f"left-{n}" for n in range(500)), "new"]


async def test_what_the_stream_may_hold_is_looked_for_once_it_forgot_the_identity(
    nats_url: str, connect: Connect, tmp_path: Path
) -> None:
    """Rule: JetStream recognises an id only within its window; an outage may be longer."""
    connection = await connect(nats_url)
    forgetful = [replace(spec, duplicate_window=timedelta(milliseconds=100)) for spec in SMALL]
    await streams.ensure(connection.client, streams=forgetful)
    clock = ManualClock(datetime.now(UTC))
    sent = message("sent")
    for n in range(1000):
        await connection.client.publish("agentese.acme.t", b"{}", headers={"Nats-Msg-Id": f"other-{n}"})
    await connection.jetstream().publish(sent.subject, sent.body, headers={"Nats-Msg-Id": "sent"})
    left = SpoolFile(tmp_path / "spool")
    left.append([[Kept(sent, sent_at=clock.now()), Kept(message("unsent"))]])
    left.close()
    await asyncio.sleep(0.5)
    clock.advance(timedelta(minutes=5))
    async with spooling(connection, tmp_path / "spool", clock) as publisher:
        await until(lambda: publisher.spool.depth == 0)
    held = await stored(connection)
    assert held.count("sent") == 1
    assert held[-1] == "unsent"


async def test_the_replay_survives_whatever_goes_wrong_with_it(
    nats_url: str, connect: Connect, tmp_path: Path
) -> None:
    """Rule: what waits never waits for ever in a process that looks alive."""

    class Failing(Spool):
        failures = 2

        async def first(self, limit: int, max_bytes: int) -> list[Waiting]:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("planted")
            return await super().first(limit, max_bytes)

    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    left = SpoolFile(tmp_path / "spool")
    left.append([[Kept(message("left"))]])
    left.close()
    async with spooling(connection, tmp_path / "spool", spool_type=Failing) as publisher:
        await until(lambda: publisher.spool.depth == 0)
    assert await stored(connection) == ["left"]


async def test_a_full_spool_keeps_nothing_of_a_request(
    own_nats: NatsServer, connect: Connect, tmp_path: Path
) -> None:
    connection = await connect(own_nats.url)
    own_nats.kill()
    await until(lambda: not connection.is_connected)
    async with spooling(connection, tmp_path / "spool", max_bytes=4096) as publisher:
        [kept] = await publisher.publish_all([message("a", b"x" * 1000)])
        assert kept == Spooled(duplicate=False)
        refused = await publisher.publish_all([message("b"), message("c", b"x" * 3000)])
        assert all(isinstance(one, SpoolFullError) for one in refused)
        assert await publisher.publish_all([message("a", b"x" * 1000)]) == [Spooled(duplicate=True)]
        assert publisher.spool.depth == 1
    reopened = SpoolFile(tmp_path / "spool")
    assert [one.message.message_id for one in reopened.first(10, MIB)] == ["a"]
    reopened.close()


async def test_what_the_stream_can_never_take_holds_up_nothing_and_is_kept(
    connect: Connect, nats_url: str, tmp_path: Path
) -> None:
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    left = SpoolFile(tmp_path / "spool")
    left.append([[Kept(message("vast", b"x" * 2 * MIB)), Kept(message("good"))]])
    left.close()
    async with spooling(connection, tmp_path / "spool") as publisher:
        await until(lambda: publisher.spool.depth == 0)
        assert publisher.spool.refused == 1
    assert await stored(connection) == ["good"]
    reopened = SpoolFile(tmp_path / "spool")
    assert reopened.totals().refused == 1
    reopened.close()


def test_a_killed_process_has_lost_nothing_it_was_told_is_kept(tmp_path: Path) -> None:
    """Rule: what `append` returned is on disk."""
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from kgents_common.publisher import Message
        from kgents_common.publisher.spool_file import Kept, SpoolFile, Waiting
        spool = SpoolFile(Path(sys.argv[1]))
        for n in range(1_000_000):
            spool.append([[Kept(Message("agentese.acme.t", b"{}", str(n), {}))]])
            print(n, flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "spool")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    reopened = SpoolFile(tmp_path / "spool")
    held = [int(one.message.message_id) for one in reopened.first(1_000_000, 1000 * MIB)]
    reopened.close()
    assert held[: len(told)] == told
    assert len(held) <= len(told) + 1


def test_a_disk_that_takes_no_more_is_said_and_harms_nothing_kept(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from kgents_common.errors import NotDurableError
        from kgents_common.publisher import Message
        from kgents_common.publisher.spool_file import Kept, SpoolFile, Waiting
        spool = SpoolFile(Path(sys.argv[1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        kept = 0
        try:
            for n in range(1000):
                spool.append([[Kept(Message("agentese.acme.t", b"x" * 5000, str(n), {}))]])
                kept += 1
        except NotDurableError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            spool.append([[Kept(Message("agentese.acme.t", b"x" * 5000, "after", {}))]])
            print(kept, error)
        """
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "spool")], check=True, capture_output=True, text=True
    )
    kept, _, error = answer.stdout.partition(" ")
    assert error.startswith("spool: ")
    reopened = SpoolFile(tmp_path / "spool")
    held = [one.message.message_id for one in reopened.first(10_000, 1000 * MIB)]
    reopened.close()
    assert held == [*map(str, range(int(kept))), "after"]
    assert int(kept) > 3


def test_a_spool_has_one_process(tmp_path: Path) -> None:
    first = SpoolFile(tmp_path / "spool")
    with pytest.raises(ConfigurationError, match="another process"):
        SpoolFile(tmp_path / "spool")
    first.close()
    SpoolFile(tmp_path / "spool").close()


def test_a_damaged_spool_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    directory.mkdir()
    (directory / "spool.sqlite3").write_bytes(b"not a database" * 1000)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        SpoolFile(directory)
    assert (directory / "spool.sqlite3").read_bytes() == b"not a database" * 1000


async def test_many_callers_share_a_sync(tmp_path: Path) -> None:
    """Rule: what comes while the disk is busy is written together, all or none of it."""
    spool = Spool(tmp_path / "spool", 64 * MIB)
    await spool.start()
    words = await asyncio.gather(
        *(spool.append([Kept(message(f"{n}-{part}")) for part in range(3)]) for n in range(300))
    )
    assert all(word == [Spooled(duplicate=False)] * 3 for word in words)
    assert spool.depth == 900
    await spool.stop()
    with pytest.raises((NotDurableError, RuntimeError)):
        await spool.append([Kept(message("late"))])
