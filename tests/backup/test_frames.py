"""A snapshot's blocks: opened and made smaller, to what a slow server stores in half a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.backup.streams import STREAM, fill, make_stream, read_all

from kgents_backup.model.faults import ProtocolError
from kgents_backup.model.plan import Until
from kgents_backup.model.ports import NoProgress
from kgents_backup.operations.restoring import prepare, restore
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.sinks.frames import Frame, FrameReader, decode_block, plain
from kgents_backup.sinks.restore import _Sending
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.verbatim import connected
from kgents_common.clock import SystemClock
from kgents_devstack.servers import NatsServer


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (b"\x03\x08abc", b"abc"),  # a literal
        (b"\x08\x0cabcd\x01\x04", b"abcdabcd"),  # a copy of four
        (b"\x0c\x0cabcd\x01\x04\x01\x00", b"abcdabcdabcd"),  # then the same offset once more
        (b"\x0a\x00a\x15\x01", b"aaaaaaaaaa"),  # a copy that overlaps itself
        (b"\x08\x0cabcd\x0e\x04\x00", b"abcdabcd"),  # a copy with an offset of two bytes
        (b"\x08\x0cabcd\x0f\x04\x00\x00\x00", b"abcdabcd"),  # and of four
        (b"\x15\x0cabcd\x01\x04\x15\x00\x05", b"abcdabcdabcdabcdabcda"),  # long repeat
    ],
)
def test_every_kind_of_element_opens(block: bytes, content: bytes) -> None:
    """Rule: literals, copies with each width of offset, repeats (S2's own), copies over themselves."""
    assert decode_block(block) == content


@pytest.mark.parametrize("block", [b"", b"\x03\x08ab", b"\x08\x0cabcd\x01\x09", b"\xff\xff", b"\x02\x01\x00"])
def test_a_damaged_block_is_an_error(block: bytes) -> None:
    """Rule: what is cut, or points before its beginning, does not open."""
    with pytest.raises(ProtocolError):
        decode_block(block)


def test_a_plain_frame_opens_to_what_it_was_made_of() -> None:
    """Rule: the checksum is Snappy's, masked; a changed byte is seen; frames are cut anywhere."""
    data = b"".join(plain(bytes([n]) * n) for n in range(1, 200))
    reader = FrameReader()
    found: list[Frame] = []
    for start in range(0, len(data), 7):
        found += reader.feed(data[start : start + 7])
    assert [f.open() for f in found] == [bytes([n]) * n for n in range(1, 200)]
    assert reader.rest == b""
    changed = bytearray(plain(b"abc"))
    changed[-1] ^= 1
    with pytest.raises(ProtocolError):
        Frame(changed[0], bytes(changed)).open()


@dataclass
class SlowServer:
    """Takes chunks and answers each after as long as its bytes take at a pace, as 2.15 does."""

    bytes_a_second: float
    now: float = 0.0
    longest: float = 0.0
    content: bytes = b""
    frames: FrameReader = field(default_factory=FrameReader)
    answers: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    async def publish(self, _subject: str, chunk: bytes, *, reply: str) -> None:
        opened = b"".join(f.open() for f in self.frames.feed(chunk) if f.content_bytes)
        self.content += opened
        took = len(opened) / self.bytes_a_second
        self.longest = max(self.longest, took)
        self.now += took
        await self.answers.put(reply)

    async def next_msg(self, timeout: float) -> Any:
        @dataclass
        class Answer:
            data: bytes = b""
            headers: None = None

        assert timeout
        await self.answers.get()
        return Answer()


@pytest.mark.parametrize("bytes_a_second", [20_000, 200_000, 50_000_000])
async def test_a_slow_server_gets_no_more_than_it_stores_in_time(
    monkeypatch: pytest.MonkeyPatch, bytes_a_second: float
) -> None:
    """Rule: whatever its pace, no chunk takes a server near the five seconds after which it gives up."""
    server = SlowServer(bytes_a_second)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: server.now)
    content = b"NATSARC1" + bytes(range(256)) * 4096 * 3

    async def parts() -> AsyncIterator[bytes]:
        data = b"".join(plain(content[n : n + 1024 * 1024]) for n in range(0, len(content), 1024 * 1024))
        for start in range(0, len(data), 700_000):
            yield data[start : start + 700_000]

    client: Any = server
    await _Sending(client, "deliver", "inbox", client, 8, NoProgress()).all(parts())
    assert server.content == content
    assert server.longest < 2.5


@pytest.mark.long
async def test_many_small_messages_come_back_with_synced_writes(tmp_path: Path, vault: Vault) -> None:
    """Rule: on a real server that syncs each message, thousands of them are no reason to give up."""
    with NatsServer(tmp_path / "fast", sync_always=False) as server:
        async with connected({"servers": server.url}) as client:
            await make_stream(client)
            await fill(client, 60_000, size=20)
            await take_snapshot(client, vault, STREAM, clock=SystemClock())
            before = await read_all(client)
    with NatsServer(tmp_path / "synced") as server:
        async with connected({"servers": server.url}) as client:
            await restore(client, vault, await prepare(vault, STREAM, Until()), clock=SystemClock())
            assert await read_all(client) == before
