"""The durable consumer made anew replays the whole stream: no total changes, nothing is sent again."""

from __future__ import annotations

import nats

from .conftest import System, run, wait_for


async def remake_consumer(url: str) -> None:
    """Delete the consumer and create it from the start, as a careless operator would."""
    from kgents_common import streams

    client = await nats.connect(url)
    await client.jetstream().delete_consumer("AGENTESE", "metering")
    await streams.recreate_consumer(client, streams.METERING, start_sequence=1)
    await client.close()


async def ack_floor(url: str) -> int:
    client = await nats.connect(url)
    info = await client.jetstream().consumer_info("AGENTESE", "metering")
    await client.close()
    return int(info.ack_floor.stream_seq) if info.ack_floor else 0


def test_a_consumer_made_anew(system: System) -> None:
    """Rule: duplicates are recognised by key, for ever; the outbox knows what was delivered (P2)."""
    system.post(1500)
    system.settle()
    before, requests = system.ledger(), system.stack.openmeter.stats()["requests"]
    system.stack.service("metering").stop()
    run(remake_consumer(system.stack.nats.url))
    system.stack.service("metering").start()
    wait_for(lambda: run(ack_floor(system.stack.nats.url)) >= 1500)
    assert system.ledger() == before
    assert system.stack.openmeter.stats()["requests"] == requests
    system.check_exact()


def test_a_consumer_lost_while_running(system: System) -> None:
    """Rule: a watchdog recreates a lost consumer; what comes meanwhile is counted."""
    system.post(300)
    system.settle()
    run(delete_consumer(system.stack.nats.url))
    system.post(300)
    system.settle()
    system.check_exact()


async def delete_consumer(url: str) -> None:
    client = await nats.connect(url)
    await client.jetstream().delete_consumer("AGENTESE", "metering")
    await client.close()
