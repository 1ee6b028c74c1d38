"""Agents connect to NATS with the credentials of the door, and touch only their own tenant's events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from nats.aio.client import Client

from kgents_common import keyring
from kgents_common.publisher import Ack, AgentPublisher
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version
from kgents_devstack.stack import Stack, StackOptions
from kgents_devstack.waiting import reached

# A session may end before a slow machine has let its agent in: then the next is longer.
SESSION_SECONDS = (1, 4, 16, 64)
EVENTS_PER_SECOND = 200
# In less than a second: more than two seconds may bring, and what is forgotten meanwhile.
BEYOND = 2_000
EVENT = {"specversion": "1.0", "source": "agents/a1", "type": "llm.tokens", "data": {"tokens": 1}}


@pytest.fixture(scope="module", params=[OLDEST_VERSION, installed_version()])
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory: Path = tmp_path_factory.mktemp("agents")
    options = StackOptions(
        services=("api", "agents"),
        nats_version=request.param,
        needs_database=False,
        environment={
            "agents": {
                "KGENTS_RATE_LIMIT_EVENTS_PER_SECOND": str(EVENTS_PER_SECOND),
                "KGENTS_AGENTS_PAUSE_SECONDS": "2",
            }
        },
    )
    with Stack(directory, options) as started:
        yield started


async def connected(stack: Stack, token: str, tenant: str = "acme", **options: Any) -> Client:
    """An agent, as README shows it."""
    return await nats.connect(
        stack.nats.address, token=token, inbox_prefix=f"_INBOX.{tenant}", connect_timeout=60, **options
    )


async def is_let_in(stack: Stack, **shown: str) -> bool:
    try:
        client = await asyncio.wait_for(
            nats.connect(stack.nats.address, allow_reconnect=False, max_reconnect_attempts=1, **shown), 60
        )
    except Exception:
        return False
    await client.close()
    return True


async def stored(stack: Stack) -> list[str]:
    """The subject of every message of both streams, as the developer sees them."""
    client = await nats.connect(stack.nats.url)
    found = []
    for name in ("AGENTESE", "EVENTS"):
        info = await client.jetstream().stream_info(name, subjects_filter=">")
        found += [subject for subject, count in (info.state.subjects or {}).items() for _ in range(count)]
    await client.close()
    return sorted(found)


def event(event_id: str) -> bytes:
    return json.dumps({**EVENT, "id": event_id}).encode()


async def test_an_agent_publishes_for_its_tenant_and_hears_its_own_acknowledgement(stack: Stack) -> None:
    """Rule: the key of the door is the key of NATS, as a token or as a password."""
    agent = await connected(stack, stack.keys["acme"])
    ack = await agent.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event("own"))
    assert (ack.stream, ack.seq > 0) == ("AGENTESE", True)
    await agent.close()
    by_password = await nats.connect(
        stack.nats.address, user="agent-1", password=stack.keys["globex"], inbox_prefix="_INBOX.globex"
    )
    await by_password.jetstream(timeout=60).publish("agentese.globex.llm.tokens", event("own"))
    await by_password.close()


async def test_the_publisher_for_agents_needs_no_more_than_its_key(stack: Stack, tmp_path: Path) -> None:
    """Rule: publishing, acknowledgements and the spool work with an agent's rights."""
    async with AgentPublisher(
        stack.nats.address,
        tenant="acme",
        source="agents/a1",
        token=stack.keys["acme"],
        spool=tmp_path / "spool",
        timeout=timedelta(seconds=60),
    ) as agent:
        await agent.wait_until_connected()  # until then events are spooled
        first = await agent.publish("llm.tokens", {"tokens": 1}, event_id="published")
        again = await agent.publish("llm.tokens", {"tokens": 1}, event_id="published")
    assert isinstance(first, Ack)
    assert isinstance(again, Ack)
    assert again.seq == first.seq


