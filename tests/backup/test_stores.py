"""One behaviour suite for every store: a directory, and S3 (a real server)."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.backup.conftest import open_s3

from kgents_backup.model.faults import CorruptError, LockedError, StoreError
from kgents_backup.model.ports import Store
from kgents_backup.sinks.store import DirectoryStore, Lease, Sealer, Vault
from kgents_backup.sinks.store.sealing import load_keys, new_key
from kgents_common.cancelling import cancelled
from kgents_common.clock import SystemClock
from kgents_common.errors import ConfigurationError
from kgents_devstack.servers import S3Server
from kgents_devstack.waiting import reached as until


async def test_what_is_put_is_got_listed_and_deleted(each_store: Store) -> None:
    """Rule: a file is there whole under its key, replaced whole, and gone after its deletion."""
    assert await each_store.list("") == []
    await each_store.put("a/b/one", b"1")
    await each_store.put("a/b/two", b"22")
    await each_store.put("a/c", b"")
    await each_store.put("a/b/one", b"one")
    assert await each_store.get("a/b/one") == b"one"
    assert [(e.key, e.size) for e in await each_store.list("a/b/")] == [("a/b/one", 3), ("a/b/two", 2)]
    assert [e.key for e in await each_store.list("")] == ["a/b/one", "a/b/two", "a/c"]
    assert abs(datetime.now(UTC) - (await each_store.list("a/"))[0].modified) < timedelta(minutes=5)
    await each_store.delete("a/b/one")
    await each_store.delete("a/b/one")
    assert [e.key for e in await each_store.list("a/b/")] == ["a/b/two"]
    with pytest.raises(FileNotFoundError):
        await each_store.get("a/b/one")


async def test_a_listing_does_not_mix_up_names_with_one_beginning(each_store: Store) -> None:
    """Rule: a prefix ends at a slash: AGENTESE is not AGENTESE-2."""
    await each_store.put("segments/AGENTESE/x", b"1")
    await each_store.put("segments/AGENTESE-2/x", b"1")
    assert [e.key for e in await each_store.list("segments/AGENTESE/")] == ["segments/AGENTESE/x"]


async def test_only_one_of_many_creates(each_store: Store) -> None:
    """Rule: `create` succeeds for exactly one, whoever starts at the same moment."""
    outcomes = await asyncio.gather(*[each_store.create("lock", f"{n}".encode()) for n in range(8)])
    assert sum(outcomes) == 1
    assert await each_store.get("lock") == f"{outcomes.index(True)}".encode()


async def test_only_one_of_many_replaces(each_store: Store) -> None:
    """Rule: `replace` wants the version it read; the others lose."""
    await each_store.create("lock", b"old")
    version = (await each_store.get_versioned("lock")).version
    outcomes = await asyncio.gather(*[each_store.replace("lock", f"{n}".encode(), version) for n in range(8)])
    assert sum(outcomes) == 1
    assert await each_store.replace("nothing", b"x", version) is False


async def test_a_file_of_a_part_comes_back_the_same(each_store: Store) -> None:
    """Rule: the largest files we write (8 MiB and what sealing adds) are one put."""
    data = bytes(range(256)) * 34_000
    await each_store.put("part", data)
    assert await each_store.get("part") == data


async def test_a_held_lock_refuses_and_a_dead_ones_ends(each_store: Store) -> None:
    """Rule: two runs never mix; a run that died holds the lock only until its lease ends."""
    clock, length = SystemClock(), timedelta(seconds=1)
    dead = Lease(each_store, "run", owner="dead", clock=clock, length=length)
    await dead.acquire()
    with pytest.raises(LockedError, match="held by dead"):
        await Lease(each_store, "run", owner="second", clock=clock, length=length).acquire()
    await cancelled(dead._renewing)
    third = Lease(each_store, "run", owner="third", clock=clock, length=length)
    await third.acquire_within(timedelta(seconds=60))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(third.release)
        third.check()
        with pytest.raises(LockedError, match="was lost"):
            dead.check()
        await dead.release()  # late, and not its own any more
        assert await each_store.get("locks/run.json")
    assert await each_store.list("locks/") == []


async def test_a_lock_is_renewed_and_its_loss_is_noticed(each_store: Store) -> None:
    """Rule: a long run keeps the lock; one whose lock was taken away publishes nothing more."""
    lease = Lease(each_store, "run", owner="long", clock=SystemClock(), length=timedelta(seconds=1.5))
    async with lease:
        await asyncio.sleep(3)
        lease.check()
        await each_store.put("locks/run.json", b'{"owner":"o","token":"t","until":"2099-01-01T00:00:00Z"}')

        async def is_lost() -> bool:
            try:
                lease.check()
            except LockedError:
                return True
            return False

        await until(is_lost)


async def test_a_write_that_died_is_not_seen(tmp_path: Path) -> None:
    """Rule: temporary files are no files, and the next run clears them away."""
    store = DirectoryStore(tmp_path)
    await store.put("a", b"1")
    (tmp_path / ".unfinished" / "tmpdead").write_bytes(b"half")
    assert [e.key for e in await store.list("")] == ["a"]
    assert store.discard_unfinished(older_than=datetime.now(UTC) - timedelta(hours=1)) == 0
    assert store.discard_unfinished(older_than=datetime.now(UTC) + timedelta(hours=1)) == 1


async def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    """Rule: a write that fails is an error with a next step; the old file stands, no half one appears."""
    import resource

    store = DirectoryStore(tmp_path)
    await store.put("a", b"old")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(StoreError, match="local: a: File too large"):
            await store.put("a", b"x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert await store.get("a") == b"old"
    assert [e.key for e in await store.list("")] == ["a"]


async def test_s3_that_refuses_and_s3_that_is_gone_are_clear_errors(s3_server: S3Server) -> None:
    """Rule: the error names the store, the file and the reason, and says that the local copy stands."""
    refusing = open_s3(s3_server)
    s3_server_with_wrong_secret = type("Wrong", (), {
        "endpoint": s3_server.endpoint, "access_key": s3_server.access_key, "secret_key": "wrong",
    })()  # fmt: skip
    refusing = open_s3(s3_server_with_wrong_secret)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="offsite: a/b: PermissionDeniedError") as error:
        await refusing.put("a/b", b"1")
    assert error.value.hint is not None
    assert "local copy stands" in error.value.hint
    gone = type("Gone", (), {"endpoint": "http://127.0.0.1:9", "access_key": "a", "secret_key": "b"})()
    with pytest.raises(StoreError, match="offsite: a/b"):
        await open_s3(gone, call_seconds=3, retry_seconds=1).put("a/b", b"1")  # type: ignore[arg-type]


async def test_a_store_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Rule: no call to a store waits for ever."""

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    slow = type("Slow", (), {"endpoint": f"http://127.0.0.1:{port}", "access_key": "a", "secret_key": "b"})()
    with pytest.raises(StoreError, match="no answer in 2 s"):
        await open_s3(slow, call_seconds=2).put("a", b"1")  # type: ignore[arg-type]
    server.close()


