"""Dead letters are kept whole, once each, and told of; none holds up another. The same for every schema."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from kgents_common import database
from kgents_common.dead_letters import Burial, DeadLetter, DeadLetters, Mirror, bury, share
from kgents_common.errors import NotDurableError, PermanentError
from kgents_common.stored_message import StoredMessage

BEFORE = datetime(2026, 11, 1, tzinfo=UTC)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SCHEMAS = ("metering", "billing")
IDENTITY = "0030_message_identity.sql"

Pool = AsyncConnectionPool[AsyncConnection]


def message(seq: int, *, at: datetime = NOON, **changes: Any) -> StoredMessage:
    """A message nobody can read."""
    fields: dict[str, Any] = {
        "subject": r"agentese.acme.\xff",
        "headers": {"a(b": "c", "x": "y"},
        "body": b"\x00\xff",
        "epoch": BEFORE,
        "seq": seq,
        "stored_at": at,
        "stream": "AGENTESE",
        "raw_subject": b"agentese.acme.\xff",
        "raw_headers": b"NATS/1.0",
    }
    return StoredMessage(**(fields | changes))


@pytest.fixture(params=SCHEMAS)
async def schema(request: pytest.FixtureRequest, database_url: str) -> str:
    """Each schema that owns dead letters, migrated."""
    name: str = request.param
    await database.migrate(database_url, package=f"kgents_{name}.schema", schema=name)
    return name


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    made = database.make_pool(database_url, application="test")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def letters(pool: Pool, schema: str) -> DeadLetters[DeadLetter]:
    return DeadLetters(pool, schema, DeadLetter)


async def put(pool: Pool, schema: str, *messages: StoredMessage, code: str = "malformed") -> None:
    beside = {"event_id": None, "type": "t"} if schema == "billing" else {}
    async with pool.connection() as connection:
        await bury(connection, schema, [Burial(m, code, "why\x00", beside) for m in messages])


class Bus:
    """Takes what is small enough, and may refuse one of them again and again."""

    def __init__(self, *, most: int = 2**20, never: str = "") -> None:
        self.most = most
        self.never = never
        self.told: list[tuple[str, bytes, Mapping[str, str]]] = []

    async def publish(
        self, subject: str, payload: bytes, *, message_id: str, headers: Mapping[str, str] | None = None
    ) -> None:
        assert headers is not None
        if len(payload) + sum(len(k) + len(v) for k, v in headers.items()) > self.most:
            raise PermanentError("too large")
        if headers["Kgents-Original-Sequence"] == self.never:
            raise NotDurableError("no answer")
        self.told.append((message_id, payload, headers))


async def mirrored(letters: DeadLetters[DeadLetter], bus: Bus) -> None:
    mirror = Mirror(letters, bus, "test")
    for _ in range(5):
        await mirror.run()


async def test_a_message_is_buried_whole_and_once(
    pool: Pool, schema: str, letters: DeadLetters[DeadLetter]
) -> None:
    """Rule: raw subject and headers are kept; a redelivery buries nothing again."""
    await put(pool, schema, message(7))
    await put(pool, schema, message(7), message(8))
    first, second = await letters.find()
    assert (first.seq, second.seq) == (7, 8)
    assert first.message() == message(7)
    assert first.detail == "why\ufffd"


async def test_a_sequence_used_before_is_another_message(
    pool: Pool, schema: str, letters: DeadLetters[DeadLetter]
) -> None:
    """Rule: stream, sequence and time of storage make the message, on the bus too; the epoch as last seen
    does not."""
    await put(pool, schema, message(7))
    await put(pool, schema, message(7, at=NOON + timedelta(hours=1)))
    await put(pool, schema, message(7, stream="EVENTS"))
    assert len(await letters.find()) == 3
    bus = Bus()
    await mirrored(letters, bus)
    assert len({message_id for message_id, _, _ in bus.told}) == 3


async def test_a_sender_of_garbage_fills_its_share_of_the_bus_and_no_more(
    pool: Pool, schema: str, letters: DeadLetters[DeadLetter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: whole, then without bodies, then only counted, until the next hour; others are told of, the table
    has all, and a letter that is tried again takes nothing more."""
    monkeypatch.setattr(share, "BODY_BYTES", 2500)
    monkeypatch.setattr(share, "LETTERS", 4)
    now = 0.0
    bus = Bus(never="2")
    mirror = Mirror(letters, bus, "test", clock=lambda: now)

    async def told(*messages: StoredMessage) -> list[tuple[int, str | None]]:
        await put(pool, schema, *messages)
        before = len(bus.told)
        for _ in range(4):
            await mirror.run()
        return [(len(payload), headers.get("Kgents-Untold")) for _, payload, headers in bus.told[before:]]

    garbage = {"body": b"x" * 1000, "subject": "agentese.acme.llm"}
    assert await told(message(1, **garbage), message(2, **garbage)) == [(1000, None)]
    bus.never = ""
    assert await told() == [(1000, None)]
    assert await told(*(message(n, **garbage) for n in (3, 4, 5, 6))) == [(0, None), (0, None)]
    assert await told(message(7, body=b"x" * 1000, subject="agentese.globex.llm")) == [(1000, None)]
    now = share.HOUR_SECONDS
    assert await told(message(8, **garbage)) == [(1000, "2")]
    assert len(await letters.find()) == 8
    assert await letters.to_mirror() == []


