"""The live stream: the tenant's own events as they are stored, resumable, bounded, ended in order."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import nats
import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message

from kgents_api.handlers.live_client import Client, LiveMetrics
from kgents_api.model.live import Frame, Place, PositionLostError, Tail, TypeFilter
from kgents_api.sources.live import AgenteseLog
from kgents_common import keyring
from kgents_common.connection import Connection
from kgents_common.settings import ServiceSettings
from kgents_devstack.raw_nats import UNREADABLE_HEADERS, UNREADABLE_SUBJECTS, RawPublisher
from kgents_devstack.servers import NatsServer, apply_streams
from kgents_devstack.services import ServiceProcess

from .conftest import Door, encoded, event
from .live_streams import LiveStream

BATCH = "application/cloudevents-batch+json"


def new() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    """A door whose streams beat often."""
    directory: Path = tmp_path_factory.mktemp("live-door")
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    foreign_key, foreign = keyring.mint("globex", keyring.TENANT_SCOPES)
    reader_key, reader = keyring.mint("acme", ["events:write"])
    keyring.write(directory / "keys.json", [record, foreign, reader])
    with NatsServer(directory / "nats") as nats_server:
        apply_streams(nats_server.url)
        environment = {
            "NATS_SERVERS": nats_server.url,
            "KGENTS_KEYRING_FILE": str(directory / "keys.json"),
            "KGENTS_LIVE_HEARTBEAT_SECONDS": "0.5",
            "KGENTS_LIVE_MAX_CLIENTS_PER_TENANT": "20",
            "KGENTS_LIVE_MAX_CLIENTS": "25",
        }
        with (
            ServiceProcess("api", directory / "api", environment) as service,
            httpx.Client(base_url=service.url, timeout=20) as client,
        ):
            yield Door(service, nats_server, key, foreign_key, reader_key, client)


def stored(door: Door, name: str | None = None, **changes: object) -> int:
    """Publish one event of acme; its sequence."""
    answer = door.post(encoded(name or new(), **changes))
    return int(answer.json()["receipts"][0]["stream_sequence"])


async def test_an_event_arrives_while_it_is_stored(door: Door) -> None:
    """Rule: id is the stream sequence, event the type, data the CloudEvent on one line."""
    async with LiveStream(door.service.port, door.key) as stream:
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        assert stream.retry > 0
        name = new()
        sequence = stored(door, name, type="llm.tokens")
        (got,) = await stream.events(1)
    assert (got.sequence, got.event) == (sequence, "llm.tokens")
    assert (got.data["id"], got.data["subject"], got.data["data"]["tokens"]) == (name, "acme", 5)


async def test_a_tenant_sees_only_itself(door: Door) -> None:
    """Rule: P8; the tenant is the credentials'."""
    async with (
        LiveStream(door.service.port, door.key) as acme,
        LiveStream(door.service.port, door.foreign_key) as globex,
    ):
        ours, theirs = new(), new()
        door.post(encoded(theirs), authorization=f"Bearer {door.foreign_key}")
        door.post(encoded(ours))
        assert [e.data["id"] for e in await acme.events(1)] == [ours]
        assert [e.data["id"] for e in await globex.events(1)] == [theirs]
        assert (len(acme.received), len(globex.received)) == (1, 1)


async def test_types_are_filtered_exactly_and_by_their_start(door: Door) -> None:
    """Rule: `type` may be repeated; `tool.*` is every type that starts with `tool.`."""
    async with LiveStream(door.service.port, door.key, types=("llm.tokens", "tool.*")) as stream:
        for kind in ("llm.tokens", "llm.tokens.cached", "tool", "tool.call", "tool.call.failed", "toolbox.x"):
            stored(door, type=kind)
        stored(door, "last", type="tool.last", source=new())
        await stream.until(lambda: any(e.event == "tool.last" for e in stream.received))
    assert [e.event for e in stream.received] == ["llm.tokens", "tool.call", "tool.call.failed", "tool.last"]


async def test_it_resumes_after_the_last_event_id_without_hole_or_repeat(door: Door) -> None:
    """Rule: what was stored while the client was away comes first, then what is stored now."""
    async with LiveStream(door.service.port, door.key) as stream:
        stored(door)
        (seen,) = await stream.events(1)
    missed = [stored(door) for _ in range(5)]
    async with LiveStream(door.service.port, door.key, after=seen.id) as stream:
        await stream.events(5)
        more = [stored(door) for _ in range(3)]
        got = await stream.events(8)
    assert [e.sequence for e in got] == missed + more