async def test_an_agent_can_do_nothing_else(stack: Stack) -> None:
    """Rule: no other tenant's subject, no stream, no bus, no request to JetStream, nobody else's inbox."""
    violations: list[str] = []

    async def note(error: Exception) -> None:
        violations.append(str(error).lower())

    agent = await connected(stack, stack.keys["acme"], error_cb=note)
    before = await stored(stack)
    for subject in (
        "agentese.globex.llm.tokens",
        "events.stripe.live.invoice_paid.evt_1",
        "events.billing.acme.payment.success",
        "events.heartbeat.metering.m-1",
        "$JS.API.STREAM.INFO.AGENTESE",
        "$JS.API.STREAM.DELETE.AGENTESE",
        "$JS.API.CONSUMER.MSG.NEXT.AGENTESE.metering",
        "$JS.ACK.AGENTESE.metering.1.1.1.1.0",
        "$SYS.REQ.USER.AUTH",
        "$SYS.REQ.SERVER.PING",
    ):
        await agent.publish(subject, event("stolen"))
        await reached(lambda subject=subject: any(subject.lower() in told for told in violations))
    for subject in ("agentese.>", "events.>", "_INBOX.>", "_INBOX.globex.>", "$SYS.REQ.USER.AUTH", ">"):
        await agent.subscribe(subject)
        await reached(lambda subject=subject: any(f'"{subject.lower()}"' in told for told in violations))
    assert await stored(stack) == before
    await agent.close()


async def test_no_acknowledgement_can_be_steered_into_our_subjects(stack: Stack) -> None:
    """Rule: replies are not checked by NATS; they stay in the agents' own account, where there is nothing."""
    agent = await connected(stack, stack.keys["acme"])
    before = await stored(stack)
    replies = (
        "agentese.globex.stolen",
        "agentese.acme.loop",
        "events.stripe.live.invoice_paid.evt_stolen",
        "events.billing.globex.payment.success",
        "$JS.API.STREAM.DELETE.AGENTESE",
        "$JS.API.CONSUMER.DELETE.AGENTESE.metering",
        "_INBOX.metering.x",
    )
    for number, reply in enumerate(replies):
        await agent.publish("agentese.acme.llm.tokens", event(f"steered-{number}"), reply=reply)
    last = await agent.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event("last"))
    assert last.seq
    await asyncio.sleep(0.5)  # what was steered would have come by now: the last acknowledgement has
    after = await stored(stack)
    assert after == sorted([*before, *["agentese.acme.llm.tokens"] * (len(replies) + 1)])
    await agent.close()


async def test_who_shows_nothing_good_is_not_let_in(stack: Stack) -> None:
    """Rule: no key, an unknown one, a name of a service, a key that may not write; and what no server can
    check: a key of several tenants, a session bound to its sources."""
    assert not await is_let_in(stack)
    assert not await is_let_in(stack, token="kg_" + "x" * 43)
    assert not await is_let_in(stack, user="metering", password="metering")
    assert not await is_let_in(stack, token="a\x00b\udcff".encode("utf-8", "replace").decode())
    reader = keyring.mint("acme", ["usage:read"])
    wide = [keyring.mint(tenants, ["events:write"]) for tenants in (["acme", "globex"], "*")]
    records = [record for _, record in (reader, *wide)]
    keyring.write(stack.keyring_file, [*keyring.load(stack.keyring_file), *records])
    await asyncio.sleep(1.5)  # services look at the file every second
    for key, _ in (reader, *wide):
        assert not await is_let_in(stack, token=key)
    bound = {"agent": "a1", "sources": ["agents/a1"]}
    async with httpx.AsyncClient(base_url=stack.service("api").url, timeout=60) as door:
        headers = {"authorization": f"Bearer {stack.keys['acme']}"}
        minted = await door.post("/v1/sessions", json=bound, headers=headers)
    assert not await is_let_in(stack, token=minted.json()["token"])


