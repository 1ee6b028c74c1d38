"""Many small messages come back as files where the server stores one by one, and one by one where it must."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs
from tests.backup.streams import STREAM, add_consumer, archive, consume, delete, fill, make_stream, read_all

from kgents_backup.model.plan import Pace
from kgents_backup.operations.restoring import Prepared, beside, prepare
from kgents_backup.operations.restoring.transaction import Restoration, Wanted
from kgents_backup.operations.snapshotting import take_snapshot
from kgents_backup.sinks.file_archive import file_archive
from kgents_backup.sinks.frames import FrameReader
from kgents_backup.sinks.replay import without_original_time
from kgents_backup.sinks.scratch import program_version
from kgents_backup.sinks.store import Vault
from kgents_backup.sources.stream import durable_consumers, stream_info
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.clock import SystemClock

CLOCK = SystemClock()


async def stored(client: VerbatimClient, vault: Vault) -> list[tuple[int, int, str, bytes, bytes]]:
    """A stream of which a snapshot holds 300 messages and segments 100 more, lost again; what it held."""
    await make_stream(client)
    await add_consumer(client)
    await fill(client, 300)
    await consume(client, 50, acknowledge=50)
    await delete(client, 7, 300)
    await take_snapshot(client, vault, STREAM, clock=CLOCK)
    await fill(client, 100, start=300)
    await delete(client, 350)
    await archive(client, vault)
    held = await read_all(client)
    await client.jetstream().delete_stream(STREAM)
    return [(m.sequence, m.time, m.subject, m.headers, m.body) for m in held]


async def brought_back(
    client: VerbatimClient, vault: Vault, directory: Path
) -> tuple[list[object], list[str]]:
    """What is there afterwards, with the times that the snapshot gave; and how it was done."""
    with capture_logs() as logs:
        report = await Restoration(client, vault, vault, CLOCK, "test", beside=directory).bring_back(
            Wanted(STREAM)
        )
    assert (report.physical, report.replayed, report.missing) == (298, 99, 0)
    assert len(report.notes) == len(set(report.notes)) == 2, "an attempt that failed says nothing"
    assert [(c.name, c.ack_floor) for c in await durable_consumers(client, STREAM)] == [("metering", 50)]
    info = await stream_info(client, STREAM)
    assert info is not None
    assert (info.config["subjects"], info.last_sequence) == (["agentese.>"], 400)
    found = [
        (m.sequence, m.time, m.subject, without_original_time(m.headers), m.body)
        for m in await read_all(client)
    ]
    return list(found), [entry["event"] for entry in logs]


def without_tail_times(messages: list[tuple[int, int, str, bytes, bytes]]) -> list[object]:
    return [(seq, time if seq <= 300 else 0, *rest) for seq, time, *rest in messages]


async def test_they_are_filled_in_beside_and_brought_as_files(
    client: VerbatimClient, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the same messages at the same sequences, the snapshot's with their own times, the same consumer;
    nothing is left of the server beside."""
    monkeypatch.setattr(beside, "FEWEST_BY_FILES", 100)
    before = await stored(client, vault)
    found, logs = await brought_back(client, vault, tmp_path)
    assert without_tail_times(found) == without_tail_times(before)  # type: ignore[arg-type]
    # A server of another version than the program beside takes no files of it.
    assert ("restore.brought_as_files" in logs) == (client.version == await program_version())
    assert not list(tmp_path.glob("drill-*"))


@pytest.mark.parametrize("fault", ["no room", "another version", "files refused"])
async def test_where_that_is_not_possible_they_come_one_by_one(
    client: VerbatimClient, vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Rule: whatever fails beside costs time and nothing else."""
    monkeypatch.setattr(beside, "FEWEST_BY_FILES", 100)
    if fault == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    elif fault == "another version":
        monkeypatch.setattr(beside, "program_version", _another)
    else:
        monkeypatch.setattr(beside, "file_archive", lambda folder: file_archive(folder / "msgs"))
    before = await stored(client, vault)
    found, logs = await brought_back(client, vault, tmp_path)
    assert without_tail_times(found) == without_tail_times(before)  # type: ignore[arg-type]
    assert "restore.brought_as_files" not in logs
    is_tried = fault == "files refused" and client.version == await program_version()
    assert ("restore.message_by_message" in logs) == is_tried


async def _another() -> str:
    return "2.11.0"


async def test_the_archive_holds_the_files_as_they_are(tmp_path: Path) -> None:
    """Rule: a tar in plain frames of at most 64 KiB, larger files too."""
    files = {
        "meta.inf": b"{}",
        "msgs/1.blk": bytes(range(256)) * 5000,
        "obs/a/o.dat": b"",
        "empty/b": b"x" * 512,
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    reader, content = FrameReader(), b""
    async for piece in file_archive(tmp_path):
        for frame in reader.feed(piece):
            assert frame.content_bytes <= 65536
            content += frame.open() if frame.content_bytes else b""
    assert reader.rest == b""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == files  # type: ignore[union-attr]


async def test_the_plan_says_what_it_takes_either_way(client: VerbatimClient, vault: Vault) -> None:
    """Rule: a slow server is waited for only where the messages go to it one by one."""
    await stored(client, vault)
    prepared: Prepared = await prepare(vault, STREAM, Wanted(STREAM).until)
    slow = Pace(1.0, is_by_message=True)
    assert prepared.plan.tail_messages == 100
    assert 390 < prepared.plan.seconds(slow, 298) < 410
    many = 5_000_000
    assert prepared.plan.seconds(slow, many) > many
    assert prepared.plan.seconds(Pace(1.0, is_by_message=True, is_by_files=True), many) < 600