async def test_many_events_at_once_reach_a_client_that_reads(door: Door) -> None:
    """Rule: a burst larger than the tail costs a client that reads nothing."""
    async with LiveStream(door.service.port, door.key) as stream:
        names = [new() for _ in range(3000)]
        for start in range(0, 3000, 1000):
            door.post(json.dumps([event(n) for n in names[start : start + 1000]]), BATCH)
        got = await stream.events(3000)
    assert [e.data["id"] for e in got] == names
    sequences = [e.sequence for e in got]
    assert sequences == sorted(set(sequences))


async def test_a_resuming_client_reads_a_long_past_and_meets_the_present(door: Door) -> None:
    """Rule: catching up ends without a seam: the tail goes on where the client's own reader stopped."""
    begin = stored(door)
    names = [new() for _ in range(2000)]
    async with LiveStream(door.service.port, door.key):  # the tail is there already, and moves on
        for start in range(0, 2000, 1000):
            door.post(json.dumps([event(n) for n in names[start : start + 1000]]), BATCH)
        async with LiveStream(door.service.port, door.key, after=begin) as late:
            door.post(encoded(names_last := new()))
            got = await late.events(2001)
    assert [e.data["id"] for e in got] == [*names, names_last]


async def test_a_body_of_many_lines_is_one_line(door: Door) -> None:
    """Rule: a line end inside the JSON text must not end the data."""
    async with LiveStream(door.service.port, door.key) as stream:
        name = new()
        door.post(
            json.dumps(event(name, subject="acme", time="2026-01-01T00:00:00Z"), indent=2).replace(
                "\n", "\r\n"
            )
        )
        (got,) = await stream.events(1)
    assert got.data["id"] == name


async def test_what_is_no_event_is_left_out(door: Door) -> None:
    """Rule: data is always one JSON object, whatever was published past the door."""
    client = await nats.connect(door.nats.url)
    async with LiveStream(door.service.port, door.key) as stream:
        for body in (b"", b"\xff\xfe", b"[1]", b"no"):
            await client.jetstream().publish("agentese.acme.llm.tokens", body)
        name = new()
        stored(door, name)
        (got,) = await stream.events(1)
    await client.close()
    assert got.data["id"] == name


async def test_a_quiet_stream_beats(door: Door) -> None:
    """Rule: a comment while nothing happens, with the position where it moved on by what is filtered."""
    async with LiveStream(door.service.port, door.key, types=("nothing.like.this",)) as stream:
        sequence = stored(door)
        await stream.until(lambda: len(stream.comments) >= 2 and stream.last_sequence == sequence)
    assert stream.received == []


async def test_a_position_beyond_the_end_is_a_gap(door: Door) -> None:
    """Rule: an id the stream never gave (it was restored) is said, and now goes on."""
    async with LiveStream(door.service.port, door.key, after=10**12) as stream:
        sequence = stored(door)
        gap, got = await stream.events(2)
    assert (gap.event, gap.data["reason"], gap.data["requested"]) == ("gap", "beyond_the_end", 10**12)
    assert got.sequence == sequence


async def test_a_position_older_than_the_first_event_is_a_gap(own_nats: NatsServer, tmp_path: Path) -> None:
    """Rule: what is no longer held is said, and the stream goes on with the first event it holds."""
    apply_streams(own_nats.url)
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(tmp_path / "keys.json", [record])
    environment = {"NATS_SERVERS": own_nats.url, "KGENTS_KEYRING_FILE": str(tmp_path / "keys.json")}
    with ServiceProcess("api", tmp_path / "api", environment) as service:
        for _ in range(10):
            httpx.post(
                f"{service.url}/v1/events",
                content=encoded(new()),
                headers={"authorization": f"Bearer {key}", "content-type": "application/cloudevents+json"},
            ).raise_for_status()
        client = await nats.connect(own_nats.url)
        await client.jetstream().purge_stream("AGENTESE", seq=7)
        await client.close()
        async with LiveStream(service.port, key, after=3) as stream:
            gap, *rest = await stream.events(5)
    assert (gap.event, gap.sequence, gap.data["reason"]) == ("gap", 6, "no_longer_held")
    assert [e.sequence for e in rest] == [7, 8, 9, 10]


