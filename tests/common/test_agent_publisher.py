"""For agents' own Python: the door's envelope and identity, straight to NATS; the documented example runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import pytest

from kgents_common import envelope, streams
from kgents_common.connection import Connection
from kgents_common.errors import EnvelopeError, TransientError
from kgents_common.publisher import Ack, AgentPublisher, Event, Message, Spooled
from kgents_common.publisher.spool_file import Kept, SpoolFile
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import HANGS_AFTER_SECONDS, reached

Connect = Callable[..., Awaitable[Connection]]
SMALL = streams.scaled(streams.STREAMS, 64 * 1024**2)
DOCUMENT = Path(__file__).parents[2] / "docs" / "publishing.md"


async def last(connection: Connection) -> tuple[str, dict[str, str], dict[str, object]]:
    """Subject, headers and event of the newest message."""
    info = await connection.jetstream().stream_info("AGENTESE")
    message = await connection.jetstream().get_msg("AGENTESE", seq=info.state.last_seq)
    return str(message.subject), dict(message.headers or {}), json.loads(message.data or b"")


async def test_it_publishes_what_the_door_would(nats_url: str, connect: Connect) -> None:
    """Rule: one envelope and one identity, whichever way an event comes."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    async with AgentPublisher(nats_url, tenant="acme", source="agents/a1") as agent:
        await agent.wait_until_connected()
        first = await agent.publish("llm.tokens", {"tokens": 42}, event_id="e1")
        again = await agent.publish("llm.tokens", {"tokens": 42}, event_id="e1")
    assert isinstance(first, Ack)
    assert (first.duplicate, again) == (False, Ack("AGENTESE", first.seq, duplicate=True))
    subject, headers, event = await last(connection)
    assert subject == "agentese.acme.llm.tokens"
    assert headers["content-type"] == envelope.STRUCTURED
    assert headers["Nats-Msg-Id"] != envelope.identity("acme", "agents/a1", "e1").hex()
    read = envelope.read(json.dumps(event).encode(), tenant="acme", now=datetime.now(UTC))
    # Stamped, not said by the agent: the same event published again is a duplicate and no conflict.
    assert read.time_is_received
    assert event["data"] == {"tokens": 42}


async def test_a_process_that_has_just_started_waits_for_its_connection(
    nats_url: str, connect: Connect, tmp_path: Path
) -> None:
    """Rule: where NATS is there, the first event is in the stream, with a spool or without."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    for number, spool in enumerate((None, tmp_path / "spool")):
        async with AgentPublisher(nats_url, tenant="acme", source="agents/a1", spool=spool) as agent:
            word = await agent.publish("llm.tokens", {"tokens": 1}, event_id=f"e{number}")
        assert word == Ack("AGENTESE", number + 1, duplicate=False)


async def test_who_tries_again_at_once_lets_it_connect(nats_url: str, connect: Connect) -> None:
    """Rule: an error that comes without waiting gives way to what would end it."""
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    word: Ack | Spooled | None = None
    async with AgentPublisher(nats_url, tenant="acme", source="a", timeout=timedelta(0)) as agent:
        agent._publisher._timeout = HANGS_AFTER_SECONDS
        ends_at = time.monotonic() + HANGS_AFTER_SECONDS
        while word is None and time.monotonic() < ends_at:  # a timeout would never come
            with contextlib.suppress(TransientError):
                word = await agent.publish("llm.tokens", {"tokens": 1}, event_id="e1")
    assert isinstance(word, Ack)


async def test_a_wrong_event_is_told_by_its_place_and_none_is_published(
    nats_url: str, connect: Connect
) -> None:
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    async with AgentPublisher(nats_url, tenant="acme", source="agents/a1") as agent:
        await agent.wait_until_connected()
        with pytest.raises(EnvelopeError) as raised:
            await agent.publish_all([Event("llm.tokens", {"tokens": 1}), Event("no type", {"tokens": 1})])
    assert [violation.field for violation in raised.value.violations] == ["[1].type"]
    assert (await connection.jetstream().stream_info("AGENTESE")).state.messages == 0


async def test_without_nats_it_raises_or_spools(tmp_path: Path, own_nats: NatsServer) -> None:
    """Rule: nothing is said to be durable that is not; what was spooled is published by the next process."""
    own_nats.kill()
    at_once = timedelta(0)
    async with AgentPublisher(own_nats.url, tenant="acme", source="agents/a1", timeout=at_once) as agent:
        with pytest.raises(TransientError):
            await agent.publish("llm.tokens", {"tokens": 1}, event_id="e1")
    spool = tmp_path / "spool"
    async with AgentPublisher(own_nats.url, tenant="acme", source="agents/a1", spool=spool) as agent:
        assert await agent.publish("llm.tokens", {"tokens": 1}, event_id="e1") == Spooled(duplicate=False)
        assert agent.waiting == 1
    own_nats.start()
    async with AgentPublisher(own_nats.url, tenant="acme", source="agents/a1", spool=spool) as agent:
        await agent.wait_until_connected()
        await streams.ensure(agent._connection.client, streams=SMALL)
        word = await agent.publish("llm.tokens", {"tokens": 2}, event_id="e2")
        while agent.waiting:
            word = await agent.publish("llm.tokens", {"tokens": 2}, event_id="e2")
        info = await agent._connection.jetstream().stream_info("AGENTESE")
    assert isinstance(word, Ack | Spooled)
    assert info.state.messages == 2


async def test_a_spool_needs_no_right_but_to_its_tenants_subjects(tmp_path: Path) -> None:
    """Rule: an agent publishes its own tenant's subjects and hears its own inbox; it asks JetStream nothing,
    also where it does not know whether an event of long ago is stored: the ledger counts it once."""
    users = """authorization { users: [
      {user: owner, password: of-this-test},
      {user: acme, password: of-this-test,
       permissions: {publish: "agentese.acme.>", subscribe: "_INBOX.>"}}]}"""
    with NatsServer(tmp_path / "nats", extra=users) as server:
        owner = await nats.connect(server.url, user="owner", password="of-this-test")
        await streams.ensure(owner, streams=SMALL)
        left = SpoolFile(tmp_path / "spool")
        old = Message("agentese.acme.llm.tokens", b"{}", "left", {})
        left.append([[Kept(old, sent_at=datetime.now(UTC) - timedelta(hours=1))]])
        left.close()
        async with AgentPublisher(
            server.url,
            tenant="acme",
            source="agents/a1",
            user="acme",
            password="of-this-test",
            spool=tmp_path / "spool",
        ) as agent:
            await agent.wait_until_connected()
            # A spool that asks for more is refused, and asks again for ever.
            await reached(lambda: not agent.waiting or refused(server))
            assert refused(server) == []
            await agent.publish("llm.tokens", {"tokens": 1})
        stored = (await owner.jetstream().stream_info("AGENTESE")).state.messages
        await owner.close()
        assert stored == 2
        assert refused(server) == []


def refused(server: NatsServer) -> list[str]:
    """What the server says of what nobody may publish or hear."""
    return [line for line in server.log_path.read_text().splitlines() if "Violation" in line]


async def test_the_documented_example_runs(nats_url: str, connect: Connect, tmp_path: Path) -> None:
    connection = await connect(nats_url)
    await streams.ensure(connection.client, streams=SMALL)
    example = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    done = subprocess.run(
        [sys.executable, "-c", example.group(1)],
        cwd=tmp_path,
        env={**os.environ, "NATS_SERVERS": nats_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Ack(") + done.stdout.count("Spooled(") == 101
    assert (tmp_path / "spool" / "spool.sqlite3").exists()