async def test_a_session_ends_with_its_time_and_when_it_is_ended(stack: Stack) -> None:
    """Rule: a token of the door opens NATS for its own time and no longer."""
    async with httpx.AsyncClient(
        base_url=stack.service("api").url,
        headers={"authorization": f"Bearer {stack.keys['acme']}"},
        timeout=60,
    ) as door:

        async def agent(name: str, seconds: int) -> tuple[str, Client]:
            minted = await door.post("/v1/sessions", json={"agent": name, "ttl_seconds": seconds})
            assert minted.status_code == 201, minted.text
            client = await connected(stack, minted.json()["token"], allow_reconnect=False)
            await client.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event(name))
            return minted.json()["id"], client

        for seconds in SESSION_SECONDS:
            with contextlib.suppress(nats.errors.Error):
                _, short = await agent("short", seconds)
                break
        session_id, ended = await agent("ended", 3600)
        assert (await door.delete(f"/v1/sessions/{session_id}")).status_code == 204
        await reached(lambda: not ended.is_connected)
        await reached(lambda: not short.is_connected)


async def test_a_revoked_key_is_cut_off_and_others_are_not(stack: Stack) -> None:
    """Rule: within seconds, on whatever server it is; the others notice nothing."""
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(stack.keyring_file, [*keyring.load(stack.keyring_file), record])
    await asyncio.sleep(1.5)
    revoked = await connected(stack, key, allow_reconnect=False)
    other = await connected(stack, stack.keys["acme"])
    await asyncio.sleep(3)
    assert revoked.is_connected
    kept = [one for one in keyring.load(stack.keyring_file) if one.id != record.id]
    keyring.write(stack.keyring_file, kept)
    await reached(lambda: not revoked.is_connected)
    assert not await is_let_in(stack, token=key)
    await other.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event("other"))
    assert other.stats["reconnects"] == 0
    await other.close()


async def test_who_sends_faster_than_it_may_is_kept_out_for_a_while_and_others_are_not(stack: Stack) -> None:
    """Rule: on one connection or on many that come and go; it comes back by itself, and nothing that was
    acknowledged is lost."""
    other = await connected(stack, stack.keys["globex"], "globex")
    loud = await connected(stack, stack.keys["acme"], reconnect_time_wait=0.2)
    for _ in range(BEYOND):
        await loud.publish("agentese.acme.llm.tokens", b"garbage")
    await reached(lambda: loud.stats["reconnects"] == 0 and not loud.is_connected)
    assert not await is_let_in(stack, token=stack.keys["acme"])
    await other.jetstream(timeout=60).publish("agentese.globex.llm.tokens", event("beside"))
    await reached(lambda: loud.is_connected)
    await loud.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event("back"))
    for _ in range(8):
        short = await connected(stack, stack.keys["acme"])
        for _ in range(BEYOND // 8 + 1):
            await short.publish("agentese.acme.llm.tokens", b"garbage")
        await short.close()
    await reached(lambda: not loud.is_connected)
    assert (other.stats["reconnects"], other.is_connected) == (0, True)
    for client in (loud, other):
        await client.close()


async def test_a_server_that_reads_its_configuration_again_asks_about_agents_again(stack: Stack) -> None:
    """Rule: that is how a renewed certificate is taken up. Services stay; agents, whom no file knows, are cut
    off, come back by themselves and are let in."""
    agent = await connected(stack, stack.keys["acme"], reconnect_time_wait=0.1)
    service = await nats.connect(stack.nats.url)
    os.kill(stack.nats.pid, signal.SIGHUP)
    await reached(lambda: agent.stats["reconnects"] == 1 and agent.is_connected)
    await agent.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event("again"))
    await service.flush(60)
    assert service.stats["reconnects"] == 0
    for client in (agent, service):
        await client.close()


async def test_while_the_responder_is_down_nobody_new_comes_in_and_nobody_is_cut_off(stack: Stack) -> None:
    """Rule: it is asked at the door alone; what is open stays open."""
    agent = await connected(stack, stack.keys["acme"])
    stack.service("agents").kill()
    try:
        assert not await is_let_in(stack, token=stack.keys["acme"])
        await agent.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event("still"))
    finally:
        stack.service("agents").start()
    again = await connected(stack, stack.keys["acme"])
    await again.jetstream(timeout=60).publish("agentese.acme.llm.tokens", event("again"))
    for client in (agent, again):
        await client.close()