async def test_a_stream_made_anew_is_a_gap(own_nats: NatsServer, tmp_path: Path) -> None:
    """Rule: an id of the stream before is said to be one, and all that the new stream holds follows; who was
    there while it was made anew is sent away, and comes back to that. A plain sequence, as versions before
    gave it, cannot tell and is taken at its word. Ids may be had plain, too."""
    apply_streams(own_nats.url)
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(tmp_path / "keys.json", [record])
    environment = {
        "NATS_SERVERS": own_nats.url,
        "KGENTS_KEYRING_FILE": str(tmp_path / "keys.json"),
        "KGENTS_LIVE_HEARTBEAT_SECONDS": "0.5",
    }

    with ServiceProcess("api", tmp_path / "api", environment) as service:
        await published(own_nats, 7)
        async with LiveStream(service.port, key, after=0) as stream:
            seen = await stream.events(7)
        async with LiveStream(service.port, key, after=seen[5].id) as stream:
            assert [e.id for e in await stream.events(1)] == [seen[6].id]
        async with LiveStream(service.port, key) as there:
            # It finds the new stream as long as the one it read, as after an outage.
            service.signal(signal.SIGSTOP)
            await made_anew(own_nats)
            await published(own_nats, 8)
            service.signal(signal.SIGCONT)
            await there.until(lambda: there.has_ended or there.received)
            assert there.received == []
        of_a_longer_one = f"9-{seen[6].id.partition('-')[2]}"
        for id_before in (seen[1].id, seen[6].id, there.last_id, of_a_longer_one):
            async with LiveStream(service.port, key, after=id_before) as stream:
                await stream.until(lambda stream=stream: stream.received or stream.comments)
                assert stream.received, "silence"
                gap = stream.received[0]
                assert (gap.event, gap.data.get("reason"), gap.sequence) == ("gap", "made_anew", 0)
                assert [e.sequence for e in (await stream.events(9))[1:]] == [1, 2, 3, 4, 5, 6, 7, 8]
        async with LiveStream(service.port, key, after=gap.id) as stream:
            assert [e.sequence for e in await stream.events(8)] == [1, 2, 3, 4, 5, 6, 7, 8]
        async with LiveStream(service.port, key, after=6) as stream:
            again = await stream.events(2)
            assert [e.sequence for e in again] == [7, 8]
    plain = {**environment, "KGENTS_LIVE_PLAIN_IDS": "true"}
    with ServiceProcess("api", tmp_path / "plain", plain) as service:
        async with LiveStream(service.port, key, after=again[0].id) as stream:
            assert [e.id for e in await stream.events(1)] == ["8"]


async def test_a_tail_knows_its_places_by_their_times() -> None:
    """Rule: what a tail saw for itself needs no question; the same sequence of another stream is not that."""
    tail = Tail(Place(4, 40), "", max_events=2, max_bytes=1000)
    assert tail.holds(Place(4, 40))
    assert not tail.holds(Place(4, 41))
    tail.append([Frame(n, n * 10, "t", b"x") for n in (5, 7, 8)])
    assert [n for n in range(10) if tail.holds(Place(n, n * 10))] == [7, 8]
    assert not [n for n in range(10) if tail.holds(Place(n, n * 10 + 1))]


async def test_a_tail_is_bounded_in_bytes() -> None:
    """Rule: the oldest leave, and who was to have them is not told that all is held; one may be larger."""
    tail = Tail(Place(0, 1), "", max_events=100, max_bytes=10)
    for held, size, floor in (
        ([1, 2], 4, 0),
        ([3, 4, 5], 4, 3),
        ([6], 50, 5),
        ([7], 4, 6),
        ([8], 4, 6),
        ([9], 4, 7),
    ):
        tail.append([Frame(n, n, "t", b"x" * size) for n in held])
        assert tail.floor == floor
        assert [frame.sequence for frame in tail.since(floor)] == list(range(floor + 1, held[-1] + 1))
        assert tail.covers(floor)
        assert floor == 0 or not tail.covers(floor - 1)