async def test_one_too_large_for_the_bus_is_told_of_and_holds_up_nobody(
    pool: Pool, schema: str, letters: DeadLetters[DeadLetter]
) -> None:
    """Rule: what is too large is cut on the bus, whole in the table, and the next ones are mirrored."""
    large = b"x" * 100_000
    await put(pool, schema, message(1, body=large), message(2, headers={"h": "v" * 300_000}), message(3))
    bus = Bus(most=80_000)
    await mirrored(letters, bus)
    assert [len(payload) for _, payload, _ in bus.told] == [65536, 2, 2]
    assert bus.told[0][2]["Kgents-Body-Bytes"] == "100000"
    assert bus.told[0][2]["Kgents-Dead-Letter-Id"] == str((await letters.find())[0].id)
    assert "h" not in bus.told[1][2]
    assert bus.told[2][2]["x"] == "y"
    assert "a(b" not in bus.told[2][2]
    assert len({message_id for message_id, _, _ in bus.told}) == 3
    assert bytes((await letters.find())[0].body) == large


async def test_one_the_bus_never_takes_holds_up_nobody(
    pool: Pool, schema: str, letters: DeadLetters[DeadLetter]
) -> None:
    """Rule: a letter that fails again and again goes behind all others."""
    await put(pool, schema, *(message(seq) for seq in range(1, 60)))
    bus = Bus(never="1")
    await mirrored(letters, bus)
    assert len(bus.told) == 58
    bus.never = ""
    await mirrored(letters, bus)
    assert len(bus.told) == 59


async def test_a_bus_that_is_away_is_told(pool: Pool, schema: str, letters: DeadLetters[DeadLetter]) -> None:
    """Rule: where nothing gets through the round ends with the reason."""
    await put(pool, schema, *(message(seq) for seq in range(1, 10)))

    class Away(Bus):
        async def publish(self, *_: Any, **__: Any) -> None:
            raise NotDurableError("away")

    with pytest.raises(NotDurableError):
        await Mirror(letters, Away(), "test").run()


@pytest.mark.parametrize("schema_name", SCHEMAS)
async def test_letters_of_the_version_before_stay_and_are_found_again(
    database_url: str, pool: Pool, schema_name: str
) -> None:
    """Rule: after the update a redelivery of what was buried before it buries nothing again; what a stream
    made anew holds at the same sequence is buried."""
    await _migrate_before(database_url, schema_name)
    values = {
        "epoch": BEFORE,
        "seq": 7,
        "subject": "agentese.acme.t",
        "body": b"old",
        "code": "c",
        "detail": "d",
    }
    values |= {"headers": "{}", "stored_at": NOON} if schema_name == "metering" else {"type": "t"}
    if schema_name == "billing":
        values["subject"] = "events.stripe.test.t.e"
    names = ", ".join(values)
    async with pool.connection() as connection:
        await connection.execute(
            f"insert into {schema_name}.dead ({names}) values ({', '.join(['%s'] * len(values))})".encode(),
            list(values.values()),
        )
    ran = await database.migrate(database_url, package=f"kgents_{schema_name}.schema", schema=schema_name)
    assert IDENTITY in ran
    stream = "AGENTESE" if schema_name == "metering" else "EVENTS"
    await put(pool, schema_name, message(7, stream=stream))
    letters = DeadLetters(pool, schema_name, DeadLetter)
    [old] = await letters.find()
    assert bytes(old.body) == b"old"
    anew = BEFORE + timedelta(days=30)
    await put(pool, schema_name, message(7, stream=stream, at=anew, epoch=anew))
    assert len(await letters.find()) == 2


async def _migrate_before(url: str, schema: str) -> None:
    """The schema as the version before this rule left it."""
    files = sorted(
        (f for f in resources.files(f"kgents_{schema}.schema").iterdir() if f.name.endswith(".sql")),
        key=lambda f: f.name,
    )
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(f"create schema if not exists {schema}".encode())
        await connection.execute(
            f"create table if not exists {schema}.migration (name text primary key, digest text not null,"
            " at timestamptz not null default now())".encode()
        )
        for file in files:
            if file.name >= IDENTITY:
                break
            text = file.read_text()
            await connection.execute(text.encode())
            digest = hashlib.sha256(text.encode()).hexdigest()
            await connection.execute(
                f"insert into {schema}.migration (name, digest) values (%s, %s)".encode(), [file.name, digest]
            )