def test_sealed_files_hide_their_content_and_notice_every_change() -> None:
    """Rule: no bit of a sealed file can change, no frame move, no file take another's place."""
    import secrets

    key = secrets.token_bytes(32)
    sealer = Sealer([key])
    data = b"secret " * 200_000  # more than one frame
    sealed = sealer.seal("a", data)
    assert b"secret" not in sealed
    assert sealer.open("a", sealed) == data
    assert sealer.seal("a", data) != sealed
    frame = 1024 * 1024 + 16
    bad = [
        sealed[:20] + bytes([sealed[20] ^ 1]) + sealed[21:],
        sealed[:-1] + bytes([sealed[-1] ^ 1]),
        sealed[: 48 + frame],
        sealed[:48] + sealed[48 + frame :] + sealed[48 : 48 + frame],
        data,
    ]
    for changed in bad:
        with pytest.raises(CorruptError, match=r"^a: "):
            sealer.open("a", changed)
    with pytest.raises(CorruptError):
        sealer.open("b", sealed)
    assert sealer.open("e", sealer.seal("e", b"")) == b""


def test_keys_rotate_and_a_missing_one_is_named(tmp_path: Path) -> None:
    """Rule: the first key seals, every key of the file opens."""
    path = tmp_path / "keys"
    old, new = new_key(), new_key()
    path.write_text(f"{old}\n")
    path.chmod(0o600)
    sealed = Sealer(load_keys(path)).seal("a", b"x")
    path.write_text(f"{new}\n{old}\n")
    assert Sealer(load_keys(path)).open("a", sealed) == b"x"
    path.write_text(f"{new}\n")
    with pytest.raises(ConfigurationError, match="not in the key file"):
        Sealer(load_keys(path)).open("a", sealed)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="open to everybody"):
        load_keys(path)


async def test_a_bit_flipped_anywhere_in_a_part_is_named(vault: Vault) -> None:
    """Rule: the file that is damaged is the file in the error."""
    part = await vault.write_part("p/", "000000.part", b"content" * 100)
    stored = await vault.store.get("p/000000.part")
    for position in range(0, len(stored), 97):
        changed = bytearray(stored)
        changed[position] ^= 1
        await vault.store.put("p/000000.part", bytes(changed))
        with pytest.raises(CorruptError, match=r"^p/000000\.part: its digest does not match"):
            await vault.read_part("p/", part)
    await vault.store.delete("p/000000.part")
    with pytest.raises(CorruptError, match="is missing"):
        await vault.read_part("p/", part)