async def test_no_other_stream_of_the_name_is_read_on(own_nats: NatsServer) -> None:
    """Rule: neither by a reader that was yet to open when its stream was made anew, nor by a client that asks
    how far it is to catch up."""
    apply_streams(own_nats.url)
    await published(own_nats, 3)
    connection = Connection(
        ServiceSettings(nats_servers=(own_nats.url,)), name="test", on_closed=lambda: None
    )
    await connection.start()
    await connection.wait()
    try:
        log = AgenteseLog(connection)
        before = await log.bounds("acme")
        await made_anew(own_nats)
        await published(own_nats, 5)
        reader = log.reader("acme", before.last, before.stream)
        with pytest.raises(PositionLostError):
            await reader.next()
        client = Client(
            sent := SentTexts(),
            tenant="globex",  # has nothing that it could read
            wanted=TypeFilter(),
            log=log,
            turns=(),
            may_stay=sent.may_stay,
            metrics=LiveMetrics(CollectorRegistry()),
            heartbeat_seconds=0.1,
        )
        tail = Tail(before.end, before.stream, max_events=1, max_bytes=1)
        ended = await client.serve(tail, Place(before.last - 1), b"", asyncio.Event().wait)
        assert ended == "position_lost"
    finally:
        await connection.stop()


class SentTexts:
    """What was sent; the client's credentials are good for one heartbeat."""

    async def __call__(self, message: Message) -> None:
        self.last = message

    async def may_stay(self) -> bool:
        return b"heartbeat" not in self.last["body"]


async def published(server: NatsServer, count: int) -> None:
    """Store so many events of acme past the door."""
    client = await nats.connect(server.url)
    for _ in range(count):
        await client.jetstream().publish("agentese.acme.llm.tokens", encoded(new(), subject="acme"))
    await client.close()


async def made_anew(server: NatsServer) -> None:
    """AGENTESE is another stream of the same name."""
    client = await nats.connect(server.url)
    await client.jetstream().delete_stream("AGENTESE")
    await client.close()
    apply_streams(server.url)


async def test_what_nobody_can_read_ends_no_stream(door: Door) -> None:
    """Rule: a message published past the door that no client library can read is not an event of the stream,
    and holds up neither it nor a publish."""
    async with LiveStream(door.service.port, door.key) as stream:
        async with RawPublisher(door.nats.url) as raw:
            for tail in UNREADABLE_SUBJECTS:
                raw.publish(b"agentese.acme." + tail, b"{}")
            for block in UNREADABLE_HEADERS:
                raw.publish(b"agentese.acme.t", b"\xff", block)
            await raw.settle()
        sequence = stored(door)
        [got] = await stream.events(1)
    assert got.sequence == sequence


@pytest.mark.parametrize(
    ("query", "header"),
    [
        ("", "x"),
        ("", "-1"),
        ("", str(2**64)),
        ("?last_event_id=1.5", ""),
        ("?type=", ""),
        ("?type=*", ""),
        ("?type=a..b", ""),
    ],
)
def test_garbage_is_refused_by_name(door: Door, query: str, header: str) -> None:
    """Rule: 400 with the violated rule."""
    headers = {"authorization": f"Bearer {door.key}", **({"last-event-id": header} if header else {})}
    answer = door.client.get(f"/v1/events/stream{query}", headers=headers)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["invalid_parameters"][0]["field"] in ("Last-Event-ID", "type")


def test_it_takes_good_credentials_with_the_scope(door: Door) -> None:
    """Rule: 401 without, 403 lacking events:read; `reader_key` here may only write."""
    assert door.client.get("/v1/events/stream").status_code == 401
    headers = {"authorization": f"Bearer {door.reader_key}"}
    assert door.client.get("/v1/events/stream", headers=headers).status_code == 403


async def test_a_tenant_has_so_many_streams_and_the_door_so_many(door: Door) -> None:
    """Rule: 503 beyond either; a stream that ends makes room."""
    ours = [await LiveStream(door.service.port, door.key).open() for _ in range(20)]
    theirs: list[LiveStream] = []
    try:
        refused = await LiveStream(door.service.port, door.key).open()
        assert (refused.status, "retry-after" in refused.headers) == (503, True)
        theirs = [await LiveStream(door.service.port, door.foreign_key).open() for _ in range(5)]
        assert {s.status for s in [*ours, *theirs]} == {200}
        full = await LiveStream(door.service.port, door.foreign_key).open()
        assert full.status == 503
        await ours.pop().close()
        for _ in range(100):
            again = await LiveStream(door.service.port, door.foreign_key).open()
            if again.status == 200:
                break
        theirs.append(again)
        assert again.status == 200
    finally:
        for stream in [*ours, *theirs]:
            await stream.close()
