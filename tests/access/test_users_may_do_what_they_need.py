"""Every NATS user against every subject and API call: may, or may not, on real servers of both versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from kgents_common import streams
from kgents_common.access import accounts, seeds
from kgents_common.access.users import AGENTS_CLOSED, ALL, SERVICES, NatsUser
from kgents_common.connection import Client as OurClient
from kgents_devstack.servers import NatsServer
from kgents_devstack.servers.nats import OLDEST_VERSION, installed_version
from kgents_devstack.waiting import reached

A = "$JS.API"
NOBODYS = "nobody.may.use.this"
# Subject or call, and who may publish to it; whoever is not named may not. The operator may all of it.
TABLE: dict[str, set[str]] = {
    "agentese.acme.llm.tokens": {"api", "metering"},
    "events.stripe.live.invoice_paid.evt_1": {"api", "billing"},
    "events.billing.acme.payment.success": {"billing"},
    "events.backup.drill.passed": {"backup"},
    "events.deadletter.metering.invalid_event": {"metering"},
    "events.deadletter.billing.malformed": {"billing"},
    "events.heartbeat.api.api-1": {"api"},
    "events.heartbeat.metering.m-1": {"metering"},
    "events.heartbeat.metering-reads.r-1": {"metering-reads"},
    "events.heartbeat.billing.b-1": {"billing"},
    "events.heartbeat.backup.b-1": {"backup"},
    "events.other": set(),
    "_INBOX.api.x": set(),
    "$KV.any.key": set(),
    f"{A}.INFO": set(),
    f"{A}.STREAM.NAMES": set(),
    f"{A}.STREAM.LIST": {"backup"},
    f"{A}.STREAM.DELETE.AGENTESE": set(),
    f"{A}.STREAM.DELETE.EVENTS": set(),
    f"{A}.STREAM.PURGE.AGENTESE": {"metering", "streams"},
    f"{A}.STREAM.CREATE.OTHER": set(),
    f"{A}.STREAM.CREATE.AGENTESE": {"streams"},
    f"{A}.STREAM.UPDATE.EVENTS": {"streams"},
    f"{A}.STREAM.INFO.AGENTESE": {"api", "metering", "metering-reads", "billing", "backup", "streams"},
    f"{A}.STREAM.INFO.EVENTS": {"api", "metering", "metering-reads", "billing", "backup", "streams"},
    f"{A}.STREAM.MSG.GET.AGENTESE": {"api", "metering", "backup"},
    f"{A}.STREAM.MSG.GET.EVENTS": {"metering", "backup"},
    f"{A}.STREAM.MSG.DELETE.AGENTESE": set(),
    f"{A}.STREAM.SNAPSHOT.AGENTESE": {"backup"},
    f"{A}.STREAM.SNAPSHOT.EVENTS": {"backup"},
    f"{A}.STREAM.RESTORE.AGENTESE": set(),
    f"{A}.STREAM.LEADER.STEPDOWN.AGENTESE": set(),
    "$JS.SNAPSHOT.ACK.AGENTESE.x.1": {"backup"},
    f"{A}.CONSUMER.CREATE.AGENTESE": set(),
    f"{A}.CONSUMER.DURABLE.CREATE.AGENTESE.metering": set(),
    f"{A}.CONSUMER.CREATE.AGENTESE.metering.>": {"metering", "streams"},
    # The release before puts its consumer back so.
    f"{A}.CONSUMER.CREATE.AGENTESE.metering.agentese.>": {"metering", "streams"},
    f"{A}.CONSUMER.CREATE.AGENTESE.metering": set(),
    f"{A}.CONSUMER.CREATE.AGENTESE.forward-1.agentese.acme.>": {"api", "backup", "streams"},
    f"{A}.CONSUMER.CREATE.EVENTS.metering-billing-facts.events.billing.>": {"metering", "streams"},
    f"{A}.CONSUMER.CREATE.EVENTS.billing-worker.events.stripe.>": {"billing", "streams"},
    f"{A}.CONSUMER.CREATE.EVENTS.forward-1.events.billing.acme.>": {"billing", "backup", "streams"},
    f"{A}.CONSUMER.MSG.NEXT.AGENTESE.metering": {"metering"},
    f"{A}.CONSUMER.MSG.NEXT.EVENTS.metering-billing-facts": {"metering"},
    f"{A}.CONSUMER.MSG.NEXT.EVENTS.billing-worker": {"billing"},
    f"{A}.CONSUMER.MSG.NEXT.AGENTESE.forward-1": {"api", "backup"},
    f"{A}.CONSUMER.MSG.NEXT.EVENTS.forward-1": {"billing", "backup"},
    f"{A}.CONSUMER.DELETE.AGENTESE.metering": {"metering"},
    f"{A}.CONSUMER.DELETE.EVENTS.billing-worker": set(),
    f"{A}.CONSUMER.DELETE.AGENTESE.forward-1": {"api", "backup"},
    f"{A}.CONSUMER.INFO.AGENTESE.metering": {"metering", "streams"},
    f"{A}.CONSUMER.INFO.EVENTS.billing-worker": {"billing", "streams"},
    f"{A}.CONSUMER.LIST.AGENTESE": {"backup"},
    "$JS.ACK.AGENTESE.metering.1.1.1.1.0": {"metering"},
    "$JS.ACK.EVENTS.billing-worker.1.1.1.1.0": {"billing"},
    "$JS.ACK.EVENTS.metering-billing-facts.1.1.1.1.0": {"metering"},
    "$JS.ACK.AGENTESE.forward-1.1.1.1.1.0": set(),
    "$SYS.REQ.USER.AUTH": set(),
    "$SYS.REQ.SERVER.PING.CONNZ": set(),
}
OPERATOR_MAY_NOT = {"_INBOX.api.x", "$KV.any.key", "$SYS.REQ.USER.AUTH", "$SYS.REQ.SERVER.PING.CONNZ"}
HEARD: dict[str, set[str]] = {
    "agentese.>": {"operator"},
    "events.>": {"operator"},
    "events.heartbeat.>": {"api", "operator"},
    "events.billing.>": {"operator"},
    "_INBOX.>": set(),
    "_INBOX.api.>": {"api"},
    "_INBOX.metering.>": {"metering"},
    "_INBOX.operator.>": {"operator"},
    "$JS.>": set(),
    ">": set(),
}


class Spoken:
    """A client of one user, and every violation its server tells it of."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.client = Client()

    async def note(self, error: Exception) -> None:
        if "permissions violation" in str(error):
            self.violations.append(str(error).lower())

    async def refused(self, subjects: Iterable[str], *, hear: bool = False) -> set[str]:
        """Those that the server refuses; it tells in order, so one that nobody may use ends the list."""
        subjects = list(subjects)
        for subject in (*subjects, NOBODYS):
            if hear:
                await self.client.subscribe(subject)
            else:
                await self.client.publish(subject, b"{}")
        await reached(lambda: any(f'"{NOBODYS}"' in told for told in self.violations))
        return {subject for subject in subjects if any(f'"{subject.lower()}"' in v for v in self.violations)}


@pytest.fixture(scope="module", params=[OLDEST_VERSION, installed_version()])
def server_with_users(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> object:
    directory: Path = tmp_path_factory.mktemp("users")
    seeds.make(directory / "seeds")
    server = NatsServer(
        directory / "nats", version=request.param, extra=accounts(seeds.account_keys(directory / "seeds"))
    )
    with server:
        yield server, directory / "seeds"


@pytest.fixture(params=SERVICES, ids=lambda user: user.name)
async def somebody(
    request: pytest.FixtureRequest, server_with_users: tuple[NatsServer, Path]
) -> AsyncIterator[tuple[NatsUser, Spoken]]:
    server, directory = server_with_users
    spoken, user = Spoken(), request.param
    await spoken.client.connect(
        server.address,
        nkeys_seed=str(directory / f"{user.name}.nk"),
        inbox_prefix=user.inbox_prefix,
        error_cb=spoken.note,
        connect_timeout=60,
    )
    yield user, spoken
    await spoken.client.close()


async def test_each_user_may_publish_what_is_written_and_nothing_else(
    somebody: tuple[NatsUser, Spoken],
) -> None:
    """Rule: the least permissions that work; a subject nobody is named for is nobody's."""
    user, spoken = somebody
    found = set(TABLE) - await spoken.refused(TABLE)
    if user.name == "operator":
        assert found == set(TABLE) - OPERATOR_MAY_NOT
    else:
        assert found == {subject for subject, users in TABLE.items() if user.name in users}


async def test_each_user_hears_its_own_answers_alone(somebody: tuple[NatsUser, Spoken]) -> None:
    """Rule: an inbox of its own, which no other may hear."""
    user, spoken = somebody
    found = set(HEARD) - await spoken.refused(HEARD, hear=True)
    assert found == {subject for subject, users in HEARD.items() if user.name in users}


async def test_what_a_user_may_not_ask_is_known_at_once(server_with_users: tuple[NatsServer, Path]) -> None:
    """Rule: a server answers such a request nothing; its word of it ends the waiting, and is passed on."""
    server, directory = server_with_users
    client = OurClient()
    await client.connect(
        server.address,
        nkeys_seed=str(directory / "backup.nk"),
        inbox_prefix="_INBOX.backup",
        error_cb=Spoken().note,
        connect_timeout=60,
    )
    asked = [
        streams.request(client, f"STREAM.{call}.kgents-Pace-1", timeout_seconds=3600)
        for call in ("CREATE", "DELETE", "DELETE")
    ]
    for refused in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(refused, streams.NotPermittedError)
        assert "may not publish to $JS.API.STREAM" in str(refused)
    assert client._refusals == {}
    with pytest.raises(streams.JetStreamApiError):
        await streams.request(client, "STREAM.INFO.AGENTESE")  # it may ask that
    await client.close()


async def test_whoever_is_nobody_is_not_let_in(server_with_users: tuple[NatsServer, Path]) -> None:
    """Rule: without a responder nobody new comes in, by whatever name."""
    server, _ = server_with_users
    for shown in ({}, {"token": "kg_nobody"}, {"user": "api", "password": "api"}):
        with pytest.raises(Exception):  # noqa: B017 nats-py tells of it in several ways
            await nats.connect(server.address, allow_reconnect=False, max_reconnect_attempts=1, **shown)


def test_the_seeds_are_their_owners_alone_and_stay(tmp_path: Path) -> None:
    """Rule: made once, readable by nobody else; the configuration holds public keys alone."""
    seeds.make(tmp_path / "seeds")
    before = {path.name: path.read_bytes() for path in (tmp_path / "seeds").iterdir()}
    seeds.make(tmp_path / "seeds")
    assert {path.name: path.read_bytes() for path in (tmp_path / "seeds").iterdir()} == before
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "seeds").iterdir()} == {0o600}
    text = accounts(seeds.account_keys(tmp_path / "seeds"))
    assert not any(seed.decode() in text for seed in before.values())
    assert all(seeds.public(tmp_path / "seeds" / f"{user.name}.nk") in text for user in ALL)


async def test_the_cutter_may_end_connections_and_nothing_more(
    server_with_users: tuple[NatsServer, Path],
) -> None:
    """Rule: a user of the system account that lists and ends connections."""
    server, directory = server_with_users
    spoken = Spoken()
    await spoken.client.connect(
        server.address,
        nkeys_seed=str(directory / "cutter.nk"),
        inbox_prefix="_INBOX.cutter",
        error_cb=spoken.note,
        connect_timeout=60,
    )
    answer = asyncio.get_running_loop().create_future()

    async def hear(message: object) -> None:
        answer.set_result(message) if not answer.done() else None

    inbox = spoken.client.new_inbox()
    await spoken.client.subscribe(inbox, cb=hear)
    await spoken.client.publish("$SYS.REQ.SERVER.PING.CONNZ", b"{}", reply=inbox)
    await reached(answer.done)
    await spoken.client.subscribe(AGENTS_CLOSED)
    others = {"$SYS.REQ.SERVER.PING.VARZ", "$SYS.REQ.SERVER.x.RELOAD", "agentese.acme.t", f"{A}.INFO"}
    assert await spoken.refused(others) == others
    assert not any(AGENTS_CLOSED.lower() in told for told in spoken.violations)
    await spoken.client.close()
